"""Refuses configs of the corrections experiment that cannot be run."""

from ml_collections import ConfigDict

from experiments.bias.validation import check_parts
from experiments.sweep import grid
from staleness_grpo.config.defaults import field_value
from staleness_grpo.errors import FieldError, require

AT_LEAST = {
    "seed": 0,
    "num_draws": 2,  # an interval resamples draws
    "num_prompts": 1,
    "group_size": 2,
    "max_lag": 1,
    "variance.num_batches": 2,
    "cost.num_rounds": 1,
}


def validate(config: ConfigDict) -> None:
    """Refuses what cannot be run.

    Raises:
      FieldError: names the first field found wrong, with its value.
    """
    from experiments.corrections.analysis import S_ETA_AFTER_CLIPPING, S_ETA_BEFORE_CLIPPING
    from experiments.corrections.stability import BASELINE, methods
    from staleness_grpo.objective.corrections.registry import CORRECTIONS
    from staleness_grpo.objective.update_corrections import UPDATE_CORRECTIONS

    for field, bound in AT_LEAST.items():
        value = field_value(config, field)
        require(value >= bound, field, f"give a number >= {bound}", value)
    for field, known in (
        ("corrections", CORRECTIONS),
        ("trained", CORRECTIONS),
        ("trained_update_rules", UPDATE_CORRECTIONS),
    ):
        for name in config[field]:
            require(name in known, field, f"choose from {', '.join(known)}", name)
    for field in ("corrections", "trained"):
        hint = f"keep {BASELINE} in it: all are set against it"
        require(BASELINE in config[field], field, hint, config[field])
    needed = (S_ETA_BEFORE_CLIPPING, S_ETA_AFTER_CLIPPING)
    hint = f"give numbers > 0, {needed[0]:g} and {needed[1]:g} among them"
    sound = set(needed) <= set(config.s_eta) and min(config.s_eta) > 0
    require(sound, "s_eta", hint, config.s_eta)
    require(config.variance.s_eta > 0, "variance.s_eta", "give a number > 0", config.variance.s_eta)
    try:
        check_parts(config)
    except FieldError as error:
        raise error.with_value(lambda field: field_value(config, field)) from error
    for stability in methods(config).values():
        try:
            grid.validate(stability)
        except FieldError as error:
            raise error.below("stability") from error
