"""The terminal view: what a folder is, its state, its curves, also while a run writes into it."""

import json
import os
import pathlib
import threading

import pytest

from experiments.common import cli
from experiments.common.reading import is_locked
from experiments.common.workdir import exclusive
from experiments.show import __main__ as show
from experiments.show.records import Tail
from experiments.show.view import LEVELS, NOT_FINITE, number, printable, sparkline
from experiments.train import __main__ as train
from staleness_grpo.runtime.records import read_json, write_json, write_jsonl
from tests.helpers.tiny import tiny_config

RESULTS = sorted(pathlib.Path("experiments/results").iterdir())
# The second one has a config with a section of another command too.
TRAININGS = (
    "first_training",
    "gru",
    "stories260k_heldout",
    "train_fast_lag_0",
    "train_fast_lag_16",
)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # so that no line is broken


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    config = tiny_config(**{"eval_every": 2, "lag.max_lag": 1, "metrics.samples_every": 3})
    train.main(config, workdir)
    return workdir


def shown(capsys, *arguments):
    show.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy of the finished run as it was after four steps, while it wrote the fifth."""
    for name in ("config.json", "metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    lines = (finished / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:50])
    return tmp_path


def test_a_finished_training(finished, capsys):
    text = shown(capsys, finished)
    assert "one training, by experiments.train: finished\n" in text
    assert "6 of 6 learner steps" in text and "samples of step 3:" in text
    for name in ("reward", "eval_reward", "entropy", "clip_fraction", "drift_from_behavior"):
        assert f"\n{name} " in text
    assert show.main([str(finished), "--follow"]) is None  # it ends at once


def test_a_run_that_is_being_written(unfinished, capsys):
    assert "not finished, not running on this machine" in shown(capsys, unfinished)
    if not pathlib.Path("/proc/locks").exists():
        pytest.skip("needs /proc/locks")
    with exclusive(unfinished):
        text = shown(capsys, unfinished)
        assert is_locked(unfinished) and ": running\n" in text
    assert "4 of 6 learner steps" in text


def test_following_ends_when_the_run_does(unfinished, finished, monkeypatch):
    monkeypatch.setattr(show, "SECONDS", 0.01)
    done = threading.Event()

    def follow():
        show.main([str(unfinished), "--follow"])
        done.set()

    threading.Thread(target=follow, daemon=True).start()
    assert not done.wait(0.2)
    (unfinished / "summary.json").write_bytes((finished / "summary.json").read_bytes())
    assert done.wait(20)


def test_a_collapse_says_what_was_not_finite(unfinished, capsys):
    last = json.loads((unfinished / "metrics.jsonl").read_text().splitlines()[3])
    last |= {"loss": None, "collapsed": True, "not_finite": ["loss"]}
    with (unfinished / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps(last | {"step": 4}) + "\n")
    text = shown(capsys, unfinished)
    assert ": collapsed" in text and "not finite: loss" in text and "5 of 6" in text


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_the_folder_of_any_command_says_what_it_is(folder, capsys):
    text = shown(capsys, folder)
    assert text.startswith(f"{folder}: ") and ", by experiments." in text
    assert ("one training" in text) == (folder.name in TRAININGS)


def test_a_map_with_the_variants_of_the_guard_is_its_command_s(capsys):
    text = shown(capsys, "experiments/results/guard")
    assert ", by experiments.guard" in text


def test_trainings_inside_a_folder_are_named(finished, tmp_path, capsys):
    write_json(tmp_path / "config.json", {"paired": {}, "steps": 3})
    (tmp_path / "S1").symlink_to(finished)
    text = shown(capsys, tmp_path)
    assert "trainings in it: S1; show one by python -m experiments.show" in text


def test_trainings_of_a_sweep_are_named_and_not_all_of_many(finished, tmp_path, capsys):
    write_json(tmp_path / "config.json", {"sweep": {}, "steps": 3})
    maps = tmp_path / "trainings" / "main"
    maps.mkdir(parents=True)
    for number_of_cell in range(9):
        (maps / f"S{number_of_cell}").symlink_to(finished)
    text = shown(capsys, tmp_path)
    assert f"S6, S7 and 1 more; show one by python -m experiments.show {maps / 'S0'}" in text
    assert "maps of trainings" in text and "one training" in shown(capsys, maps / "S0")


@pytest.mark.parametrize("section", ["sweep", "paired"])
def test_the_files_of_a_folder_tell_a_training_and_not_a_section(section, unfinished, capsys):
    config = json.loads((unfinished / "config.json").read_text())
    write_json(unfinished / "config.json", config | {section: {"max_lags": [0]}})
    text = shown(capsys, unfinished)
    assert ": one training, by experiments.train: not finished" in text and "\nreward " in text
    (unfinished / "metrics.jsonl").unlink()
    assert "one training" not in shown(capsys, unfinished)


def records_of(folder, records):
    """Writes a training with these records, each of which has a reward."""
    write_json(folder / "config.json", tiny_config(steps=len(records)).to_dict())
    complete = [{"step": step, "reward": 0.5} | record for step, record in enumerate(records)]
    write_jsonl(folder / "metrics.jsonl", complete)


def test_rewards_on_held_out_problems_have_a_curve_and_the_values_after_the_end(tmp_path, capsys):
    records_of(tmp_path, [{"heldout_reward": 0.25}, {}, {}, {"heldout_reward": 0.75}])
    final = {"final_eval_reward": 0.5, "final_heldout_reward": 0.8125}
    write_json(tmp_path / "summary.json", final | {"final_heldout_pass_at": {"1": 0.8, "2": 0.9}})
    text = shown(capsys, tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("heldout_reward"))
    assert row.split() == ["heldout_reward", "▁▁▁█", "0.25", "0.75", "0.25", "0.75"]
    values = "heldout_reward 0.8125  heldout_pass_at.1 0.8  heldout_pass_at.2 0.9"
    assert f"after the last step: eval_reward 0.5  {values}\n" in text


@pytest.mark.parametrize("width", [50, 80, 100])
def test_a_narrow_terminal_shows_the_newest_values(width, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    # The reward falls and rises in the last step alone. Its numbers are as long as they can be.
    rewards = [-1.234e-05] * 300 + [9.876e-05]
    widest = {"drift_from_behavior": 1.234e-05, "grad_norm": None}
    records_of(tmp_path, [{"reward": reward} | widest for reward in rewards])
    table = [line for line in shown(capsys, tmp_path).splitlines() if "…" not in line]
    reward = next(line.split() for line in table if line.startswith("reward"))
    drift = next(line.split() for line in table if line.startswith("drift_from_behavior"))
    assert reward[1].endswith("▁█") and len(reward[1]) == len(drift[1])
    assert "9.876e-05" in reward
    assert drift[-1] == "1.234e-05" and all(len(line) <= width for line in table)
    assert any(line.endswith("not finite") for line in table)


def test_a_cosine_with_no_gradient_is_undefined_and_not_a_fault(tmp_path, capsys):
    cosines = [None, None, 0.5, None]
    records_of(tmp_path, [{"gradient_cosine": cosine} for cosine in cosines])
    text = shown(capsys, tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("gradient_cosine"))
    assert row.split()[1:4] == ["·▁·", "undefined", "undefined"] and "not finite" not in text


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        show.main([str(argument) for argument in arguments])
    assert end.value.code == 2
    out, errors = capsys.readouterr()
    assert out == "" and errors.count("\n") == 1
    return errors


def test_a_claim_is_shown_with_its_interval(capsys):
    folder = cli.ROOT / "experiments" / "results" / "bias"
    text = shown(capsys, folder)
    claim = next(c for c in read_json(folder / "summary.json")["claims"] if c["interval"])
    low, high = claim["interval"]
    assert f"between {number(low)} and {number(high)}]" in text


def test_what_is_no_workdir_is_refused_in_one_line(tmp_path, capsys):
    hint = "give the --workdir of a command that has started\n"
    absent = tmp_path / "absent"
    assert refusal(capsys, absent) == f"WORKDIR={absent}: there is no such folder: {hint}"
    reason = "no workdir, because it has no config.json"
    assert refusal(capsys, tmp_path) == f"WORKDIR={tmp_path}: {reason}: {hint}"
    (tmp_path / "config.json").write_text("{")
    assert "its config.json cannot be read" in refusal(capsys, tmp_path)
    (tmp_path / "config.json").write_text('{"name": "package"}')
    assert "its config.json is that of no command" in refusal(capsys, tmp_path)
    (tmp_path / "config.json").write_text('{"steps": 3}')
    (tmp_path / "summary.json").write_text("{,}")
    assert refusal(capsys, tmp_path).startswith(f"{tmp_path / 'summary.json'} is not JSON (")
    form = "write python -m experiments.show WORKDIR [--follow]\n"
    assert refusal(capsys).endswith(form)
    assert refusal(capsys, tmp_path, "--folow") == f"unrecognized arguments: --folow: {form}"


def test_a_run_in_its_warm_start_is_not_called_no_workdir(tmp_path, capsys):
    if not pathlib.Path("/proc/locks").exists():
        pytest.skip("needs /proc/locks")
    with exclusive(tmp_path):
        assert "its run has not come to its first step" in refusal(capsys, tmp_path)


def test_a_tail_reads_whole_lines_once_and_follows_a_file_that_is_cut_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"step": 0}\n{"st')
    assert tail.read() == [{"step": 0}]
    with path.open("a") as file:
        file.write('ep": 1}\n{"step": 2}\nnoise\n')
    assert tail.read() == [{"step": 0}, {"step": 1}, {"step": 2}]
    os.truncate(path, len('{"step": 0}\n'))
    assert tail.read() == [{"step": 0}]
    path.write_text('{"step": 5, "resumed": true}\n{"step": 6}\n')  # as long as before, or longer
    assert tail.read() == [{"step": 5, "resumed": True}, {"step": 6}]


def test_a_sparkline_has_means_of_neighbors_from_lowest_to_highest():
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8) == LEVELS
    assert sparkline([0.0, 2.0, 7.0, 9.0], 2) == LEVELS[0] + LEVELS[-1]
    assert sparkline([3.0, 3.0], 9) == LEVELS[0] * 2
    assert sparkline([0.0, None, 1.0], 3) == LEVELS[0] + NOT_FINITE + LEVELS[-1]
    assert sparkline([None, None], 2) == NOT_FINITE * 2
    assert sparkline([], 5) == ""


def test_text_of_a_policy_cannot_move_the_cursor():
    assert printable("a\x1b[2Jb\n", 40) == "a\\x1b[2Jb\\n"
    assert printable("x" * 20, 10) == "x" * 7 + "..."
    assert number(None) == "not finite" and number(0.123456) == "0.1235" and number(3) == "3"
