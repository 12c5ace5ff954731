"""Describes the software and hardware that a result depends on besides its config."""

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import staleness_grpo


def describe_environment() -> dict[str, Any]:
    """Returns the versions, commit, platform and devices, for environment.json.

    `commit` is None outside a git checkout. `devices` lists the devices of all processes.
    """
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "python": platform.python_version(),
        # The version of the code that runs, which need not be that of the installed metadata.
        "versions": versions | {"staleness_grpo": staleness_grpo.__version__},
        "commit": git.stdout.strip() or None,
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
    }
