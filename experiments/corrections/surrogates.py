"""Gives each correction the surrogate that it is defined with."""

from ml_collections import ConfigDict

from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig


def surrogate_of(name: str, surrogate: dict) -> SurrogateConfig:
    """Returns the surrogate with the normalization that the correction `name` prescribes.

    Args:
      name: a key of `registry.CORRECTIONS`.
      surrogate: the fields of a SurrogateConfig. The correction overrides the length normalization
        and the standard-deviation normalization, if its definition fixes them.
    """
    correction = registry.CORRECTIONS[name]
    prescribed = {
        field: getattr(correction, field) for field in ("length_normalization", "normalize_std")
    }
    return SurrogateConfig(
        **surrogate | {field: value for field, value in prescribed.items() if value is not None}
    )


def by_surrogate(config: ConfigDict) -> dict[SurrogateConfig, list[str]]:
    """Groups the names in `config.corrections` by surrogate.

    One compiled program serves all corrections of a group.
    """
    groups: dict[SurrogateConfig, list[str]] = {}
    for name in config.corrections:
        groups.setdefault(surrogate_of(name, config.surrogate.to_dict()), []).append(name)
    return groups
