"""The corrections by name, and their parameters. A correction of your own is a function and a line in CORRECTIONS."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping

from staleness_grpo.objective.corrections import clipped, masked, weighted
from staleness_grpo.objective.surrogate import SurrogateConfig, TokenObjective
from staleness_grpo.types import Array


@dataclasses.dataclass(frozen=True)
class Correction:
    """A per-token objective and what its definition fixes.

    The keyword arguments of `objective` are its parameters, floats, with the published values as defaults. Those
    without a default, clip_low and clip_high, are taken from the surrogate's configuration.
    """

    objective: Callable[..., Array]  # (TokenBatch, *, parameters) -> [..., R], to be maximised
    length_normalization: str | None = None  # the only one that the definition allows; None: any
    normalize_std: bool | None = None  # likewise
    reads_advantage_size: bool = False  # uses more of A than its sign and a factor |A|
    # Whether a response's slope may depend on other responses' log-probabilities. If not, microbatches take one pass
    # over the policy in place of two; see `loss.accumulated`.
    reads_other_responses: bool = True


_each = functools.partial(Correction, reads_other_responses=False)

CORRECTIONS: dict[str, Correction] = {
    "grpo_clip": _each(clipped.grpo_clip),
    "dr_grpo": _each(clipped.grpo_clip, length_normalization="constant", normalize_std=False),
    "clip_higher": _each(
        functools.partial(clipped.grpo_clip, clip_low=0.2, clip_high=0.28), length_normalization="tokens"
    ),
    "gspo": _each(clipped.gspo, length_normalization="response"),
    "cispo": _each(clipped.cispo),
    "decoupled_ppo": _each(clipped.decoupled_ppo),
    "sat": Correction(clipped.sat),
    "m2po_authors": Correction(clipped.m2po_authors),
    "none": _each(weighted.none),
    "token_is": _each(weighted.token_is),
    "sequence_is": _each(weighted.sequence_is),
    "token_tis": _each(weighted.token_tis),
    "sequence_tis": _each(weighted.sequence_tis),
    "geometric_tis": _each(weighted.geometric_tis),
    "aipo": _each(weighted.aipo),
    "topr": _each(weighted.topr),
    "topr_token": _each(weighted.topr_token),
    "topr_geometric": _each(weighted.topr_geometric),
    "token_mis": _each(masked.token_mis),
    "sequence_mis": _each(masked.sequence_mis),
    "negative_mask": _each(masked.negative_mask),
    "dppo_tv": _each(masked.dppo_tv),
    "m2po_areal": Correction(masked.m2po_areal),
    "mu_grpo": _each(masked.mu_grpo),
    "stable_reinforce": _each(masked.stable_reinforce, reads_advantage_size=True),
}


def parameters(name: str) -> dict[str, float]:
    """The correction's own parameters with their defaults."""
    return own_parameters(CORRECTIONS[name].objective)


def uses_surrogate_clip(name: str) -> bool:
    """Whether the correction clips at surrogate.clip_low and surrogate.clip_high."""
    return inspect.Parameter.empty in _keywords(CORRECTIONS[name].objective).values()


def own_parameters(function: Callable) -> dict[str, float]:
    """The keyword arguments that have a default, and these."""
    return {key: value for key, value in _keywords(function).items() if value is not inspect.Parameter.empty}


def chosen(function: Callable, config) -> dict[str, float]:
    """The values that `config.correction` sets for the function's own parameters."""
    return {key: config[key] for key in own_parameters(function) if config.get(key) is not None}


def _keywords(function: Callable) -> dict:
    parameters = inspect.signature(function).parameters.items()
    return {key: p.default for key, p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def bind(name: str, config: SurrogateConfig, overrides: Mapping[str, float]) -> TokenObjective:
    """The correction with all its parameters fixed.

    Args:
      name: a key of CORRECTIONS.
      config: the surrogate's choices; its clip range is that of corrections without one of their own.
      overrides: values of parameters, in place of their defaults.

    Raises:
      ValueError: for an unknown name or parameter, or a `config` that the correction's definition excludes.
    """
    if name not in CORRECTIONS:
        raise ValueError(f"correction must be one of {', '.join(CORRECTIONS)}, got {name!r}")
    correction = CORRECTIONS[name]
    for field in ("length_normalization", "normalize_std"):
        required = getattr(correction, field)
        if required is not None and getattr(config, field) != required:
            raise ValueError(f"{field} of {name} is {required!r}, got {getattr(config, field)!r}")
    values = dict(overrides)
    if unknown := set(values) - set(parameters(name)):
        raise ValueError(f"{name} has the parameters {', '.join(parameters(name)) or 'none'}, got {', '.join(unknown)}")
    if uses_surrogate_clip(name):
        values |= {"clip_low": config.clip_low, "clip_high": config.clip_high}
    return functools.partial(correction.objective, **values)
