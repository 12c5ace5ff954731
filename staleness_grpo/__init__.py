"""Measures how stale rollouts may be, at what learning rate, before GRPO is biased or collapses.

The names in `__all__` are what users may rely on. Everything else may change without notice.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from staleness_grpo.bias.enumeration import Problem
    from staleness_grpo.bias.exact import surrogate_bias, surrogate_gradient
    from staleness_grpo.config.build import build_run
    from staleness_grpo.config.defaults import default_config
    from staleness_grpo.config.validation import validate
    from staleness_grpo.errors import FieldError
    from staleness_grpo.objective.advantages import group_advantages
    from staleness_grpo.objective.surrogate import SurrogateConfig, grpo_surrogate
    from staleness_grpo.policy.architecture import TransformerConfig
    from staleness_grpo.policy.transformer import Policy
    from staleness_grpo.staleness.ring_buffer import RingBuffer
    from staleness_grpo.staleness.schedule import make_schedule
    from staleness_grpo.tasks.enumerable import EnumerableTask
    from staleness_grpo.training.loop import train
    from staleness_grpo.training.run import Run

__version__ = "0.2.0"

# The module of each public name. They are imported on use: the processes that judge rewards import
# this package, and must not wait for JAX.
_MODULES = {
    "EnumerableTask": "tasks.enumerable",
    "FieldError": "errors",
    "Policy": "policy.transformer",
    "Problem": "bias.enumeration",
    "RingBuffer": "staleness.ring_buffer",
    "Run": "training.run",
    "SurrogateConfig": "objective.surrogate",
    "TransformerConfig": "policy.architecture",
    "build_run": "config.build",
    "default_config": "config.defaults",
    "group_advantages": "objective.advantages",
    "grpo_surrogate": "objective.surrogate",
    "make_schedule": "staleness.schedule",
    "surrogate_bias": "bias.exact",
    "surrogate_gradient": "bias.exact",
    "train": "training.loop",
    "validate": "config.validation",
}

__all__ = [
    "EnumerableTask",
    "FieldError",
    "Policy",
    "Problem",
    "RingBuffer",
    "Run",
    "SurrogateConfig",
    "TransformerConfig",
    "build_run",
    "default_config",
    "group_advantages",
    "grpo_surrogate",
    "make_schedule",
    "surrogate_bias",
    "surrogate_gradient",
    "train",
    "validate",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
