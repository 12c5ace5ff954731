"""The advisor reads the same run from every trainer's log, and refuses logs without an answer."""

import json

import numpy as np
import pytest

from experiments.advise import sources
from experiments.advise.answer import answer
from experiments.common import cli
from experiments.common.flag_parsing import load_config
from staleness_grpo.errors import FlagError
from staleness_grpo.scaling.early_sign import SIGN
from tests.logs import writers

CONFIG = cli.ROOT / "experiments" / "configs" / "advise.py"
NUM_STEPS, FALL = 160, 100


def run(falls=True):
    """Returns records of a run with S = 4 whose reward collapses at step FALL."""
    random = np.random.default_rng(0)
    made = writers.records(NUM_STEPS)
    for record in made:
        step = record["step"]
        level = 0.4 + 0.4 * min(step / 60, 1)
        if falls and step >= FALL:
            level = 0.02
        record["reward"] = level + 0.02 * random.standard_normal()
        record |= {"lag_mean": 4.0, "lag_max": 4, "learning_rate": 1e-6}
        # A ratio of exp(+-x) in equal parts: the mean of (log r)^2 is x^2.
        size = 0.2 if step < 50 else 0.6
        record[SIGN] = size**2
        record["approx_kl"] = float(np.cosh(size) - 1)  # mean of r - 1 - log r
        record.pop("eval_reward", None)
    return made


def asked(name, path, **fields):
    config = load_config(CONFIG)
    config.advise.update(dict(logs=(str(path),), format=name, horizon=300, b1=0.9) | fields)
    if name in writers.IN_VERSIONS and name != "tinker":
        config.advise.updates_per_version = 2
    if name == "tinker":
        config.advise.updates_per_version = 1
    if name == "trl":
        config.advise.max_lag = 4  # it logs no lag
    return config


def known(name, made, tmp_path, **fields):
    write, _ = writers.TRAINERS[name]
    path = write(tmp_path / name, made, 1 if name == "tinker" else 2)
    config = asked(name, path, **fields)
    return config, sources.gather(config, tmp_path)


@pytest.mark.parametrize("name", writers.TRAINERS)
def test_every_format_gives_the_same_run(name, tmp_path):
    made = run()
    _, direct = known("staleness_grpo", made, tmp_path)
    _, read = known(name, made, tmp_path)
    assert read.runs.step[0] == direct.runs.step[0] == pytest.approx(FALL, abs=3)
    assert read.runs.collapsed.all() and read.at == (4, pytest.approx(1e-6))
    np.testing.assert_allclose(read.runs.max_lag, direct.runs.max_lag)
    np.testing.assert_allclose(read.runs.learning_rate, direct.runs.learning_rate, rtol=1e-6)


@pytest.mark.parametrize("name", ["csv", "tinker"])
def test_formats_with_the_sign_give_the_same_answer(name, tmp_path):
    made = run()
    direct = answer(*known("staleness_grpo", made, tmp_path))
    read = answer(*known(name, made, tmp_path))
    for of_direct, of_read in zip(direct.by_lag, read.by_lag, strict=True):
        assert of_read.eta_max.value == pytest.approx(of_direct.eta_max.value, rel=1e-6)
        assert of_read.eta_max.low == pytest.approx(of_direct.eta_max.low, rel=1e-6)


@pytest.mark.parametrize("name", ["verl", "prime_rl"])
def test_a_kl_stands_for_the_sign(name, tmp_path):
    """For a small ratio the mean of r - 1 - log r is half of the mean of (log r)^2."""
    direct = answer(*known("staleness_grpo", run(), tmp_path))
    read = answer(*known(name, run(), tmp_path))
    assert read.by_lag[2].eta_max.value == pytest.approx(direct.by_lag[2].eta_max.value, rel=0.05)


@pytest.mark.parametrize("name", ["nemo_rl", "areal", "skyrl", "trl"])
def test_without_the_sign_a_collapse_bounds_the_answer_from_above_alone(name, tmp_path):
    found = answer(*known(name, run(), tmp_path))
    assert all(row.eta_max.low is None and row.eta_max.high is not None for row in found.by_lag)
    stable = answer(*known(name, run(falls=False), tmp_path))
    assert all(row.eta_max.high is None and row.eta_max.low is not None for row in stable.by_lag)


def lines(made):
    return [json.dumps(record) for record in made]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "empty"),
        (lines(run())[:1], "rewards"),
        (lines(run())[:12], "it has 12 rewards"),
        (lines([r | {"reward": None} for r in run()]), "no reward"),
        (lines([r | {"learning_rate": 0.0} for r in run()]), "its learning rate is 0 in half"),
        (lines([*run(), run()[-1] | {"step": 10**12}]), "reach from 0 to 1000000000000, mostly 1"),
        (lines([{k: v for k, v in r.items() if "lag" not in k} for r in run()]), "--max_lag"),
        (
            lines([{k: v for k, v in r.items() if k != "learning_rate"} for r in run()]),
            "--learning_rate",
        ),
    ],
    ids=["empty", "one line", "few", "no reward", "rate 0", "far step", "no lag", "no rate"],
)
def test_a_log_that_carries_no_answer_is_refused(content, words, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line + "\n" for line in content))
    with pytest.raises(FlagError, match=words) as error:
        answer_of = asked("staleness_grpo", path)
        answer(answer_of, sources.gather(answer_of, tmp_path))
    assert "\n" not in str(error.value)


def test_a_log_that_begins_later_has_the_same_collapse(tmp_path):
    _, whole = known("csv", run(), tmp_path, first_step=0)
    _, late = known("csv", run()[40:], tmp_path, first_step=0)
    assert whole.runs.step[0] == late.runs.step[0] == pytest.approx(FALL, abs=3)


def test_a_truncated_last_line_a_restart_and_shuffled_rows_leave_the_answer(tmp_path):
    made = run()
    expected = answer(*known("staleness_grpo", made, tmp_path)).by_lag[2].eta_max.value
    again = [record | {"reward": 0.01} for record in made[:60]] + made[40:]
    variants = {
        "truncated": "\n".join(lines(made)) + '\n{"step": 160, "rew',
        "restart": "\n".join(lines(again)) + "\n",
    }
    for name, text in variants.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(text)
        config = asked("staleness_grpo", path)
        found = answer(config, sources.gather(config, tmp_path))
        tolerance = 0.1 if name == "restart" else 1e-6  # the restart changed rewards before 40
        assert found.by_lag[2].eta_max.value == pytest.approx(expected, rel=tolerance)


def test_a_question_about_another_lag_leaves_the_lag_of_the_log(tmp_path):
    config, found = known("staleness_grpo", run(), tmp_path, max_lag=32, learning_rate=5e-7)
    assert found.runs.max_lag[0] == 4 and found.at == (32, 5e-7)
    assert answer(config, found).at == (32, 5e-7)
