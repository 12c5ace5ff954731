"""Runs several processes as one: how they find each other, and how they end if one is lost."""

import dataclasses
import faulthandler
import os
import sys
from collections.abc import Mapping

from staleness_grpo.errors import FlagError

AUTO = "auto"
VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The place of a process among those of its run."""

    # HOST:PORT of process 0. With AUTO, JAX finds all three: on TPU slices, with Slurm or a JobSet.
    coordinator: str
    num_processes: int | None = None
    process_id: int | None = None


def find(flags: Mapping[str, str | int | None], environment: Mapping[str, str]) -> Hosts | None:
    """Returns the hosts of this run; None for a run of one process.

    Flags come first, then the variables, then what Slurm says.

    Args:
      flags: coordinator, num_processes, process_id; None where not given.
      environment: may hold VARIABLES, or what Slurm sets for the tasks of a step.

    Raises:
      FlagError: only a part of the three is given, or the numbers contradict each other.
    """
    values: dict[str, str | int | None] = dict(flags)
    for name, variable in VARIABLES.items():
        if values[name] is None and variable in environment:
            value = environment[variable]
            if name != "coordinator" and not value.isdigit():
                raise FlagError(name, value, f"the variable {variable} must be a number >= 0")
            values[name] = value if name == "coordinator" else int(value)
    if all(value is None for value in values.values()):
        # Slurm sets the step's variables for tasks alone, and not for the batch script.
        step = "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1
        return Hosts(AUTO) if step else None
    if values["coordinator"] == AUTO:
        for name in ("num_processes", "process_id"):
            if values[name] is not None:
                raise FlagError(name, values[name], f"--coordinator={AUTO} finds it: leave it out")
        return Hosts(AUTO)
    coordinator, num_processes, process_id = (values[name] for name in VARIABLES)
    if coordinator is None or num_processes is None or process_id is None:
        missing = next(name for name, value in values.items() if value is None)
        given = ", ".join(f"--{name}" for name, value in values.items() if value is not None)
        hint = f"{given} alone make no run of several processes: give all three"
        raise FlagError(missing, "", hint)
    _check_place(str(coordinator), int(num_processes), int(process_id))
    return Hosts(str(coordinator), int(num_processes), int(process_id))


def _check_place(coordinator: str, num_processes: int, process_id: int) -> None:
    """Refuses an address without a port, and numbers that contradict each other."""
    _, separator, port = coordinator.rpartition(":")
    if not separator or not port.isdigit():
        raise FlagError("coordinator", coordinator, f"give HOST:PORT of process 0, or {AUTO}")
    if num_processes < 1:
        raise FlagError("num_processes", num_processes, "give a number >= 1")
    if not 0 <= process_id < num_processes:
        hint = f"give a number from 0 to {num_processes - 1}, another one to each process"
        raise FlagError("process_id", process_id, hint)


def start(hosts: Hosts, heartbeat_seconds: int) -> None:
    """Joins the other processes. It must come before anything else that uses JAX.

    A process that was silent for `heartbeat_seconds` is taken for lost, and JAX ends the others.

    Raises:
      FlagError: the others were not found, or not which of them this process is.
    """
    import jax

    # JAX says in one line that another process was lost, and aborts. A stack would hide that line.
    faulthandler.disable()
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
        hint = f"processes not joined ({error}): start all of them with the same coordinator"
        raise FlagError("coordinator", hosts.coordinator, hint) from error


def end_without_the_others(error: BaseException) -> None:
    """Ends this process, of several, on an error.

    It ends at once: an orderly end would wait for the other processes, of which one may be lost.
    """
    import jax

    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    print(
        f"process {jax.process_index()} of {jax.process_count()} ends: {reason}: "
        "another one may be lost; end all of them, and start them again with the same command: "
        "they go on from the newest checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
