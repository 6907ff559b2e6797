"""How a program of ours ends: errors of the user as one line, signals, exit codes."""

import os
import signal
import sys
import traceback
from pathlib import Path

import torch

from common.errors import StopRun, UsageError
from devices import ranks
from devices.placement import DoesNotFit
from runs import team
from runs.names import printable
from runs.start import SIGNALS, STOPPED


class Stopped(BaseException):
    """Raised in the main thread by a signal; no `except Exception` keeps it."""


def run_script(main):
    """Runs a script's main and ends the program with its exit code; user errors become one line.

    SIGUSR1, SIGTERM and Ctrl-C drop the video in hand, keep all results and end with 75. Of
    torchrun's processes one says why they end, and they end with its exit code.
    """
    team.join()
    for number in SIGNALS:
        signal.signal(number, stop)
    print_anything()
    try:
        code = outcome(main, Path(sys.argv[0]).name)
        ignore_signals()
    except Stopped as error:
        end_at_once(error)
    team.end(code)
    if team.stores and code not in (0, 3):
        leave(code)  # others are gone, whom an orderly end might wait for
    sys.exit(code)


def outcome(main, name):
    """The exit code of main(), whose errors are said in a line; what is none of these is raised."""
    try:
        return main()
    except UsageError as error:
        line = team.first_problem(str(error))
        ignore_signals()
        team.say(printable(f"{name}: error: {line}"))
        return 2
    except BrokenPipeError:  # nobody reads what is printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        ignore_signals()
        if code := team.end_of_others(team.GRACE):  # which this error may come from
            return code
        if not is_expected(error):
            team.end(1)
            if team.stores:  # others wait for this one, and it might wait for them
                traceback.print_exc()
                leave(1)
            raise
        team.say(printable(f"{name}: stopped: {error}"))
        return 1


def is_expected(error):
    """Whether it is a broken machine, or what a run expects, and no defect."""
    if isinstance(error, torch.OutOfMemoryError):  # where there is no plan: of the text encoder
        return True
    if isinstance(error, RuntimeError):
        return "allocate memory" in str(error) or (team.stores and ranks.is_loss(error))
    return isinstance(error, StopRun | DoesNotFit | OSError)


def print_anything():
    """Not every terminal has every character of a caption."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def end_at_once(error):
    """After a signal: an orderly end could break what torch is in the middle of."""
    code = team.end_of_others(0)
    if code is None:
        code, absent = STOPPED, team.absent()
        before = f" before {team.named(absent)} had begun" if absent else ""
        team.say(f"\nstopped by {error}{before}; the same command goes on where this ended")
    team.end(code)
    leave(code)


def leave(code):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stop(number, frame):
    ignore_signals()  # let it end in peace
    raise Stopped(signal.Signals(number).name)


def ignore_signals():
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
