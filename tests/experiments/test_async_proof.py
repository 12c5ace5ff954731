"""The proof compares bytes and passes its flags on; the timing leaves out what is not steady."""

import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.async_train import comparison, proof, speed
from experiments.common.flag_parsing import load_config
from experiments.train import __main__ as train
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime.records import read_jsonl, write_jsonl
from tests.helpers.pages import described_fields
from tests.helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    train.main(tiny_config(steps=2), workdir)
    return workdir


def test_times_may_differ_and_no_other_field(trained, tmp_path):
    records = read_jsonl(trained / "metrics.jsonl")
    for field, is_same in (("time_step", True), ("loss", False), ("lag_max", False)):
        changed = records[0] | {field: np.nextafter(records[0][field], 1e9)}
        write_jsonl(tmp_path / "metrics.jsonl", [changed, *records[1:]])
        assert (comparison.metrics(tmp_path) == comparison.metrics(trained)) is is_same


def test_states_of_another_step_differ(trained, tmp_path):
    longer = tmp_path / "longer"
    train.main(tiny_config(steps=3), longer)
    one, other = comparison.parameters(trained), comparison.parameters(longer)
    for part in ("params", "mu", "nu", "previous_gradient"):
        arrays = [name for name in one if part in name]
        assert arrays and all(one[name] != other[name] for name in arrays)


def test_flags_of_a_run_are_those_of_the_call_and_its_own():
    config = load_config(proof.CONFIG)
    config.steps, config.proof.stories = 7, "MODEL"
    sums = proof.flags(config, "sums_bounded_16")
    assert sums[0] == f"--config={proof.CONFIG}" and "--config.steps=7" in sums
    assert {"--config.lag.max_lag=16", "--config.seed=1"} < set(sums)
    assert not any("proof" in flag or "checkpoint" in flag for flag in sums[1:])
    assert "--config.policy.checkpoint=MODEL" in proof.flags(config, "stories_bounded_8")


def test_the_proof_needs_a_model_folder(tmp_path):
    config = load_config(proof.CONFIG)
    for folder in (None, str(tmp_path / "none")):
        config.proof.stories = folder
        with pytest.raises(FieldError, match=r"^proof.stories=.*: give the model folder"):
            proof.validate(config)
    config.proof.stories = str(tmp_path)
    with pytest.raises(FieldError, match="^proof.stories=.*: give the model folder"):
        proof.validate(config)  # the folder is empty
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).touch()
    proof.validate(config)


def test_the_page_has_every_field_of_a_run(monkeypatch, tmp_path):
    """A run and its replay are stood for by a run that has ended."""
    summary = dict.fromkeys(proof.SHOWN, 0)
    monkeypatch.setattr(proof, "run_with_kills", lambda *given: {"kills": 0, "kills_in_flight": 0})
    monkeypatch.setattr(proof, "start", lambda *given: SimpleNamespace(wait=lambda: 0))
    monkeypatch.setattr("staleness_grpo.runtime.records.read_json", lambda path: summary)
    for name in ("metrics", "parameters", "trace_digest"):
        monkeypatch.setattr(comparison, name, lambda workdir: pathlib.Path(workdir).name[:4])
    record = proof.measure(load_config(proof.CONFIG), tmp_path, "sums_bounded_4")
    assert set(record) == described_fields("cells.jsonl of `experiments.async_proof`")


def test_a_change_of_weights_counts_as_no_group(tmp_path):
    assert proof.num_groups(tmp_path / "trace.jsonl") == 0
    lines = [{"step": 0, "slot": 0}, {"step": 0, "slot": 0, "position": 4}, {"step": 0, "slot": 1}]
    write_jsonl(tmp_path / "trace.jsonl", lines)
    assert proof.num_groups(tmp_path / "trace.jsonl") == 2


def test_generation_and_learning_are_timed_apart(monkeypatch):
    now = iter([0.0, 1.0, 1.0, 3.0, 7.0, 8.0, 8.5, 9.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(now))
    clock = speed.TurnsClock()  # at 0
    for part in ("prompts", "sampling", "buffer", "update", "records", "buffer", "records"):
        clock(part, ())
    assert clock.generation == [3.0, 0.5] and clock.learning == [5.0, 0.5]


def test_steps_without_a_steady_state_are_not_timed():
    config = load_config("experiments/configs/async_speed.py")
    config.steps, config.lag.max_lag = 20, 4
    assert list(range(20))[speed.timed_steps(config)] == list(range(6, 16))


def test_rewards_are_compared_when_the_first_training_ends():
    def records(seconds, rewards):
        compiled = [{"time_step": 99.0}] * speed.WARM_UP_STEPS
        rows = [{"time_step": seconds, "eval_reward": reward} for reward in rewards]
        return compiled + rows

    slow, fast = records(2.0, [0.0, 0.2, 0.4]), records(1.0, [0.0, 0.1, 0.3, 0.6])
    found = speed.rewards_at_equal_time(slow, fast)
    # The fourth evaluation of the fast one begins at 3 s, between two of the slow one.
    assert found == pytest.approx(
        {"equal_time_seconds": 3.0, "synchronous_reward": 0.3, "asynchronous_reward": 0.6}
    )
    unevaluated = [{"time_step": 1.0}] * 4
    assert speed.rewards_at_equal_time(slow, unevaluated) == {}
