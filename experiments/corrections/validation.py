"""Checks the config of the corrections experiment before anything is measured."""

from ml_collections import ConfigDict

from experiments.bias.validation import check_parts
from experiments.sweep import grid
from staleness_grpo.config.defaults import field_value
from staleness_grpo.errors import FieldError, require

AT_LEAST = {
    "seed": 0,
    "num_draws": 2,  # intervals resample draws
    "num_prompts": 1,
    "group_size": 2,
    "max_lag": 1,
    "variance.num_batches": 2,
    "cost.num_rounds": 1,
}


def _require_distinct(config: ConfigDict, field: str) -> None:
    values = config[field]
    require(len(set(values)) == len(values), field, "give distinct values", values)


def validate(config: ConfigDict) -> None:
    """Raises FieldError if the experiment cannot be run with this config.

    Raises:
      FieldError: names the first field with a wrong value, and the value.
    """
    from experiments.corrections.analysis import S_ETA_AFTER_CLIPPING, S_ETA_BEFORE_CLIPPING
    from experiments.corrections.stability import BASELINE, sweep_configs
    from staleness_grpo.objective.corrections.registry import CORRECTIONS
    from staleness_grpo.objective.update_rules import UPDATE_RULES

    for field, bound in AT_LEAST.items():
        value = field_value(config, field)
        require(value >= bound, field, f"give a number >= {bound}", value)
    for field, known in (
        ("corrections", CORRECTIONS),
        ("trained", CORRECTIONS),
        ("trained_update_rules", UPDATE_RULES),
    ):
        for name in config[field]:
            require(name in known, field, f"choose from {', '.join(known)}", name)
        _require_distinct(config, field)
    _require_distinct(config, "s_eta")
    for field in ("corrections", "trained"):
        hint = f"all others are compared with {BASELINE}: add {BASELINE}"
        require(BASELINE in config[field], field, hint, config[field])
    tabulated = (S_ETA_BEFORE_CLIPPING, S_ETA_AFTER_CLIPPING)
    hint = f"give numbers > 0 that include {tabulated[0]:g} and {tabulated[1]:g}"
    is_valid = set(tabulated) <= set(config.s_eta) and min(config.s_eta) > 0
    require(is_valid, "s_eta", hint, config.s_eta)
    require(config.variance.s_eta > 0, "variance.s_eta", "give a number > 0", config.variance.s_eta)
    try:
        check_parts(config)
    except FieldError as error:
        raise error.with_value(lambda field: field_value(config, field)) from error
    for sweep_config in sweep_configs(config).values():
        try:
            grid.validate(sweep_config)
        except FieldError as error:
            raise error.below("stability") from error
