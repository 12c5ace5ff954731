"""Refuses configs of the corrections experiment that cannot be run, naming flag, value and mend."""

from ml_collections import ConfigDict

from experiments import bias_config, sweep_grid
from staleness_grpo.config import ConfigError, field

LEAST = {
    "seed": 0,
    "num_draws": 2,  # an interval resamples draws
    "num_prompts": 1,
    "group_size": 2,
    "max_lag": 1,
    "variance.num_batches": 2,
    "cost.num_rounds": 1,
}


def validate(config: ConfigDict) -> None:
    """Raises ConfigError for the first contradiction found."""
    from experiments import corrections_stability
    from experiments.corrections_summary import LARGE, SMALL
    from staleness_grpo.objective.corrections.registry import CORRECTIONS
    from staleness_grpo.objective.update_corrections import UPDATE_CORRECTIONS

    for flag, least in LEAST.items():
        if field(config, flag) < least:
            raise ConfigError(flag, field(config, flag), f"give a number >= {least}")
    for flag, known in (
        ("corrections", CORRECTIONS), ("trained", CORRECTIONS), ("trained_update_rules", UPDATE_CORRECTIONS),
    ):  # fmt: skip
        if unknown := [name for name in config[flag] if name not in known]:
            raise ConfigError(flag, unknown[0], f"choose from {', '.join(known)}")
    for flag in ("corrections", "trained"):
        if corrections_stability.BASELINE not in config[flag]:
            raise ConfigError(
                flag, config[flag], f"keep {corrections_stability.BASELINE} in it: all are set against it"
            )
    if not {SMALL, LARGE} <= set(config.s_eta) or min(config.s_eta) <= 0:
        raise ConfigError("s_eta", config.s_eta, f"give numbers > 0, {SMALL:g} and {LARGE:g} among them")
    if config.variance.s_eta <= 0:
        raise ConfigError("variance.s_eta", config.variance.s_eta, "give a number > 0")
    bias_config.check_parts(config)
    for stability in corrections_stability.methods(config).values():
        try:
            sweep_grid.validate(stability)
        except ConfigError as error:
            raise error.below("stability") from error
