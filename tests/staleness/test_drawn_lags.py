"""Lags that are drawn have the mean, minimum and maximum that a trainer logged, and say so."""

import csv
import json
import re

import numpy as np
import pytest

from staleness_grpo.staleness import schedule
from staleness_grpo.staleness.converters.convert import Options, convert
from staleness_grpo.staleness.converters.formats import FORMATS
from staleness_grpo.staleness.trace import TraceError
from tests.helpers.trainer_logs import json_lines, statistics_rows

TABLES = [name for name, format_ in FORMATS.items() if format_.table is not None]
N = 5


def options(name, **others):
    units = {"updates_per_version": 1} if FORMATS[name].in_versions else {}
    return Options(name, **{"num_groups": N, **units, **others})


def known_lags(num_groups=N):
    """Returns lags [I, N] of which no version is from before the first step."""
    return schedule.make_schedule("uniform", 4, num_groups, 3).lags(np.arange(8)).tolist()


def metrics_file(path, name, lags=None):
    rows = statistics_rows(name, known_lags() if lags is None else lags)
    return json_lines(path, [{"step": step, **fields} for step, fields in rows])


@pytest.mark.parametrize("name", TABLES)
def test_each_step_has_the_statistics_that_were_logged(tmp_path, name):
    conversion = convert(metrics_file(tmp_path / "m.jsonl", name), options(name))
    assert conversion.header["lags"] == "drawn" and conversion.header["options"]["seed"] == 0
    assert conversion.header["counts"] == {"rows read": 8}
    assert len(conversion.lags) == 8
    for drawn, logged in zip(conversion.lags, known_lags(), strict=True):
        assert sum(drawn) == sum(logged) and len(drawn) == N
        if name in ("nemo_rl_metrics", "rlinf_metrics"):  # the mean alone is logged
            assert max(drawn) - min(drawn) <= 1
        else:
            assert (min(drawn), max(drawn)) == (min(logged), max(logged))


def test_the_seed_alone_decides_what_is_drawn(tmp_path):
    path = metrics_file(tmp_path / "m.jsonl", "skyrl_metrics")
    first, again, other = (
        convert(path, options("skyrl_metrics", seed=seed)).lags for seed in (0, 0, 1)
    )
    assert first == again != other
    longer = metrics_file(tmp_path / "l.jsonl", "skyrl_metrics", [*known_lags(), [0] * N])
    assert convert(longer, options("skyrl_metrics")).lags[:8] == first


def test_slots_and_values_in_between_are_random(tmp_path):
    """With minimum 0, maximum 6 and mean 3, every slot gets every value over many steps."""
    row = {"async/staleness_mean": 3.0, "async/staleness_min": 0, "async/staleness_max": 6}
    path = json_lines(tmp_path / "m.jsonl", [row | {"step": step} for step in range(400)])
    lags = np.array(convert(path, options("skyrl_metrics", first_step=0, early="clip")).lags[6:])
    assert (lags.sum(axis=1) == 3 * N).all()
    for slot in range(N):
        assert set(lags[:, slot]) == set(range(7))
    # 394 steps: the mean of a slot has a standard error of about 0.1
    np.testing.assert_allclose(lags.mean(axis=0), 3, atol=0.5)


def test_the_mean_is_kept_as_far_as_integers_and_extremes_allow(tmp_path):
    """0.1 of two groups is no integer. A mean of 0.1 with the maximum 6 needs sixty groups."""
    rows = [
        {"step": 0, "async/staleness_mean": 0, "async/staleness_min": 0, "async/staleness_max": 0},
        {
            "step": 1,
            "async/staleness_mean": 0.1,
            "async/staleness_min": 0,
            "async/staleness_max": 1,
        },
    ]
    path = json_lines(tmp_path / "m.jsonl", rows)
    conversion = convert(path, options("skyrl_metrics", num_groups=2))
    assert sorted(conversion.lags[1]) == [0, 1]
    what = "steps whose mean lies too near to an extreme for this number of groups"
    assert conversion.header["counts"][what] == 1
    alone = convert(path, options("skyrl_metrics", num_groups=1))
    assert alone.lags == [[0], [0]]
    assert alone.header["counts"]["steps with one group, which has the mean and not both extremes"]


def test_versions_of_several_updates(tmp_path):
    """Step t makes updates 2 t and 2 t + 1. A lag of one version is a lag of 2, and then of 3."""
    rows = [{"step": s, "train/avg_trajectory_age": a} for s, a in [(1, 0), (2, 1), (3, 2.0)]]
    path = json_lines(tmp_path / "m.jsonl", rows)
    found = convert(path, options("nemo_rl_metrics", updates_per_version=2, num_groups=1)).lags
    assert found == [[0], [1], [2], [3], [4], [5]]
    twice = dict(updates_per_version=2, steps_per_version=2, num_groups=1)
    rows = [{"step": s, "train/avg_trajectory_age": a} for s, a in [(1, 0), (2, 0), (3, 1), (4, 1)]]
    path = json_lines(tmp_path / "m.jsonl", rows)
    assert convert(path, options("nemo_rl_metrics", **twice)).lags == [[0], [1], [2], [3]]


def test_quotients_of_steps_and_a_versions_steps_are_lags_in_steps(tmp_path):
    """verl divides steps by those of a version: a third of a version is a step of two updates."""
    key = "training/off_policy/trajectory_staleness/"
    behind = [0, 1, 2, 3, 1]
    rows = [
        {"step": s} | {f"{key}{kind}": b / 3 for kind in ("mean", "min", "max")}
        for s, b in enumerate(behind, start=1)
    ]
    path = json_lines(tmp_path / "m.jsonl", rows)
    given = options("verl_metrics", updates_per_version=6, steps_per_version=3, num_groups=1)
    assert convert(path, given).lags == [[2 * b + i] for b in behind for i in range(2)]


def test_rounded_averages_of_whole_lags_are_whole(tmp_path):
    key = "version_stats/sample_staleness_theta_"
    rows = [
        {"step": s, f"{key}avg": 0.99999, f"{key}min": 0.99999, f"{key}max": 1.00001}
        for s in (0, 1, 2)
    ]
    rows[0] = {"step": 0, f"{key}avg": 0.0, f"{key}min": -0.00001, f"{key}max": 0.0}
    path = json_lines(tmp_path / "m.jsonl", rows)
    found = convert(path, options("areal_metrics", updates_per_version=1))
    assert found.lags == [[0] * N, [1] * N, [1] * N]
    assert found.header["counts"] == {"rows read": 3}


def test_the_statistics_are_those_of_all_updates_of_a_step(tmp_path):
    """A step of two updates has 2 N groups. Its second update has lags that are larger by one."""
    key = "training/off_policy/trajectory_staleness/"
    rows = [{f"{key}mean": 0.0, f"{key}min": 0, f"{key}max": 0, "step": s} for s in (1, 2, 3)]
    rows.append({f"{key}mean": 1.1, f"{key}min": 0, f"{key}max": 3, "step": 4})
    path = json_lines(tmp_path / "m.jsonl", rows)
    conversion = convert(path, options("verl_metrics", updates_per_version=2))
    drawn = [*conversion.lags[6], *(lag - 1 for lag in conversion.lags[7])]
    assert len(drawn) == 2 * N and conversion.header["counts"] == {"rows read": 4}
    assert (min(drawn), max(drawn), sum(drawn)) == (0, 2 * 3, 2 * 11)  # 11 versions of 2 updates


@pytest.mark.parametrize("name", TABLES)
def test_a_table_with_a_row_for_each_logging_call(tmp_path, name):
    """Exported tables have floats, empty cells, an index, and the run's name before a metric."""
    rows = statistics_rows(name, known_lags())
    metrics = sorted({field for _, fields in rows for field in fields})
    columns = ["", "_step", "eval/score", *(f"run-1.5 - {metric}" for metric in metrics)]
    for suffix in ("__MIN", "__MAX"):
        columns += [f"run-1.5 - {metric}{suffix}" for metric in metrics]
    path = tmp_path / "export.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        for step, fields in rows:
            table.writerow({"_step": float(step), "eval/score": 0.5})
            for metric, value in fields.items():  # one call for each metric
                table.writerow({"_step": float(step), f"run-1.5 - {metric}": float(value)})
    conversion = convert(path, options(name))
    assert conversion.lags == convert(metrics_file(tmp_path / "m.jsonl", name), options(name)).lags
    assert conversion.header["counts"]["rows without staleness left out"] >= 8


def test_the_file_logger_of_verl_and_steps_of_its_own(tmp_path):
    name = "verl_metrics_worst"
    rows = statistics_rows(name, known_lags())
    lines = [
        {"step": 100 + step, "data": {"training/global_step": step, **fields}}
        for step, fields in rows
    ]
    lines.insert(0, {"step": 0, "data": {"val-core/acc": float("nan")}})
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain = convert(metrics_file(tmp_path / "p.jsonl", name), options(name)).lags
    assert convert(path, options(name)).lags == plain


def test_areal_averages_extremes_so_they_are_rounded_outward(tmp_path):
    prefix = "ppo_actor/update/version_stats/sample_staleness_theta_"
    first = {"step": 0, f"{prefix}avg": 0, f"{prefix}min": 0, f"{prefix}max": 0}
    second = first | {"step": 1}
    third = {"step": 2, f"{prefix}avg": 1.0, f"{prefix}min": 0.5, f"{prefix}max": 1.25}
    path = json_lines(tmp_path / "m.jsonl", [first, second, third])
    conversion = convert(path, options("areal_metrics"))
    assert sorted(conversion.lags[2])[0] == 0 and sorted(conversion.lags[2])[-1] == 2
    assert sum(conversion.lags[2]) == N
    counts = conversion.header["counts"]
    assert counts["steps whose extremes are averages, rounded outward"] == 1


def test_a_restarted_log_keeps_the_later_rows(tmp_path):
    rows = [{"step": s, "train/avg_trajectory_age": a} for s, a in [(1, 0), (2, 1), (3, 2), (2, 0)]]
    path = json_lines(tmp_path / "m.jsonl", rows)
    with pytest.raises(TraceError, match="line 4: step 2 comes after step 3"):
        convert(path, options("nemo_rl_metrics"))
    conversion = convert(path, options("nemo_rl_metrics", restarts="replace"))
    assert conversion.lags == [[0] * N, [0] * N]
    assert conversion.header["counts"]["steps replaced by later records of them"] == 2


SKYRL = {"step": 1, "async/staleness_mean": 1, "async/staleness_min": 0, "async/staleness_max": 2}


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("skyrl_metrics", [], "no record has async/staleness_mean, as metrics of SkyRL have: give"),
        ("skyrl_metrics", [{"step": 1, "loss": 0.1}], "no record has async/staleness_mean"),
        (
            "skyrl_metrics",
            [{"step": 1, "train/avg_trajectory_age": 0}],
            "it looks like format=nemo_rl_metrics",
        ),
        ("skyrl_metrics", [SKYRL | {"async/staleness_min": None}], "step 1 has no async/stalen"),
        ("skyrl_metrics", [SKYRL | {"async/staleness_max": 1.5}], "from 0.0 to 1.5, not integers"),
        ("skyrl_metrics", [SKYRL | {"async/staleness_min": -1}], "step 1 has the lag -1.0, below"),
        ("skyrl_metrics", [SKYRL | {"async/staleness_mean": 3}], "mean 3.0, not between 0.0 and"),
        ("skyrl_metrics", [SKYRL | {"async/staleness_mean": "x"}], "staleness_mean is 'x', not a"),
        ("skyrl_metrics", [SKYRL | {"async/staleness_mean": 10**400}], "0, not a number"),
        (
            "skyrl_metrics",
            [SKYRL | {"async/staleness_mean": 1e300, "async/staleness_max": 1e300}],
            "step 1 has the lag 1e+300, above 1000000",
        ),
        ("skyrl_metrics", [SKYRL], "step 1 learned from a version before the first step"),
        ("skyrl_metrics", [SKYRL | {"step": 7}], "the first record is of step 7: give --first"),
        (
            "nemo_rl_metrics",
            [{"step": 1, "a - train/avg_trajectory_age": 0, "b - train/avg_trajectory_age": 0}],
            "are both train/avg_trajectory_age: export one run alone",
        ),
        (
            "rlinf_metrics",
            [
                {"step": s, "train/actor/current_version": v, "train/actor/average_version": v - 1}
                for s, v in [(1, 5), (2, 1)]
            ],
            "the current version goes back from 5 to 1: convert each part",
        ),
        (
            "rlinf_metrics",
            [{"step": 1, "train/actor/current_version": 3, "train/actor/average_version": 3}],
            "step 1 has the lag -1.0, below 0",
        ),
    ],
)
def test_statistics_that_cannot_be_are_refused(tmp_path, name, rows, message):
    path = json_lines(tmp_path / "m.jsonl", rows)
    with pytest.raises(TraceError, match=re.escape(message)):
        convert(path, options(name))
