"""A training in a simulated pipeline: what it trains, and the clock that its lengths make."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from docs.examples.counting import Counting
from staleness_grpo.pipeline.rules import make_rule
from staleness_grpo.runtime.records import plain
from staleness_grpo.staleness.trace import Trace
from staleness_grpo.training.loop import train
from staleness_grpo.training.run import assemble_run
from staleness_grpo.training.simulated import SimulatedPipeline
from tests.helpers.pipelines import small_cluster
from tests.helpers.tiny import tiny_config

TASK = Counting(num_prompts=5)  # answers of 2 to 17 tokens
STEP, PUBLISH = 4.0, 0.5


def config_of():
    config = tiny_config()
    config.update(dict(steps=8, num_prompts=2, group_size=3, eval_every=0))
    config.warm_start.steps = 0
    config.task = ConfigDict(dict(name="docs/examples/counting.py:Counting", num_prompts=5))
    config.lag.max_lag = 8
    config.sampler.batch_prompts = 1
    config.metrics.update(dict(parameter_drift=False, lags=True))
    return config


def simulated(name, max_lag, slots=4, step_seconds=STEP):
    """Trains under a buffer rule. Returns the run, its source and its records."""
    run = assemble_run(config_of(), TASK)
    cluster = small_cluster(
        slots=slots,
        num_groups=2,
        group_size=3,
        step_seconds=step_seconds,
        publish_seconds=PUBLISH,
    )
    source = SimulatedPipeline(run, cluster, make_rule(name, max_lag, 2))
    return run, source, [plain(record) for record in train(run, source=source)]


def timeless(records):
    return [{k: v for k, v in record.items() if not k.startswith("time_")} for record in records]


@pytest.mark.parametrize(("rule", "max_lag"), [("in_order", 2), ("synchronous", 0)])
def test_in_the_order_of_their_start_groups_are_those_of_the_loop_with_the_same_lags(rule, max_lag):
    run, _, records = simulated(rule, max_lag)
    lags_IxN = np.array([record["lags"] for record in records])
    assert lags_IxN.max() == max_lag
    replay = assemble_run(config_of(), TASK)
    replay.schedule = Trace(8, 2, lags_IxN=lags_IxN)
    again = [plain(record) for record in train(replay)]
    assert timeless(again) == timeless(records)
    chex.assert_trees_all_equal(jax.device_get(replay.state), jax.device_get(run.state))


def test_the_clock_is_that_of_the_longest_sampled_response():
    run, source, records = simulated("synchronous", 0, slots=6)
    seen = [source.result().groups[i : i + 2] for i in range(0, 16, 2)]
    longest = [max(r.length for group in pair for r in group.responses) for pair in seen]
    assert len(set(longest)) > 1
    # Version t is made after t updates, t publications, and the longest response of t steps.
    made = [sum(longest[:step]) + step * STEP + max(step - 1, 0) * PUBLISH for step in range(8)]
    assert [record["time_simulated"] for record in records] == pytest.approx(made)
    versions = [group.version for pair in seen for group in pair]
    assert versions == [step for step in range(8) for _ in range(2)]
    assert run.step == 8


def test_lengths_are_those_of_the_policy_that_the_group_started_with():
    _, source, records = simulated("bounded", 2)
    groups = source.result().groups
    trained = [group for group in groups if group.step is not None]
    lags = [[group.lag for group in trained if group.step == step] for step in range(8)]
    assert [sorted(record["lags"]) for record in records] == [sorted(lag) for lag in lags]
    means = [record["response_length"] for record in records]
    by_step = [
        np.mean([r.length for group in trained if group.step == step for r in group.responses])
        for step in range(8)
    ]
    assert means == pytest.approx(by_step)


def test_discarded_groups_are_never_trained_and_are_forgotten():
    _, source, records = simulated("drop", 1, slots=12, step_seconds=0.5)
    groups = source.result().groups
    discarded = [group for group in groups if group.is_discarded]
    assert discarded and len(records) == 8
    assert not set(source._waiting) & {group.number for group in discarded}
    assert sum(group.step is not None for group in groups) == 16
    assert max(record["lag_max"] for record in records) <= 1
    # Only versions that a later group may start with are kept.
    assert min(source._params) == source._simulation.published


def test_equal_runs_are_equal():
    first, second = (simulated("windowed", 1) for _ in range(2))
    assert first[2] != [] and timeless(first[2]) == timeless(second[2])
    times = [[record["time_simulated"] for record in run[2]] for run in (first, second)]
    assert times[0] == times[1]
    chex.assert_trees_all_equal(
        jax.device_get(dataclasses.asdict(first[0].state)),
        jax.device_get(dataclasses.asdict(second[0].state)),
    )
