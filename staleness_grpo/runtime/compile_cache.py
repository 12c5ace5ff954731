"""Keeps compiled programs on disk, so that a later process need not compile them again."""

import hashlib
import pathlib
import platform

import jax

MIN_COMPILE_SECONDS = 0.2  # below that, compiling is about as fast as reading the cache


def enable(folder: pathlib.Path) -> None:
    """Keeps what XLA compiles in a subfolder of `folder` that belongs to this kind of CPU.

    JAX's own key covers the program, the versions and the devices, but not the instructions of the
    CPU. Code for a CPU with more instructions than this one has would be loaded, and would crash. A
    folder that cannot be written costs a warning and time, nothing else.
    """
    jax.config.update("jax_compilation_cache_dir", str(folder / _cpu_name()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def _cpu_name() -> str:
    """Returns a short name for the instruction set of this machine's CPU."""
    description = platform.machine() + platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        description += "".join(
            sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
        )
    return hashlib.sha256(description.encode()).hexdigest()[:12]
