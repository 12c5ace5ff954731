"""Corrections of the update take the right steps, alone and in the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.objective.update_rules import gac, sequence_ess, vcpo
from staleness_grpo.training import learner
from staleness_grpo.training.loop import train
from tests.helpers.tiny import tiny_config


def test_sequence_ess_against_literals():
    behavior = np.zeros((4, 3), np.float32)
    mask = np.array([[True, True, False]] * 4)
    assert sequence_ess(behavior, behavior, mask) == pytest.approx(1.0)
    policy = behavior.copy()
    policy[:, 2] = np.nan  # masked
    policy[0, :2] = np.log(3.0) / 2  # the weights 3, 1, 1, 1 give 36 / (4 * 12)
    assert sequence_ess(policy, behavior, mask) == pytest.approx(0.75, rel=1e-5)
    policy[0, :2] = 50.0  # one response has all the weight; (e^100)^2 does not fit float32
    assert sequence_ess(policy, behavior, mask) == pytest.approx(0.25, rel=1e-5)
    gradient = jax.grad(lambda p: sequence_ess(p, behavior, mask))(
        jnp.asarray(np.where(mask, policy, 0.0))
    )
    assert not np.any(gradient)


@pytest.mark.parametrize(
    ("ess", "target", "power", "scale"),
    [(0.25, 1.0, 0.5, 0.5), (0.25, 0.5, 1.0, 0.5), (0.8, 0.5, 0.5, 1.0)],
)
def test_vcpo_scales_the_update(ess, target, power, scale):
    transformation = vcpo(ess_target=target, ess_power=power)
    updates, _ = transformation.update(
        {"w": jnp.array([2.0, -4.0])}, transformation.init(None), sequence_ess=ess
    )
    np.testing.assert_allclose(updates["w"], [2.0 * scale, -4.0 * scale], rtol=1e-6)


def run_gac(transformation, gradients):
    state, outputs = transformation.init(jnp.zeros(2)), []
    for gradient in gradients:
        output, state = transformation.update(jnp.array(gradient), state)
        outputs.append(np.asarray(output))
    return outputs


def test_gac_removes_the_aligned_part_of_what_it_was_given_before():
    steps = [[3.0, 0.0], [4.0, 3.0], [-4.0, -3.0], [3.0, -4.0], [0.0, 0.0], [1.0, 1.0]]
    # The cosines are 0.8, -1 and 0. Then there is a zero gradient on either side.
    outputs = run_gac(gac(alignment_threshold=0.5), steps)
    np.testing.assert_allclose(outputs, [[3.0, 0.0], [0.0, 3.0], *steps[2:]], atol=1e-6)
    outputs = run_gac(gac(alignment_threshold=0.5, removed_fraction=0.5), steps[:2])
    np.testing.assert_allclose(outputs[1], [2.0, 3.0], rtol=1e-6)
    np.testing.assert_array_equal(run_gac(gac(alignment_threshold=0.9), steps), steps)
    outputs = run_gac(gac(alignment_threshold=0.5, skip_threshold=0.7), [*steps[:2], [4.0, 3.0]])
    np.testing.assert_array_equal(outputs[1:], np.zeros((2, 2)))


def test_each_has_its_place_in_the_optimizer():
    def last_update(correction, gradients, ess=1.0, **fields):
        config = default_config()
        config.optimizer.learning_rate = 0.1
        config.optimizer.update(fields)
        config.correction.update(correction)
        optimizer = optax.with_extra_args_support(
            learner.make_optimizer(config.optimizer, config.steps, config.correction)
        )
        state = optimizer.init(jnp.zeros(2))
        for gradient in gradients:
            update, state = optimizer.update(
                jnp.array(gradient), state, jnp.zeros(2), sequence_ess=ess
            )
        return update

    # After Adam, whose first step is learning_rate * sign whatever the scale of the gradient.
    vcpo_update = last_update({"update_rule": "vcpo", "ess_power": 1.0}, [[3.0, -4.0]], ess=0.5)
    np.testing.assert_allclose(vcpo_update, [-0.05, 0.05], rtol=1e-5)
    aligned = [[3.0, 0.0], [3.0, 1.0]]
    np.testing.assert_allclose(
        last_update({"update_rule": "gac"}, aligned, name="sgd"), [0.0, -0.1], atol=1e-7
    )
    after = last_update({"update_rule": "gac_after_optimizer"}, aligned)
    plain = last_update({}, aligned)
    # The part along Adam's own first step, (0.1, 0), is removed.
    np.testing.assert_allclose(after, [0.0, plain[1]], atol=1e-7)
    # Before Adam it is not removed altogether, because Adam remembers the first gradient.
    assert abs(last_update({"update_rule": "gac"}, aligned)[0]) > 1e-2


@pytest.mark.parametrize("update_rule", ["vcpo", "gac"])
def test_they_train_with_a_correction_of_the_loss(update_rule):
    fields = {
        "steps": 3,
        "lag.max_lag": 1,
        "correction.name": "sequence_tis",
        "correction.update_rule": update_rule,
    }
    config = tiny_config(**fields)
    validation.validate(config, 1)
    records = list(train(build_run(config)))
    assert not records[-1]["collapsed"] and records[-1]["update_norm"] > 0
    assert records[0]["sequence_ess"] == pytest.approx(1.0, abs=1e-4)
    assert records[-1]["sequence_ess"] < 1
