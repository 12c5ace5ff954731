"""Describes the package. The exact versions for the tests are in launch/requirements-py3*.txt."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "staleness_grpo/__init__.py").read_text(), re.MULTILINE
).group(1)

setuptools.setup(
    name="staleness_grpo",
    version=VERSION,
    description="Stale rollouts in asynchronous GRPO: exact bias, controlled lag, stability",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    # The repository has no public address yet. Once it has one, it belongs here as "Source".
    project_urls={"Paper": "https://arxiv.org/abs/2607.01083"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["staleness_grpo", "staleness_grpo.*"]),
    install_requires=[
        "chex",
        "flax>=0.12.8",
        "jax>=0.10.2",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "pebble>=5.0",
        "rich",
        "scipy",
        "simpy>=4.1",
    ],
    extras_require={
        "hf": ["jinja2", "safetensors", "tokenizers"],
        "tasks": ["math-verify", "pyarrow", "reasoning-gym"],
        "sinks": ["tensorboard", "wandb"],
        # The folder experiments/ runs from the repository and is in no wheel.
        "experiments": ["absl-py", "matplotlib"],
        "test": [
            "build",
            "hypothesis",
            "ipykernel",  # runs the notebooks, beside nbclient
            "mypy",
            "nbclient",
            "nbformat",
            "pytest",
            "pytest-xdist",
            "pyyaml",
            "ruff",
        ],
        "docs": ["mkdocs", "mkdocs-material"],
        "reference": ["gguf", "torch", "transformers"],  # peers that the tests compare with
    },
)
