"""Several processes as one run: how they find each other, and how they end when one of them is lost."""

import dataclasses
import faulthandler
import os
import sys
from collections.abc import Mapping

from staleness_grpo.config import FlagError

AUTO = "auto"
VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


@dataclasses.dataclass(frozen=True)
class Hosts:
    """A process among those of a run."""

    coordinator: str  # HOST:PORT of process 0; AUTO: JAX finds all three, on a TPU slice, with Slurm or a JobSet
    num_processes: int | None = None
    process_id: int | None = None


def find(flags: Mapping[str, str | int | None], environment: Mapping[str, str]) -> Hosts | None:
    """The hosts that the flags name, then the variables, then Slurm; None for a run of one process.

    Args:
      flags: coordinator, num_processes, process_id; None where not given.
      environment: VARIABLES, or what Slurm sets for the tasks of a step.

    Raises:
      FlagError: for a part of what is needed, or numbers that contradict each other.
    """
    values = dict(flags)
    for name, variable in VARIABLES.items():
        if values[name] is None and variable in environment:
            value = environment[variable]
            if name != "coordinator" and not value.isdigit():
                raise FlagError(name, value, f"the variable {variable} must be a number >= 0")
            values[name] = value if name == "coordinator" else int(value)
    if all(value is None for value in values.values()):
        step = "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1
        return Hosts(AUTO) if step else None
    if values["coordinator"] == AUTO:
        for name in ("num_processes", "process_id"):
            if values[name] is not None:
                raise FlagError(name, values[name], f"--coordinator={AUTO} finds it: leave it out")
        return Hosts(AUTO)
    for name, value in values.items():
        if value is None:
            given = ", ".join(f"--{other}" for other, there in values.items() if there is not None)
            raise FlagError(name, "", f"{given} alone make no run of several processes: give all three")
    hosts = Hosts(**values)
    _, separator, port = hosts.coordinator.rpartition(":")
    if not separator or not port.isdigit():
        raise FlagError("coordinator", hosts.coordinator, f"give HOST:PORT of process 0, or {AUTO}")
    if hosts.num_processes < 1:
        raise FlagError("num_processes", hosts.num_processes, "give a number >= 1")
    if not 0 <= hosts.process_id < hosts.num_processes:
        mend = f"give a number from 0 to {hosts.num_processes - 1}, each to one process"
        raise FlagError("process_id", hosts.process_id, mend)
    return hosts


def start(hosts: Hosts, heartbeat_seconds: int) -> None:
    """Joins the others; before anything else of JAX.

    A process that has not been heard of for `heartbeat_seconds` is given up, and JAX ends the others.

    Raises:
      FlagError: the others, or who this is among them, were not found.
    """
    import jax

    faulthandler.disable()  # JAX says in one line that another process was lost, and aborts: no stack explains that
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            None if hosts.coordinator == AUTO else hosts.coordinator,
            hosts.num_processes,
            hosts.process_id,
            initialization_timeout=max(heartbeat_seconds, 60),
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
    except (ValueError, RuntimeError) as error:
        mend = f"processes not joined ({error}): start all of them with the same coordinator"
        raise FlagError("coordinator", hosts.coordinator, mend) from error


def end_without_the_others(error: BaseException) -> None:
    """Ends this process, of several, on an error: at once, because an orderly end waits for all of them."""
    import jax

    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    print(
        f"process {jax.process_index()} of {jax.process_count()} ends: {reason}: another one may be lost; end all, and "
        "start them again with the same command, to go on from the newest checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
