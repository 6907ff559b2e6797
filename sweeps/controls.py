"""Rows that use what another row of the sweep has learned, and those that are controls of one."""

from common.adapters import own_flags, refuse_other
from common.errors import UsageError
from common.start import linked
from runs.identity import plain_arguments
from sweeps.files import RESULTS, wrong


def lenders(rows):
    """{row's name: name of the row whose adapters it takes}, of those that take any."""
    names, found = {row.out: row.name for row in rows}, {}
    for row in rows:
        parents = getattr(vars(row.args).get("adapter"), "parents", ())
        if lent := [names[folder] for folder in parents if folder in names]:
            found[row.name] = lent[0]
    return found


def originals(rows):
    """{control's name: name of the row that it is a control of}: the row whose adapters it takes,
    else that with its flags but for --control."""
    lent = lenders(rows)
    alike = {what_counts(row): row.name for row in rows if not row.control}
    found = {r.name: lent.get(r.name) or alike.get(what_counts(r)) for r in rows if r.control}
    return {name: original for name, original in found.items() if original}


def what_counts(row):
    """The script and all arguments that change numbers, but for --control."""
    flags, arguments = row.args.flags, plain_arguments(row.args)
    counts = [n for n in arguments if n not in flags or flags[n]["changes"] is not None]
    return row.script, *((n, repr(arguments[n])) for n in sorted(counts) if n != "control")


def refuse_lent(path, rows, out):
    """Raises UsageError where a row takes adapters that no row above it saves for it: known before
    any of them runs."""
    lent, before = lenders(rows), {}
    for row in rows:
        adapter, lender = vars(row.args).get("adapter"), before.get(lent.get(row.name))
        if adapter and adapter.is_relative_to(out) and lender is None:
            raise wrong(
                path,
                f"row {row.name!r}: --adapter {adapter} is of no row above it; give "
                f"{{{RESULTS}}}NAME/videos with the name of one",
            )
        if lender is not None and adapter == lender.out / "videos":
            refuse_unfit(path, row, lender)
        before[row.name] = row


def refuse_unfit(path, row, lender):
    """Raises UsageError where the lender's adapters are not there, or not for this row."""
    its = lender.args
    why = None if its.save_adapter else f"needs --save-adapter of row {lender.name!r}"
    if row.control == "other" and linked(its):
        why = f"--control {row.control}: row {lender.name!r} goes on from video to video"
    try:
        said = {"method": its.method, "flags": own_flags(its)}
        refuse_other(row.args.adapter, said, row.args.method, row.args)
    except UsageError as error:
        why = str(error)
    if why:
        raise wrong(path, f"row {row.name!r}: {why}")


def refuse_lost(path, rows):
    """Raises UsageError where it is not known with which setting a row is reported: a control that
    is one of no row, adapters of a row that another setting may be chosen of."""
    known, lent = originals(rows), lenders(rows)
    for row in rows:
        if row.control and row.name not in known:
            raise wrong(
                path,
                f"row {row.name!r}: --control {row.control}: no row has its flags without it, and "
                "a control is reported at the setting that is chosen for its method",
            )
        if not row.control and row.name in lent:
            raise wrong(
                path,
                f"row {row.name!r}: --adapter {row.args.adapter}: with choose and report only rows "
                "with --control take adapters of others",
            )
