"""The registry of corrections refuses by name and describes every correction."""

import dataclasses

import pytest

from staleness_grpo.config.defaults import default_config
from staleness_grpo.errors import FieldError
from staleness_grpo.objective.corrections import registry, settings, signatures
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.objective.update_rules import UPDATE_RULES


def test_bind_refuses_by_name():
    surrogate = SurrogateConfig()
    for name, overrides, words in (
        ("telepathy", {}, "correction=telepathy: choose one of grpo_clip, "),
        (
            "none",
            {"cap": 2.0},
            "cap: remove this parameter: the correction none reads no parameter",
        ),
        ("grpo_clip", {"clip_low": 0.1}, "clip_low: remove this parameter"),
        ("aipo", {"delta": 0.1}, "aipo reads cap"),
        ("dr_grpo", {}, "length_normalization=response: .* dr_grpo is defined with constant"),
    ):
        with pytest.raises(ValueError, match=words):
            registry.bind(name, surrogate, overrides)
    constant = dataclasses.replace(surrogate, length_normalization="constant")
    with pytest.raises(ValueError, match="normalize_std=True: .* dr_grpo is defined with False"):
        registry.bind("dr_grpo", constant, {})


def test_every_parameter_has_its_flag():
    update_parameters = [
        signatures.own_parameters(rule.transformation) for rule in UPDATE_RULES.values()
    ]
    known = set().union(*map(registry.parameters, registry.CORRECTIONS), *update_parameters)
    assert known == set(settings.PARAMETERS)


@pytest.mark.parametrize(("former", "name"), registry.RENAMED.items())
def test_a_former_name_is_refused_with_the_new_one(former, name):
    assert name in registry.CORRECTIONS and former not in registry.CORRECTIONS
    with pytest.raises(ValueError, match=f"correction={former}: .* called {name} now"):
        registry.bind(former, SurrogateConfig(), {})
    config = default_config()
    config.correction.name = former
    surrogate = config.surrogate.to_dict()
    with pytest.raises(FieldError, match=f"correction.name={former}: .* called {name} now"):
        settings.check_correction(config.correction.to_dict(), surrogate, surrogate)
    config.correction.name = name
    settings.check_correction(config.correction.to_dict(), surrogate, surrogate)


def test_the_rule_of_r1_reward_has_a_name_that_no_other_rule_has():
    assert registry.RENAMED["stable_reinforce"] == "r1_reward_stable_reinforce"


@pytest.mark.parametrize(
    "correction",
    [*registry.CORRECTIONS.values(), *UPDATE_RULES.values()],
    ids=[*registry.CORRECTIONS, *UPDATE_RULES],
)
def test_every_entry_describes_itself_in_single_lines(correction):
    for text in (correction.formula, correction.source, correction.verified):
        assert text and text == " ".join(text.split())
