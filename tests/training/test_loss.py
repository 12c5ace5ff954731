"""Responses that the length limit cut: how they are counted, and how the loss leaves them out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from staleness_grpo.config.build import build_run
from staleness_grpo.objective.surrogate import LENGTH_NORMALIZATIONS, SurrogateConfig
from staleness_grpo.training.loop import train
from staleness_grpo.training.loss import logprobs_loss
from staleness_grpo.types import Prompts, Responses, Rollout
from tests.helpers.tiny import tiny_config

END, OTHER_END, PAD = 1, 5, 0
# Two groups of three responses. In the order of the rows: ended early, cut, ended at the limit;
# ended by the other token, cut, cut.
TOKENS = np.array(
    [[[7, END, PAD], [7, 8, 9], [7, 8, END]], [[7, 8, OTHER_END], [7, 7, 7], [8, 8, 8]]]
)
MASK = np.array([[[1, 1, 0], [1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1], [1, 1, 1]]], bool)
CUT = np.array([[False, True, False], [False, True, True]])


def batch(rewards=((0.0, 1.0, 1.0), (2.0, 2.0, 2.0))):
    """Returns the log-probabilities of learner and behavior policy, in a rollout."""
    rng = np.random.default_rng(0)
    behavior = np.float32(np.where(MASK, -rng.exponential(size=TOKENS.shape), 0))
    policy = np.float32(behavior + 0.1 * rng.normal(size=TOKENS.shape))
    prompts = Prompts(np.zeros((2, 1), int), np.ones((2, 1), bool), np.arange(2))
    responses = Responses(TOKENS, MASK, behavior)
    return policy, Rollout(prompts, responses, np.float32(rewards), np.zeros(2, int))


def value_and_gradient(policy, rollout, **truncation):
    loss_of_logprobs = logprobs_loss(truncation.pop("surrogate", SurrogateConfig()), **truncation)

    def loss(logprobs):
        return loss_of_logprobs(logprobs, jnp.zeros(TOKENS.shape), rollout)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(policy)


def test_responses_without_an_end_token_are_counted_and_so_are_groups_of_equal_rewards():
    policy, rollout = batch()
    (_, diagnostics), _ = value_and_gradient(policy, rollout, end_token=(END, OTHER_END))
    assert diagnostics["truncated_fraction"] == np.float32(3 / 6)
    assert diagnostics["zero_std_fraction"] == 0.5
    (_, diagnostics), _ = value_and_gradient(policy, rollout, end_token=END)
    assert diagnostics["truncated_fraction"] == np.float32(4 / 6)
    (_, diagnostics), _ = value_and_gradient(policy, rollout, end_token=None)
    assert diagnostics["truncated_fraction"] == 0


@pytest.mark.parametrize("normalization", LENGTH_NORMALIZATIONS)
def test_a_dropped_response_is_as_if_its_tokens_were_masked(normalization):
    policy, rollout = batch(rewards=((0.0, 1.0, 2.0), (1.0, 0.0, 3.0)))
    surrogate = SurrogateConfig(length_normalization=normalization)
    (loss, _), gradient = value_and_gradient(
        policy, rollout, surrogate=surrogate, end_token=(END, OTHER_END), drop_truncated=True
    )
    masked = dataclasses.replace(rollout.responses, mask_NxGxR=MASK & ~CUT[..., None])
    rest = dataclasses.replace(rollout, responses=masked)
    (expected, _), expected_gradient = value_and_gradient(policy, rest, surrogate=surrogate)
    assert loss == expected
    np.testing.assert_array_equal(gradient, expected_gradient)
    # The rewards of dropped responses stay in the mean of their group: 1 - (1 + 0 + 3) / 3 < 0.
    assert (gradient[CUT] == 0).all() and gradient[1, 0, 0] > 0
    (kept, _), _ = value_and_gradient(policy, rollout, surrogate=surrogate)
    assert kept != loss


def test_the_divergence_of_dropped_responses_is_recorded_and_has_no_part_in_the_loss():
    policy, rollout = batch()
    log_ratio = np.float32(np.linspace(-0.5, 0.5, TOKENS.size)).reshape(TOKENS.shape)
    rollout = dataclasses.replace(rollout, reference_logprobs_NxGxR=policy - log_ratio)
    fields = dict(reference=ConfigDict(dict(kl=0.3, estimator="k3", in_reward=False)))
    (loss, diagnostics), gradient = value_and_gradient(
        policy, rollout, end_token=(END, OTHER_END), drop_truncated=True, **fields
    )
    masked = dataclasses.replace(rollout.responses, mask_NxGxR=MASK & ~CUT[..., None])
    rest = dataclasses.replace(rollout, responses=masked)
    (expected, _), expected_gradient = value_and_gradient(policy, rest, **fields)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
    of_tokens = np.expm1(-log_ratio) + log_ratio  # k3 of each token of the policy
    assert diagnostics["reference_kl"] == pytest.approx(of_tokens[MASK].mean(), rel=1e-5)


def test_a_training_can_leave_cut_responses_out():
    shorter = {"task.max_response_length": 2, "steps": 3, "lag.max_lag": 1}
    records = {
        drop: list(train(build_run(tiny_config(drop_truncated=drop, **shorter))))
        for drop in (False, True)
    }
    assert 0 < records[True][0]["truncated_fraction"] < 1
    assert records[True][0]["truncated_fraction"] == records[False][0]["truncated_fraction"]
    assert records[True][0]["grad_norm"] != records[False][0]["grad_norm"]
    assert 0 <= records[True][0]["zero_std_fraction"] <= 1
