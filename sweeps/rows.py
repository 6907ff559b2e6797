"""A sweep file as rows to run: expanded, checked, each with its baseline."""

import contextlib
import importlib
import io
import itertools
import re
import shlex
from dataclasses import dataclass, field, replace

import yaml

import common
from common.cli import ROOT
from common.clip import CONTEXT_LATENTS, TTA_FRAMES
from common.data import LATENT_FRAMES
from common.identity import GENERATION

KEYS = {"baseline", "shared", "rows"}
RUN = (  # flags that the baseline takes over, beside those of GENERATION
    "allow_poor_captions lpips_weights batch_start batch_end limit device save_frames preflight"
).split()
ROW_KEYS = {"name", "script", "flags", "over"}


@dataclass(frozen=True)
class Row:
    name: str
    script: str
    flags: list
    args: object  # as the script parses them
    over: dict = field(default_factory=dict)  # what is swept, with this row's values
    baseline: str | None = None  # name of the row it is compared with; None: it is one
    template: str = ""  # the name as the file has it

    @property
    def out(self):
        return self.args.out


def read_sweep(path, out, before=(), after=()):
    """The rows of a sweep file, baselines first; results go to folders in `out`. The flags `before`
    hold where the file says nothing, those of `after` whatever it says. Raises UsageError on
    anything that is not as it should be."""
    content = load_yaml(path)
    baseline, shared = content["baseline"], shlex.split(content.get("shared") or "")
    rows, baselines = [], {}
    for name, script, flags, over, template in expanded(path, content["rows"]):
        tokens = [*before, *shared, *flags, *after]
        args = parse(path, name, script, [*tokens, "--out", str(out / name)])
        setting = tuple(str(getattr(args, key)) for key in GENERATION)
        baselines.setdefault(setting, [*kept_by_baseline(tokens), *fitting_window(args.anchor)])
        rows.append((Row(name, script, tokens, args, over, template=template), setting))
    names = dict(zip(baselines, baseline_names(baselines), strict=True))
    result = []
    for setting, tokens in baselines.items():
        flags = [*tokens, "--steps", "0"]
        args = parse(path, names[setting], baseline, [*flags, "--out", str(out / names[setting])])
        result.append(Row(names[setting], baseline, flags, args))
    result += [replace(row, baseline=names[setting]) for row, setting in rows]
    refuse_duplicates(path, result)
    return result


def load_yaml(path):
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise common.UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise common.UsageError(f"{path}: not YAML ({error})") from error
    check_keys(path, "the file", content, KEYS, {"baseline", "rows"})
    if not isinstance(content["rows"], list) or not content["rows"]:
        raise common.UsageError(f"{path}: rows must be a list of at least one row")
    for number, row in enumerate(content["rows"], 1):
        check_keys(path, f"row {number}", row, ROW_KEYS, {"name", "script"})
        for key in row.keys() - {"over"}:
            if not isinstance(row[key], str):
                raise common.UsageError(
                    f"{path}: {key} of row {number} must be text, got {row[key]}; one that begins "
                    "with a brace needs quotes"
                )
    return content


def check_keys(path, where, mapping, known, needed):
    if not isinstance(mapping, dict):
        raise common.UsageError(f"{path}: {where} must have the keys {', '.join(sorted(known))}")
    for key in mapping.keys() - known:
        raise common.UsageError(
            f"{path}: {where} has the unknown key {key!r}; known are {', '.join(sorted(known))}"
        )
    for key in sorted(needed - mapping.keys()):
        hint = ", the script that runs without adaptation" if key == "baseline" else ""
        raise common.UsageError(f"{path}: {where} has no {key}{hint}")


def expanded(path, rows):
    """(name, script, flags, values, the name's template) of every row; `over` is {key: [values]},
    all combinations, or a list of {key: value}."""
    for row in rows:
        over = row.get("over", {})
        if not over and "over" in row or not isinstance(over, dict | list):
            raise common.UsageError(f"{path}: row {row['name']!r}: over must say what is swept")
        if isinstance(over, dict):
            lists = [v if isinstance(v, list) else [v] for v in over.values()]
            over = [dict(zip(over, values, strict=True)) for values in itertools.product(*lists)]
        for values in over:
            try:
                name = str(row["name"]).format(**values)
                flags = str(row.get("flags") or "").format(**values)
            except (KeyError, IndexError, ValueError) as error:
                raise common.UsageError(
                    f"{path}: row {row['name']!r} uses {error}, which its `over` does not give"
                ) from error
            if not re.fullmatch(r"[\w.,=+-]+", name):
                raise common.UsageError(f"{path}: the name {name!r} cannot name a folder")
            yield name, row["script"], shlex.split(flags), values, row["name"]


def parse(path, name, script, flags):
    """The flags as the row's script reads them. Raises UsageError with its words."""
    module = ROOT / str(script)
    if module.suffix != ".py" or not module.is_file():
        raise common.UsageError(f"{path}: row {name!r}: there is no script {script!r}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return common.parse_args(None, method_of(path, module.stem), flags)
    except SystemExit as error:
        words = said.getvalue().strip().partition("error: ")[2]
        raise common.UsageError(f"{path}: row {name!r}: {words}") from error


def method_of(path, module_name):
    """The method class of a script."""
    module = importlib.import_module(module_name)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module_name
        and hasattr(value, "add_arguments")
    ]  # fmt: skip
    if len(found) != 1:
        raise common.UsageError(f"{path}: {module_name}.py has no method to run")
    return found[0]


def by_flag(tokens):
    """The tokens in pieces, each a flag with its values."""
    pieces = []
    for token in tokens:
        if token.startswith("--") or not pieces:
            pieces.append([])
        pieces[-1].append(token)
    return pieces


def kept_by_baseline(tokens):
    """Those of the flags that do not belong to the adaptation; of repeated ones the last."""
    kept = {}
    for piece in by_flag(tokens):
        name = piece[0].partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if name in GENERATION or name in RUN:
            kept[name] = piece
    return [token for piece in kept.values() for token in piece]


def fitting_window(anchor):
    """Flags of a baseline, which adapts to nothing, where the default window reaches before the
    clip."""
    frames = (anchor - 1) // LATENT_FRAMES * LATENT_FRAMES + 1
    if frames >= TTA_FRAMES:
        return []
    context = min(CONTEXT_LATENTS, (frames - 1) // LATENT_FRAMES)
    return ["--tta-frames", str(frames), "--context-latents", str(context)]


def baseline_names(settings):
    """ "baseline", or where there are several that with what tells them apart."""
    if len(settings) == 1:
        return ["baseline"]
    differ = [i for i, values in enumerate(zip(*settings, strict=True)) if len(set(values)) > 1]
    return [
        "baseline_" + "_".join(f"{GENERATION[i]}-{as_name(values[i])}" for i in differ)
        for values in settings
    ]


def as_name(value):
    return re.sub(r"[^\w.,=+-]+", "-", value)[-40:]


def refuse_duplicates(path, rows):
    for row in rows:
        if row.baseline and row.args.steps == 0:
            raise common.UsageError(f"{path}: row {row.name!r} has no steps; the baseline is there")
    for row, other in itertools.combinations(rows, 2):
        if row.script == other.script and same_flags(row.args, other.args):
            raise common.UsageError(
                f"{path}: the rows {row.name!r} and {other.name!r} run the same flags"
            )
        if row.name == other.name:
            raise common.UsageError(f"{path}: two rows are called {row.name!r}; a name is a folder")


def same_flags(one, other):
    return all(getattr(one, k) == getattr(other, k) for k in vars(one).keys() - {"out"})
