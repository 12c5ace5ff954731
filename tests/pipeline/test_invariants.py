"""What holds of every simulation: nothing is lost, bounds are kept, versions do not go back."""

import itertools
from collections import Counter, defaultdict

import hypothesis
import pytest
from hypothesis import strategies as st

from staleness_grpo.pipeline.cluster import BLOCKED, IN_FLIGHT
from staleness_grpo.pipeline.measures import ledger
from staleness_grpo.pipeline.rules import RULES, make_rule
from staleness_grpo.pipeline.simulation import simulate
from tests.helpers.pipelines import random_lengths

clusters = st.builds(
    random_lengths,
    count=st.integers(1, 3),
    slots=st.integers(1, 5),
    slowdown=st.sampled_from([0.0, 0.21]),
    num_groups=st.integers(1, 4),
    group_size=st.integers(1, 3),
    reward_seconds=st.sampled_from([0.0, 3.7]),
    step_seconds=st.sampled_from([0.0, 4.3, 60.0]),
    publish_seconds=st.sampled_from([0.0, 2.9, 33.0]),
    publish_blocks=st.sampled_from(BLOCKED),
    in_flight=st.sampled_from(IN_FLIGHT),
    correlation=st.sampled_from([0.0, 0.7]),
)


@st.composite
def simulations(draw, names=tuple(RULES)):
    cluster = draw(clusters)
    name = draw(st.sampled_from(names))
    own = RULES[name].only_lag
    max_lag = draw(st.integers(0, 4)) if own is None else own
    rule = make_rule(name, max_lag, cluster.num_groups)
    return simulate(cluster, rule, num_steps=12, seed=draw(st.integers(0, 99)))


@hypothesis.settings(max_examples=40)
@hypothesis.given(simulations())
def test_every_group_has_one_fate_and_every_token_is_counted_once(result):
    n = result.cluster.num_groups
    trained = [group.number for step in result.steps for group in step.groups]
    assert len(trained) == len(set(trained)) == 12 * n
    fates = Counter()
    for group in result.groups:
        is_trained, is_discarded = group.step is not None, group.is_discarded
        assert not (is_trained and is_discarded)
        fates[is_trained, is_discarded] += 1
        if is_trained:
            assert group is result.steps[group.step].groups[group.slot]
            assert all(response.tokens == response.length for response in group.responses)
    assert [group.number for group in result.groups] == list(range(len(result.groups)))
    assert fates[True, False] == len(trained)
    assert sum(fates.values()) == len(result.groups)
    # Tokens that the engines counted: of ended responses, and parts of those that have not ended.
    responses = [r for group in result.groups for r in group.responses if r.engine >= 0]
    ended = sum(r.tokens for r in responses)
    open_ends = [r for r in responses if r.end is None]
    cancelled = [r for r in responses if r.end is not None and r.tokens < r.length]
    rest = result.num_tokens - ended
    assert -1e-3 <= rest <= sum(r.length for r in open_ends) + len(cancelled) + 1e-3
    shares = ledger(result)
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > -1e-9


@hypothesis.settings(max_examples=40)
@hypothesis.given(simulations())
def test_lags_are_within_what_the_rule_promises(result):
    lags = [group.lag for step in result.steps for group in step.groups]
    assert min(lags) >= 0
    if result.rule.keeps_bound:
        assert max(lags) <= result.rule.max_lag


@hypothesis.settings(max_examples=40)
@hypothesis.given(simulations())
def test_versions_and_times_do_not_go_back(result):
    versions = [group.version for group in result.groups]
    assert versions == sorted(versions)
    free = 0.0
    for step in result.steps:
        assert free <= step.start <= step.end <= step.free
        free = step.free
    slots = defaultdict(list)
    for group in result.groups:
        for r in group.responses:
            if r.engine >= 0:
                slots[r.engine, r.slot].append((r.start, r.end))
                assert r.version >= group.version and r.start >= group.start
            if r.end is not None:
                span_versions = [version for version, _ in r.spans]
                assert span_versions == sorted(set(span_versions))
                assert sum(tokens for _, tokens in r.spans) == r.tokens
                assert all(tokens > 0 for _, tokens in r.spans)
                if r.tokens:
                    assert span_versions[0] == r.version
                if group.step is not None:
                    assert span_versions[-1] <= group.step
    for stays in slots.values():
        stays.sort(key=lambda stay: stay[0])
        for (_, end), (start, _) in itertools.pairwise(stays):
            assert end is not None and end <= start


@hypothesis.settings(max_examples=40)
@hypothesis.given(simulations(("in_order", "one_step_off", "synchronous")))
def test_in_order_a_group_is_trained_in_the_step_that_it_was_started_for(result):
    for step in result.steps:
        for slot, group in enumerate(step.groups):
            assert group.number == step.step * result.cluster.num_groups + slot


@hypothesis.settings(max_examples=40)
@hypothesis.given(simulations(("fifo",)))
def test_first_in_first_out_no_group_overtakes_older_weights(result):
    versions = [group.version for step in result.steps for group in step.groups]
    assert versions == sorted(versions)


@hypothesis.settings(max_examples=40)
@hypothesis.given(simulations(("ready_first",)))
def test_ready_first_trains_in_the_order_of_completion(result):
    ready = [group.ready for step in result.steps for group in step.groups]
    assert ready == sorted(ready)


@hypothesis.settings(max_examples=40)
@hypothesis.given(simulations(("drop", "windowed")))
def test_only_groups_that_are_too_old_are_discarded(result):
    """A group is discarded by the first step that finds it too old."""
    for group in result.groups:
        if group.is_discarded:
            step = next(s for s in result.steps if s.start >= group.left)
            assert step.step - group.version > result.rule.max_lag


def test_equal_seeds_give_equal_simulations_and_others_do_not():
    def times(seed):
        rule = make_rule("bounded", 2, 3)
        result = simulate(random_lengths(num_groups=3), rule, 10, seed)
        return [step.start for step in result.steps]

    assert times(0) == times(0) != times(1)
