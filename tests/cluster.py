"""A real Slurm of one node on this machine, in a temporary folder, for the tests."""

import os
import platform
import shutil
import socket
import subprocess
import time

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol")
CONF = """
ClusterName=adasteer
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
# a requeued job waits until its credential has expired: 120 s by default
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# a job that was queued again starts within seconds, by default within 30
SchedulerParameters=sched_interval=3,bf_interval=3
KillWait=5
ReturnToService=2
GresTypes=gpu
# two tasks of 8 processors at a time, whatever this machine really has
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=400000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Runs Slurm's commands when called; `why_not` says why it is not there, None if it is."""

    def __init__(self, folder):
        self.folder, self.daemons, self.why_not = folder, [], None
        missing = [name for name in PROGRAMS if not shutil.which(name)]
        if missing:
            self.why_not = f"no {', '.join(missing)}: apt-get install slurm-wlm munge"
        elif os.getuid():
            self.why_not = "slurmd needs root to run jobs"
        else:
            self._start()

    def _start(self):
        folder, host = self.folder, platform.node().partition(".")[0]
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        conf = CONF.format(host=host, ports=free_ports(2), user="root", folder=folder)
        (folder / "slurm.conf").write_text(conf)
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        (folder / "munge.key").write_bytes(os.urandom(64))
        (folder / "munge.key").chmod(0o600)
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        munge = [f"--{part}-file={folder}/munge.{part}" for part in ("key", "pid", "seed", "log")]
        self._daemon("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        self._daemon("slurmctld", "-D", "-i")
        self._daemon("slurmd", "-D")
        if not wait_for(lambda: "idle" in self._sinfo(), 30):
            self.why_not = f"slurm does not come up here: {self._sinfo()}; {self._last_words()}"
            self.stop()

    def _daemon(self, *command):
        log = open(self.folder / f"{command[0]}.out", "w")
        self.daemons.append(
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        )
        time.sleep(0.5)

    def _sinfo(self):
        command = ["sinfo", "--noheader", "--format=%T"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    def _last_words(self):
        logs = [self.folder / f"{name}.out" for name in ("munged", "slurmctld", "slurmd")]
        return "; ".join(log.read_text()[-300:] for log in logs if log.exists())

    def __call__(self, *command, cwd=None):
        """What a command of Slurm prints."""
        done = subprocess.run(
            [*map(str, command)], env=self.environment, cwd=cwd, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def wait(self, seconds=240):
        """Until no job is left in the queue."""
        assert wait_for(lambda: not self("squeue", "--noheader"), seconds), self("squeue")

    def job(self, number):
        """What scontrol says of a job, as a dict."""
        words = self("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def stop(self):
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            daemon.wait(timeout=30)


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
