"""Connects the processes of a run, and ends a process if another one is lost."""

import dataclasses
import faulthandler
import os
import re
import socket
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
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) < 2**16:
        hint = f"give HOST:PORT of process 0, with a port from 1 to 65535, or {AUTO}"
        raise FlagError("coordinator", coordinator, hint)
    if num_processes < 1:
        raise FlagError("num_processes", num_processes, "give a number >= 1")
    if not 0 <= process_id < num_processes:
        hint = f"give a number from 0 to {num_processes - 1}, a different number for each process"
        raise FlagError("process_id", process_id, hint)


def slurm_device_ids(environment: Mapping[str, str]) -> list[int] | None:
    """Returns which of the visible GPUs belong to this task of a Slurm step.

    By default JAX gives each task one GPU, the one with the task's number on the node. Here a task
    gets all GPUs that it sees, if it is alone on the node or Slurm gave it some of the node's GPUs.
    Tasks that see the same GPUs share them equally.

    Args:
      environment: the environment variables.

    Returns:
      Indices into the visible GPUs. None outside a Slurm step, without GPUs, or if the variable
      JAX_LOCAL_DEVICE_IDS decides.

    Raises:
      FlagError: the tasks of the node cannot share its GPUs equally.
    """
    if "SLURM_LOCALID" not in environment or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    on_node = int(environment.get("SLURM_GPUS_ON_NODE", 0))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    num_visible = on_node if visible is None else len([name for name in visible.split(",") if name])
    if num_visible == 0:
        return None
    num_tasks = _slurm_tasks_on_node(environment)
    if num_tasks == 1 or num_visible < on_node:
        return list(range(num_visible))
    if num_visible % num_tasks:
        hint = (
            f"{num_tasks} tasks on this node cannot share its {num_visible} GPUs equally: "
            "change --ntasks-per-node or --gpus-per-node of the job"
        )
        raise FlagError("coordinator", AUTO, hint)
    share = num_visible // num_tasks
    first = int(environment["SLURM_LOCALID"]) * share
    return list(range(first, first + share))


def _slurm_tasks_on_node(environment: Mapping[str, str]) -> int:
    """Returns the number of tasks on this node. Slurm writes those of all nodes as 4,2(x3)."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", ""))
    counts: list[int] = []
    for count, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(nodes or 1)
    node = int(environment.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else 1


def check_coordinator(coordinator: str, process_id: int) -> None:
    """Checks that the address can be used, because JAX ends the process without a reason if not.

    Raises:
      FlagError: no machine has the name; or this is process 0, and another program has the port.
    """
    host, _, port = coordinator.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        hint = f"no machine has this name ({error.strerror}): give HOST:PORT of process 0"
        raise FlagError("coordinator", coordinator, hint) from error
    if process_id != 0:
        return
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        except OSError as error:
            hint = (
                f"process 0 cannot listen there ({error.strerror}): give its host and a free port"
            )
            raise FlagError("coordinator", coordinator, hint) from error


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
    if hosts.process_id is not None:
        check_coordinator(hosts.coordinator, hosts.process_id)
    try:
        jax.distributed.initialize(
            None if hosts.coordinator == AUTO else hosts.coordinator,
            hosts.num_processes,
            hosts.process_id,
            slurm_device_ids(os.environ) if hosts.coordinator == AUTO else None,
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
