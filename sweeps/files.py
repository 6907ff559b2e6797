"""A sweep file as it is on disk: YAML that stays small whatever it says, with the known keys."""

import math
import unicodedata

import yaml

from common.errors import UsageError
from runs.names import printable

PARTS = ("choose", "report")  # see parts.py
KEYS = {"baseline", "shared", "rows", *PARTS}
ROW_KEYS = {"name", "script", "flags", "over"}
RESULTS = "results"  # {results} in flags: the folder of results, with what begins a set's names
SIZE = 200_000  # bytes of a file
NODES, DEPTH = 50_000, 12  # values in it, aliases written out; of one within the other
ROWS = 10_000  # of a sweep
LONGEST = 10_000  # characters of a name or of flags with their values filled in
PLAIN = (str, int, float, bool)


def wrong(path, words):
    """The UsageError of a sweep file, in one line that a terminal only shows."""
    return UsageError(printable(" ".join(f"{path}: {words}".split())))


class Loader(yaml.SafeLoader):
    """Counts values while they are read, those of an alias as often as it stands there: aliases of
    aliases become billions. Refuses a key that stands twice."""

    def __init__(self, stream):
        super().__init__(stream)
        self.nodes, self.depth, self.sizes = 0, 0, {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        before = self.nodes
        self.nodes += 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self.sizes:
                raise yaml.YAMLError(f"*{event.anchor} stands within itself")
            self.nodes += self.sizes.get(event.anchor, 0)
        self.depth += 1
        if self.nodes > NODES or self.depth > DEPTH:
            raise yaml.YAMLError(f"more than {NODES} values, or more than {DEPTH} in each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if getattr(event, "anchor", None) and not isinstance(event, yaml.AliasEvent):
            self.sizes[event.anchor] = self.nodes - before
        return node

    def compose_mapping_node(self, anchor):
        node, keys = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in keys:
                raise yaml.YAMLError(f"the key {key.value!r} stands twice in one place")
            keys.add(key.value if isinstance(key.value, str) else None)
        return node


def load_yaml(path):
    """The content of a sweep file. Raises UsageError on anything that is not as it should be."""
    try:
        content = yaml.load(read_text(path), Loader)
    # also what values raise: dates and numbers that are none, tags, keys that are lists
    except (
        yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError
    ) as error:  # fmt: skip
        raise wrong(path, f"not YAML ({error})") from error
    check_keys(path, "the file", content, KEYS, {"baseline", "rows"})
    if not isinstance(content["rows"], list) or not content["rows"]:
        raise wrong(path, "rows must be a list of at least one row")
    check_text(path, "the file", content, {"rows", *PARTS})
    for number, row in enumerate(content["rows"], 1):
        check_keys(path, f"row {number}", row, ROW_KEYS, {"name", "script"})
        check_text(path, f"row {number}", row, {"over"})
        if "over" in row:
            check_over(path, f"row {row['name'][:60]!r}", row["over"])
    count = sum(number_of_rows(row.get("over", {})) for row in content["rows"])
    if count > ROWS:
        raise wrong(path, f"makes {count:,} rows; a sweep has at most {ROWS:,}")
    return content


def read_text(path):
    try:
        with open(path, "rb") as file:
            content = file.read(SIZE + 1)
    except OSError as error:
        raise wrong(path, f"cannot be read ({error.strerror})") from error
    if len(content) > SIZE:
        raise wrong(path, f"is larger than {SIZE:,} bytes; no sweep is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong(path, f"not YAML in UTF-8 ({error})") from error


def check_keys(path, where, mapping, known, needed):
    if not isinstance(mapping, dict):
        raise wrong(path, f"{where} must have the keys {', '.join(sorted(known))}")
    for key in mapping.keys() - known:
        raise wrong(
            path,
            f"{where} has the unknown key {str(key)[:60]!r}; known are {', '.join(sorted(known))}",
        )
    for key in sorted(needed - mapping.keys()):
        hint = ", the script that runs without adaptation" if key == "baseline" else ""
        raise wrong(path, f"{where} has no {key}{hint}")


def check_text(path, where, mapping, others):
    for key in sorted(mapping.keys() - others):
        value = mapping[key]
        if value is None and key == "shared":
            continue
        if not isinstance(value, str):
            raise wrong(
                path,
                f"{key} of {where} must be text, got {short(value)}; one that begins with a brace "
                "needs quotes",
            )
        refuse_control(path, f"{key} of {where}", value)


def refuse_control(path, where, text):
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\r\n" for c in text):
        raise wrong(path, f"{where} holds control characters, {text[:60]!r}")


def check_over(path, where, over):
    """That `over` is {key: value or [values]} or [{key: value}], with keys that are text and values
    that are text, numbers or yes and no."""
    points = over if isinstance(over, list) else [over]
    if not over or not all(isinstance(point, dict) and point for point in points):
        raise wrong(
            path,
            f"{where}: over must say what is swept, as {{lr: [1e-3, 1e-2]}} or [{{lr: 1e-3}}], got "
            f"{short(over)}",
        )
    for key, value in ((key, value) for point in points for key, value in point.items()):
        if not isinstance(key, str):
            raise wrong(path, f"{where}: a key of over must be text, got {short(key)}")
        if key == RESULTS:
            raise wrong(path, f"{where}: {RESULTS} is a name of ours; call the key of over other")
        several = isinstance(value, list) and isinstance(over, dict)
        if several and not value:
            raise wrong(path, f"{where}: over has no values of {key[:60]!r}")
        for each in value if several else [value]:
            if not is_plain(each):
                raise wrong(
                    path,
                    f"{where}: values of {key[:60]!r} must be text or finite numbers, got "
                    f"{short(each)}",
                )
            refuse_control(path, f"over of {where}", str(each))


def is_plain(value):
    return isinstance(value, PLAIN) and not (isinstance(value, float) and not math.isfinite(value))


def number_of_rows(over):
    if isinstance(over, list):
        return len(over)
    return math.prod(len(value) if isinstance(value, list) else 1 for value in over.values())


def short(value):
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
