"""A script that is killed while it writes."""

import os
import signal


def killed_at(script, replacement, *argv):
    """Runs the script's main in a process that kills itself before its n-th file takes its name;
    gives whether it was killed."""
    child = os.fork()
    if child == 0:
        replace, count = os.replace, [0]

        def counted(*given):
            count[0] += 1
            if count[0] == replacement:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*given)

        os.replace = counted
        script.runs.start.sys.argv = [f"{script.__name__}.py", *map(str, argv)]
        try:
            os._exit(script.main())
        finally:
            os._exit(99)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0
