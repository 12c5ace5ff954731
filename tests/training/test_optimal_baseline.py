"""The correction opob: norms of scores, its gradient against NumPy, and trainings with it."""

import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.train import __main__ as experiment
from staleness_grpo.config.build import build_run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.sweeps import program as cell_program
from staleness_grpo.training.loop import train
from staleness_grpo.training.loss import score_norms_function, surrogate_loss
from staleness_grpo.types import Prompts, Responses, Rollout
from tests.helpers import killing
from tests.helpers.tiny import tiny_config

TEMPERATURE, CAP = 1.3, 1.5
N, G, P, R = 4, 3, 2, 3
OPOB = {"correction.name": "opob", "lag.max_lag": 2}


@pytest.fixture(scope="module")
def problem():
    """Returns a float64 policy with its parameters, a rollout, and the score of each response.

    Behavior log-probabilities are NaN where masked. Group 1 has one empty response, and all of
    group 2 are empty. The scores [N, G, D] come from the policy on each sequence alone.
    """
    with jax.enable_x64(True):
        shape = dict(num_layers=1, d_model=8, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=8)
        config = TransformerConfig(5, **shape, dtype="float64", param_dtype="float64")
        policy, rng = Policy(config), np.random.default_rng(0)
        params = jax.jit(policy.init)(jax.random.key(0))
        prompts = Prompts(rng.integers(5, size=(N, P)), np.ones((N, P), bool), np.arange(N))
        lengths = np.array([[3, 1, 2], [0, 3, 2], [0, 0, 0], [1, 1, 3]])
        mask = np.arange(R) < lengths[..., None]
        tokens, rewards = rng.integers(5, size=(N, G, R)), rng.normal(size=(N, G))

        @jax.jit
        def logprobs_of(params, sequence, mask):
            logits = policy.apply(params, sequence[None])[0, P - 1 : -1] / TEMPERATURE
            chosen = jax.nn.log_softmax(logits)[jnp.arange(R), sequence[P:]]
            return jnp.where(mask, chosen, 0.0)

        score_of = jax.jit(jax.grad(lambda *args: jnp.sum(logprobs_of(*args))))
        policy_logprobs, scores = np.zeros(mask.shape), []
        for n, g in np.ndindex(N, G):
            sequence = np.concatenate([prompts.tokens_NxP[n], tokens[n, g]])
            policy_logprobs[n, g] = logprobs_of(params, sequence, mask[n, g])
            scores.append(ravel_pytree(score_of(params, sequence, mask[n, g]))[0])
        drift = rng.normal(scale=0.4, size=mask.shape)
        behavior = np.where(mask, policy_logprobs + drift, np.nan)
        rollout = Rollout(prompts, Responses(tokens, mask, behavior), rewards, np.zeros(N, int))
        weights = np.exp(np.where(mask, -drift, 0.0).sum(axis=-1))
        return policy, params, rollout, np.array(scores).reshape(N, G, -1), weights


def correction():
    config = default_config().correction
    config.name, config.cap = "opob", CAP
    return config


@functools.cache
def norms_of(policy, microbatch_prompts, **kept):
    return jax.jit(score_norms_function(policy, TEMPERATURE, microbatch_prompts, **kept))


def reference_baseline(rewards, weights, scores):
    """Returns the baseline of one group, in plain loops."""
    terms = [w * w * math.fsum(x * x for x in s) for w, s in zip(weights, scores, strict=True)]
    if sum(terms) == 0:
        return sum(rewards) / len(rewards)
    return math.fsum(v * r for v, r in zip(terms, rewards, strict=True)) / math.fsum(terms)


@pytest.mark.parametrize("microbatch", [0, 2])
def test_norms_are_those_of_each_response_alone(microbatch, problem):
    policy, params, rollout, scores, _ = problem
    with jax.enable_x64(True):
        norms = np.asarray(norms_of(policy, microbatch)(params, rollout).score_norms_NxG)
    # Sums of some hundred squares in another order.
    np.testing.assert_allclose(norms, (scores**2).sum(axis=-1), rtol=1e-12)
    assert (norms[2] == 0).all() and len(np.unique(norms)) > 6


def test_a_dropped_response_has_no_score(problem):
    policy, params, rollout, scores, _ = problem
    with jax.enable_x64(True):
        kept = norms_of(policy, 0, end_token=99, drop_truncated=True)(params, rollout)
    is_cut = rollout.responses.mask_NxGxR[..., -1]  # no response ends in token 99
    expected = np.where(is_cut, 0.0, (scores**2).sum(axis=-1))
    np.testing.assert_allclose(kept.score_norms_NxG, expected, rtol=1e-12)
    assert is_cut.any()


@pytest.mark.parametrize(
    ("normalization", "normalize_std", "microbatch"),
    [("response", True, 0), ("constant", False, 2), ("tokens", True, 2)],
)
def test_the_gradient_is_that_of_the_definition(normalization, normalize_std, microbatch, problem):
    """The reference is a sum of the responses' own scores, in NumPy."""
    policy, params, rollout, scores, weights = problem
    surrogate = SurrogateConfig(
        length_normalization=normalization, normalize_std=normalize_std, std_epsilon=1e-3
    )
    lengths = rollout.responses.mask_NxGxR.sum(axis=-1)
    divisor = {
        "response": N * G * np.maximum(lengths, 1),
        "constant": np.full((N, G), N * G * R),
        "tokens": np.full((N, G), lengths.sum()),
    }[normalization]
    expected = np.zeros(scores.shape[-1])
    for n, g in np.ndindex(N, G):
        rewards = rollout.rewards_NxG[n]
        advantage = rewards[g] - reference_baseline(rewards, weights[n], scores[n])
        if normalize_std:
            advantage /= np.std(rewards) + 1e-3
        expected -= min(weights[n, g], CAP) * advantage * scores[n, g] / divisor[n, g]
    assert (weights > CAP).any() and np.abs(expected).max() > 1e-2

    with jax.enable_x64(True):
        loss = surrogate_loss(policy, surrogate, TEMPERATURE, correction(), microbatch)
        gradient = jax.jit(jax.grad(lambda p: loss(p, rollout)[0]))(params)
        # Some hundred float64 roundings of terms of order 1.
        np.testing.assert_allclose(ravel_pytree(gradient)[0], expected, rtol=0, atol=1e-12)


def test_no_other_baseline_has_smaller_terms_in_any_group(problem):
    """With weights below the cap, the terms of a group are W (R - b) score."""
    _, _, rollout, scores, weights = problem
    for n in (0, 1, 3):
        rewards = rollout.rewards_NxG[n]
        best = reference_baseline(rewards, weights[n], scores[n])

        def size(baseline, n=n, rewards=rewards):
            terms = (weights[n] * (rewards - baseline))[:, None] * scores[n]
            return np.sum(terms**2)

        others = (np.mean(rewards), best - 1e-3, best + 1e-3)
        assert all(size(best) < size(other) for other in others)


def test_a_resumed_run_ends_in_the_same_bytes(tmp_path):
    config = tiny_config(**OPOB, **{"steps": 4, "checkpoint.save_every": 2, "checkpoint.keep": 3})
    experiment.main(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    (tmp_path / "resumed" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_00000004")
    experiment.main(config, tmp_path / "resumed")
    assert killing.ending(tmp_path / "resumed") == killing.ending(tmp_path / "whole")


def test_fresh_and_stale_gradients_are_compared():
    fields = {"correction.name": "opob", "steps": 3, "metrics.paired_every": 1}
    grams = [
        [record["paired_gram"][0] for record in train(build_run(tiny_config(**fields, **lag)))]
        for lag in ({}, {"lag.max_lag": 2})
    ]
    # Of the difference of both gradients, which is 0 without lag, bit for bit.
    assert not np.any(grams[0]) and np.any(grams[1][1]) and np.any(grams[1][2])


@pytest.mark.slow
def test_a_training_is_the_same_in_microbatches_and_in_a_sweep():
    fields = {**OPOB, "steps": 6, "eval_every": 3}
    records = list(train(build_run(tiny_config(**fields))))
    in_parts = list(train(build_run(tiny_config(**fields, microbatch_prompts=2))))
    plain = list(train(build_run(tiny_config(**fields | {"correction.name": "sequence_is"}))))
    config = tiny_config(**fields)
    program = jax.jit(cell_program.make_cell_program(config, 2, 6))
    traces = jax.device_get(program(cell_program.cell_inputs(config)))
    for name in ("reward", "grad_norm", "update_norm", "entropy"):
        values = [record[name] for record in records]
        # Float32 sums in another order.
        for other in (traces[name], [record[name] for record in in_parts]):
            np.testing.assert_allclose(values, other, rtol=2e-4, atol=2e-5, err_msg=name)
    assert records[0]["reward"] == plain[0]["reward"]
    assert abs(records[0]["grad_norm"] / plain[0]["grad_norm"] - 1) > 1e-3


@pytest.mark.slow
def test_one_and_eight_devices_agree(run_on_devices):
    fields = {**OPOB, "num_prompts": 8, "steps": 3, "eval_every": 0}
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    single, sharded = (
        json.loads(
            run_on_devices("tiny_training_state", json.dumps(f), num_devices=n).splitlines()[-1]
        )["records"]
        for n, f in ((1, fields), (8, fields | mesh | {"microbatch_prompts": 4}))
    )
    for expected, record in zip(single, sharded, strict=True):
        assert expected["reward"] == record["reward"]  # both sampled the same tokens
        for name in ("grad_norm", "update_norm"):
            assert expected[name] == pytest.approx(record[name], rel=1e-4), name


@pytest.mark.slow
def test_a_score_that_is_no_number_shows(problem):
    """It is not taken for a weight of 0, or for a mean."""
    policy, params, rollout, _, _ = problem
    with jax.enable_x64(True):
        broken = dataclasses.replace(
            rollout.responses,
            behavior_logprobs_NxGxR=rollout.responses.behavior_logprobs_NxGxR - np.nan,
        )
        loss = surrogate_loss(policy, SurrogateConfig(), TEMPERATURE, correction())
        value, _ = loss(params, dataclasses.replace(rollout, responses=broken))
    assert np.isnan(value)
