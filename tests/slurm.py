"""A Slurm of one node for the tests: real daemons on loopback in a folder of their own, ended by process id."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import time

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
    """Why there can be no Slurm here, or None."""
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    if absent:
        return f"not installed: {', '.join(absent)} (packages slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "the daemons of a test cluster need root"


class Cluster:
    """What a user of a cluster does: submit, look, cancel."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def command(self, *words: str, **variables: str) -> str:
        """Runs a command of Slurm's; raises AssertionError with what it says if it fails."""
        done = subprocess.run(
            words, env=self.environment | variables, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        """The fields of a job as scontrol shows them; of an array, of its first task shown."""
        words = self.command("scontrol", "--oneliner", "show", "job", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def states(self, job: str) -> list[str]:
        """The state of a job, or of each task of an array."""
        lines = self.command("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [line.split("JobState=")[1].split()[0] for line in lines]

    def wait_for(self, condition, seconds: float, what: str) -> None:
        """Waits until a condition holds; raises AssertionError with the daemon's log when the time is up."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                log = (self.folder / "slurmctld.log").read_text().splitlines()[-15:]
                raise AssertionError(f"{what}: not within {seconds} s\n" + "\n".join(log))
            time.sleep(0.2)


@contextlib.contextmanager
def cluster(folder: pathlib.Path):
    """Starts munged, slurmctld and slurmd in the foreground, yields a Cluster, ends its jobs and them."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True, mode=0o700)
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(SETTINGS.format(folder=folder, ports=ports, host=host))
    found = Cluster(folder)
    munge = folder / "munge"
    commands = [
        ["munged", "--force", "--foreground", f"--socket={munge}/socket", f"--key-file={munge}/key",
         f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"],
        ["slurmctld", "-D", "-f", str(folder / "slurm.conf")],
        ["slurmd", "-D", "-f", str(folder / "slurm.conf"), "-N", host],
    ]  # fmt: skip
    daemons = []
    with (folder / "daemons.log").open("wb") as log:
        try:
            for command in commands:
                daemons.append(subprocess.Popen(command, env=found.environment, stdout=log, stderr=log))
                if command[0] == "munged":
                    found.wait_for(lambda: (munge / "socket").exists() or daemons[0].poll() is not None, 10, "munged")
            found.wait_for(lambda: "idle" in _nodes(found), 30, "an idle node")
            yield found
            found.command("scancel", "--signal=KILL", "--full", "--user=root")
            found.command("scancel", "--user=root")
            found.wait_for(lambda: not found.command("squeue", "--noheader"), 30, "an empty queue")
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in reversed(daemons):
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()


def _nodes(found: Cluster) -> str:
    done = subprocess.run(["sinfo"], env=found.environment, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout
