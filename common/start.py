"""Where the adaptation to a video begins, and what it leaves to the next: --carry-over, --reptile.

    begins at start + KEEP (left - start)      start: where the method would begin alone
    leaves    begun + EPS (adapted - begun)    of --reptile (Nichol et al., arXiv 1803.02999)

With --carry-over the optimiser goes on too: its moments and its count of steps are multiplied by
KEEP, so that little of them stays where little is kept; its schedule goes on.
"""

from pathlib import Path

import torch

from common import control
from common.adapters import adapter_of, is_of_each_video, load_adapter
from common.errors import UsageError
from common.loss import random_stream
from common.stopping import finite_or_none, losses_of_levels, refuse_one_draw, risen
from common.values import given_flags, share
from devices import shards

BANK = "bank"  # of --start-from


def path_or_bank(text):
    return text if text == BANK else Path(text)


def add_carry_over(group):
    group.add_argument(
        "--carry-over", type=share, default=0.0, metavar="KEEP", changes="adaptation",
        help="what was learned, and the optimiser, go on from one to the next, shrunk towards the "
        "start: 1 keeps all, 0 nothing",
    )  # fmt: skip


def add_arguments(group):
    group.add_argument(
        "--start-from", type=path_or_bank, metavar="PATH|bank", changes="adaptation",
        help="as --adapter, with updates by default; bank: at what this run has learned of the "
        "nearest earlier video, by mean latent",
    )  # fmt: skip
    add_carry_over(group)
    group.add_argument(
        "--reset-on-degradation", action="store_true", changes="adaptation",
        help="back to the start where what came from other videos has a worse loss, by its "
        "standard error over --stop-draws",
    )  # fmt: skip
    group.add_argument(
        "--reptile", type=share, default=0.0, metavar="EPS", changes="adaptation",
        help="learn a start: it moves by EPS of each video's adaptation, and is kept as the "
        "adapter `start` in --out",
    )  # fmt: skip


def check(args):
    """Fills in --steps. What --start-from names is --adapter's, with other --steps by default."""
    refuse_two_starts(args)
    steps = 0 if args.adapter or args.control == "other" else 5
    if args.start_from not in (None, BANK):
        if not args.start_from.exists():
            raise UsageError(f"--start-from {args.start_from}: no such file or folder, nor bank")
        args.adapter, args.start_from = args.start_from, None
    args.steps = steps if args.steps is None else args.steps
    refuse_nothing_learned(args)
    for flag in given_flags(args, "order") if not linked(args) else ():
        raise UsageError(
            f"{flag}: nothing goes on from video to video here; leave it out, or give --carry-over"
        )
    if args.control and linked(args):
        may = args.control == "random" and args.start_from != BANK
        right = f"a run with {linked(args)}" if may else "one in which each video begins alone"
        raise UsageError(
            f"--control {args.control}: not with {linked(args)}, which would hand its change on; "
            f"give --adapter RUN/videos, of {right} and --save-adapter"
        )
    if args.reset_on_degradation:
        asked = given_flags(args, "carry_over")  # 0 is a KEEP too
        if not asked and args.start_from != BANK:
            raise UsageError("--reset-on-degradation: needs --carry-over or --start-from bank")
        refuse_one_draw(args, "--reset-on-degradation")


def refuse_nothing_learned(args):
    """Raises UsageError where --adapter without updates leaves nothing to hand on."""
    flags = {"--carry-over": args.carry_over, "--reptile": args.reptile}
    for flag, value in flags.items():
        if value and args.adapter and not args.steps:
            raise UsageError(
                f"{flag} {value:g}: with --adapter and --steps 0, its default, nothing is learned "
                "that could go on; give --steps of 1 or more"
            )


def refuse_two_starts(args):
    """Raises UsageError where flags say twice where an adaptation begins."""
    flags = {
        "--adapter": args.adapter, "--start-from": args.start_from,
        "--carry-over": args.carry_over, "--reptile": args.reptile,
    }  # fmt: skip
    first, *more = [flag for flag, value in flags.items() if value] or [None]
    pairs = ({"--adapter", "--start-from"}, {"--carry-over", "--reptile"})
    if args.start_from == BANK and more or {first, *more} in pairs or len(more) > 1:
        raise UsageError(f"{more[-1]}: not with {first}, which says where to begin too")
    path = args.adapter or args.start_from
    if path and more and is_of_each_video(path):
        raise UsageError(
            f"{first} {path}: holds each video's own, and {more[0]} needs one start for all; give "
            "a file"
        )


def carries(args):
    """Whether each video but the first begins at what those before it left."""
    return bool(args.steps and (args.carry_over or args.reptile))


def linked(args):
    """The flag by which what is learned from a video depends on those before it, or None."""
    if not args.steps:
        return None
    flags = {"--carry-over": args.carry_over, "--reptile": args.reptile}
    flags["--start-from bank"] = args.start_from == BANK
    return next((flag for flag, value in flags.items() if value), None)


def start_stream(clip, args, name):
    """A CPU generator for what a method draws at its start: the video's own; where what is learned
    goes on from video to video one for all, so that they have the same start."""
    chain = carries(args) or control.begins_as_a_chain(args)
    return random_stream(clip.seed, "start" if chain else clip.video.id, name)


def mapped(state, function):
    """A nested state with function(tensor) in place of each of its tensors."""
    if isinstance(state, torch.Tensor):
        return function(state)
    if isinstance(state, dict):
        return {key: mapped(value, function) for key, value in state.items()}
    return [mapped(x, function) for x in state] if isinstance(state, list | tuple) else state


def saved(state):
    """Copies on the CPU."""
    return mapped(state, lambda x: x.detach().cpu().clone())


def between(first, last, part):
    """first + part (last - first) of tensors by name; at 0 and 1 these themselves, to the bit."""
    return {name: torch.lerp(x, last[name].to(x), part) for name, x in first.items()}


@torch.no_grad()
def shrunk(state, start, keep):
    """A state of {"parameters", "optimizer", "schedule"} of which the share `keep` stays. start:
    parameters by name."""
    moments = mapped(state["optimizer"]["state"], lambda x: x * keep)
    return state | {
        "parameters": between(start, state["parameters"], keep),
        "optimizer": state["optimizer"] | {"state": moments},
    }


class Start:
    """Of one video. before: what the videos before it have left, None where nothing; left: what of
    it stays; leaves: what there is after it. adapter: a file to begin at instead. facts: for the
    video's JSON."""

    def __init__(self, before=None, adapter=None, **facts):
        self.before = self.left = self.leaves = before
        self.adapter, self.facts, self.moving, self.marked = adapter, facts, None, None

    @torch.no_grad()
    def begin(self, model, method, clip, args):
        """Puts the method's parameters where the adaptation begins. `moved`: whether they are not
        where the method makes them."""
        self.args, self.parameters = args, method.named_parameters()
        if args.adapter:
            lender = control.lender(args, clip.video)
            load_adapter(adapter_of(args.adapter, lender), method, args)
        given, self.leaves = bool(self.before or self.adapter), self.before
        if given:
            own = self.copies()
            if self.adapter:
                load_adapter(self.adapter, method, args)
            else:
                self.left = self.before
                if not args.reptile:  # new tensors: the optimiser writes into those that it loads
                    self.left = shrunk(self.before, own, args.carry_over)
                self.put(self.left["parameters"])
            if args.reset_on_degradation and self.is_worse(model, clip, own):
                self.put(own)
                self.left, self.leaves, given = None, None, False
        self.moved = given or args.adapter is not None
        self.begun = self.copies() if args.reptile else None

    def is_worse(self, model, clip, own):
        """Whether the loss on the clip's fixed draws is above that of the parameters `own` by more
        than the standard error of the difference, or not finite."""
        now, after = self.copies(), losses_of_levels(model, clip, self.args)
        self.put(own)
        rise, error = risen(losses_of_levels(model, clip, self.args), after)
        self.put(now)
        reset = not rise <= error
        values = {"rise": finite_or_none(rise), "standard_error": finite_or_none(error)}
        self.facts["degradation"] = values | {"reset": reset}
        return reset

    def copies(self):
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def put(self, tensors):
        for name, parameter in self.parameters.items():
            shards.put(parameter, tensors[name])

    def resume(self, optimizer, schedule):
        """Puts them where the last video left its own, with --carry-over."""
        self.moving = {"optimizer": optimizer, "schedule": schedule}
        if self.left and not self.args.reptile:
            for name, each in self.moving.items():
                each.load_state_dict(self.left[name])

    def mark(self):
        """Keeps where optimiser and schedule are: called at a step whose parameters are kept."""
        if carries(self.args) and not self.args.reptile:
            self.marked = self.moved_on()

    def moved_on(self):
        """Copies of their states."""
        return saved({name: each.state_dict() for name, each in self.moving.items()})

    @torch.no_grad()
    def end(self, rejected):
        """After the steps. rejected: whether it diverged or no step is kept; that leaves what was
        there before it."""
        if rejected or not self.moving or not carries(self.args):
            return
        if self.args.reptile:
            parameters = between(self.begun, self.copies(), self.args.reptile)
            self.leaves = {"parameters": saved(parameters)}
        else:
            optimizer = self.marked or self.moved_on()
            self.leaves = {"parameters": saved(self.parameters)} | optimizer

    def kept(self, adapted):
        """What the video is generated with. adapted: whether its steps count."""
        if adapted or (self.args.adapter and not self.args.steps):
            return "adapted"
        return "carried" if self.moved else "baseline"
