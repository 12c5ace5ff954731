"""Held-out problems are never drawn by training, and are the same at each evaluation."""

import itertools
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.common import cli
from experiments.train import __main__ as experiment
from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime.records import plain, read_json
from staleness_grpo.tasks.arithmetic import ArithmeticTask
from staleness_grpo.tasks.enumerable import EnumerableTask
from staleness_grpo.training.heldout import pass_at_k, split
from staleness_grpo.training.loop import train
from tests.helpers.tiny import tiny_config

FIELDS = {"heldout.every": 2, "heldout.fraction": 0.4, "task.num_prompts": 20, "lag.max_lag": 1}


def test_pass_at_k_is_the_share_of_all_choices_with_a_right_response():
    """By enumeration of all choices of k among n responses."""
    n = 5
    for right, k in itertools.product(range(n + 1), (1, 2, 4)):
        outcomes = [True] * right + [False] * (n - right)
        choices = list(itertools.combinations(outcomes, k))
        expected = np.mean([any(choice) for choice in choices])
        np.testing.assert_allclose(pass_at_k(n, np.array([right]), k), [expected], rtol=1e-12)


def test_a_split_is_whole_disjoint_and_of_the_asked_size():
    training, held_out = split(ArithmeticTask(), 0.1)
    assert not set(training) & set(held_out) and len(training) + len(held_out) == 10_000
    assert len(held_out) == pytest.approx(1000, abs=4 * np.sqrt(900))  # four standard deviations
    for task, fraction, message in (
        (ArithmeticTask(num_terms=4), 0.1, "at most 1000000 can be split: give a path"),
        (EnumerableTask(vocab_size=3, max_response_length=1, num_prompts=2), 1e-9, "0 would be"),
    ):
        with pytest.raises(FieldError, match=f"^fraction=.*{message}"):
            split(task, fraction)


def test_training_draws_no_held_out_problem_and_evaluations_are_as_counted_by_hand():
    config = tiny_config(**FIELDS | {"heldout.num_samples": 4, "steps": 4, "eval_every": 2})
    run = build_run(config)
    held_out = set(run.heldout.index_N)
    assert 0 < len(held_out) < 20
    drawn, answered = [], []
    rewards_of = EnumerableTask.rewards

    def watched(task, index_N, tokens, mask):
        rewards = rewards_of(task, index_N, tokens, mask)
        (answered if tokens.shape[1] == 4 and set(index_N) <= held_out else drawn).append(
            (np.asarray(index_N), rewards)
        )
        return rewards

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnumerableTask, "rewards", watched)
        records = list(train(run))
    assert all(not set(index_N) & held_out for index_N, _ in drawn) and len(drawn) > 4
    batches = -(-len(held_out) // config.num_prompts)
    assert len(answered) == 2 * batches  # at steps 0 and 2
    for at, record in enumerate((records[0], records[2])):
        rewards = np.concatenate([r for _, r in answered[at * batches : (at + 1) * batches]])
        rewards = rewards[: len(held_out)]
        assert record["heldout_reward"] == pytest.approx(rewards.mean())
        right = (rewards >= 1).sum(axis=1)
        assert record["heldout_pass_at"] == {
            str(k): pytest.approx(pass_at_k(4, right, k).mean()) for k in (1, 2, 4)
        }
        assert record["heldout_failures"] == 0
    assert "heldout_reward" not in records[1]


def test_it_changes_nothing_else_and_greedy_answers_are_the_most_probable():
    whole = FIELDS | {"heldout.every": 0, "heldout.fraction": 0.0}
    path_free = [plain(record) for record in train(build_run(tiny_config(**whole)))]
    config = tiny_config(**whole)
    config.heldout.update(dict(every=3, fraction=0.4, greedy=True))
    run = build_run(config)
    first, second = (run.heldout.evaluate(run.state.params, step) for step in (0, 7))
    assert first == second  # greedy answers have no noise
    sampled = build_run(tiny_config(**FIELDS))
    answers = [sampled.heldout.evaluate(sampled.state.params, step) for step in range(6)]
    assert len({answer["heldout_reward"] for answer in answers}) > 1
    # With all problems in training, an evaluation beside it changes no record.
    config.heldout.update(dict(fraction=0.0, path=None, every=0, greedy=False))
    again = [plain(record) for record in train(build_run(config))]
    for record in (*path_free, *again):
        del record["time_step"]
    assert again == path_free


def test_summary_and_figure_have_the_held_out_reward(tmp_path):
    config = tiny_config(**FIELDS, steps=4, eval_every=2)
    cli.complete(experiment.main, experiment.draw, config, tmp_path)
    summary = read_json(tmp_path / "summary.json")
    assert 0 <= summary["first_heldout_reward"] <= 1
    assert 0 <= summary["final_heldout_reward"] <= 1
    assert set(summary["final_heldout_pass_at"]) == {"1"}


@pytest.mark.slow
def test_problems_of_a_file_and_their_overlap(tmp_path, capsys):
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    from tests.helpers import byte_model

    byte_model.write(tmp_path)
    lines = [{"prompt": f"{n}+1?", "answer": str(n + 1)} for n in range(6)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines[:4])))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines[3:])))
    config = byte_model.text_config(tmp_path)
    fields = dict(name="jsonl", verifier="number", max_response_length=4)
    config.task = ConfigDict(fields | dict(path=str(tmp_path / "train.jsonl")))
    config.update(dict(steps=2, eval_every=0))
    config.heldout.update(dict(every=1, path=str(tmp_path / "test.jsonl")))
    validation.validate(config, 1)
    cli.complete(experiment.main, experiment.draw, config, tmp_path / "run")
    assert "1 problems of heldout.path are training problems too" in capsys.readouterr().err
    config.heldout.path = str(tmp_path / "absent.jsonl")
    with pytest.raises(FieldError, match=r"^heldout.path=.*absent.jsonl: path: No such file"):
        validation.validate(config, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(fraction=0.1), "^heldout.fraction=0.1: heldout.every=0 makes no use of it"),
        (dict(every=2), "^heldout.every=2: give either heldout.path or heldout.fraction"),
        (dict(every=2, fraction=1.0), "^heldout.fraction=1.0: give a fraction"),
        (dict(every=2, fraction=0.1, path="x"), "^heldout.fraction=0.1: heldout.path says which"),
        (dict(every=2, path="x"), "^heldout.path=x: the task enumerable reads no file"),
        (dict(every=2, fraction=0.5, greedy=True, num_samples=2), "^heldout.num_samples=2: greedy"),
        (dict(every=2, fraction=1e-9), "^heldout.fraction=1e-09: of 8 prompts, 0 would be held"),
    ],
)
def test_fields_that_cannot_be_used_are_refused(fields, message):
    config = tiny_config()
    config.heldout.update(fields)
    with pytest.raises(FieldError, match=message):
        validation.validate(config, jax.device_count())
