"""What `config.correction` may hold: the parameters of all corrections, and what contradicts the chosen ones."""

from collections.abc import Iterator, Mapping

# Each makes a flag. Where its correction is defined, its meaning and its published value stand.
PARAMETERS = (
    "alignment_threshold",  # gac, gac_after_optimizer
    "cap",  # token_tis, sequence_tis, geometric_tis, aipo
    "clip_high",  # corrections with a clip range of their own: clip_higher, gspo, cispo, m2po_authors, mu_grpo
    "clip_low",
    "delta",  # negative_mask
    "ess_power",  # vcpo
    "ess_target",
    "hill_at_quantile",  # sat
    "hill_exponent",
    "penalty",  # dppo_tv
    "probability_change",
    "quantile",  # sat
    "ratio_high",  # token_mis, sequence_mis, stable_reinforce
    "ratio_low",
    "removed_fraction",  # gac, gac_after_optimizer
    "second_moment",  # m2po_authors, m2po_areal
    "sigmas",  # stable_reinforce
    "skip_threshold",  # gac, gac_after_optimizer
    "veto_high",  # mu_grpo
    "veto_low",
)
_AT_MOST_ONE = ("clip_low", "hill_at_quantile", "quantile", "removed_fraction", "skip_threshold")


def contradictions(correction: Mapping, surrogate: Mapping, default_surrogate: Mapping) -> Iterator[tuple[str, str]]:
    """What cannot be run, or would not be read: (flag, mend) of each field, as 'correction.cap'.

    Args:
      correction: `config.correction`: a known name, a known update rule or None, and each of PARAMETERS or None.
      surrogate, default_surrogate: `config.surrogate`, and that of the default configuration.
    """
    # Imported here: these bring in JAX, which a command needs only once its flags and folders are in order.
    from staleness_grpo.objective.corrections import registry
    from staleness_grpo.objective.update_corrections import UPDATE_CORRECTIONS

    name, update = correction["name"], correction["update_rule"]
    known = list(registry.parameters(name))
    if update is not None:
        known += registry.own_parameters(UPDATE_CORRECTIONS[update].transformation)
    for parameter in PARAMETERS:
        value, flag = correction[parameter], f"correction.{parameter}"
        if value is None:
            continue
        if value < 0:
            yield flag, "give a number >= 0"
        elif value > 1 and parameter in _AT_MOST_ONE:
            yield flag, "give a number <= 1"
        elif parameter not in known and parameter.startswith("clip_") and registry.uses_surrogate_clip(name):
            yield flag, f"set surrogate.{parameter}: correction.name={name} reads that"
        elif parameter not in known:
            reads = ", ".join(known) or "no parameter"
            yield flag, f"leave it unset: the corrections {' and '.join(filter(None, (name, update)))} read {reads}"
    for field in ("length_normalization", "normalize_std"):
        required = getattr(registry.CORRECTIONS[name], field)
        if required is not None and surrogate[field] != required:
            yield f"surrogate.{field}", f"correction.name={name} is defined with {required}: give that"
    for field in ("clip_low", "clip_high"):
        if not registry.uses_surrogate_clip(name) and surrogate[field] != default_surrogate[field]:
            mend = f"set correction.{field}" if field in known else "leave it at its default"
            yield f"surrogate.{field}", f"correction.name={name} does not read it: {mend}"
