"""Tests the paired bias: 0 at lag 0, unbiased against enumeration, from plain gradients."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from staleness_grpo.bias import paired
from staleness_grpo.config.build import build_run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.training.diagnostics import cosine, make_paired_gram
from staleness_grpo.training.loop import train
from staleness_grpo.training.loss import logprobs_function, logprobs_loss, surrogate_loss
from staleness_grpo.training.programs import Programs
from staleness_grpo.training.rollouts import TRAINING, Generator
from tests.bias import problems

GROUPS, COMPARISONS = 32, 80


def brute_force(stale, fresh):
    """Returns (bias norm, relative bias, cosine) by a loop over pairs of different groups.

    The pairs are ordered, and within a comparison.
    """

    def mean(a, b):
        return np.mean(
            [
                np.mean([x[i] @ y[j] for i in range(len(x)) for j in range(len(x)) if i != j])
                for x, y in zip(a, b, strict=True)
            ]
        )

    bias = np.sqrt(max(mean(stale - fresh, stale - fresh), 0))
    return (
        bias,
        bias / np.sqrt(mean(fresh, fresh)),
        mean(stale, fresh) / np.sqrt(mean(stale, stale) * mean(fresh, fresh)),
    )


def gram(stale, fresh):
    pairs = ((stale - fresh, stale - fresh), (stale, stale), (fresh, fresh), (stale, fresh))
    return np.stack([np.einsum("kid,kjd->kij", *pair) for pair in pairs], axis=1)


def test_estimates_are_those_of_pairs_of_different_groups():
    rng = np.random.default_rng(0)
    fresh = rng.normal(size=(3, 5, 4)) + 2
    stale = fresh + rng.normal(size=(3, 5, 4)) + 1
    estimate = paired.estimate(gram(stale, fresh))
    np.testing.assert_allclose(
        (estimate.bias_norm, estimate.relative_bias, estimate.cosine),
        brute_force(stale, fresh),
        rtol=1e-12,
    )
    assert estimate.num_groups == 15
    assert estimate.bias_norm_interval[0] < estimate.bias_norm < estimate.bias_norm_interval[1]


@pytest.mark.parametrize(
    ("comparisons", "groups", "has_interval"),
    [(1, 7, False), (1, 8, True), (2, 4, True), (4, 3, False), (50, 2, False)],
)
def test_too_few_groups_have_no_interval(comparisons, groups, has_interval):
    rng = np.random.default_rng(0)
    fresh = rng.normal(size=(comparisons, groups, 3))
    estimate = paired.estimate(gram(fresh + 1 + rng.normal(size=fresh.shape), fresh))
    assert np.isfinite(estimate.bias_norm)
    assert np.isfinite(estimate.bias_norm_interval).tolist() == [has_interval] * 2


def test_products_that_are_not_finite_are_refused():
    products = np.ones((1, 4, 8, 8))
    products[0, 1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        paired.estimate(products)


def test_without_an_estimate_there_is_no_interval_and_a_norm_that_may_be_zero_leaves_it_open():
    """The squared norm of pure noise is estimated below 0, or not far above it."""
    rng = np.random.default_rng(0)
    missing = []
    for _ in range(20):
        fresh = rng.normal(size=(1, 8, 3))
        estimate = paired.estimate(gram(fresh + 10, fresh))
        missing.append(np.isnan(estimate.relative_bias))
        assert np.all(np.isfinite(estimate.bias_norm_interval))
        if missing[-1]:
            assert np.all(
                np.isnan(
                    [*estimate.relative_bias_interval, estimate.cosine, *estimate.cosine_interval]
                )
            )
        else:
            assert (
                estimate.relative_bias_interval[0]
                < estimate.relative_bias
                < estimate.relative_bias_interval[1]
                == np.inf
            )
            assert estimate.cosine_interval[0] < estimate.cosine < estimate.cosine_interval[1]
            assert np.any(np.isinf(estimate.cosine_interval))
    assert 0 < sum(missing) < 20


def test_groups_without_noise_leave_the_interval_no_width():
    """Pairs are those of different groups, however often a resample draws a group."""
    fresh = np.ones((3, 8, 2))
    estimate = paired.estimate(gram(fresh + [[[1.0, 0.0]]], fresh))
    np.testing.assert_allclose(estimate.bias_norm_interval, [1, 1], rtol=1e-12)
    np.testing.assert_allclose(estimate.cosine_interval, [3 / np.sqrt(10)] * 2, rtol=1e-12)


def test_each_comparison_is_resampled_by_itself():
    """The interval of 16 equal comparisons is a quarter of that of a single one.

    With resamples in common it would be as wide.
    """
    rng = np.random.default_rng(2)
    fresh = rng.normal(size=(1, 16, 3))
    products = gram(fresh + 5 + rng.normal(size=fresh.shape), fresh)
    single = np.diff(paired.estimate(products).bias_norm_interval)
    sixteen = np.diff(paired.estimate(np.repeat(products, 16, axis=0)).bias_norm_interval)
    # Quantiles of 1,000 resamples vary by 5 %.
    np.testing.assert_allclose(sixteen / single, 1 / 4, rtol=0.15)


@pytest.mark.slow
def test_the_interval_of_four_blocks_covers_the_truth():
    """Resamples draw three of the four blocks: with four of four, fewer cases would be covered."""
    rng = np.random.default_rng(3)
    cases, covered = 120, 0
    for _ in range(cases):
        fresh = rng.normal(size=(2, 4, 20)) * 0.1 + 1
        stale = fresh + 0.2 + rng.normal(size=fresh.shape) * 0.05
        low, high = paired.estimate(gram(stale, fresh)).bias_norm_interval
        covered += low <= 0.2 * np.sqrt(20) <= high
    assert covered > 101  # 106 are; if four of four blocks were drawn, 96 would be


@pytest.mark.slow
def test_noise_is_no_bias_and_the_interval_covers_the_truth():
    """A plain |mean d| would be about 5 times the truth here.

    There are 16 groups with noise of norm 20 each, and a bias of norm 1.
    """
    rng = np.random.default_rng(1)
    dimensions, truth, covered, squares = 400, 1.0, 0, []
    for _ in range(40):
        fresh = rng.normal(size=(8, 16, dimensions)) + 0.5
        stale = fresh + rng.normal(size=fresh.shape) + truth / np.sqrt(dimensions)
        estimate = paired.estimate(gram(stale, fresh))
        covered += estimate.bias_norm_interval[0] <= truth <= estimate.bias_norm_interval[1]
        squares.append(estimate.bias_norm**2)
        assert np.linalg.norm((stale - fresh)[0].mean(axis=0)) > 4
    np.testing.assert_allclose(np.mean(squares), truth**2, atol=4 * np.std(squares) / np.sqrt(40))
    # Of 40. A 95 % interval is expected to cover 38; fewer than 32 have probability 0.001.
    assert covered >= 32


@pytest.mark.parametrize("shape", [(4, 3, 3), (1, 3, 3, 3), (1, 4, 3, 2), (1, 4, 1, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="J >= 2"):
        paired.estimate(np.zeros(shape))


def make_generator(task, policy, num_prompts):
    """Returns a generator whose programs can do nothing but sample."""
    programs = Programs(
        policy=policy,
        task=task,
        temperature=1.0,
        loss=None,
        make_optimizer=None,
        cosine_ceiling=None,
        proximal_logprobs=None,
        reference_logprobs=None,
        paired_gram=None,
    )
    return Generator(programs, mesh_lib.make_mesh(), seed=0, num_prompts=num_prompts, group_size=3)


def sampled_gram(task, policy, params, behavior_params, objective):
    """Returns Gram matrices of COMPARISONS paired batches, through the code that trains."""
    generator = make_generator(task, policy, GROUPS)
    paired_gram = make_paired_gram(logprobs_function(policy, 1.0), logprobs_loss(objective), GROUPS)
    slots, grams = np.arange(GROUPS), []
    for step in range(COMPARISONS):
        prompts = generator.prompts(TRAINING, np.full_like(slots, step), slots)
        batch = [np.full_like(slots, step), slots, 3]
        stale = generator.score(
            prompts, generator.sample(behavior_params, prompts, TRAINING, *batch), 0
        )
        fresh = generator.answer_again(params, step)
        grams.append(np.asarray(paired_gram(params, stale, fresh)))
    return np.array(grams)


@pytest.mark.slow
def test_the_estimate_agrees_with_enumeration_within_its_interval():
    objective = problems.OBJECTIVE
    problem, task, policy = problems.make("transformer")
    params, behavior_params = problems.fresh_and_stale(policy, 0.3)
    truth = float(
        optax.tree.norm(problems.surrogate_bias(problem, params, behavior_params, objective))
    )
    fresh_norm = float(
        optax.tree.norm(problems.surrogate_gradient(problem, params, params, objective))
    )
    estimate = paired.estimate(sampled_gram(task, policy, params, behavior_params, objective))
    assert estimate.bias_norm_interval[0] < truth < estimate.bias_norm_interval[1]
    assert (
        estimate.relative_bias_interval[0] < truth / fresh_norm < estimate.relative_bias_interval[1]
    )
    # Tight enough to tell theta from phi.
    assert estimate.bias_norm_interval[1] < 1.5 * estimate.bias_norm_interval[0]
    stale_gradient = problems.surrogate_gradient(problem, params, behavior_params, objective)
    fresh_gradient = problems.surrogate_gradient(problem, params, params, objective)
    angle = float(cosine(stale_gradient, fresh_gradient))
    assert estimate.cosine_interval[0] < angle < estimate.cosine_interval[1]
    swapped = float(
        optax.tree.norm(problems.surrogate_bias(problem, behavior_params, params, objective))
    )
    assert not estimate.bias_norm_interval[0] < swapped < estimate.bias_norm_interval[1]


@pytest.mark.slow
def test_the_blocks_gradients_average_to_that_of_the_batch():
    objective = SurrogateConfig(length_normalization="tokens")  # a divisor of the whole batch
    _, task, policy = problems.make("transformer")
    params, behavior_params = problems.fresh_and_stale(policy, 0.15)
    generator = make_generator(task, policy, 8)
    slots = np.arange(8)
    prompts = generator.prompts(TRAINING, slots * 0, slots)
    responses = generator.sample(behavior_params, prompts, TRAINING, slots * 0, slots, 3)
    stale = generator.score(prompts, responses, 0)
    fresh = generator.answer_again(params, 0)
    correction = default_config().correction
    correction.name = "m2po_authors"  # its mask depends on the whole batch
    loss = jax.jit(
        jax.grad(lambda p, batch: surrogate_loss(policy, objective, 1.0, correction)(p, batch)[0])
    )
    s, f = (problems.flatten(loss(params, batch)) for batch in (stale, fresh))
    paired_gram = make_paired_gram(
        logprobs_function(policy, 1.0, 4), logprobs_loss(objective, correction), num_blocks=4
    )
    products = paired_gram(params, stale, fresh)
    expected = [(s - f) @ (s - f), s @ s, f @ f, s @ f]
    np.testing.assert_allclose(jnp.mean(products, axis=(1, 2)), expected, rtol=1e-10)


def test_at_lag_zero_the_batch_is_answered_the_same_and_the_bias_is_zero_bitwise():
    config = default_config()
    config.update(dict(steps=5, num_prompts=4, group_size=4, eval_every=0))
    config.warm_start.steps = 0
    config.policy.update(
        dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16)
    )
    config.task = ConfigDict(
        dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8)
    )
    config.optimizer.learning_rate = 0.05
    config.metrics.paired_every = 2

    def measured_grams(max_lag):
        config.lag.max_lag = max_lag
        run, seen = build_run(config), []
        measure = run.programs.paired_gram

        def watched(params, stale, fresh):
            seen.append((stale, fresh))
            return measure(params, stale, fresh)

        run.programs = dataclasses.replace(run.programs, paired_gram=watched)
        records = list(train(run))
        assert ["paired_gram" in record for record in records] == [True, False, True, False, True]
        return [
            np.asarray(record["paired_gram"]) for record in records if "paired_gram" in record
        ], seen

    products, seen = measured_grams(0)
    for (stale, fresh), matrices in zip(seen, products, strict=True):
        chex.assert_trees_all_equal(jax.device_get(stale), jax.device_get(fresh))
        assert np.all(matrices[0] == 0.0) and np.any(matrices[1] != 0.0)
    assert paired.estimate(np.array(products)).bias_norm_interval == (0.0, 0.0)
    stale_products, _ = measured_grams(2)
    assert np.all(stale_products[0][0] == 0.0)  # step 0 has lag 0 at any S
    assert np.all([np.trace(matrices[0]) > 0 for matrices in stale_products[1:]])
