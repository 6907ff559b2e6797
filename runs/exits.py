"""How a program of ours ends: errors of the user as one line, signals, exit codes."""

import os
import signal
import sys
from pathlib import Path

from common.errors import StopRun, UsageError
from devices.placement import DoesNotFit
from devices.ranks import RankLost
from runs import team
from runs.names import printable
from runs.start import SIGNALS, STOPPED


class Stopped(BaseException):
    """Raised in the main thread by a signal; no `except Exception` keeps it."""


def run_script(main):
    """Runs a script's main and ends the program with its exit code; user errors become one line.

    SIGUSR1, SIGTERM and Ctrl-C drop the video in hand, keep all results and end with 75.
    """
    for number in SIGNALS:
        signal.signal(number, stop)
    name = Path(sys.argv[0]).name
    print_anything()
    try:
        code = main()
    except UsageError as error:
        say(f"{name}: error: {error}", error)
        code = 2
    except BrokenPipeError:  # nobody reads what is printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (StopRun, DoesNotFit, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        say(f"{name}: stopped: {error}", error)
        code = 1
    except Stopped as error:
        end_at_once(error)
    team.end(code)
    sys.exit(code)


def say(line, error):
    """One line on stderr; of what all processes of torchrun meet, from one of them."""
    if isinstance(error, RankLost) and (team.has_spoken() or team.say_lost()):
        return
    if team.speaks() or not isinstance(error, UsageError | StopRun | DoesNotFit | RankLost):
        print(printable(line), file=sys.stderr)


def print_anything():
    """Not every terminal has every character of a caption."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def end_at_once(error):
    """After a signal: an orderly end could break what torch is in the middle of."""
    if not team.say_lost() and team.speaks() and not team.has_spoken():
        print(f"\nstopped by {error}; the same command goes on where this ended", file=sys.stderr)
    team.end(STOPPED)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED)


def stop(number, frame):
    for each in SIGNALS:  # let it end in peace
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)
