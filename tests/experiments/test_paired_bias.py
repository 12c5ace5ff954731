"""Tests of the paired bias: trainings, cells, summary, figure, a second call, and refusals."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.common import claims as common_claims
from experiments.common import cli
from experiments.common.flag_parsing import load_config
from experiments.paired_bias import __main__ as paired_bias
from experiments.paired_bias import analysis, claims, figures, grid, measure
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import read_json, read_jsonl
from tests.helpers import bigram
from tests.helpers.pages import described_fields

CONFIGS = cli.ROOT / "experiments" / "configs"


def tiny():
    config = load_config(CONFIGS / "paired_bias.py")
    config.update(dict(steps=12, num_prompts=4, group_size=4, eval_every=6))
    config.warm_start.steps = 0
    config.metrics.update(dict(paired_every=2, paired_blocks=0))
    bigram.put_into(config)
    config.task = dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8)
    config.paired.update(dict(max_lags=(0, 4), learning_rates=(0.01,)))
    return config


def test_a_second_call_trains_nothing_and_the_records_say_what_was_compared(tmp_path, capsys):
    config = tiny()
    cli.complete(paired_bias.main, paired_bias.draw, config, tmp_path)
    first = (tmp_path / "cells.jsonl").read_bytes()
    assert "finished already" not in capsys.readouterr().out
    paired_bias.main(config, tmp_path)
    assert capsys.readouterr().out.count("finished already") == 2  # each of the two trainings
    assert (tmp_path / "cells.jsonl").read_bytes() == first
    (tmp_path / "paired_bias.png").unlink()
    cli.complete(paired_bias.main, paired_bias.draw, config, tmp_path)
    line, *paths = capsys.readouterr().out.splitlines()
    left_out = [paths.pop() for _ in range(2)]
    assert all(text.startswith("not drawn: ") for text in left_out)
    assert line.endswith("finished already; its figures are drawn again from its records")
    assert sorted(paths) == [str(tmp_path / name) for name in ("paired_bias.png", "summary.json")]
    synchronous, stale = read_jsonl(tmp_path / "cells.jsonl")
    assert set(stale) == described_fields("cells.jsonl of `experiments.paired_bias`")
    assert synchronous["bias_norm"] == 0 and synchronous["bias_norm_interval"] == [0, 0]
    assert (synchronous["num_comparisons"], synchronous["first_step"]) == (6, 0)
    assert (stale["num_comparisons"], stale["first_step"], stale["num_groups"]) == (4, 4, 16)
    assert stale["bias_norm_interval"][1] > 0 and stale["drift"] > 0
    summary = read_json(tmp_path / "summary.json")
    lag_0, reward = common_claims.read(summary)
    assert lag_0.name == "bias_at_lag_0" and lag_0.holds and lag_0.measured == 0
    assert lag_0.note == "6 comparisons in 1 trainings."
    assert reward.name == "reward_at_lag_0_eta_0.01" and reward.holds is None
    assert reward.measured == synchronous["final_eval_reward"]
    # Two trainings are too few for a slope.
    assert len(summary["figures_left_out"]) == 2
    assert all("It needs 4 cells" in sentence for sentence in summary["figures_left_out"])
    for name in (
        "paired_bias.png",
        "paired_bias.pdf",
        "config.json",
        "environment.json",
        "S4-eta0.01/metrics.jsonl",
    ):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.slow
def test_a_training_that_collapses_at_once_is_a_cell_like_the_others(tmp_path):
    """It never reaches its lag, or its last comparison is not finite. Nothing is evaluated here."""
    config = tiny()
    config.eval_every = 0
    config.paired.learning_rates = (0.01, 1e30)
    cli.complete(paired_bias.main, paired_bias.draw, config, tmp_path)
    cells = {
        (cell["max_lag"], cell["learning_rate"]): cell
        for cell in read_jsonl(tmp_path / "cells.jsonl")
    }
    assert [cell["collapsed"] for cell in cells.values()] == [False, True, False, True]
    assert cells[4, 0.01]["bias_norm_interval"][1] > 0
    lost = cells[4, 1e30]
    assert (lost["num_comparisons"], lost["bias_norm"], lost["first_step"]) == (0, None, None)
    (lag_0,) = common_claims.read(read_json(tmp_path / "summary.json"))
    assert lag_0.claim == "The bias at lag 0 is exactly 0." and lag_0.holds
    assert (tmp_path / "paired_bias.png").stat().st_size > 0


def test_a_comparison_that_is_not_finite_is_left_out_and_counted():
    """And the clipped share is that of all tokens, not the sum of the shares of either sign."""
    rng = np.random.default_rng(0)
    grams = rng.normal(size=(5, 4, 8, 8)).tolist()
    grams[3][0][1][2] = None  # as the records write NaN
    fractions = dict(clip_fraction=0.06, clip_fraction_positive=0.1, clip_fraction_negative=0.03)
    same = dict(lag_mean=4, paired_reward_failures=1) | fractions
    records = [
        {"step": step, "paired_gram": gram, "drift_from_behavior": float(step)} | same
        for step, gram in enumerate(grams)
    ]
    config = grid.trainings(tiny())["S4-eta0.01"]
    summary = {"collapsed": False, "final_eval_reward": None}
    found = measure.cell_record(config, records, summary)
    sound = measure.cell_record(config, records[:3] + records[4:], summary)
    assert (found["num_comparisons"], found["num_not_finite"], found["num_reward_failures"]) == (
        4,
        1,
        4,
    )
    assert found | {"num_not_finite": 0} == sound and found["clip_fraction"] == pytest.approx(0.06)
    # The root mean square of steps 0, 1, 2 and 4.
    assert found["drift"] == pytest.approx(np.sqrt((0 + 1 + 4 + 16) / 4))


def test_slopes_are_those_of_a_power_law_and_leave_clipped_cells_out():
    cells = [
        {"max_lag": lag, "s_eta": lag * 1e-3, "bias_norm": 3 * lag**1.5, "clip_fraction": 0.0}
        for lag in (1, 2, 4, 8, 16)
    ]
    cells.append({"max_lag": 0, "s_eta": 0.0, "bias_norm": 0.0, "clip_fraction": 0.0})
    cells.append({"max_lag": 64, "s_eta": 0.064, "bias_norm": 3.0, "clip_fraction": 0.2})
    found = analysis.slope(cells, "s_eta")
    np.testing.assert_allclose(found["unclipped"]["slope"], 1.5, rtol=1e-12)
    np.testing.assert_allclose(found["unclipped"]["interval"], [1.5, 1.5], rtol=1e-9)
    assert found["unclipped"]["n"] == 5 and found["all"]["n"] == 6 and found["all"]["slope"] < 1.5
    assert found["unclipped"]["num_left_out"] == 0
    assert analysis.slope(cells[:3], "s_eta") == {"all": None, "unclipped": None}


def test_cells_without_a_positive_estimate_are_left_out_of_a_slope_and_counted():
    def cell(lag, bias_norm):
        return {
            "max_lag": lag,
            "s_eta": lag * 1e-3,
            "bias_norm": bias_norm,
            "clip_fraction": 0.0,
            "eval_rewards": [],
            "num_comparisons": 1,
        }

    cells = [cell(lag, 0.3 * lag) for lag in (4, 8, 16, 32)]
    others = [cell(1, 0.0), cell(2, 0.0), cell(64, math.nan)]  # the last never reached its lag
    found = analysis.slope(cells + others, "s_eta")["unclipped"]
    assert found == analysis.slope(cells, "s_eta")["unclipped"] | {"num_left_out": 2}
    (claim,) = claims.claims(cells + others, {"s_eta": {"unclipped": found}})
    assert "(2 more have an estimate of 0)" in claim.note and claim.note.startswith("4 cells")
    assert (claim.n, claim.unit, claim.holds) == (1, "seeds", True)
    (finding,) = claims.claims(cells + others, {"drift": {"unclipped": found}})
    assert finding.holds is None and finding.paper == ""


def test_what_the_records_cannot_carry_is_said():
    fit = {"all": None, "unclipped": None}
    slope, panel = analysis.left_out({"s_eta": fit})
    assert slope.startswith("slope against S eta: ")
    assert "drift" in panel and "not recorded" in panel
    fit = {"all": None, "unclipped": {"slope": 1.0}}
    assert analysis.left_out({"s_eta": fit, "drift": fit}) == []


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("paired.max_lags", (), "paired.max_lags"),
        ("paired.learning_rates", (1e-3, 1e-3), "paired.learning_rates"),
        ("metrics.paired_every", 0, "metrics.paired_every"),
        ("metrics.paired_blocks", 3, "metrics.paired_blocks"),
        ("metrics.paired_blocks", 1, "metrics.paired_blocks"),
        ("paired.max_lags", (0, 10), "steps"),
        ("paired.max_lags", (0, 1.5), "paired.max_lags"),
        ("paired.max_lags", (0, "a"), "paired.max_lags"),
        ("paired.max_lags", (0, -2), "paired.max_lags"),
        ("paired.learning_rates", (1e-3, "a"), "paired.learning_rates"),
        ("paired.learning_rates", (1e-3, float("nan")), "paired.learning_rates"),
        ("paired.learning_rates", (0.0,), "paired.learning_rates"),
        ("lag.max_lag", 5, "lag.max_lag"),
        ("optimizer.learning_rate", 0.5, "optimizer.learning_rate"),
        ("metrics.paired_blocks", 2, "metrics.paired_blocks"),
        ("lag.schedule", "uniform", "lag.schedule"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_field(field, value, named):
    config = tiny()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(FieldError, match=f"^{named}=") as refused:
        grid.validate(config)
    assert str(FlagError.of_field(refused.value)).startswith(f"--config.{named}=")


def test_each_training_has_a_folder_of_its_own():
    config = tiny()
    config.paired.update(
        dict(max_lags=(0, 4), learning_rates=(1e-4, 1.0000001e-4, 1.0000002e-4, 1))
    )
    grid.validate(config)
    names = ["0.0001", "0.00010000001", "0.00010000002", "1"]
    assert list(grid.trainings(config)) == [f"S{lag}-eta{name}" for lag in (0, 4) for name in names]


def test_a_config_may_say_itself_what_one_of_its_trainings_is():
    config = tiny()
    config.lag.max_lag, config.optimizer.learning_rate = 4, 0.01
    grid.validate(config)


def test_one_update_for_each_batch():
    config = tiny()
    config.updates_per_batch = 2
    config.paired.max_lags = (1, 4)
    with pytest.raises(FieldError, match=r"^metrics.paired_every="):
        grid.validate(config)


def test_an_open_interval_is_an_arrow_and_a_missing_one_nothing():
    figure, axis = plt.subplots()
    intervals = {1: [0.5, 1.5], 2: [0.5, None], 4: [None, None]}
    cells = [
        {"max_lag": lag, "cosine": 0.9, "cosine_interval": interval}
        for lag, interval in intervals.items()
    ]
    figures.errorbars(axis, cells, "max_lag", "cosine", "0", "")
    assert [line.get_ydata().tolist() for line in axis.lines] == [
        [0.5, 1.5],
        [0.5, 0.9],
        [0.9, 0.9, 0.9],
    ]
    assert [(arrow.xy, arrow.xycoords) for arrow in axis.texts] == [
        ((2, 1), ("data", "axes fraction"))
    ]
    plt.close(figure)


def test_a_slope_that_may_be_anything_decides_nothing():
    def slope_claim(low, high):
        law = {"slope": (low + high) / 2, "interval": [low, high], "n": 7, "num_left_out": 5}
        found = claims.bias_claims([], {"s_eta": {"unclipped": law}}, "command", num_seeds=1)
        return next(claim for claim in found if claim.name == "slope_s_eta")

    wide = slope_claim(0.197, 1.22)
    assert wide.holds is None and wide.note.startswith("undecided: the interval is wider than 1")
    assert slope_claim(0.5, 1.22).holds is True and slope_claim(0.2, 0.9).holds is False


def test_a_cell_without_a_comparison_is_left_out_of_a_slope():
    cells = [
        {"max_lag": 2, "s_eta": x, "bias_norm": x**1.5, "clip_fraction": 0.0}
        for x in (0.1, 0.2, 0.4, 0.8)
    ]
    nothing = {"max_lag": 8, "s_eta": 0.3, "bias_norm": None, "clip_fraction": None}
    assert analysis.slope([*cells, nothing], "s_eta") == analysis.slope(cells, "s_eta")
