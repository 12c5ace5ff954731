"""Stores compiled programs on disk, so that later processes do not compile them again."""

import hashlib
import pathlib
import platform

import jax

MIN_COMPILE_SECONDS = 0.2  # compiling a faster program takes about as long as reading the cache


def enable(folder: pathlib.Path) -> None:
    """Makes JAX store compiled programs in a subfolder of `folder` for this kind of CPU.

    JAX's own cache key has the program, the versions and the devices, but not the instruction set
    of the CPU. Without the subfolder, a process could load code with instructions that its CPU does
    not have, and crash. If the folder cannot be written, JAX warns and compiles again each time.
    """
    jax.config.update("jax_compilation_cache_dir", str(folder / _cpu_name()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def _cpu_name() -> str:
    """Returns a short name for the instruction set of this machine's CPU."""
    description = platform.machine() + platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        description += "".join(
            sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
        )
    return hashlib.sha256(description.encode()).hexdigest()[:12]
