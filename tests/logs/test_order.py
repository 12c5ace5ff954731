"""Restarts, rows out of order and several rows of a step are read as what they are, or refused."""

import itertools

import numpy as np
import pytest

from staleness_grpo.errors import FlagError
from staleness_grpo.logs import read
from tests.logs.writers import json_lines

RUN = {"reward": 0.5, "entropy": 2.0}


def log(tmp_path, rows):
    """Writes (step, reward) pairs, or (step, fields)."""
    lines = [
        {"step": step} | (value if isinstance(value, dict) else {"reward": value})
        for step, value in rows
    ]
    return json_lines(tmp_path / "metrics.jsonl", lines)


def reward(tmp_path, rows):
    """Returns the steps and rewards that are read, as pairs, and the notes as one text."""
    found = read(log(tmp_path, rows), "staleness_grpo")
    values = found.signals["reward"].tolist()
    return list(zip(found.step.tolist(), values, strict=True)), " ".join(found.notes)


def replayed(rows):
    """Returns what counts in the end: each row erases all that was written of its step or later."""
    kept = {}
    for step, value in rows:
        kept = {other: kept[other] for other in kept if other < step} | {step: value}
    return sorted(kept.items())


@pytest.mark.parametrize("seed", range(5))
def test_restarts_keep_what_was_trained_last(tmp_path, seed):
    """The run is stopped at random steps, and goes on from a checkpoint of every fifth step."""
    random = np.random.default_rng(seed)
    rows, step, restarts = [], 0, 0
    while step < 40:
        rows.append((step, float(random.random())))
        step += 1
        if restarts < 4 and step > 5 and random.random() < 0.1:
            restarts += 1
            step = (step - 1) // 5 * 5
    found, notes = reward(tmp_path, rows)
    assert found == replayed(rows)
    assert len(found) == 40


def test_a_restart_drops_the_steps_behind_where_it_ended(tmp_path):
    rows = [(n, n / 100) for n in range(10)] + [(n, 0.5 + n / 100) for n in (4, 5, 6)]
    found, notes = reward(tmp_path, rows)
    assert found == [(n, n / 100) for n in range(4)] + [(n, 0.5 + n / 100) for n in (4, 5, 6)]
    assert "The run was restarted at step 4 (line 11): 6 earlier records from there on" in notes


def test_a_run_that_begins_anew_replaces_the_one_before(tmp_path):
    found, notes = reward(tmp_path, [(n, 0.0) for n in range(5)] + [(n, 1.0) for n in range(9)])
    assert found == [(n, 1.0) for n in range(9)]
    assert "restarted at step 0 (line 6): 5 earlier records" in notes


def test_a_restart_at_the_last_step_counts_the_later_record(tmp_path):
    found, notes = reward(tmp_path, [(0, 0.0), (1, 0.1), (1, 0.9), (2, 0.2)])
    assert found == [(0, 0.0), (1, 0.9), (2, 0.2)]
    assert "1 steps have two values of one column; the later one counts." in notes


def test_a_restart_of_a_log_with_gaps_and_evaluations(tmp_path):
    steps = [10, 20, 25, 30, 40]
    rows = [(n, n / 100) for n in steps] + [(n, 0.5 + n / 100) for n in [25, 30, 40, 50]]
    assert reward(tmp_path, rows)[0] == replayed(rows)


@pytest.mark.parametrize("seed", range(5))
def test_rows_out_of_order_are_sorted(tmp_path, seed):
    order = np.random.default_rng(seed).permutation(12).tolist()
    found, notes = reward(tmp_path, [(3 * n, n / 100) for n in order])
    assert found == [(3 * n, n / 100) for n in range(12)]
    assert "The rows were out of order, and were sorted by their steps." in notes


def test_tables_that_end_with_the_first_step_are_sorted(tmp_path):
    steps = [0, 1, 2, 5, 6, 9]  # with gaps
    assert reward(tmp_path, [(n, n / 100) for n in steps[::-1]])[0] == [(n, n / 100) for n in steps]


def test_parts_of_a_run_in_the_wrong_order_are_sorted(tmp_path):
    steps = [*range(5, 10), *range(5)]
    found, _ = reward(tmp_path, [(n, n / 100) for n in steps])
    assert found == [(n, n / 100) for n in range(10)]


def test_a_table_with_one_column_after_the_other_is_joined(tmp_path):
    rows = [(n, n / 100) for n in range(6)] + [(n, {"entropy": 1.0 + n}) for n in range(0, 6, 2)]
    found = read(log(tmp_path, rows), "staleness_grpo")
    np.testing.assert_array_equal(found.step, range(6))
    np.testing.assert_array_equal(found.signals["reward"], np.arange(6) / 100)
    np.testing.assert_array_equal(found.signals["entropy"], [1, np.nan, 3, np.nan, 5, np.nan])


def test_rows_of_one_step_are_joined_and_the_last_value_counts(tmp_path):
    rows = [(0, {"reward": 0.1, "entropy": 1.0}), (0, {"reward": 0.2, "entropy": None})]
    found = read(log(tmp_path, [*rows, (1, 0.3)]), "staleness_grpo")
    np.testing.assert_array_equal(found.signals["reward"], [0.2, 0.3])
    np.testing.assert_array_equal(found.signals["entropy"], [1.0, np.nan])


UNCLEAR = r"line (\d+): step (\d+) follows a later step, and a restart cannot be told from rows"


@pytest.mark.parametrize(
    ("steps", "line", "step"),
    [
        ([10, 20, 30, 25, 35, 45], 4, 25),  # a restart between two records, or two halves
        ([1, 3, 5, 2, 4, 6], 4, 2),  # the same, and evenly spaced together
        ([1, 3, 2], 3, 2),
        ([5, 3], 2, 3),
        ([6, 7, 8, 0, 1, 2], 4, 0),  # a new run, or the second part of one with a gap
        ([0, 1, 2, 3, 1, 3, 4], 5, 1),  # repeated, but not the same steps
        ([4, 1, 3, 4, 0, 2, 3], 5, 0),  # out of order, and some steps twice
    ],
)
def test_what_cannot_be_told_apart_is_refused(tmp_path, steps, line, step):
    path = log(tmp_path, [(n, 0.01 * place) for place, n in enumerate(steps)])
    with pytest.raises(FlagError, match=f"^--log=.*: {UNCLEAR}") as error:
        read(path, "staleness_grpo")
    assert f"line {line}: step {step} " in str(error.value)


def test_two_runs_in_one_log_are_refused(tmp_path):
    rows = itertools.chain.from_iterable([(n, 0.1), (n, 0.2)] for n in range(5))
    with pytest.raises(FlagError, match="steps 0 and 1 have two values of one column, as if two"):
        read(log(tmp_path, rows), "staleness_grpo")


def test_equal_rows_are_no_conflict(tmp_path):
    rows = [(n, RUN) for n in range(5) for _ in range(2)]
    found = read(log(tmp_path, rows), "staleness_grpo")
    np.testing.assert_array_equal(found.step, range(5))
