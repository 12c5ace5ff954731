"""The paired bias: zero at lag 0, unbiased against enumeration, and its Gram matrices against plain gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from staleness_grpo import config as config_lib
from staleness_grpo import learner, train
from staleness_grpo import mesh as mesh_lib
from staleness_grpo.bias import paired
from staleness_grpo.loss import surrogate_loss
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.rollouts import TRAINING, Generator
from tests.bias import problems

GROUPS, COMPARISONS = 32, 80


def brute_force(stale, fresh):
    """(bias norm, relative bias, cosine) by a loop over ordered pairs of different groups of each comparison."""

    def mean(a, b):
        return np.mean([
            np.mean([x[i] @ y[j] for i in range(len(x)) for j in range(len(x)) if i != j])
            for x, y in zip(a, b, strict=True)
        ])  # fmt: skip

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
    found = paired.estimate(gram(stale, fresh))
    np.testing.assert_allclose(
        (found.bias_norm, found.relative_bias, found.cosine), brute_force(stale, fresh), rtol=1e-12
    )
    assert found.num_groups == 15
    assert found.bias_norm_interval[0] < found.bias_norm < found.bias_norm_interval[1]


@pytest.mark.parametrize(
    ("comparisons", "groups", "has_interval"),
    [(1, 7, False), (1, 8, True), (2, 4, True), (4, 3, False), (50, 2, False)],
)
def test_too_few_groups_have_no_interval(comparisons, groups, has_interval):
    rng = np.random.default_rng(0)
    fresh = rng.normal(size=(comparisons, groups, 3))
    found = paired.estimate(gram(fresh + 1 + rng.normal(size=fresh.shape), fresh))
    assert np.isfinite(found.bias_norm)
    assert np.isfinite(found.bias_norm_interval).tolist() == [has_interval] * 2


def test_products_that_are_not_finite_are_refused():
    products = np.ones((1, 4, 8, 8))
    products[0, 1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        paired.estimate(products)


def test_without_an_estimate_there_is_no_interval_and_a_norm_that_may_be_zero_leaves_it_open():
    """Fresh gradients that are noise alone: their squared norm is estimated below 0, or not far above it."""
    rng = np.random.default_rng(0)
    missing = []
    for _ in range(20):
        fresh = rng.normal(size=(1, 8, 3))
        found = paired.estimate(gram(fresh + 10, fresh))
        missing.append(np.isnan(found.relative_bias))
        assert np.all(np.isfinite(found.bias_norm_interval))
        if missing[-1]:
            assert np.all(np.isnan([*found.relative_bias_interval, found.cosine, *found.cosine_interval]))
        else:
            assert found.relative_bias_interval[0] < found.relative_bias < found.relative_bias_interval[1] == np.inf
            assert found.cosine_interval[0] < found.cosine < found.cosine_interval[1]
            assert np.any(np.isinf(found.cosine_interval))
    assert 0 < sum(missing) < 20


def test_groups_without_noise_leave_the_interval_no_width():
    """However often a resample draws a group: its pairs are those of different groups."""
    fresh = np.ones((3, 8, 2))
    found = paired.estimate(gram(fresh + [[[1.0, 0.0]]], fresh))
    np.testing.assert_allclose(found.bias_norm_interval, [1, 1], rtol=1e-12)
    np.testing.assert_allclose(found.cosine_interval, [3 / np.sqrt(10)] * 2, rtol=1e-12)


def test_each_comparison_is_resampled_by_itself():
    """So that the interval of 16 like ones is a quarter of one's; with resamples in common it would be as wide."""
    rng = np.random.default_rng(2)
    fresh = rng.normal(size=(1, 16, 3))
    products = gram(fresh + 5 + rng.normal(size=fresh.shape), fresh)
    one = np.diff(paired.estimate(products).bias_norm_interval)
    sixteen = np.diff(paired.estimate(np.repeat(products, 16, axis=0)).bias_norm_interval)
    np.testing.assert_allclose(sixteen / one, 1 / 4, rtol=0.15)  # quantiles of 1,000 resamples vary by 5 %


def test_the_interval_of_four_blocks_covers_the_truth():
    """Of two comparisons: in 96 of these 120 cases if four blocks of four were drawn, in 106 with three."""
    rng = np.random.default_rng(3)
    cases, covered = 120, 0
    for _ in range(cases):
        fresh = rng.normal(size=(2, 4, 20)) * 0.1 + 1
        stale = fresh + 0.2 + rng.normal(size=fresh.shape) * 0.05
        low, high = paired.estimate(gram(stale, fresh)).bias_norm_interval
        covered += low <= 0.2 * np.sqrt(20) <= high
    assert covered > 101


def test_noise_is_no_bias_and_the_interval_covers_the_truth():
    """A plain |mean d| would be 5 times the truth here: 16 groups, noise of norm 20 each, a bias of norm 1."""
    rng = np.random.default_rng(1)
    dimensions, truth, covered, squares = 400, 1.0, 0, []
    for _ in range(40):
        fresh = rng.normal(size=(8, 16, dimensions)) + 0.5
        stale = fresh + rng.normal(size=fresh.shape) + truth / np.sqrt(dimensions)
        found = paired.estimate(gram(stale, fresh))
        covered += found.bias_norm_interval[0] <= truth <= found.bias_norm_interval[1]
        squares.append(found.bias_norm**2)
        assert np.linalg.norm((stale - fresh)[0].mean(axis=0)) > 4
    np.testing.assert_allclose(np.mean(squares), truth**2, atol=4 * np.std(squares) / np.sqrt(40))
    assert covered >= 32  # of 40; 38 are expected of a 95 % interval, below 32 has probability 0.001


@pytest.mark.parametrize("shape", [(4, 3, 3), (1, 3, 3, 3), (1, 4, 3, 2), (1, 4, 1, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="J >= 2"):
        paired.estimate(np.zeros(shape))


def sampled_gram(task, policy, params, behavior_params, objective):
    """Gram matrices of COMPARISONS paired batches, through the code that trains."""
    generator = Generator(policy, task, mesh_lib.make_mesh(), 0, GROUPS, 3, 1.0)
    paired_gram = learner.make_paired_gram(policy, objective, 1.0, None, 0, GROUPS)
    slots, found = np.arange(GROUPS), []
    for step in range(COMPARISONS):
        prompts = generator.prompts(TRAINING, np.full_like(slots, step), slots)
        batch = [np.full_like(slots, step), slots, 3]
        stale = generator.score(prompts, generator.sample(behavior_params, prompts, TRAINING, *batch), 0)
        fresh = generator.answer_again(params, step)
        found.append(np.asarray(paired_gram(params, stale, fresh)))
    return np.array(found)


def test_the_estimate_agrees_with_enumeration_within_its_interval():
    objective = problems.OBJECTIVE
    problem, task, policy = problems.make("transformer")
    params, behavior_params = problems.fresh_and_stale(policy, 0.3)
    truth = float(optax.tree.norm(problems.surrogate_bias(problem, params, behavior_params, objective)))
    fresh_norm = float(optax.tree.norm(problems.surrogate_gradient(problem, params, params, objective)))
    found = paired.estimate(sampled_gram(task, policy, params, behavior_params, objective))
    assert found.bias_norm_interval[0] < truth < found.bias_norm_interval[1]
    assert found.relative_bias_interval[0] < truth / fresh_norm < found.relative_bias_interval[1]
    assert found.bias_norm_interval[1] < 1.5 * found.bias_norm_interval[0]  # tight enough to tell theta from phi
    stale_gradient = problems.surrogate_gradient(problem, params, behavior_params, objective)
    fresh_gradient = problems.surrogate_gradient(problem, params, params, objective)
    cosine = float(learner.cosine(stale_gradient, fresh_gradient))
    assert found.cosine_interval[0] < cosine < found.cosine_interval[1]
    swapped = float(optax.tree.norm(problems.surrogate_bias(problem, behavior_params, params, objective)))
    assert not found.bias_norm_interval[0] < swapped < found.bias_norm_interval[1]


def test_the_blocks_gradients_average_to_that_of_the_batch():
    objective = SurrogateConfig(length_normalization="tokens")  # a divisor of the whole batch
    _, task, policy = problems.make("transformer")
    params, behavior_params = problems.fresh_and_stale(policy, 0.15)
    generator = Generator(policy, task, mesh_lib.make_mesh(), 0, 8, 3, 1.0)
    slots = np.arange(8)
    prompts = generator.prompts(TRAINING, slots * 0, slots)
    responses = generator.sample(behavior_params, prompts, TRAINING, slots * 0, slots, 3)
    stale = generator.score(prompts, responses, 0)
    fresh = generator.answer_again(params, 0)
    correction = config_lib.default().correction
    correction.name = "m2po_authors"  # its mask depends on the whole batch
    loss = jax.jit(jax.grad(lambda p, batch: surrogate_loss(policy, objective, 1.0, correction)(p, batch)[0]))
    s, f = (problems.flatten(loss(params, batch)) for batch in (stale, fresh))
    paired_gram = learner.make_paired_gram(policy, objective, 1.0, correction, microbatch_prompts=4, num_blocks=4)
    found = paired_gram(params, stale, fresh)
    expected = [(s - f) @ (s - f), s @ s, f @ f, s @ f]
    np.testing.assert_allclose(jnp.mean(found, axis=(1, 2)), expected, rtol=1e-10)


def test_at_lag_zero_the_batch_is_answered_the_same_and_the_bias_is_zero_bitwise():
    config = config_lib.default()
    config.update(dict(steps=5, num_prompts=4, group_size=4, eval_every=0))
    config.warm_start.steps = 0
    config.policy.update(dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16))
    config.task = ConfigDict(dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8))
    config.optimizer.learning_rate = 0.05
    config.metrics.paired_every = 2

    def grams(max_lag):
        config.lag.max_lag = max_lag
        run, seen = train.build(config), []
        measure = run.paired_gram
        run.paired_gram = lambda params, stale, fresh: (seen.append((stale, fresh)), measure(params, stale, fresh))[1]
        records = list(train.train(run, config))
        assert ["paired_gram" in record for record in records] == [True, False, True, False, True]
        return [np.asarray(record["paired_gram"]) for record in records if "paired_gram" in record], seen

    found, seen = grams(0)
    for (stale, fresh), matrices in zip(seen, found, strict=True):
        chex.assert_trees_all_equal(jax.device_get(stale), jax.device_get(fresh))
        assert np.all(matrices[0] == 0.0) and np.any(matrices[1] != 0.0)
    assert paired.estimate(np.array(found)).bias_norm_interval == (0.0, 0.0)
    stale_found, _ = grams(2)
    assert np.all(stale_found[0][0] == 0.0)  # step 0 has lag 0 at any S
    assert np.all([np.trace(matrices[0]) > 0 for matrices in stale_found[1:]])
