"""A sweep file as rows to run: expanded, checked, each with its baseline."""

import contextlib
import importlib
import io
import itertools
import re
import shlex
from dataclasses import dataclass, field, replace
from string import Formatter

import runs
from common.errors import MisfitError, UsageError
from runs.cli import kind_of
from runs.flags import kept_by_baseline
from runs.identity import ROOT, is_baseline, plain_arguments
from runs.names import printable, unusable
from sweeps.baselines import baseline_names, setting_of
from sweeps.controls import refuse_lent, refuse_lost
from sweeps.files import LONGEST, RESULTS, load_yaml, short, wrong
from sweeps.parts import sets_of, without

COMPARE = "compare.py"  # stands beside the rows where jobs and exit codes are listed


@dataclass(frozen=True)
class Row:
    name: str
    script: str
    flags: list
    args: object  # as the script parses them
    over: dict = field(default_factory=dict)  # what is swept, with this row's values
    baseline: str | None = None  # name of the row it is compared with; None: it is one
    template: str = ""  # the name as the file has it
    part: str = ""  # of a sweep that chooses its settings, see parts.py
    shift: str = ""  # of the part

    @property
    def out(self):
        return self.args.out

    @property
    def control(self):
        """What it takes in place of what was learned, or None."""
        return vars(self.args).get("control")


def read_sweep(path, out, before=(), after=()):
    """The rows of a sweep file, baselines first, and {name: why} of those that the checkpoint's
    model cannot run; results go to folders in `out`. The flags `before` hold where the file says
    nothing, those of `after` whatever it says. Raises UsageError on anything that is not as it
    should be."""
    content = load_yaml(path)
    sets = sets_of(path, content, out)
    if not sets:
        return rows_of(path, content, out, before, after)
    result, unfit = [], {}
    before, after = (without(tokens, "--videos") for tokens in (before, after))
    for each in sets:
        flags = [*after, "--videos", str(each.list)]
        rows, misfits = rows_of(path, content, out, before, flags, f"{each.name}_")
        refuse_prompts(path, rows)
        refuse_lost(path, rows)
        rows = [row for row in rows if each.part != "choose" or not row.control]
        result += [replace(row, part=each.part, shift=each.shift) for row in rows]
        unfit |= misfits
    return result, unfit


def refuse_prompts(path, rows):
    """Raises UsageError where a row of lists that the sweep makes wants captions of its own."""
    for row in rows:
        if vars(row.args).get("prompt") is not None:
            raise wrong(
                path,
                f"row {row.name!r}: --prompt {row.args.prompt!r}: the clips are the same for all "
                "rows; give it in shared",
            )


def first_args(path, out, before, after):
    """What a row's script, the first that fits the model, parses without the file's parts. Raises
    UsageError, also where the rows do not run on videos."""
    content = load_yaml(path)
    args = rows_of(path, content, out, before, after)[0][0].args
    if args.kind.NOUN != "video":
        raise wrong(path, "choose and report are for runs on videos")
    return args


def rows_of(path, content, out, before, after, prefix=""):
    """As read_sweep, of one list of videos; the prefix stands before the names of rows."""
    baseline, shared = content["baseline"], words(path, "shared", content.get("shared") or "")
    rows, baselines, unfit = [], {}, {}
    if prefix:  # the list is the sweep's own, the prompt is in its captions
        shared = without(shared, "--prompt")
    for own, script, flags, over, template in expanded(path, content["rows"]):
        tokens, name = [*before, *shared, *flags, *after], f"{prefix}{own}"
        tokens = [token.replace(f"{{{RESULTS}}}", f"{out}/{prefix}") for token in tokens]
        try:
            args = parse(path, name, script, [*tokens, "--out", str(out / name)])
        except MisfitError as error:
            unfit[own] = str(error)
            continue
        setting = setting_of(args)
        kept = kept_by_baseline(tokens, args.flags)
        baselines.setdefault(setting, [*kept, *args.kind.window_flags(args)])
        rows.append((Row(name, script, tokens, args, over, template=template), setting))
    if not rows:
        name, why = next(iter(unfit.items()))
        raise wrong(path, f"no row can run on this model; row {name!r}: {why}")
    spelt = [f"{prefix}{name}" for name in baseline_names(baselines)]
    names = dict(zip(baselines, spelt, strict=True))
    result = []
    for setting, tokens in baselines.items():
        flags = [*tokens, "--steps", "0"]
        args = parse(path, names[setting], baseline, [*flags, "--out", str(out / names[setting])])
        result.append(Row(names[setting], baseline, flags, args))
    result += [replace(row, baseline=names[setting]) for row, setting in rows]
    refuse_duplicates(path, result)
    refuse_lent(path, result, out)
    return result, unfit


def expanded(path, rows):
    """(name, script, flags, values, the name's template) of every row; `over` is {key: [values]},
    all combinations, or a list of {key: value}."""
    for row in rows:
        over = row.get("over", {})
        if isinstance(over, dict):
            lists = [v if isinstance(v, list) else [v] for v in over.values()]
            over = [dict(zip(over, values, strict=True)) for values in itertools.product(*lists)]
        where = f"row {row['name'][:60]!r}"
        for values in over:
            name = filled(path, where, row["name"], values)
            why = "is a name of ours" if name == COMPARE else unusable(name)
            if why or not re.fullmatch(r"[\w.,=+-]+", name):
                raise wrong(
                    path,
                    f"the name {name[:60]!r} cannot name a folder: it "
                    f"{why or 'has other characters than letters, digits and _.,=+-'}",
                )
            kept = values | {RESULTS: f"{{{RESULTS}}}"}  # until the row's own folder is known
            flags = words(path, where, filled(path, where, row.get("flags", ""), kept))
            yield name, row["script"], flags, values, row["name"]


def filled(path, where, template, values):
    """The template with the value in place of each {key}, and of nothing else: what Python's
    formatting does beyond that reads attributes."""
    text, length = [], 0
    try:
        for literal, key, spec, conversion in Formatter().parse(template):
            if key is not None and (key not in values or spec or conversion):
                raise KeyError(key)
            text += [literal, "" if key is None else str(values[key])]
            length += len(text[-1]) + len(literal)
            if length > LONGEST:
                raise wrong(path, f"{where} becomes longer than {LONGEST} characters")
    except (KeyError, ValueError) as error:
        raise wrong(path, f"{where} uses {error}, which its `over` does not give") from error
    return "".join(text)


def words(path, where, text):
    try:
        return shlex.split(text)
    except ValueError as error:
        raise wrong(path, f"{where}: {short(text)} cannot be split into flags ({error})") from error


def parse(path, name, script, flags):
    """The flags as the row's script reads them. Raises UsageError with its words, MisfitError where
    another model could follow them."""
    method = method_in(path, name, script)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return runs.parse_args(None, method, flags)
    except MisfitError as error:
        raise MisfitError(printable(str(error))) from error
    except UsageError as error:
        raise wrong(path, f"row {name!r}: {error}") from error
    except SystemExit as error:
        told = "its flags make the script end without running, as --help does"
        raise wrong(path, f"row {name!r}: {told}") from error


def kind_of_rows(path):
    """What the runs of a sweep file are, by the script of its baseline."""
    return kind_of(method_in(path, "baseline", load_yaml(path)["baseline"]))


def method_in(path, name, script):
    """The method class of a row's script."""
    module = ROOT / script
    if module.parent != ROOT or module.suffix != ".py" or not module.is_file():
        raise wrong(path, f"row {name!r}: there is no script {script[:60]!r} in {ROOT}")
    return method_of(path, module.stem)


def method_of(path, module_name):
    """The method class of a script."""
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a copied script may hold any mistake
        kind = type(error).__name__
        raise wrong(path, f"{module_name}.py cannot be imported ({kind}: {error})") from error
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module_name
        and hasattr(value, "add_arguments")
    ]  # fmt: skip
    if len(found) != 1:
        raise wrong(path, f"{module_name}.py has no method to run")
    return found[0]


def refuse_duplicates(path, rows):
    names, runs = {}, {}
    for row in rows:
        if row.baseline and is_baseline(vars(row.args)):
            raise wrong(
                path,
                f"row {row.name!r} has no steps; the baseline is there, and a run that spends its "
                "time otherwise (--best-of) is compared by compare.py",
            )
        flags = sorted(
            (key, repr(value)) for key, value in plain_arguments(row.args).items() if key != "out"
        )
        other = runs.setdefault((row.script, *flags), row)
        if other is not row:
            raise wrong(path, f"the rows {other.name!r} and {row.name!r} run the same flags")
        if names.setdefault(row.name, row) is not row:
            raise wrong(path, f"two rows are called {row.name!r}; a name is a folder")
