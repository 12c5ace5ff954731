"""The command that converts records to traces: its lines, its refusals, and a replay."""

import json

import pytest

from experiments.convert_trace.__main__ import main
from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.runtime.records import plain
from staleness_grpo.training.loop import train
from tests.helpers import trainer_logs
from tests.helpers.tiny import tiny_config
from tests.helpers.trainer_logs import json_lines

VERSIONS = [[0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 2, 2], [3, 1, 1, 2]]
LAGS = [[step - version for version in row] for step, row in enumerate(VERSIONS)]


def command(path, name, tmp_path, *options):
    target = tmp_path / "trace.jsonl"
    main([f"--input={path}", f"--format={name}", f"--output={target}", *options])
    return target


def recorded_lags(target):
    """Returns the lags in the records of a tiny training that replays a trace."""
    replay = {"lag.schedule": "trace", "lag.trace": str(target), "lag.max_lag": 3}
    config = tiny_config(steps=4, **{"metrics.lags": True, **replay})
    validation.validate(config, num_devices=1)
    return [plain(record)["lags"] for record in train(build_run(config))]


def test_a_converted_trace_drives_a_training(tmp_path, capsys):
    path = trainer_logs.prime_rl(tmp_path / "run", VERSIONS)
    target = command(path, "prime_rl", tmp_path)
    assert recorded_lags(target) == LAGS
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "32 samples read"
    assert lines[-2].startswith("replay it with --config.steps=4 --config.num_prompts=4 --config.")
    assert "--config.lag.max_lag=2 " in lines[-2]
    end = f"recorded: the lags of 4 groups in 4 learner steps, from prime_rl, in {target}"
    assert lines[-1] == end


def test_drawn_lags_are_called_drawn_in_the_file_and_in_the_last_line(tmp_path, capsys):
    rows = trainer_logs.statistics_rows("skyrl_metrics", LAGS)
    path = json_lines(tmp_path / "m.jsonl", [{"step": step, **fields} for step, fields in rows])
    target = command(path, "skyrl_metrics", tmp_path, "--num_groups=4", "--seed=7")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("drawn: the lags of 4 groups in 4 learner steps, drawn with seed 7 from")
    header = json.loads(target.read_text().splitlines()[0])["header"]
    assert (header["lags"], header["options"]["seed"]) == ("drawn", 7)
    assert [sum(row) for row in recorded_lags(target)] == [sum(row) for row in LAGS]


ONE = "--updates_per_version=1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format=telepathy"], "--format=telepathy: choose one of trace, run, "),
        (["--format=miles"], "--updates_per_version=: format=miles counts weight versions: give"),
        (["--format=ages"], "--input={path}: x.jsonl line 1: the field age is absent; it looks"),
        (["--format=versions", "--num_groups=0"], "--num_groups=0: give a number >= 1"),
        (["--format=versions", "--num_groups=a"], "argument --num_groups: invalid int value: 'a'"),
        (["--format=versions", "--speed=1"], "unrecognized arguments: --speed=1: write python -m"),
        (["--format=versions", "--input=absent"], "--input=absent: it does not exist: give a"),
        (["--format=versions", "--output={path}"], "--output={path}: this is the input: give"),
        (
            ["--format=verl", "--input={folder}", "--output={folder}/a/t.jsonl", ONE],
            "--output={folder}/a/t.jsonl: it lies in the input: give another folder",
        ),
        (["--format=versions", "--output=no/x"], "--output=no/x: its folder does not exist: make"),
        (["--format=tinker", "--input={empty}"], "--updates_per_version=: format=tinker counts"),
        (["--format=versions", "--input={empty}"], "--input={empty}: format=versions reads no fo"),
        (["--format=prime_rl", "--input={empty}"], "--input={empty}: the folder has no **/step"),
        ([], "the following arguments are required: --format: write python -m experiments."),
    ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(tmp_path, capsys, options, message):
    path = json_lines(tmp_path / "x.jsonl", [{"step": 0, "version": 0}])
    places = {"path": path, "empty": tmp_path / "empty", "folder": tmp_path}
    places["empty"].mkdir()
    given = [f"--input={path}", f"--output={tmp_path / 'trace.jsonl'}"]
    given += [option.format(**places) for option in options]
    before = path.read_text()
    with pytest.raises(SystemExit, match="^2$"):
        main(given)
    printed = capsys.readouterr()
    assert printed.err.startswith(message.format(**places))
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "trace.jsonl").exists() and path.read_text() == before
