"""What a flag changes, said where it is declared, and what follows for runs that differ in it.

"generation": the continuation, or its score, where nothing is adapted; a run and its baseline agree
in it. "adaptation": numbers of an adapted run alone; it tells two runs apart. None: no number; it
may differ when a run goes on. A flag that does not say is "adaptation".
"""

from common.errors import UsageError

CHANGES = ("generation", "adaptation", None)
FACTS = (
    "manifest_sha256", "forgetting_sha256", "checkpoint_sha256", "lpips_sha256", "adapter_sha256"
)  # fmt: skip
TABLES = ("flags", "headings", "given", "kind", "learns")  # in args, and no arguments themselves
OURS = ("method", "script", "script_sha256", *TABLES)  # of the arguments, beside the flags


class Group:
    """argparse's group of arguments; what each flag changes goes into `flags`, by its name in the
    arguments.

    known_by: the SHA-256 of config.json that is compared in place of the value, a path.
    baseline: whether a run's baseline takes the flag over. effort: whether more of it is more time
    for the same continuation, in which runs without adaptation may differ and yet be compared.
    own: whether they are the method's.
    """

    def __init__(self, group, flags, own=False):
        self.group, self.flags, self.own = group, flags, own

    def add_argument(
        self, *names, changes="adaptation", known_by=None, baseline=None, effort=False, **more
    ):
        if changes not in CHANGES:
            raise UsageError(f"{names[0]}: changes={changes!r} must be one of {CHANGES}")
        if known_by not in (None, *FACTS):
            raise UsageError(f"{names[0]}: known_by={known_by!r} must be one of {FACTS}")
        action = self.group.add_argument(*names, **more)
        if action.dest in OURS:
            raise UsageError(f"{names[0]}: {action.dest} is a name of ours; choose another")
        self.flags[action.dest] = {
            "names": list(action.option_strings) or [action.dest],
            "changes": changes,
            "known_by": known_by,
            "baseline": changes == "generation" if baseline is None else baseline,
            "effort": effort,
            "own": self.own,
        }
        return action

    def __getattr__(self, name):  # set_defaults and the like
        return getattr(self.group, name)


def is_table(flags):
    """Whether what was read from a config.json is what parse_args puts there."""
    return isinstance(flags, dict) and all(map(is_flag, flags.values()))


def is_flag(said):
    if not isinstance(said, dict):
        return False
    names, changes = said.get("names"), said.get("changes", ...)
    return (
        isinstance(names, list)
        and names != []
        and all(isinstance(name, str) for name in names)
        and any(changes == known for known in CHANGES)
        and said.get("known_by", ...) in [None, *FACTS]
    )


def tells_apart(flags, name):
    """Whether runs that differ in this argument are two, by its value. Those of no flag that was
    declared do."""
    said = flags.get(name)
    return said is None or (said["changes"] is not None and said["known_by"] is None)


def generation(flags):
    """Names of the arguments that a run and its baseline agree in, whatever the seed, in order."""
    return [
        name
        for name, said in flags.items()
        if said["changes"] == "generation" and said["known_by"] is None and name != "seed"
    ]


def effort_of(flags, arguments):
    """{name: value} of the flags whose more is more time for the same continuation."""
    names = [name for name, said in flags.items() if said.get("effort")]
    return {name: arguments.get(name) for name in names}


def spelt(flags, name):
    """As a user writes the flag; a name of ours as it is."""
    if name in flags:
        return flags[name]["names"][0]
    return name if name in OURS else f"--{name.replace('_', '-')}"


def value_of(flags, name, arguments):
    """An argument as its flag says it: of --no-generate whether that was given."""
    value = arguments.get(name)
    turned = isinstance(value, bool) and spelt(flags, name).startswith("--no-")
    return not value if turned else value


def kept_by_baseline(tokens, flags):
    """Those of the words of a command line that do not belong to the adaptation."""
    named = {spelt: name for name, said in flags.items() for spelt in said["names"]}
    kept = {}
    for piece in by_flag(tokens):
        name = named.get(piece[0].partition("=")[0])
        if name and flags[name]["baseline"]:
            kept[name] = [*kept.get(name, ()), *piece]
    return [token for piece in kept.values() for token in piece]


def by_flag(tokens):
    """The tokens in pieces, each a flag with its values."""
    pieces = []
    for token in tokens:
        if token.startswith("--") and " " not in token or not pieces:
            pieces.append([])
        pieces[-1].append(token)
    return pieces
