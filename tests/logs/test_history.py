"""A run of ours, written as each trainer writes, is read back in our names and units."""

import json

import numpy as np
import pytest

from staleness_grpo.errors import FlagError
from staleness_grpo.logs import FORMATS, SIGNALS, History, read
from staleness_grpo.staleness.converters.convert import Options, convert
from tests.logs import writers
from tests.logs.writers import IN_VERSIONS, TRAINERS, json_lines, records


def expected(made, signal):
    """Returns a signal of our records, NaN where a record lacks it."""
    values = [record.get(signal) for record in made]
    return np.array([np.nan if value is None else value for value in values], float)


def written(tmp_path, name, made, versions=1):
    path = tmp_path / ("log.csv" if name in ("csv", "nemo_rl", "skyrl") else "log.json")
    return TRAINERS[name][0](path, made, versions)


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_read_through_a_format_is_the_run(tmp_path, name, seed):
    made = records(seed=seed)
    path = written(tmp_path, name, made)
    history = read(path, name, updates_per_version=1 if name in IN_VERSIONS else None)
    carried = TRAINERS[name][1]
    assert history.format == name and set(history.signals) == carried
    assert history.step.dtype == np.int64
    np.testing.assert_array_equal(history.step, np.arange(len(made)))
    for signal in carried:
        # Halves and quarters are exact. Sums and differences of steps round in the last bit.
        values = history.signals[signal]
        np.testing.assert_allclose(values, expected(made, signal), rtol=1e-12, atol=1e-12)
    assert np.isnan(expected(made, "grad_norm")).sum() == 1  # the comparison met a missing value


def test_every_format_is_written_above():
    assert set(TRAINERS) == set(FORMATS) and set(writers.ALL) == set(SIGNALS)


@pytest.mark.parametrize("name", ["verl", "nemo_rl", "areal"])
def test_lags_in_weight_versions_become_updates(tmp_path, name):
    made = records()
    history = read(written(tmp_path, name, made, versions=2), name, updates_per_version=2)
    np.testing.assert_allclose(history.signals["lag_mean"], expected(made, "lag_mean"), rtol=1e-12)
    if "lag_max" in history.signals:
        np.testing.assert_array_equal(history.signals["lag_max"], expected(made, "lag_max"))
    assert any("a weight version is 2 optimizer updates" in note for note in history.notes)


@pytest.mark.parametrize("name", sorted(IN_VERSIONS))
def test_updates_per_version_is_asked_for_where_a_lag_is_in_the_log(tmp_path, name):
    made = records()
    path = written(tmp_path, name, made)
    with pytest.raises(
        FlagError, match=r"^--updates_per_version=unset: lag_mean counts weight ver"
    ):
        read(path, name)
    text = path.read_text().splitlines()
    lags = ("staleness", "trajectory_age", "sampling_client")
    if name == "nemo_rl":
        rows = [",".join(line.split(",")[:-2]) for line in text]  # the last columns: age and kl
        path.write_text("\n".join(rows) + "\n")
    else:
        lines = [json.loads(line) for line in text]
        for line in lines:
            fields = line.get("data", line)
            for key in [key for key in fields if any(lag in key for lag in lags)]:
                del fields[key]
        json_lines(path, lines)
    history = read(path, name)
    assert "reward" in history.signals and "lag_mean" not in history.signals


@pytest.mark.parametrize("name", ["staleness_grpo", "trl", "prime_rl", "skyrl", "csv"])
def test_updates_per_version_is_refused_where_lags_are_updates(tmp_path, name):
    with pytest.raises(
        FlagError, match=r"^--updates_per_version=1: lags of --format=\w+ count opt"
    ):
        read(written(tmp_path, name, records()), name, updates_per_version=1)


def test_a_step_of_several_updates_against_a_count_of_them(tmp_path):
    """Three updates for a version, all in one step. Group g has its own lag, in versions."""
    versions = np.array([[0, 0, 0], [1, 0, 0], [2, 2, 1], [3, 1, 3]])
    lines, means, most = [], [], []
    for step, row in enumerate(versions):
        lag = step - row
        data = {"critic/score/mean": 0.5}
        key = "training/off_policy/trajectory_staleness_worst"
        data |= {f"{key}/mean": float(lag.mean()), f"{key}/max": float(lag.max())}
        lines.append({"step": step + 1, "data": data})
        # Any update may learn from any group. Updates done, minus those of the version:
        lags = np.array([3 * step + update - 3 * row[g] for update in range(3) for g in range(3)])
        means.append(lags.mean())
        most.append(lags.max())
    path = json_lines(tmp_path / "log", lines)
    history = read(path, "verl", updates_per_version=3, updates_per_step=3)
    np.testing.assert_array_equal(history.step, [0, 3, 6, 9])
    np.testing.assert_allclose(history.signals["lag_mean"], means, rtol=1e-12)
    np.testing.assert_array_equal(history.signals["lag_max"], most)
    assert "Each recorded step counts as 3 optimizer updates." in history.notes
    assert any("upper bound" in note for note in history.notes)
    with pytest.raises(FlagError, match=r"^--updates_per_version=3: a version .* multiple of 2"):
        read(path, "verl", updates_per_version=3, updates_per_step=2)


def test_a_version_of_several_steps_has_the_same_lags_in_a_log_and_in_a_trace(tmp_path):
    """A version of U = 4 updates lasts two steps of two. verl logs halves of a version."""
    behind = [0, 1, 2, 3, 2, 1]  # steps
    names = [f"training/off_policy/trajectory_staleness/{kind}" for kind in ("mean", "min", "max")]
    lines = [
        {"step": s, "data": dict.fromkeys(names, b / 2)} for s, b in enumerate(behind, start=1)
    ]
    path = json_lines(tmp_path / "log", lines)
    history = read(path, "verl", updates_per_version=4, updates_per_step=2)
    drawn = Options("verl_metrics", updates_per_version=4, steps_per_version=2, num_groups=1)
    lags = np.array(convert(path, drawn).lags).reshape(-1, 2)
    np.testing.assert_array_equal(lags[:, 0], 2 * np.array(behind))
    np.testing.assert_allclose(history.signals["lag_mean"], lags.mean(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(history.signals["lag_max"], lags.max(axis=1))


def test_an_iteration_of_tinker_is_a_version(tmp_path):
    lines = [
        {"step": 4, "optim/lr": 1e-5, "sampling_client/step_mean": 2.5},
        {"step": 5, "optim/lr": 1e-5, "sampling_client/step_mean": 5.0},
    ]
    path = json_lines(tmp_path / "metrics.jsonl", lines)
    history = read(path, "tinker", updates_per_version=2)
    np.testing.assert_array_equal(history.step, [8, 10])
    # 1.5 versions of 2 updates; the second update of a step is one more behind.
    np.testing.assert_allclose(history.signals["lag_mean"], [3.5, 0.5], rtol=1e-12)
    with pytest.raises(FlagError, match=r"^--updates_per_step=4: .* give --updates_per_step=2$"):
        read(path, "tinker", updates_per_version=2, updates_per_step=4)
    # Without a lag the steps are versions all the same, if it is said what a version is.
    path = json_lines(path, [{"step": step, "optim/lr": 1e-5} for step in (4, 5)])
    history = read(path, "tinker", updates_per_version=2)
    np.testing.assert_array_equal(history.step, [8, 10])
    assert "Each recorded step counts as 1 optimizer updates." in read(path, "tinker").notes


@pytest.mark.parametrize("name", ["staleness_grpo", "trl", "prime_rl", "skyrl"])
def test_a_step_that_is_one_update_is_not_several(tmp_path, name):
    with pytest.raises(
        FlagError, match=r"^--updates_per_step=2: .* one update|^--.* one optimizer"
    ):
        read(written(tmp_path, name, records()), name, updates_per_step=2)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2"])
def test_counts_are_whole_numbers(tmp_path, bad):
    path = written(tmp_path, "verl", records())
    for flag in ("updates_per_version", "updates_per_step"):
        with pytest.raises(FlagError, match=rf"^--{flag}=\S+: give a whole number >= 1$"):
            read(path, "verl", **{"updates_per_version": 1, flag: bad})


def test_an_evaluation_of_trl_belongs_to_the_policy_after_its_step(tmp_path):
    history = [{"step": 3, "reward": 0.25}, {"step": 3, "eval_reward": 0.75}]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": history}))
    found = read(path, "trl")
    np.testing.assert_array_equal(found.step, [2, 3])
    np.testing.assert_array_equal(found.signals["reward"], [0.25, np.nan])
    np.testing.assert_array_equal(found.signals["eval_reward"], [np.nan, 0.75])


def test_the_first_name_with_values_counts_for_the_whole_log(tmp_path):
    plain = "training/off_policy/trajectory_staleness/mean"
    lines = [{"step": n, "data": {"critic/rewards/mean": n, plain: 1.0}} for n in (1, 2)]
    lines[1]["data"]["critic/score/mean"] = 5.0
    found = read(json_lines(tmp_path / "log", lines), "verl", updates_per_version=1)
    np.testing.assert_array_equal(found.signals["reward"], [np.nan, 5.0])
    np.testing.assert_array_equal(found.signals["lag_mean"], [1.0, 1.0])
    assert any(plain in note and "newest version" in note for note in found.notes)


def test_a_sum_needs_both_columns_where_the_log_has_both(tmp_path):
    clip = [
        {"actor/pg_clipfrac": 0.25},
        {"actor/pg_clipfrac": 0.25, "actor/pg_clipfrac_lower": 0.5},
    ]
    lines = [{"step": n, "data": {"actor/lr": 1.0} | data} for n, data in enumerate(clip, start=1)]
    path = json_lines(tmp_path / "log", lines)
    np.testing.assert_array_equal(read(path, "verl").signals["clip_fraction"], [np.nan, 0.75])
    json_lines(path, lines[:1])
    np.testing.assert_array_equal(read(path, "verl").signals["clip_fraction"], [0.25])


def test_columns_of_a_table_by_names_of_ones_own(tmp_path):
    path = tmp_path / "export.csv"
    path.write_text("iteration,my/reward,my/age,entropy\n0,0.5,0,2.0\n1,0.25,1.5,2.5\n")
    columns = {"step": "iteration", "reward": "my/reward", "lag_mean": "my/age"}
    with pytest.raises(FlagError, match=r"^--updates_per_version=unset: lag_mean counts"):
        read(path, "csv", columns=columns)
    found = read(path, "csv", updates_per_version=4, columns=columns)
    assert isinstance(found, History)
    np.testing.assert_array_equal(found.signals["reward"], [0.5, 0.25])
    np.testing.assert_array_equal(found.signals["lag_mean"], [0.0, 6.0])
    np.testing.assert_array_equal(found.signals["entropy"], [2.0, 2.5])
    for bad, hint in [
        ({"reward": "absent"}, "the log has no column absent"),
        ({"rewards": "my/reward"}, "there is no signal rewards: choose from step, reward"),
    ]:
        with pytest.raises(FlagError, match=rf"^--columns=.*: {hint}"):
            read(path, "csv", columns=bad | {"step": "iteration"})
    with pytest.raises(FlagError, match="^--columns=.*: format=trl has its own names"):
        read(path, "trl", columns=columns)


@pytest.mark.parametrize(("begin", "first"), [(0, 0), (1, 1), (7, None)])
def test_where_steps_count_from_is_taken_from_the_log_or_asked_for(tmp_path, begin, first):
    lines = [{"global_step": begin + n, "train/reward": n, "train/lr": 1.0} for n in range(3)]
    path = json_lines(tmp_path / "log", lines)
    if first is None:
        with pytest.raises(
            FlagError, match="^--first_step=unset: the log begins with step 7: give"
        ):
            read(path, "nemo_rl")
        np.testing.assert_array_equal(read(path, "nemo_rl", first_step=1).step, [6, 7, 8])
    else:
        np.testing.assert_array_equal(read(path, "nemo_rl").step, [0, 1, 2])
    with pytest.raises(FlagError, match=rf"^--first_step=9: step {begin} comes before"):
        read(path, "nemo_rl", first_step=9)
