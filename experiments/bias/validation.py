"""Refuses configs of the bias experiment that cannot be run.

Surrogate, task and policy refuse their own fields.
"""

import contextlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.bias.grid import OPTIMIZERS
from staleness_grpo.errors import FieldError, require, require_at_least

AT_LEAST = {
    "seed": 0,
    "num_draws": 2,  # an interval resamples draws
    "num_prompts": 1,
    "group_size": 2,
    "num_resamples": 100,
}
SECTIONS_AT_LEAST = {
    "exact": {"num_learning_rates": 3},
    "sampled": {
        "num_learning_rates": 3,
        "batch_prompts": 1,
        "num_batches": 30_000,  # enough blocks for the exponent of the error
    },
}


def validate(config: ConfigDict) -> None:
    """Raises FieldError for the first contradiction found."""
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
    for optimizer in OPTIMIZERS:
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
        "give three or more increasing lags >= 1",
        config.max_lags,
    )
    check_parts(config)


def check_parts(config: ConfigDict) -> None:
    """Has surrogate, task and policy refuse their own fields.

    The experiment needs an enumerable task and float64.

    Raises:
      FieldError: naming the first field found wrong.
    """
    task, policy = config.task, config.policy
    hint = "only an enumerable task will do: give enumerable"
    require(task.name == "enumerable", "task.name", hint, task.name)
    for field in ("dtype", "param_dtype"):
        hint = "float32 loses the bias: give float64"
        require(policy[field] == "float64", f"policy.{field}", hint, policy[field])
    # Imported here: these bring in JAX, which a command needs only once its flags are in order.
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
    """Names the fields of errors raised inside as seen from outside their section."""
    try:
        yield
    except FieldError as error:
        raise error.below(section) from error
    except TypeError as error:  # a field that is unknown or missing, or of another type
        hint = f"{error}: give the fields of experiments/configs/bias.py"
        raise FieldError(section, hint) from error
