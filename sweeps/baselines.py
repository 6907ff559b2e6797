"""The baselines of a sweep: one for each way of generating that its rows have."""

import re

from runs.names import usable


def setting_of(args):
    """What rows that share a baseline agree in: (name, value) of all that it depends on."""
    return tuple(
        (name, as_text(getattr(args, name)))
        for name, said in args.flags.items()
        if said["changes"] == "generation"
    )


def baseline_names(settings):
    """ "baseline", or where there are several that with what tells them apart."""
    if len(settings) == 1:
        return ["baseline"]
    shared = set.intersection(*map(set, settings))
    differ = [[pair for pair in setting if pair not in shared] for setting in settings]
    return [
        usable("baseline_" + "_".join(f"{name}-{as_name(value)}" for name, value in pairs))
        for pairs in differ
    ]


def as_text(value):
    if isinstance(value, dict):
        return ",".join(f"{key}={each}" for key, each in value.items())
    return str(value)


def as_name(value):
    return re.sub(r"[^\w.,=+-]+", "-", value)[-40:]
