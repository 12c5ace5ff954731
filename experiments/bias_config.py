"""Refuses configs of the bias experiment that cannot be run, naming flag, value and mend."""

from ml_collections import ConfigDict

from staleness_grpo.config import ConfigError, field

LEAST = {
    "seed": 0,
    "num_draws": 2,  # an interval resamples draws
    "num_prompts": 1,
    "group_size": 2,
    "num_resamples": 100,
    "exact.num_learning_rates": 3,
    "sampled.num_learning_rates": 3,
    "sampled.batch_prompts": 1,
    "sampled.num_batches": 30_000,  # enough blocks for the exponent of the error
}
POSITIVE = ("surrogate.clip_low", "surrogate.clip_high", "surrogate.std_epsilon")


def validate(config: ConfigDict) -> None:
    """Raises ConfigError for the first contradiction found."""
    for flag, least in LEAST.items():
        if field(config, flag) < least:
            raise ConfigError(flag, field(config, flag), f"give a number >= {least}")
    for flag in POSITIVE:
        if not field(config, flag) > 0:
            raise ConfigError(flag, field(config, flag), "give a number > 0")
    if config.sampled.batch_prompts > config.num_prompts:
        raise ConfigError("sampled.batch_prompts", config.sampled.batch_prompts, "give at most num_prompts")
    for optimizer in ("sgd", "adam"):
        lowest, highest = config[optimizer].lowest_learning_rate, config[optimizer].highest_learning_rate
        if not 0 < lowest < highest:
            raise ConfigError(f"{optimizer}.lowest_learning_rate", lowest, f"give a number > 0 and below {highest}")
    lags = list(config.max_lags)
    if len(lags) < 3 or not all(isinstance(lag, int) and lag >= 1 for lag in lags) or lags != sorted(set(lags)):
        raise ConfigError("max_lags", config.max_lags, "give three or more increasing lags >= 1")
    check_parts(config)


def check_parts(config: ConfigDict) -> None:
    """Enumerable task, float64; and lets surrogate, task and policy refuse their own fields. Raises ConfigError."""
    if config.task.name != "enumerable":
        raise ConfigError("task.name", config.task.name, "only an enumerable task will do: give enumerable")
    if {config.policy.dtype, config.policy.param_dtype} != {"float64"}:
        raise ConfigError("policy.dtype", config.policy.dtype, "float32 loses the bias: give float64, and param_dtype")
    from staleness_grpo.objective.surrogate import SurrogateConfig
    from staleness_grpo.policy.transformer import TransformerConfig
    from staleness_grpo.tasks import TaskError, make_task

    parts = {
        "surrogate": lambda fields: SurrogateConfig(**fields),
        "task": lambda fields: make_task({**fields, "num_prompts": config.num_prompts}),
        "policy": lambda fields: TransformerConfig(vocab_size=config.task.vocab_size, **fields),
    }
    for section, construct in parts.items():
        fields = config[section].to_dict()
        try:
            construct(fields)
        except TaskError as error:
            raise ConfigError(f"task.{error.field}", config.task.get(error.field), error.mend) from error
        except (TypeError, ValueError) as error:
            named = [name for name in fields if name in str(error)]
            flag = f"{section}.{min(named, key=str(error).find)}" if named else section
            raise ConfigError(flag, field(config, flag), str(error)) from error
