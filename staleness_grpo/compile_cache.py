"""Compiled programs kept on disk between processes."""

import hashlib
import pathlib
import platform

import jax

MIN_COMPILE_SECONDS = 0.2  # below that, compiling is about as fast as reading the cache


def enable(folder: pathlib.Path) -> None:
    """Keeps what XLA compiles in a subfolder of `folder` that belongs to this kind of machine.

    JAX's key covers the program, the versions and the devices, but code compiled for a CPU with more
    instructions than this one has would still be loaded, and crash: hence one subfolder for each kind of CPU.
    A folder that cannot be written costs a warning and time, nothing else.
    """
    jax.config.update("jax_compilation_cache_dir", str(folder / _machine()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def _machine() -> str:
    """A short name for the instruction set of this machine's CPU."""
    description = platform.machine() + platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        description += "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    return hashlib.sha256(description.encode()).hexdigest()[:12]
