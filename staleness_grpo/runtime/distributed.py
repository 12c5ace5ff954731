"""Connects the processes of a run, and ends a process if another one is lost."""

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
    """Says where process 0 runs, how many processes a run has, and which of them this one is."""

    # HOST:PORT of process 0. With AUTO, JAX finds all three values: on TPU slices, with Slurm or
    # with a JobSet.
    coordinator: str
    num_processes: int | None = None
    process_id: int | None = None


def find(flags: Mapping[str, str | int | None], environment: Mapping[str, str]) -> Hosts | None:
    """Returns the hosts of this run; None for a run of one process.

    Each value is taken from its flag, or else from its environment variable. If none of them is
    given, Slurm's variables decide whether there are several processes.

    Args:
      flags: coordinator, num_processes and process_id; None for a flag that is not given.
      environment: the environment variables. VARIABLES and the variables that Slurm sets for the
        tasks of a step are read.

    Raises:
      FlagError: only one or two of the three values are given, a variable is not a number, the
        coordinator has no port, or the numbers contradict each other.
    """
    values: dict[str, str | int | None] = dict(flags)
    for name, variable in VARIABLES.items():
        if values[name] is None and variable in environment:
            value = environment[variable]
            if name != "coordinator" and not value.isdigit():
                raise FlagError(name, value, f"the variable {variable} must be a number >= 0")
            values[name] = value if name == "coordinator" else int(value)
    if all(value is None for value in values.values()):
        # Slurm sets this variable for the tasks of a step, but not for the batch script.
        in_slurm_step = (
            "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1
        )
        return Hosts(AUTO) if in_slurm_step else None
    if values["coordinator"] == AUTO:
        for name in ("num_processes", "process_id"):
            if values[name] is not None:
                hint = f"--coordinator={AUTO} finds {name} by itself: remove the flag --{name}"
                raise FlagError(name, values[name], hint)
        return Hosts(AUTO)
    coordinator, num_processes, process_id = (values[name] for name in VARIABLES)
    if coordinator is None or num_processes is None or process_id is None:
        missing = next(name for name, value in values.items() if value is None)
        given = ", ".join(f"--{name}" for name, value in values.items() if value is not None)
        hint = f"{given} alone cannot describe a run of several processes: give all three flags"
        raise FlagError(missing, "", hint)
    _check_hosts(str(coordinator), int(num_processes), int(process_id))
    return Hosts(str(coordinator), int(num_processes), int(process_id))


def _check_hosts(coordinator: str, num_processes: int, process_id: int) -> None:
    """Raises FlagError if the address has no port, or if the numbers contradict each other."""
    _, separator, port = coordinator.rpartition(":")
    if not separator or not port.isdigit():
        raise FlagError("coordinator", coordinator, f"give HOST:PORT of process 0, or {AUTO}")
    if num_processes < 1:
        raise FlagError("num_processes", num_processes, "give a number >= 1")
    if not 0 <= process_id < num_processes:
        hint = f"give a number from 0 to {num_processes - 1}, a different number for each process"
        raise FlagError("process_id", process_id, hint)


def start(hosts: Hosts, heartbeat_seconds: int) -> None:
    """Joins the other processes. Call this before anything else that uses JAX.

    If a process sends no heartbeat for `heartbeat_seconds`, JAX takes it for lost and ends the
    other processes.

    Raises:
      FlagError: the other processes were not found, or JAX cannot tell the number of this process.
    """
    import jax

    # If another process is lost, JAX prints one line about this and aborts. A stack trace would
    # hide the line.
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
        hint = (
            f"the processes could not be connected ({error}): "
            "start all of them with the same coordinator"
        )
        raise FlagError("coordinator", hosts.coordinator, hint) from error


def end_without_the_others(error: BaseException) -> None:
    """Prints the error and ends this process of a run of several processes at once.

    A normal exit would wait for the other processes, and one of them may be lost.
    """
    import jax

    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    print(
        f"process {jax.process_index()} of {jax.process_count()} ends: {reason}: "
        "another one may be lost; end all processes, and start them again with the same command: "
        "they continue from the newest checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
