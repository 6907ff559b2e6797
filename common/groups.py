"""How many parameters a method gets: groups of blocks, chosen by hand or from the clip's size."""

from common.errors import MisfitError, UsageError
from common.values import groups, positive

RATIO = 100.0


def add_groups(group):
    """--groups and what goes with it, for methods whose consecutive blocks share parameters."""
    group.add_argument(
        "--groups", type=groups, default=1, metavar="G|G,G|auto", changes="adaptation",
        help="block i of L uses set floor(i * G / L) of its kind's G, 1 is one set for all; G,G "
        "for kinds; auto: as many as latents feed",
    )  # fmt: skip
    group.add_argument(
        "--values-per-parameter", type=positive, metavar="R", changes="adaptation",
        help="for --groups auto: max(1, values of the target // (R * parameters of a group)) "
        f"(default: {RATIO:g})",
    )  # fmt: skip


def number_of_groups(args, clip, size, stacks, blocks):
    """The groups to lay over the chosen blocks when each has `size` parameters, and what the record
    says of the choice. Raises UsageError."""
    check_groups(args, stacks, blocks)
    if args.groups == "auto":
        values, ratio = clip.target.numel(), args.values_per_parameter or RATIO
        counts = list(filter(None, map(len, chosen_of_each(stacks, blocks))))
        most, size = min(counts), size * len(counts)  # one group of each kind of blocks
        count = min(most, max(1, int(values / (ratio * size))))
        inputs = {"target_values": values, "values_per_parameter": ratio, "blocks": most}
        return count, {"capacity": inputs | {"group_parameters": size, "groups": count}}
    return args.groups, {}


def check_groups(args, stacks, blocks):
    """Raises UsageError where --groups cannot be laid over these blocks."""
    if args.groups == "auto":
        return
    counts = [len(chosen) for chosen in chosen_of_each(stacks, blocks)]
    asked = of_each(args.groups, stacks)
    given = ",".join(map(str, asked)) if asked is args.groups else args.groups
    if args.values_per_parameter:
        raise UsageError(f"--values-per-parameter is for --groups auto, got {given}")
    if len(asked) != len(counts):
        raise MisfitError(
            f"--groups must be one number, or one for each kind of blocks ({len(counts)} here), "
            f"got {given}"
        )
    for own, count in zip(asked, counts, strict=True):
        if count and not 1 <= own <= count:
            raise MisfitError(f"--groups must be in 1..{count}, got {given}")


def of_each(groups, stacks):
    """How many groups each stack has."""
    return groups if isinstance(groups, tuple) else (groups,) * len(stacks)


def chosen_of_each(stacks, blocks):
    """The chosen blocks of each stack."""
    found, first = [], 0
    for names in stacks:
        found.append([i for i in blocks if first <= i < first + len(names)])
        first += len(names)
    return found


def laid_over(stacks, blocks, groups):
    """{block: group} of the chosen blocks: of those in one stack the j-th of L has group floor(j *
    G / L) of the stack's own G, counted on from the stack before. groups: G, of every stack, where
    1 is one group of all blocks; or a tuple, one for each stack."""
    if groups == 1:
        return dict.fromkeys(blocks, 0)
    group_of, first = {}, 0
    for chosen, count in zip(chosen_of_each(stacks, blocks), of_each(groups, stacks), strict=True):
        group_of |= {i: first + j * count // len(chosen) for j, i in enumerate(chosen)}
        first += count if chosen else 0
    return group_of


def chosen_blocks(text, depth):
    """Indices of the blocks that "all", "last:K" or "0,5,7" name. Raises MisfitError."""
    if text == "all":
        return list(range(depth))
    if text.startswith("last:"):
        count = int(text.removeprefix("last:"))
        if not 1 <= count <= depth:
            raise MisfitError(f"--blocks last:K needs K in 1..{depth}, got {text}")
        return list(range(depth - count, depth))
    chosen = sorted({int(part) for part in text.split(",")})
    if chosen[-1] >= depth:
        raise MisfitError(f"--blocks must be in 0..{depth - 1}, got {text}")
    return chosen
