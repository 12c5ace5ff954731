"""Logs that cannot be read without doubt are refused in one line, or read and noted."""

import json

import numpy as np
import pytest

from staleness_grpo.errors import FlagError
from staleness_grpo.logs import read
from tests.logs.writers import TRAINERS, records


def read_text(tmp_path, text, name="staleness_grpo", **options):
    path = tmp_path / "log"
    path.write_text(text)
    return read(path, name, **options)


JSON = '{"step": 0, "reward": 0.5}\n{"step": 1, "reward": 0.25}\n'
TABLE = "step,reward\n0,0.5\n1,0.25\n"


@pytest.mark.parametrize(
    ("text", "name", "flag", "message"),
    [
        ("", "verl", "log", "the file is empty: give a log with records"),
        (" \n\n", "csv", "log", "the file is empty"),
        ("step,reward\n", "csv", "log", "the file has no whole record"),
        ("step,reward", "csv", "log", "the file has no whole record"),
        ('{"step": 1, "rew', "verl", "log", "the file has no whole record"),
        ("\0\1\2", "csv", "log", "the file is not text"),
        ('{"step": 1}\nnonsense\n', "staleness_grpo", "log", "line 2 is not JSON: remove it"),
        ('{"step": 1}\n[3]\n', "staleness_grpo", "log", "line 2 is not a JSON object"),
        ('{"step": 1, "step": 2}\n', "staleness_grpo", "log", "line 1 gives the field step twice"),
        ("{}\n", "staleness_grpo", "log", "no record has a value of reward, learning_rate, "),
        ("a,b\n1,2\n", "csv", "log", "no record has a value of reward, learning_rate, "),
        (
            "step,reward\n1\n2,3\n",
            "csv",
            "log",
            "line 2: the row has not the 2 cells of the header",
        ),
        ("step,reward,reward\n1,2,3\n", "csv", "log", "line 1: the header names a column twice"),
        ('step,reward\n1,"2"x\n', "csv", "log", "line 2: the row is not CSV"),
        (
            "time,reward\n1,2\n",
            "csv",
            "log",
            "no column has steps, such as step, Step, global_step",
        ),
        ("step,reward\n,2\n", "csv", "log", "no column has steps, such as step, Step, global_step"),
        ("step,reward\n0.5,2\n", "csv", "log", "line 2: step is 0.5: give whole numbers >= 0"),
        ("step,reward\n-1,2\n", "csv", "log", "line 2: step is -1: give whole numbers >= 0"),
        ("step,reward\n0,2\n1e30,2\n", "csv", "log", r"step 10+\d+ would come after 2\^63 opt"),
        ("step,reward\ninf,2\n", "csv", "log", "line 2: step is inf: give whole numbers >= 0"),
        ("step,reward\none,2\n", "csv", "log", "line 2: step is 'one': give a number, or leave"),
        (
            "step,reward\n0,high\n",
            "csv",
            "log",
            "line 2: reward is 'high': give a number, or leave",
        ),
        ('{"step": 0, "reward": true}\n', "csv", "log", "line 1: reward is True: give a number"),
        ('{"step": 0, "reward": [1]}\n', "csv", "log", r"line 1: reward is \[1\]: give a number"),
        ("step,reward\n0,inf\n", "csv", "log", "no row has a step and a finite value of a signal"),
        (
            "step,clip_fraction\n0,12\n",
            "csv",
            "log",
            "step 0: clip_fraction is 12, and must be betw",
        ),
        (
            "step,learning_rate\n0,-1e-9\n",
            "csv",
            "log",
            "step 0: learning_rate is -1e-09, and must",
        ),
        ("step,lag_mean,lag_max\n0,5,2\n", "csv", "log", "step 0: lag_mean is 5, above lag_max, 2"),
        (
            "step,a - reward,b - reward\n0,1,2\n",
            "csv",
            "log",
            "a - reward and b - reward are both re",
        ),
        ("step,actor/lr\n1,2\n", "csv", "format", r"the log has 0 of .* like --format=verl$"),
        (
            JSON,
            "verl",
            "format",
            r"the log has 0 of .* like --format=staleness_grpo or trl or csv$",
        ),
        (JSON, "trl", "log", "the file is not one whole JSON document: give trainer_state.json of"),
        (
            '{"a": 1}',
            "trl",
            "log",
            "the file has no list log_history: give trainer_state.json of TRL",
        ),
        ('{"log_history": [1]}', "trl", "log", "record 1 of log_history is not a JSON object"),
        ('{"log_history": [{"step": 1', "trl", "log", "the file is not one whole JSON document"),
        ('{"log_history": []}', "trl", "log", "the file has no whole record"),
        (
            '{\n"log_history": []}',
            "verl",
            "log",
            "the file has a list log_history: give --format=trl",
        ),
        (JSON, "verl2", "format", "choose one of staleness_grpo, verl, trl, prime_rl, nemo_rl"),
    ],
)
def test_a_log_that_cannot_be_read_is_refused_in_one_line(tmp_path, text, name, flag, message):
    with pytest.raises(FlagError, match=f"^--{flag}=.*: {message}") as error:
        read_text(tmp_path, text, name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["csv", "trl"])
def test_a_path_that_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(FlagError, match="^--log=.*absent: it does not exist: give a file$"):
        read(tmp_path / "absent", name)
    with pytest.raises(FlagError, match="^--log=.*: it is a folder: give a file, "):
        read(tmp_path, name)
    (tmp_path / "log").write_bytes(b"step,reward\n0,\xff\n")
    with pytest.raises(FlagError, match="^--log=.*: the file is not text: give "):
        read(tmp_path / "log", name)


@pytest.mark.parametrize("written", TRAINERS)
@pytest.mark.parametrize("asked", TRAINERS)
def test_a_log_of_another_trainer_is_refused(tmp_path, written, asked):
    ours = {"staleness_grpo", "csv"}
    if written == asked or {written, asked} <= ours:
        return
    path = TRAINERS[written][0](tmp_path / "log", records(), 1)
    with pytest.raises(FlagError, match=r"^--(format|log)=\S+: "):
        read(path, asked)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (JSON + '{"step": 2, "rewa', "The last line, line 3, is cut, and was left out."),
        (TABLE + "2,0.12", "The last line has no end and may be cut, so it was left out."),
        (TABLE + "2", "The last line has no end and may be cut, so it was left out."),
        (TABLE + '"2","0.1', "The last line has no end and may be cut, so it was left out."),
        (TABLE + '"2"', "The last line has no end and may be cut, so it was left out."),
    ],
)
def test_a_last_line_that_may_be_cut_is_left_out(tmp_path, text, line):
    found = read_text(tmp_path, text, "csv")
    np.testing.assert_array_equal(found.signals["reward"], [0.5, 0.25])
    assert line in found.notes


@pytest.mark.parametrize("text", [JSON + '{"step": 2, "reward": 0.125}', TABLE + '"2","0.125"'])
def test_a_last_line_that_is_whole_needs_no_newline(tmp_path, text):
    np.testing.assert_array_equal(read_text(tmp_path, text).signals["reward"], [0.5, 0.25, 0.125])


def test_one_record_is_a_history(tmp_path):
    found = read_text(tmp_path, '{"step": 3, "reward": 0.5}\n')
    assert found.step.tolist() == [3] and found.signals["reward"].tolist() == [0.5]


def test_a_column_without_a_value_is_absent_and_noted(tmp_path):
    text = "step,reward,entropy,ess\n0,0.5,NaN,\n1,0.25,,null\n"
    found = read_text(tmp_path, text)
    assert set(found.signals) == {"reward"}
    for signal in ("entropy", "ess"):
        assert f"{signal} is absent: the column {signal} holds no value." in found.notes


def test_rows_without_a_step_are_left_out_and_counted(tmp_path):
    found = read_text(tmp_path, "step,reward\n0,0.5\nNaN,7\n,8\n1,0.25\n,\n")
    np.testing.assert_array_equal(found.signals["reward"], [0.5, 0.25])
    assert "2 rows have values and no step, and were left out." in found.notes


def test_infinite_values_are_missing_and_counted(tmp_path):
    lines = [{"step": 0, "reward": 1.0, "grad_norm": float("inf")}, {"step": 1, "reward": 2.0}]
    found = read_text(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    assert set(found.signals) == {"reward"}
    assert "1 values of grad_norm are infinite, and count as missing." in found.notes


def test_numbers_as_exports_write_them(tmp_path):
    header = '\ufeff"Step","run - reward","run - reward__MIN","note"'
    rows = ['"0","5e-1","0","a, b"', '"1.0"," 2 ","0",""']
    text = "".join(f"{row}\r\n" for row in [header, *rows])
    found = read_text(tmp_path, text)
    assert found.step.tolist() == [0, 1] and found.signals["reward"].tolist() == [0.5, 2.0]


def test_a_character_that_is_cut_belongs_to_the_cut_last_line(tmp_path):
    whole = '{"step": 2, "reward": 1, "note": "\u00e9'.encode()
    path = tmp_path / "log"
    path.write_bytes(JSON.encode() + whole[:-1])
    found = read(path, "staleness_grpo")
    assert found.step.tolist() == [0, 1] and "The last line, line 3, is cut" in found.notes[0]
    path.write_bytes(whole[:-1] + JSON.encode())  # in the middle it is no text
    with pytest.raises(FlagError, match="the file is not text"):
        read(path, "staleness_grpo")


def test_steps_that_count_calls_are_noted(tmp_path):
    found = read_text(tmp_path, "_step,reward\n0,0.5\n1,0.25\n")
    assert "Steps are those of _step, which W&B counts by calls if it is told none." in found.notes
    both = read_text(tmp_path, "_step,global_step,reward\n4,0,0.5\n8,1,0.25\n")
    assert both.step.tolist() == [0, 1] and not any("_step," in note for note in both.notes)


def test_records_that_lie_apart_are_noted(tmp_path):
    apart = read_text(tmp_path, "step,reward\n0,1\n10,2\n20,3\n")
    assert any("values may be means over these" in note for note in apart.notes)
    dense = read_text(tmp_path, "step,reward\n0,1\n10,2\n11,3\n")
    assert not any("values may be means over these" in note for note in dense.notes)


def test_lags_of_a_negative_age_are_refused(tmp_path):
    text = '{"step": 3, "sampling_client/step_mean": 4.0}\n'
    with pytest.raises(FlagError, match="step 3: lag_mean is -1, and must be 0 or more: check"):
        read_text(tmp_path, text, "tinker", updates_per_version=1)
