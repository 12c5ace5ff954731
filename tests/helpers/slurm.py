"""Runs a Slurm of one node for the tests: real daemons on loopback, in a folder of their own.

The daemons are ended by their process ids.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
SETTINGS = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=2
ReturnToService=2
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES OverSubscribe=FORCE:4 State=UP MaxTime=INFINITE
"""


def missing() -> str | None:
    """Returns the reason why there can be no Slurm here, or None."""
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    if absent:
        return f"not installed: {', '.join(absent)} (packages slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "the daemons of a test cluster need root"


class Cluster:
    """A cluster as its users see it: they submit, look and cancel."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def command(self, *words: str, **variables: str) -> str:
        """Runs a command of Slurm and returns what it prints.

        Raises:
          AssertionError: with what it says, if it fails.
        """
        done = subprocess.run(
            words,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        """Returns the fields of a job, or of the first task of an array, as scontrol shows them."""
        words = self.command("scontrol", "--oneliner", "show", "job", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def states(self, job: str) -> list[str]:
        """Returns the state of a job, or of each task of an array."""
        lines = self.command("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [line.split("JobState=")[1].split()[0] for line in lines]

    def wait_for(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Waits until a condition holds.

        Raises:
          AssertionError: with the end of the daemon's log, when the time is up.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                log = (self.folder / "slurmctld.log").read_text().splitlines()[-15:]
                raise AssertionError(f"{what}: not within {seconds} s\n" + "\n".join(log))
            time.sleep(0.2)


def _free_ports(number: int) -> list[int]:
    """Returns ports that nobody listened on a moment ago."""
    sockets = [socket.socket() for _ in range(number)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


@contextlib.contextmanager
def cluster(folder: pathlib.Path) -> Iterator[Cluster]:
    """Starts munged, slurmctld and slurmd, yields a Cluster, and ends its jobs and the daemons."""
    ports = _free_ports(2)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True, mode=0o700)
    munge, settings = folder / "munge", folder / "slurm.conf"
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    settings.write_text(SETTINGS.format(folder=folder, ports=ports, host=host))
    slurm = Cluster(folder)
    files = {
        "socket": "socket",
        "key-file": "key",
        "pid-file": "pid",
        "log-file": "log",
        "seed-file": "seed",
    }
    commands = [
        ["munged", "--force", "--foreground"]
        + [f"--{flag}={munge / name}" for flag, name in files.items()],
        ["slurmctld", "-D", "-f", str(settings)],
        ["slurmd", "-D", "-f", str(settings), "-N", host],
    ]
    daemons: list[subprocess.Popen] = []
    with (folder / "daemons.log").open("wb") as log:
        try:
            for command in commands:
                daemon = subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=log)
                daemons.append(daemon)
                if command[0] == "munged":
                    slurm.wait_for(
                        lambda: (munge / "socket").exists() or daemons[0].poll() is not None,
                        10,
                        "munged",
                    )
            slurm.wait_for(lambda: "idle" in _nodes(slurm), 30, "an idle node")
            yield slurm
            slurm.command("scancel", "--signal=KILL", "--full", "--user=root")
            slurm.command("scancel", "--user=root")
            slurm.wait_for(lambda: not slurm.command("squeue", "--noheader"), 30, "an empty queue")
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in reversed(daemons):
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()


def _nodes(slurm: Cluster) -> str:
    """Returns what sinfo prints, or nothing while the controller does not answer yet."""
    done = subprocess.run(
        ["sinfo"], env=slurm.environment, capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout
