"""How a program of ours ends: errors of the user as one line, signals, exit codes."""

import signal
import sys
from pathlib import Path

from common.errors import StopRun, UsageError

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
STOPPED = 75  # by one of these: the same command goes on


def run_script(main):
    """Runs a script's main and ends the program with its exit code; user errors become one line.

    SIGUSR1, SIGTERM and Ctrl-C drop the video in hand, keep all results and end with 75.
    """
    for number in SIGNALS:
        signal.signal(number, stop)
    name = Path(sys.argv[0]).name
    try:
        code = main()
    except UsageError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        code = 2
    except StopRun as error:
        print(f"{name}: stopped: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)


def stop(number, frame):
    for each in SIGNALS:  # let it end in peace
        signal.signal(each, signal.SIG_IGN)
    name = signal.Signals(number).name
    print(f"\nstopped by {name}; the same command goes on where this ended", file=sys.stderr)
    sys.exit(STOPPED)
