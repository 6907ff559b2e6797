"""How a program of ours ends: errors of the user as one line, signals, exit codes."""

import os
import signal
import sys
from pathlib import Path

from common.errors import StopRun, UsageError
from devices.placement import DoesNotFit
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
        print(printable(f"{name}: error: {error}"), file=sys.stderr)
        code = 2
    except BrokenPipeError:  # nobody reads what is printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (StopRun, DoesNotFit, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        print(printable(f"{name}: stopped: {error}"), file=sys.stderr)
        code = 1
    except Stopped as error:
        end_at_once(error)
    sys.exit(code)


def print_anything():
    """Not every terminal has every character of a caption."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def end_at_once(error):
    """After a signal: an orderly end could break what torch is in the middle of."""
    print(f"\nstopped by {error}; the same command goes on where this ended", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED)


def stop(number, frame):
    for each in SIGNALS:  # let it end in peace
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)
