"""Package metadata. The exact versions that the tests run on are locked in launch/requirements-py3*.txt."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "staleness_grpo/__init__.py").read_text()).group(1)

setuptools.setup(
    name="staleness_grpo",
    version=VERSION,
    description="Stale rollouts in asynchronous GRPO: exact bias, controlled lag, stability",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["staleness_grpo*", "experiments*"]),
    install_requires=[
        "absl-py",
        "chex",
        "flax>=0.12.8",
        "jax>=0.10.2",
        "matplotlib",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "pebble>=5.0",
        "rich",
    ],
    extras_require={
        "test": ["hypothesis", "ipykernel", "nbclient", "pytest", "pytest-xdist", "ruff"],
        "hf": ["jinja2", "safetensors", "tokenizers"],
        "tasks": ["math-verify", "reasoning-gym"],
        "logging": ["tensorboardX", "wandb"],
        "reference": ["gguf", "torch", "transformers"],  # numeric peers, in tests alone
    },
)
