"""The simulated clock agrees with closed forms, and event by event with a brute-force simulator."""

import numpy as np
import pytest

from staleness_grpo.errors import FieldError
from staleness_grpo.pipeline.cluster import ALL, CONTINUE, DRAIN, FINISH, NOTHING
from staleness_grpo.pipeline.measures import measure
from staleness_grpo.pipeline.rules import RULES, make_rule
from staleness_grpo.pipeline.simulation import Simulation, simulate
from tests.helpers.pipelines import brute_force, random_lengths, small_cluster


def run(cluster, rule="bounded", max_lag=0, steps=6, seed=0):
    return simulate(cluster, make_rule(rule, max_lag, cluster.num_groups), steps, seed)


def test_waiting_for_what_has_lag_s_does_not_bound_what_comes_that_far_together():
    """Two long responses of version 0 end together, and a step has room for one of them."""
    cluster = small_cluster(slots=3, step_seconds=1.0, publish_seconds=0.0)
    table = [100, 100] + [1] * 10
    rule = make_rule("wait", 2, 1)
    result = Simulation(cluster, rule, lambda group, version: [table[group]]).run(6)
    taken = [(group.number, group.lag) for step in result.steps for group in step.groups]
    assert taken[:4] == [(2, 0), (3, 0), (0, 2), (1, 3)] and not rule.keeps_bound


@pytest.mark.parametrize("seed", range(3))
def test_engines_that_discarding_empties_let_a_publication_begin(seed):
    """A publication beside the learner waits until the engines are drained."""
    cluster = random_lengths(
        slots=7,
        num_groups=2,
        group_size=3,
        tokens_per_second=3.3,
        reward_seconds=1.7,
        step_seconds=0.5,
        publish_seconds=40.0,
        publish_blocks=NOTHING,
        in_flight=DRAIN,
    )
    result = run(cluster, "drop", max_lag=2, steps=200, seed=seed)
    assert len(result.steps) == 200 and any(group.is_discarded for group in result.groups)


def test_steps_that_take_no_time_have_no_shares():
    cluster = small_cluster(step_seconds=0.0, publish_seconds=0.0)
    result = run(cluster, max_lag=3, steps=3)  # four groups are ready at once
    assert measure(result, 0)["seconds_per_step"] == pytest.approx(10 / 3)
    with pytest.raises(FieldError, match="steps=3: the 2 steps after the warm-up take no time"):
        measure(result, 1)


def seconds_per_step(result, warm_up=0):
    return measure(result, warm_up)["seconds_per_step"]


def test_one_engine_with_one_slot_takes_length_over_rate_then_update_then_publication():
    result = run(small_cluster(slots=1, tokens_per_second=2.0))
    for number, step in enumerate(result.steps):
        begin = number * (10 / 2 + 5 + 1)
        assert (step.start, step.end, step.free) == (begin + 5, begin + 10, begin + 11)


def test_one_slot_answers_a_batch_one_by_one():
    result = run(small_cluster(slots=1, num_groups=3, group_size=2))
    assert seconds_per_step(result) == pytest.approx(3 * 2 * 10 + 5 + 1)


@pytest.mark.parametrize("num_busy", [1, 3, 4])
def test_busy_slots_lengthen_each_token_by_the_slowdown(num_busy):
    result = run(small_cluster(num_groups=num_busy, slowdown=0.25))
    assert seconds_per_step(result) == pytest.approx(10 * (1 + 0.25 * (num_busy - 1)) + 6)


def test_responses_of_two_lengths_share_an_engine_until_the_shorter_ends(tmp_path):
    (tmp_path / "lengths.txt").write_text("10\n30\n")
    cluster = small_cluster(
        distribution="file", path=str(tmp_path / "lengths.txt"), num_groups=2, slowdown=1.0
    )
    draw = cluster.lengths.sampler(1, seed := 0)
    while {draw(0)[0], draw(1)[0]} != {10, 30}:  # the first seed whose batch has both lengths
        seed += 1
        draw = cluster.lengths.sampler(1, seed)
    result = run(cluster, steps=1, seed=seed)
    ends = sorted(group.ready for group in result.groups[:2])
    # Two at half the rate take 20 s for 10 tokens; the 20 tokens that are left take 20 s.
    assert ends == pytest.approx([20, 40])


def test_a_synchronous_step_takes_its_longest_response_then_the_update():
    cluster = random_lengths(slots=12, num_groups=4, group_size=3, reward_seconds=2.5)
    result = run(cluster, "synchronous", steps=20)
    free = 0.0
    for step in result.steps:
        longest = max(r.length for group in step.groups for r in group.responses)
        assert step.start - free == pytest.approx(longest + 2.5)
        assert (step.end - step.start, step.free - step.end) == pytest.approx((5, 1))
        free = step.free


def test_with_much_lag_the_slower_of_engines_and_learner_sets_the_time():
    slow_learner = random_lengths(slots=32, num_groups=4, group_size=2, step_seconds=50.0)
    assert seconds_per_step(run(slow_learner, "bounded", 8, 60), 30) == pytest.approx(50 + 1)
    slow_engines = random_lengths(slots=4, num_groups=4, group_size=2, step_seconds=1.0)
    result = run(slow_engines, "bounded", 8, 300)
    tokens = np.mean([r.length for group in result.groups for r in group.responses])
    # 8 responses on 4 slots that are never empty; the edges of the run are some responses.
    assert seconds_per_step(result) == pytest.approx(8 * tokens / 4, rel=0.02)


def test_slots_and_buffer_obey_littles_law():
    """A mean number is an arrival rate times a mean stay. The integrals come from the engines."""
    cluster = random_lengths(count=2, slots=3, num_groups=3, group_size=2, slowdown=0.1)
    result = run(cluster, "bounded", 2, 50)
    last, responses = result.steps[-1], [r for group in result.groups for r in group.responses]
    stays = [
        (last.free if r.end is None else min(r.end, last.free)) - r.start
        for r in responses
        if r.engine >= 0
    ]
    assert last.busy_seconds == pytest.approx(len(stays) * np.mean(stays))
    ready = [group for group in result.groups if group.ready is not None]
    waits = [(last.free if g.left is None else g.left) - g.ready for g in ready]
    assert last.ready_seconds == pytest.approx(len(waits) * np.mean(waits))


def test_at_lag_0_every_rule_is_the_synchronous_run():
    cluster = random_lengths(slots=3, num_groups=3, group_size=2)
    expected = [step.free for step in run(cluster, "synchronous").steps]
    for name in set(RULES) - {"one_step_off"}:
        assert [step.free for step in run(cluster, name).steps] == expected


def test_one_step_off_overlaps_an_update_with_the_next_batch_alone():
    """With constant lengths a step takes the longer of generation, and update with publication."""
    generation = small_cluster(num_groups=4, mean=20.0)
    assert seconds_per_step(run(generation, "one_step_off", 1, 8), 2) == pytest.approx(20)
    update = small_cluster(num_groups=4, mean=3.0)
    assert seconds_per_step(run(update, "one_step_off", 1, 8), 2) == pytest.approx(6)


def test_publication_stops_nothing_the_learner_or_all():
    """The learner needs 8 + 4 s, the engine 10 s: it waits for nobody with much lag."""
    times = {}
    for blocked in (NOTHING, "learner", ALL):
        fields = dict(slots=1, step_seconds=8.0, publish_seconds=4.0, publish_blocks=blocked)
        times[blocked] = seconds_per_step(run(small_cluster(**fields), "bounded", 4, 60), 30)
    # Alone the engine sets 10 s; the learner 12 s; and an engine that is paused 4 s of a step 14 s.
    assert times == pytest.approx({NOTHING: 10, "learner": 12, ALL: 14})


def in_flight_example(in_flight):
    """One slot, 10 tokens at 1 token/s. The second response runs when version 1 comes."""
    cluster = small_cluster(
        slots=1, step_seconds=3.0, publish_seconds=1.5, in_flight=in_flight, publish_blocks=NOTHING
    )
    result = run(cluster, "bounded", 1, 3)
    return [group.responses[0] for group in result.groups[:3]]


def test_a_response_in_flight_goes_on_finishes_or_is_waited_for():
    # Version 1 is there at 10 + 3 + 1.5 = 14.5, when the fifth token of the second is begun.
    _, second, third = in_flight_example(CONTINUE)
    assert (second.start, second.version, second.spans) == (10, 0, ((0, 5), (1, 5)))
    assert (third.start, third.version) == (20, 1)
    _, second, third = in_flight_example(FINISH)
    assert (second.spans, third.start, third.version) == (((0, 10),), 20, 1)
    # The engine is empty at 20 and has the weights at 21.5.
    _, second, third = in_flight_example(DRAIN)
    assert (second.spans, third.start, third.version) == (((0, 10),), 21.5, 1)


@pytest.mark.parametrize("rule", ["bounded", "ready_first", "in_order", "windowed"])
@pytest.mark.parametrize("max_lag", [1, 2])
def test_every_event_is_that_of_a_brute_force_simulator(rule, max_lag):
    # Lengths of some 30,000 tokens hardly ever end at the same time on two engines.
    engines = dict(count=2, slots=3, slowdown=0.13, tokens_per_second=1700.0)
    cluster = random_lengths(mean=3e4, limit=10**7, num_groups=3, group_size=2, **engines)
    seen = {"overtaken": 0, "discarded": 0}
    for seed in range(4):
        result = run(cluster, rule, max_lag, 25, seed)
        expected = brute_force(cluster, rule, max_lag, 25, seed)
        steps = [(step.start, step.end, step.free) for step in result.steps]
        np.testing.assert_allclose(steps, expected["steps"], rtol=1e-9)  # sums in another order
        assert len(result.groups) == len(expected["groups"])
        for group, (number, version, start, ready, step) in zip(
            result.groups, expected["groups"], strict=True
        ):
            assert (group.number, group.version, group.step) == (number, version, step)
            assert group.start == pytest.approx(start) and group.ready == pytest.approx(ready)
        trained = [group.number for step in result.steps for group in step.groups]
        seen["overtaken"] += trained != sorted(trained)
        seen["discarded"] += sum(group.is_discarded for group in result.groups)
    # The comparison means something only if the rules do what they differ in.
    assert (seen["overtaken"] > 0) is (rule != "in_order")
    assert (seen["discarded"] > 0) is (rule == "windowed")
