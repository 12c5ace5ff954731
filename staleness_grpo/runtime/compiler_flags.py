"""Sets the flags of XLA's compiler for CPUs that make the programs of small policies faster."""

import importlib.metadata
import importlib.util
import os

# What the flags bring is in docs/log/2026-11-30-a-faster-toy.md.
FLAGS = {
    # The library YNNPACK is slow at sums over short axes, such as those of a norm.
    "--xla_cpu_experimental_ynn_fusion_type": "-LIBRARY_FUSION_TYPE_REDUCE",
    # With LLVM's level 1 programs compile sooner, and run as fast.
    "--xla_backend_optimization_level": "1",
}
# JAX ends the process at a flag that it does not know. These versions know all of them.
FIRST_VERSION, LAST_VERSION = (0, 10), (0, 12)


def prefer_small_programs() -> bool:
    """Adds FLAGS to the variable XLA_FLAGS. Returns whether they are set.

    A flag that the user has set stays as it is. Nothing is set if JAX may use an accelerator, for
    which the flags are not meant, or has a version that may not know them. Call this function
    before JAX is used. Processes that this one starts inherit the variable.
    """
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    if not FIRST_VERSION <= version <= LAST_VERSION or _may_use_accelerators():
        return False
    present = os.environ.get("XLA_FLAGS", "")
    missing = [f"{name}={value}" for name, value in FLAGS.items() if name not in present]
    os.environ["XLA_FLAGS"] = " ".join([*present.split(), *missing])
    return True


def _may_use_accelerators() -> bool:
    """Says whether JAX will look for other devices than CPUs. It does not initialize JAX."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
