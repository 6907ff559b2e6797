"""What a method is: a class that says everything that is particular to it.

It is made anew for every video, `Method(model, clip, args)`, with its parameters at their start.
`loss(draw)` gives the objective of a draw (problem, sigma, noise; see common/loss.py), float32, of
which backward is taken: a scalar, or the pair of it and a penalty that is added to it and recorded
beside it. `optimizer()` gives a torch optimiser and the schedule of its learning rate.
"""

import difflib
import inspect
import sys

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
    "draws": "(): in place of common.draws, one for each step",
    "clipped_together": "(): lists of parameters whose joint gradient norm is limited; else all",
    "details": "(): more for the video's JSON",
    "save": "(path): the adapter in a format of its own",
}


def refuse_misspelt(method):
    """Raises UsageError where the class lacks what a method must have, or has a public function
    that is no part of a method and that nothing in its own modules calls."""
    for name, meaning in REQUIRED.items():
        if not hasattr(method, name):
            raise UsageError(f"{method.__name__} has no {name}; it needs {name}{meaning}")
    classes = [each for each in method.__mro__ if each is not object]
    modules = [vars(sys.modules[each.__module__]) for each in classes]
    called = {name for space in [*map(vars, classes), *modules] for name in names_in(space)}
    for name in dict.fromkeys(name for each in classes for name in functions(vars(each))):
        if not name.startswith("_") and name not in {*REQUIRED, *OPTIONAL, *called}:
            (near,) = difflib.get_close_matches(name, [*REQUIRED, *OPTIONAL], 1, 0.0)
            raise UsageError(
                f"{method.__name__}.{name} is no part of a method, and nothing calls it; did you "
                f"mean {near}{(REQUIRED | OPTIONAL)[near]}?"
            )


def functions(space):
    """{name: function} of those that a class or module defines itself."""
    found, module = {}, space.get("__module__", space.get("__name__"))
    for name, value in space.items():
        value = value.fget if isinstance(value, property) else inspect.unwrap(value)
        value = getattr(value, "__func__", value)  # of a static or class method
        if inspect.isfunction(value) and value.__module__ == module:
            found[name] = value
    return found


def names_in(space):
    """Every name that the functions of a class or module use."""
    todo = [function.__code__ for function in functions(space).values()]
    while todo:
        code = todo.pop()
        yield from code.co_names
        todo += [constant for constant in code.co_consts if inspect.iscode(constant)]


def parts(loss):
    """A method's loss and its penalty, None where there is none."""
    return loss if isinstance(loss, tuple) else (loss, None)
