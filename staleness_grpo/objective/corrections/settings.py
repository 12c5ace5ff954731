"""Checks the settings of the chosen correction in a config."""

from collections.abc import Mapping
from typing import Any

from staleness_grpo.errors import FieldError, require

# The parameters of all corrections. Each of them has a flag. The docstring and the signature of a
# correction give the meaning and the published value of its parameters.
PARAMETERS = (
    "alignment_threshold",  # gac, gac_after_optimizer
    "beta",  # dro
    "cap",  # token_tis, sequence_tis, geometric_tis, opob, aipo, dual_clip, dppo_kl
    # The corrections with their own clip range: clip_higher, gspo, cispo, m2po_authors, mu_grpo.
    "clip_high",
    "clip_low",
    "decay_negative",  # vespo
    "decay_positive",
    "delta",  # negative_mask
    "ess_power",  # vcpo
    "ess_target",
    "exponent_negative",  # vespo
    "exponent_positive",
    "hill_at_quantile",  # sat
    "hill_exponent",
    "kl_threshold",  # dppo_kl, kpop
    "penalty",  # dppo_tv
    "probability_change",
    "quantile",  # sat
    "ratio_high",  # token_mis, sequence_mis, r1_reward_stable_reinforce
    "ratio_low",
    "removed_fraction",  # gac, gac_after_optimizer
    "second_moment",  # m2po_authors, m2po_areal
    "sigmas",  # r1_reward_stable_reinforce
    "skip_threshold",  # gac, gac_after_optimizer
    "tau_negative",  # sapo
    "tau_positive",
    "veto_high",  # mu_grpo
    "veto_low",
)
# The ends of ranges: if the first were above the second, no token would be left.
_RANGES = (("ratio_low", "ratio_high"), ("veto_low", "veto_high"))
# Parameters that must be > 0, because the correction divides by them.
_ABOVE_ZERO = ("tau_negative", "tau_positive")
# Parameters that must be <= 1.
_AT_MOST_ONE = ("clip_low", "hill_at_quantile", "quantile", "removed_fraction", "skip_threshold")


def check_correction(
    correction_config: Mapping[str, Any],
    surrogate: Mapping[str, Any],
    default_surrogate: Mapping[str, Any],
) -> None:
    """Raises FieldError for an unknown correction, or for settings that the correction cannot use.

    The error has the name of the field in the whole config, such as 'correction.cap'.

    Args:
      correction_config: `config.correction`. It has `name`, `update_rule` (or None), and a value or
        None for each of PARAMETERS.
      surrogate: `config.surrogate`.
      default_surrogate: `config.surrogate` of the default configuration.

    Raises:
      FieldError: the first field that cannot be used.
    """
    # These modules import JAX, which takes a while. So they are imported only when they are needed,
    # and wrong flags are reported sooner.
    from staleness_grpo.objective.corrections import registry, signatures
    from staleness_grpo.objective.update_rules import UPDATE_RULES

    name, update_rule = correction_config["name"], correction_config["update_rule"]
    require(name in registry.CORRECTIONS, "correction.name", registry.name_hint(name), name)
    hint = f"choose one of {', '.join(UPDATE_RULES)}"
    known_rule = update_rule is None or update_rule in UPDATE_RULES
    require(known_rule, "correction.update_rule", hint, update_rule)
    known = list(registry.parameters(name))
    if update_rule is not None:
        known += signatures.own_parameters(UPDATE_RULES[update_rule].transformation)
    for parameter in PARAMETERS:
        value, field = correction_config[parameter], f"correction.{parameter}"
        if value is None:
            continue
        if value < 0:
            raise FieldError(field, "give a number >= 0", value)
        if value == 0 and parameter in _ABOVE_ZERO:
            raise FieldError(field, "give a number > 0", value)
        if value > 1 and parameter in _AT_MOST_ONE:
            raise FieldError(field, "give a number <= 1", value)
        if (name, parameter) == ("dual_clip", "cap") and value <= 1:
            raise FieldError(field, "dual_clip would clip fresh rollouts: give a number > 1", value)
        if parameter in known:
            continue
        if parameter.startswith("clip_") and registry.uses_surrogate_clip(name):
            hint = f"set surrogate.{parameter} instead: correction.name={name} reads that field"
        else:
            chosen_names = " and ".join(filter(None, (name, update_rule)))
            known_names = ", ".join(known) or "no parameter"
            hint = f"remove this parameter: the corrections {chosen_names} read {known_names}"
        raise FieldError(field, hint, value)
    values = registry.parameters(name) | signatures.chosen_parameters(
        registry.CORRECTIONS[name].token_objective, correction_config
    )
    for low, high in _RANGES:
        if low in values and values[low] > values[high]:
            hint = f"no ratio would be in the range: give a number <= {high}={values[high]:g}"
            raise FieldError(f"correction.{low}", hint, values[low])
    for field in ("length_normalization", "normalize_std"):
        required = getattr(registry.CORRECTIONS[name], field)
        if required is not None and surrogate[field] != required:
            hint = f"correction.name={name} is defined with {required}: give {required}"
            raise FieldError(f"surrogate.{field}", hint, surrogate[field])
    for field in ("clip_low", "clip_high"):
        if not registry.uses_surrogate_clip(name) and surrogate[field] != default_surrogate[field]:
            hint = f"set correction.{field} instead" if field in known else "keep the default value"
            hint = f"correction.name={name} does not read this field: {hint}"
            raise FieldError(f"surrogate.{field}", hint, surrogate[field])
