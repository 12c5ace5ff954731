"""Sets the flags of XLA's compiler for CPUs that make the programs of small policies faster."""

import importlib.metadata
import importlib.util
import os

# Each flag has its value, and the last version of jaxlib that is known to take it: JAX ends the
# process at a flag that it does not know. What the flags bring is in docs/log/: a-faster-toy and
# even-keys.
EMITTERS = "--xla_cpu_use_fusion_emitters"
FLAGS = {
    # The library YNNPACK is slow at sums over short axes, such as those of a norm.
    "--xla_cpu_experimental_ynn_fusion_type": ("-LIBRARY_FUSION_TYPE_REDUCE", (0, 12)),
    # With LLVM's level 1 programs compile sooner, and run as fast.
    "--xla_backend_optimization_level": ("1", (0, 12)),
    # The older emitter of fused operations compiles in two thirds of the time of the newer one.
    # Steps of a narrow decoder are as fast with it, those of a wide one are not.
    # It stands last, so that `prefer_long_runs` can tell it from a flag of the user.
    EMITTERS: ("false", (0, 10)),
}
FIRST_VERSION = (0, 10)


def prefer_small_programs(is_narrow: bool) -> bool:
    """Adds FLAGS to the variable XLA_FLAGS. Returns whether they are set.

    EMITTERS is added for a narrow decoder, or without one. There, compilation takes a good part of
    the time.

    A flag that the user has set stays as it is. Nothing is set if JAX may use an accelerator, for
    which the flags are not meant, or has a version that may not know them. Call this function
    before JAX is used. Processes that this one starts inherit the variable.
    """
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    known = {name: value for name, (value, last) in FLAGS.items() if version <= last}
    if not is_narrow:
        known.pop(EMITTERS, None)
    if version < FIRST_VERSION or not known or _may_use_accelerators():
        return False
    present = os.environ.get("XLA_FLAGS", "")
    missing = [f"{name}={value}" for name, value in known.items() if name not in present]
    os.environ["XLA_FLAGS"] = " ".join([*present.split(), *missing])
    return True


def prefer_long_runs() -> None:
    """Takes back the older emitter, for a process that compiles one program and runs it for long.

    A cell of a map, which is one program, takes 0.96 of its time with the newer one. What the user
    has set stays: `prefer_small_programs` adds its flags after those of the user.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    if flags[-1:] == [f"{EMITTERS}={FLAGS[EMITTERS][0]}"]:
        os.environ["XLA_FLAGS"] = " ".join(flags[:-1])


def _may_use_accelerators() -> bool:
    """Says whether JAX will look for other devices than CPUs. It does not initialize JAX."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
