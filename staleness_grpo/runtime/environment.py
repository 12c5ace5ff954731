"""Describes the software and hardware that a result depends on besides its config."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import staleness_grpo

# The settings of JAX that change numbers. RANDOM_SETTINGS change every draw, and the others change
# the last bits.
RANDOM_SETTINGS = ("jax_threefry_partitionable", "jax_default_prng_impl")
JAX_SETTINGS = (*RANDOM_SETTINGS, "jax_enable_x64", "jax_default_matmul_precision")


def describe_environment() -> dict[str, Any]:
    """Returns the versions, commit, platform and devices, for environment.json.

    `commit` is None outside a git checkout, as in an image, and where git is not installed.
    `devices` lists the devices of all processes.
    """
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "python": platform.python_version(),
        # The version of the code that runs, which need not be that of the installed metadata.
        "versions": versions | {"staleness_grpo": staleness_grpo.__version__},
        "commit": _commit(),
        "platform": platform.platform(),
        "jax_settings": {name: getattr(jax.config, name) for name in JAX_SETTINGS},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),  # they change the last bits too
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def _commit() -> str | None:
    """Returns the commit of the code, marked if files differ from it."""
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:  # git is not installed
        return None
    return git.stdout.strip() or None
