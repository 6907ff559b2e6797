"""What a method is: a class that says everything that is particular to it.

It is made anew for every video, `Method(model, clip, args)`, with its parameters at their start.
`loss(draw)` gives the objective of a draw (problem, sigma, noise; see common/loss.py), float32, of
which backward is taken: a scalar, or the pair of it and a penalty that is added to it and recorded
beside it. `optimizer()` gives a torch optimiser and the schedule of its learning rate.
"""

import difflib
import dis
import inspect
import sys
from pathlib import Path

import torch

from common.errors import UsageError

REQUIRED = {
    "add_arguments": "(group), static: the method's own flags",
    "named_parameters": "(): {name: float32 tensor} of what is adapted",
    "optimizer": "(): the optimiser of these and its schedule",
    "loss": "(draw): the objective, or the objective and a penalty",
    "attached": "(): a context, in which adaptation and generation run",
}
OPTIONAL = {
    "check": "(args), static: what flags contradict each other; UsageError",
    "fits": "(args, model), static: what this model, or its Geometry, cannot do; MisfitError",
    "learns": "(args), static: of a method that learns all of the DiT's weights, the type of its "
    "copies; None: their own",
    "draws": "(): in place of common.draws, one for each step",
    "clipped_together": "(): lists of parameters whose joint gradient norm is limited; else all",
    "details": "(): more for the video's JSON",
    "save": "(path): the adapter in a format of its own",
}
LOCAL = ("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE")  # opcodes


def refuse_misspelt(method):
    """Raises UsageError where the class lacks what a method must have, or has a public function
    that is no part of a method and whose name its own modules never use."""
    for name, meaning in REQUIRED.items():
        if not hasattr(method, name):
            raise UsageError(f"{method.__name__} has no {name}; it needs {name}{meaning}")
    classes = [each for each in method.__mro__ if is_written_here(sys.modules[each.__module__])]
    used = {name for each in {each.__module__ for each in classes} for name in names_in(each)}
    for name in dict.fromkeys(name for each in classes for name in functions(vars(each))):
        if not name.startswith("_") and name not in {*REQUIRED, *OPTIONAL, *used}:
            (near,) = difflib.get_close_matches(name, [*REQUIRED, *OPTIONAL], 1, 0.0)
            raise UsageError(
                f"{method.__name__}.{name} is no part of a method, and nothing calls it; did you "
                f"mean {near}{(REQUIRED | OPTIONAL)[near]}? A helper may begin with _"
            )


def is_written_here(module):
    """Whether it has a file that is neither Python's nor an installed package's."""
    path = Path(getattr(module, "__file__", None) or "")  # none in a notebook
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    return (
        path.is_file()
        and not installed
        and module.__name__.split(".")[0] not in sys.stdlib_module_names
    )


def functions(space):
    """Names of the functions that a class defines itself."""
    for name, value in space.items():
        value = value.fget if isinstance(value, property) else inspect.unwrap(value)
        value = getattr(value, "__func__", value)  # of a static or class method
        if inspect.isfunction(value) and value.__module__ == space["__module__"]:
            yield name


def names_in(module):
    """Every name that the code of a module uses, as a text too, as getattr does; no local ones."""
    path = sys.modules[module].__file__
    todo = [compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)]
    while todo:
        code = todo.pop()
        for step in dis.get_instructions(code):
            loads = step.opname.startswith("LOAD_") and not step.opname.startswith(LOCAL)
            if loads and isinstance(step.argval, str):
                yield step.argval
        todo += [constant for constant in code.co_consts if inspect.iscode(constant)]


def with_schedule(found):
    """A method's optimiser and its schedule. Raises UsageError where it is another thing."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise UsageError(
            "optimizer() must give two, as in `return optimizer, common.constant(optimizer)`; it "
            f"gave {type(found).__name__}"
        )
    return found


def parts(loss):
    """A method's loss and its penalty, None where there is none. Raises UsageError where they are
    no scalars, a loss of each draw for instance."""
    loss, *rest = loss if isinstance(loss, tuple | list) else (loss,)
    for part in (loss, *rest):
        if not isinstance(part, torch.Tensor) or part.ndim or len(rest) > 1:
            given = [list(x.shape) if isinstance(x, torch.Tensor) else x for x in (loss, *rest)]
            raise UsageError(
                "loss(draw) must give a scalar tensor, or a pair of two: objective and penalty; "
                f"it gave tensors shaped, or values, {given}"
            )
    return loss, *(rest or [None])
