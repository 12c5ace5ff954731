"""Refuses configs of the bias experiment that cannot be run.

The constructors of surrogate, task and policy check the fields of their own sections.
"""

import contextlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.bias.axes import OPTIMIZER_LABELS
from staleness_grpo.errors import FieldError, require, require_at_least

AT_LEAST = {
    "seed": 0,
    "num_draws": 2,  # intervals resample draws, so one draw is not enough
    "num_prompts": 1,
    "group_size": 2,
    "num_resamples": 100,
}
SECTIONS_AT_LEAST = {
    "exact": {"num_learning_rates": 3},
    "sampled": {
        "num_learning_rates": 3,
        "batch_prompts": 1,
        "num_batches": 30_000,  # fewer give too few blocks for the exponent of the error
    },
}


def validate(config: ConfigDict) -> None:
    """Raises FieldError for the first field whose value cannot be used."""
    require_at_least(config, AT_LEAST)
    for section, bounds in SECTIONS_AT_LEAST.items():
        with _below(section):
            require_at_least(config[section], bounds)
    batch_prompts = config.sampled.batch_prompts
    require(
        batch_prompts <= config.num_prompts,
        "sampled.batch_prompts",
        f"give at most num_prompts={config.num_prompts}",
        batch_prompts,
    )
    for optimizer in OPTIMIZER_LABELS:
        lowest = config[optimizer].lowest_learning_rate
        highest = config[optimizer].highest_learning_rate
        hint = f"give a number > 0 and below highest_learning_rate={highest}"
        require(0 < lowest < highest, f"{optimizer}.lowest_learning_rate", hint, lowest)
    lags = list(config.max_lags)
    require(
        len(lags) >= 3
        and all(isinstance(lag, int) and lag >= 1 for lag in lags)
        and lags == sorted(set(lags)),
        "max_lags",
        "give at least three whole numbers >= 1 in increasing order",
        config.max_lags,
    )
    check_parts(config)


def check_parts(config: ConfigDict) -> None:
    """Checks the sections surrogate, task and policy.

    The experiment needs an enumerable task and float64. All other fields of the three sections are
    checked by the constructors of surrogate, task and policy.

    Raises:
      FieldError: a field cannot be used. The error names the first one.
    """
    task, policy = config.task, config.policy
    hint = "the exact bias needs an enumerable task: give enumerable"
    require(task.name == "enumerable", "task.name", hint, task.name)
    for field in ("dtype", "param_dtype"):
        hint = "rounding errors of float32 hide a small bias: give float64"
        require(policy[field] == "float64", f"policy.{field}", hint, policy[field])
    # These modules import JAX, which is slow. They are imported after the faster checks above.
    from staleness_grpo.objective.surrogate import SurrogateConfig
    from staleness_grpo.policy.architecture import TransformerConfig
    from staleness_grpo.tasks import make_task

    with _below("surrogate"):
        SurrogateConfig(**config.surrogate.to_dict())
    with _below("task"):
        make_task({**task.to_dict(), "num_prompts": config.num_prompts})
    with _below("policy"):
        TransformerConfig(vocab_size=task.vocab_size, **policy.to_dict())


@contextlib.contextmanager
def _below(section: str) -> Iterator[None]:
    """Puts the section's name in front of the field of each FieldError raised inside."""
    try:
        yield
    except FieldError as error:
        raise error.below(section) from error
    except TypeError as error:  # a field is unknown, missing, or of another type
        hint = f"{error}: give the same fields as experiments/configs/bias.py"
        raise FieldError(section, hint) from error
