"""Traces replay, measured numbers are those of the groups, and impossible clusters are refused."""

import json
import math

import numpy as np
import pytest

from staleness_grpo.errors import FieldError
from staleness_grpo.pipeline.cluster import CONTINUE, NOTHING
from staleness_grpo.pipeline.measures import by_length, correlation, measure, timeline
from staleness_grpo.pipeline.rules import make_rule
from staleness_grpo.pipeline.simulation import simulate
from staleness_grpo.pipeline.traces import trace_records
from staleness_grpo.runtime.records import write_jsonl
from staleness_grpo.staleness import trace
from tests.helpers.pipelines import random_lengths, small_cluster


@pytest.fixture(scope="module")
def result():
    cluster = random_lengths(
        count=2, slots=3, num_groups=3, group_size=2, in_flight=CONTINUE, publish_blocks=NOTHING
    )
    return simulate(cluster, make_rule("windowed", 2, 3), 40, seed=1)


def test_a_trace_replays_the_lags_of_the_simulation(result, tmp_path):
    path = tmp_path / "trace.jsonl"
    write_jsonl(path, trace_records(result))
    lags = trace.read(path, num_steps=40, num_groups=3, max_lag=2)
    expected = [[group.lag for group in step.groups] for step in result.steps]
    assert lags.tolist() == expected and 0 < np.mean(lags) < 2


def test_a_trace_has_the_versions_of_every_token(result, tmp_path):
    path = tmp_path / "trace.jsonl"
    write_jsonl(path, trace_records(result))
    num_mixed = 0
    for line in path.read_text().splitlines():
        record = json.loads(line)
        group = result.steps[record["step"]].groups[record["slot"]]
        for spans, response in zip(record["spans"], group.responses, strict=True):
            assert sum(tokens for _, tokens in spans) == response.length
            assert record["behavior_version"] <= spans[0][0]
            num_mixed += len(spans) > 1
    assert num_mixed > 10  # in-flight updates do change weights within responses


def test_measures_are_means_over_the_groups_after_the_warm_up(result):
    numbers = measure(result, warm_up=10)
    steps = result.steps[10:]
    groups = [group for step in steps for group in step.groups]
    lags = [step.step - group.version for step in steps for group in step.groups]
    assert numbers["lag_mean"] == pytest.approx(np.mean(lags))
    assert numbers["lag_max"] == max(lags)
    assert numbers["lag_histogram"] == [lags.count(lag) for lag in range(max(lags) + 1)]
    spans = [
        (step.step - version, tokens)
        for step in steps
        for group in step.groups
        for response in group.responses
        for version, tokens in response.spans
    ]
    total = sum(tokens for _, tokens in spans)
    by_token = sum(lag * tokens for lag, tokens in spans) / total
    assert numbers["token_lag_mean"] == pytest.approx(by_token)
    assert numbers["token_lag_mean"] < numbers["lag_mean"]  # the oldest token names a group's lag
    lengths = [response.length for group in groups for response in group.responses]
    assert numbers["length_mean"] == pytest.approx(np.mean(lengths))
    discarded = sum(group.tokens for group in result.groups if group.is_discarded)
    assert numbers["discarded_tokens"] == pytest.approx(discarded / result.num_tokens)
    assert discarded > 0
    begin, end = result.steps[9].free, result.steps[-1].free
    assert numbers["seconds_per_step"] == pytest.approx((end - begin) / 30)


def test_idle_shares_are_those_of_a_known_schedule():
    """Each step: 10 s of generation in 2 of 4 slots, 5 s of update, 1 s of publication."""
    cluster = small_cluster(num_groups=2, publish_blocks="all")
    numbers = measure(simulate(cluster, make_rule("synchronous", 0, 2), 5, 0), warm_up=2)
    expected = {
        "engine_idle": 1 - 10 * 2 / (16 * 4),
        "engine_paused": 1 / 16,
        "learner_idle": 10 / 16,
        "learner_publishing": 1 / 16,
        "ready_groups": 0.0,
    }
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)


def test_length_bins_are_quantiles_and_a_constant_has_no_correlation():
    length, lag = np.array([5, 1, 4, 2, 3, 6, 8, 7, 10, 9]), np.arange(10)
    bins = by_length(length, lag)
    assert bins == [[1.5, 2.0], [3.5, 3.0], [5.5, 2.5], [7.5, 6.5], [9.5, 8.5]]
    assert correlation(length, np.ones(10)) is None
    assert correlation(length, 3 - 2 * length) == pytest.approx(-1)


def test_a_timeline_has_the_responses_of_its_slots_and_steps(result):
    shown = timeline(result, first=5, num_steps=3, max_slots=4)
    begin, end = result.steps[4].free, result.steps[7].free
    assert (shown["begin"], shown["end"]) == (begin, end)
    assert [row[0] for row in shown["learner"]] == [5, 6, 7]
    expected = {
        (r.engine * 3 + r.slot, r.start)
        for group in result.groups
        for r in group.responses
        if r.engine >= 0
        if r.engine * 3 + r.slot < 4
        if r.start < end and (r.end is None or r.end > begin)
    }
    assert {(row, start) for row, start, *_ in shown["slots"]} == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 0),
        ("slots", 0),
        ("tokens_per_second", 0.0),
        ("tokens_per_second", math.inf),
        ("slowdown", -0.1),
        ("num_groups", 0),
        ("group_size", 0),
        ("reward_seconds", -1.0),
        ("step_seconds", math.nan),
        ("publish_seconds", math.inf),
        ("publish_blocks", "some"),
        ("in_flight", "abort"),
    ],
)
def test_a_cluster_that_cannot_run_is_refused(field, value):
    with pytest.raises(FieldError) as error:
        small_cluster(**{field: value})
    assert error.value.field == field and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "max_lag", "field"),
    [("newest", 1, "buffer"), ("bounded", -1, "max_lag"), ("synchronous", 1, "max_lag")],
)
def test_a_rule_that_does_not_exist_is_refused(name, max_lag, field):
    with pytest.raises(FieldError) as error:
        make_rule(name, max_lag, 4)
    assert error.value.field == field
