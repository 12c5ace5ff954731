"""Groups whose weights change in flight have the tokens that their versions sample."""

import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.config.build import build_run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.config.validation import validate
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime.records import plain
from staleness_grpo.staleness.trace import Change, TraceError
from staleness_grpo.training import asynchronous, learner
from staleness_grpo.training.calls import Call
from staleness_grpo.training.checkpoint import Checkpoints
from staleness_grpo.training.in_flight import GrowingCall, Replay
from staleness_grpo.training.loop import lags_of_tokens, train
from staleness_grpo.training.rollouts import TRAINING
from staleness_grpo.types import Responses, Rollout
from tests.conftest import ROOT
from tests.helpers.tiny import asynchronous_config, decoder_config

CALL = Call(3, np.arange(2))
LENGTH = 6
# Two changes, one of them after a single token.
CHANGES = [(1, 7), (4, 9)]


GRU = {"name": f"{ROOT}/docs/examples/gru.py:GRU", "arguments": {"width": 8}}


@pytest.fixture(scope="module", params=["decoder", "GRU"])
def run(request):
    """A GRU has no positions in its cache, so a token that is read twice changes it."""
    config = decoder_config(**{"task.max_response_length": LENGTH})
    if request.param == "GRU":
        config.policy = default_config().policy
        with config.unlocked():
            config.policy.update(GRU)
    return build_run(config)


@pytest.fixture(scope="module")
def versions(run):
    """Parameters of three versions that sample other tokens."""
    init = jax.jit(run.programs.policy.init)
    scale = 3.0  # away from the uniform distribution
    return {
        version: jax.tree.map(lambda leaf: scale * leaf, init(jax.random.key(version)))
        for version in (5, 7, 9)
    }


def grown(run, versions, changes, recompute=False):
    growing = GrowingCall(run.generator, CALL, 5, versions[5], recompute)
    for position, version in changes:
        growing.sample_to_change(position)
        assert growing.position == position
        growing.change(version, versions[version])
    assert growing.sample_until(LENGTH)
    return growing.finish().result()


def logprobs_of(run, params, rollout: Rollout):
    """The log-probabilities [N, G, R] of a rollout's tokens under one version, from its text."""
    policy = run.programs.policy
    return learner.make_scorer(policy, run.programs.temperature)(params, rollout)


def test_parts_without_a_change_are_the_whole_response(run, versions):
    batch = (run.generator.prompts(TRAINING, CALL.steps, CALL.slots), TRAINING)
    whole = run.generator.sample(versions[5], *batch, CALL.steps, CALL.slots, 4)
    for positions in ([], [1, 2, 3, 4, 5]):
        growing = GrowingCall(run.generator, CALL, 5, versions[5], recompute=False)
        for position in positions:
            growing.sample_to_change(position)
        assert growing.sample_until(LENGTH)
        parts = growing.finish().result()
        for part, expected in zip(
            jax.tree.leaves(parts.responses), jax.tree.leaves(whole), strict=True
        ):
            np.testing.assert_array_equal(part, expected)
        np.testing.assert_array_equal(parts.token_version_NxR, np.full((2, LENGTH), 5))


def test_a_recomputed_token_has_the_logprob_of_its_version(run, versions):
    rollout = grown(run, versions, CHANGES, recompute=True)
    np.testing.assert_array_equal(rollout.token_version_NxR, [[5, 7, 7, 7, 9, 9]] * 2)
    np.testing.assert_array_equal(rollout.behavior_version_N, [5, 5])
    recorded = np.asarray(rollout.responses.behavior_logprobs_NxGxR)
    by_version = {
        v: np.asarray(logprobs_of(run, params, rollout)) for v, params in versions.items()
    }
    for position, version in enumerate([5, 7, 7, 7, 9, 9]):
        token = recorded[:, :, position]
        is_token = np.asarray(rollout.responses.mask_NxGxR)[:, :, position]
        np.testing.assert_allclose(
            token, is_token * by_version[version][:, :, position], rtol=2e-5, atol=1e-6
        )
        for other in set(versions) - {version}:  # so the check can fail
            assert np.abs(token - is_token * by_version[other][:, :, position]).max() > 0.1


def test_a_continued_token_reads_the_cache_of_the_versions_before(run, versions):
    """Decodes the same tokens one by one, each with the weights of its version."""
    rollout = grown(run, versions, CHANGES)
    policy, prompts, responses = run.programs.policy, rollout.prompts, rollout.responses
    hidden, prefix = policy.prefill(versions[5], prompts.tokens_NxP, prompts.mask_NxP)
    hidden = jnp.broadcast_to(hidden[:, None], (2, 4, hidden.shape[-1]))
    cache, decode = policy.empty_cache(2, 4, LENGTH - 1), jax.jit(policy.decode)
    for position, version in enumerate([5, 7, 7, 7, 9, 9]):
        params = versions[version]
        token = responses.tokens_NxGxR[:, :, position]
        if position:
            last = responses.tokens_NxGxR[:, :, position - 1]
            mask = prompts.mask_NxP
            hidden, cache = decode(params, last, jnp.int32(position - 1), cache, prefix, mask)
        logits = np.asarray(policy.unembed(params, hidden), np.float64)
        logits /= run.programs.temperature
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = np.take_along_axis(expected, np.asarray(token)[..., None], -1)[..., 0]
        recorded = responses.behavior_logprobs_NxGxR[:, :, position]
        expected = expected * responses.mask_NxGxR[:, :, position]
        np.testing.assert_allclose(recorded, expected, rtol=2e-5, atol=1e-6)
    anew = grown(run, versions, CHANGES, recompute=True).responses.behavior_logprobs_NxGxR
    np.testing.assert_array_equal(anew[:, :, :1], responses.behavior_logprobs_NxGxR[:, :, :1])
    assert np.abs(anew - responses.behavior_logprobs_NxGxR).max() > 0.1


def test_a_change_after_the_end_of_all_responses_is_refused(run, versions):
    growing = GrowingCall(run.generator, CALL, 5, versions[5], recompute=False)
    with pytest.raises(TraceError, match="step 3, slot 0 have ended at position 6: give the flags"):
        growing.sample_to_change(LENGTH)


def lines(changes):
    """A trace of 6 steps of 4 groups of lag 2, in calls of 2, with changes in some of the calls."""
    starts = [
        {"step": step, "slot": slot, "behavior_version": max(step - 2, 0)}
        for step in range(6)
        for slot in range(4)
    ]
    return starts + [
        {"step": step, "slot": slot + i, "behavior_version": version, "position": position}
        for step, slot, position, version in changes
        for i in range(2)
    ]


def replay_config(tmp_path, changes, **overrides):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(changes)))
    overrides = {"asynchronous.in_flight": "continue"} | overrides
    config = asynchronous_config(steps=6, **overrides)
    config.lag.schedule, config.lag.trace = "trace", str(path)
    return config


# Step 3, slot 0 begins with version 1, goes on with version 2 and ends with version 3.
TWICE = [(3, 0, 1, 2), (3, 0, 3, 3)]


def test_the_lag_of_tokens_counts_every_token_with_its_own_version():
    mask = np.array([[[1, 1, 1], [1, 0, 0]], [[1, 0, 0], [1, 0, 0]]], bool)
    responses = Responses(0 * mask, mask, 0.0 * mask)
    rollout = Rollout(None, responses, None, None, token_version_NxR=np.array([[2, 4, 5]] * 2))
    # Lags at step 5: of the first group 3, 1, 0 and 3; of the second, which ended early, 3 and 3.
    expected = {"token_lag_mean": 13 / 6, "in_flight_share": 0.5}
    assert lags_of_tokens(rollout, step=5) == pytest.approx(expected)


def test_a_record_says_which_groups_changed(tmp_path):
    records = list(train(build_run(replay_config(tmp_path, TWICE))))
    assert [record["lag_mean"] for record in records] == [0, 1, 2, 2, 2, 2]
    assert [step for step in range(6) if records[step]["in_flight_share"]] == [3]
    assert [step for step in range(6) if records[step]["token_lag_mean"] < min(step, 2)] == [3]


def test_a_change_decides_the_tokens_after_it(tmp_path):
    """A group begun by version 1 that changes to 2 is, from there on, not what 1 would sample."""
    overrides = {"optimizer.learning_rate": 1.0}
    without, early, late = (
        list(train(build_run(replay_config(tmp_path, changes, **overrides))))
        for changes in ([], [(4, 2, 1, 4)], [(4, 2, 3, 4)])
    )
    fields = ("reward", "loss", "grad_norm")
    for step in range(4):
        assert [without[step][f] for f in fields] == [early[step][f] for f in fields]
    assert len({tuple(run[4][f] for f in fields) for run in (without, early, late)}) == 3


def test_a_save_is_left_out_while_a_call_waits_and_the_run_goes_on_from_the_one_before(tmp_path):
    config = replay_config(tmp_path, TWICE, **{"checkpoint.save_every": 1, "checkpoint.keep": 9})
    run = build_run(config)
    checkpoints = Checkpoints(tmp_path / "checkpoints", config)
    records = [plain(record) for record in train(run, checkpoints)]
    # The call that begins before step 1 is complete before step 3.
    assert sorted(checkpoints.steps()) == [1, 4, 5, 6]
    for step in (5, 6):
        checkpoints.folder.joinpath(f"step_{step:08d}").rename(tmp_path / f"{step}")
    for start in (4, 1):
        again = build_run(config)
        others = Checkpoints(tmp_path / "checkpoints", config)
        others.restore(again, lambda reason, hint: ValueError(reason))
        assert again.step == start
        resumed = [plain(record) for record in train(again)]
        drop = {"time_step"}
        assert [{k: v for k, v in r.items() if k not in drop} for r in resumed] == [
            {k: v for k, v in r.items() if k not in drop} for r in records[start:]
        ]
        if start == 4:
            checkpoints.folder.joinpath("step_00000004").rename(tmp_path / "4")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ([(3, 0, 1, 1)], "step 3, slot 0: its versions do not rise .*: 1 from 0, 1 from 1"),
        ([(3, 0, 2, 3), (3, 0, 3, 2)], "step 3, slot 0: .*: 1 from 0, 3 from 2, 2 from 3"),
        ([(3, 0, 2, 2), (3, 0, 2, 3)], "step 3, slot 0: .* 1 from 0, 2 from 2, 3 from 2"),
        ([(3, 1, 2, 2)], "step 3, slot 1: weights change in it and not in all of its 2 neighbor"),
        ([(3, 0, 0, 2)], "line 25: no change can be at position 0"),
        ([(3, 0, 1, 4)], "line 25: step 3 cannot learn from behavior version 4"),
    ],
)
def test_a_trace_whose_changes_cannot_be_is_refused(tmp_path, changes, line):
    with pytest.raises(FieldError, match=line):
        validate(replay_config(tmp_path, changes), 2)


def test_a_replay_needs_the_flags_of_the_run(tmp_path):
    for in_flight, line in (
        ("finish", "lag.trace=.*: weights change within its groups: give the flags of the run"),
        ("later", "asynchronous.in_flight=later: choose one of finish, continue, recompute"),
    ):
        with pytest.raises(FieldError, match=line):
            validate(replay_config(tmp_path, TWICE, **{"asynchronous.in_flight": in_flight}), 2)
    validate(replay_config(tmp_path, [], **{"asynchronous.in_flight": "finish"}), 2)
    # Step 3 has responses of 4 tokens, so nothing is left at position 5.
    run = build_run(replay_config(tmp_path, [(3, 0, 5, 2)]))
    with pytest.raises(FieldError, match="lag.trace: all responses of step 3, slot 0 have ended"):
        list(train(run, source=Replay(run)))


@pytest.mark.parametrize("begins_late", [False, True])
def test_a_call_that_waits_for_a_later_version_never_stops_the_learner(begins_late, monkeypatch):
    """The learner settles while the given changes of a call need a version that comes after it."""
    config = asynchronous_config(steps=6, **{"asynchronous.in_flight": "continue"})
    run = build_run(config)
    monkeypatch.setattr(asynchronous, "generator_mesh", lambda config: run.mesh)
    # Two calls in each step. The first call of step 2 changes weights twice.
    given = {place: [Change(0, 0)] for place in range(4)}
    given[4] = [Change(0, 0), Change(1, 1), Change(2, 2)]

    def watch(part, arrays):
        if part == "prompts" and begins_late:
            time.sleep(0.3)

    run.watch_with(watch)
    settled = []
    with asynchronous.BackgroundGenerator(run, lambda *call: None, given) as source:
        source.provide(run, 0)
        source.provide(run, 1)  # version 1 is here, version 2 is not
        learner = threading.Thread(target=lambda: settled.append(source.settle(run)), daemon=True)
        learner.start()
        learner.join(timeout=60)
        assert settled == [False]  # before the end of the thread wakes everyone


def test_weights_that_a_call_still_needs_are_kept_while_newer_ones_come(monkeypatch):
    config = asynchronous_config(steps=6, **{"asynchronous.in_flight": "continue"})
    run = build_run(config)
    monkeypatch.setattr(asynchronous, "generator_mesh", lambda config: run.mesh)
    given = {place: [Change(0, 0)] for place in range(4)}
    given[4] = [Change(0, 0), Change(1, 1), Change(2, 2)]
    published = threading.Event()

    def watch(part, arrays):
        # The call of step 2 begins when version 2 is there, and needs version 1.
        if part == "prompts" and len(seen) == 4:
            assert published.wait(60)
        if part == "prompts":
            seen.append(part)

    seen = []
    run.watch_with(watch)
    with asynchronous.BackgroundGenerator(run, lambda *call: None, given) as source:
        source.provide(run, 0)
        source.provide(run, 1)
        source._publish(2, run.state.params)
        published.set()
        source.provide(run, 2)
    _, slots, versions, groups = run.buffer.unread()
    changed = groups.token_version_NxR[(run.buffer.unread()[0] == 2) & (slots < 2)]
    np.testing.assert_array_equal(changed[:, :3], [[0, 1, 2]] * 2)
    assert set(versions) == {0, 2}


def test_groups_that_are_sampled_at_once_begin_with_one_version(tmp_path):
    config = replay_config(tmp_path, TWICE)
    path = tmp_path / "trace.jsonl"
    text = path.read_text()
    line = '{"step": 4, "slot": 3, "behavior_version": 2}'
    assert text.count(line) == 1
    path.write_text(
        text.replace(line, line.replace('"behavior_version": 2', '"behavior_version": 3'))
    )
    with pytest.raises(FieldError, match="step 4, slot 2: its 2 neighboring groups begin with"):
        validate(config, 2)
    config.asynchronous.in_flight = "finish"
    path.write_text(
        "\n".join(line for line in path.read_text().splitlines() if "position" not in line)
    )
    validate(config, 2)  # without changes in flight any lag may stand anywhere
