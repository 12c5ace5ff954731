"""Checks the devices of a run, and says at its start which of them it uses."""

import os
import pathlib
import shutil
import sys

from ml_collections import ConfigDict

from staleness_grpo.errors import FlagError, counted
from staleness_grpo.runtime.cores import usable_cores

_left_to_others = False  # whether this process only starts others
_one_for_each_thread = False  # whether threads of this process have devices of their own


def check() -> None:
    """Makes JAX look for its devices. Raises FlagError if JAX_PLATFORMS names a kind that it lacks.

    JAX itself would end with a traceback.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # some versions fail an assertion of their own
        platforms = os.environ.get("JAX_PLATFORMS")
        if platforms is None:
            raise
        reason = str(error).partition("\n")[0] or "JAX finds no such device"
        hint = (
            f"{reason}: install JAX for this kind of device (bash launch/setup.sh --help), "
            "or unset the variable"
        )
        raise FlagError.of_variable("JAX_PLATFORMS", platforms, hint) from error


def announce(config: ConfigDict) -> None:
    """Prints the processes and devices of the run, and the devices that its mesh does not use.

    If the machine has a GPU that JAX cannot use, a second line says so.
    """
    import jax

    if _left_to_others:
        return
    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    counts = (
        f"{counted(jax.process_count(), 'process', 'es')}, "
        f"{counted(jax.local_device_count(), 'local device')}, "
        f"{counted(len(devices), 'global device')} ({kinds})"
    )
    unused = 0 if _one_for_each_thread else len(devices) - _mesh_size(config)
    if unused > 0:
        # A mesh takes the first devices.
        ids = ", ".join(str(device.id) for device in devices[-unused:])
        counts += (
            f"; {unused} of them are not used, by number {ids}: "
            "raise --config.mesh.data, --config.mesh.fsdp or --config.mesh.tensor"
        )
    print(counts, file=sys.stderr)
    if jax.default_backend() == "cpu" and "JAX_PLATFORMS" not in os.environ and _has_nvidia_gpu():
        hint = "see bash launch/setup.sh --help, or set JAX_PLATFORMS=cpu"
        print(f"this machine has an NVIDIA GPU, but JAX runs on the CPU: {hint}", file=sys.stderr)


def _mesh_size(config: ConfigDict) -> int:
    """Returns the number of devices that a config uses; 1 if it has no mesh."""
    mesh = config.get("mesh", {})
    size = 1
    for axis in mesh.values():
        size *= axis
    if "asynchronous" in config:
        size += config.asynchronous.generator_devices or size
    return max(size, config.get("sampler", {}).get("devices") or 0)


def _has_nvidia_gpu() -> bool:
    has_device_file = any(pathlib.Path("/dev").glob("nvidia[0-9]*"))
    return has_device_file or shutil.which("nvidia-smi") is not None


def make_for_threads(num_threads: int) -> None:
    """Makes so many CPU devices, or as many as there are cores, if the user asks for no number.

    Programs on one device run one after another, also if several threads start them. Programs on
    different devices run side by side.
    """
    global _one_for_each_thread
    import jax

    _one_for_each_thread = True
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(num_threads, len(usable_cores())))


def leave_to_others(config: ConfigDict) -> None:
    """Keeps this process on the CPU, so that the processes that it starts get the accelerators.

    A TPU belongs to one process at a time, and a process on a GPU takes most of its memory.
    """
    global _left_to_others
    del config
    import jax

    jax.config.update("jax_platforms", "cpu")
    _left_to_others = True
