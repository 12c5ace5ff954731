"""Sinks show what metrics.jsonl has, once for each step, and never stop a run."""

import importlib.util
import json
import shutil
import struct
import sys
import types

import pytest

from experiments.train.__main__ import main
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime import sinks
from staleness_grpo.runtime.records import read_jsonl
from tests.helpers.tiny import tiny_config

RUN = {"steps": 8, "eval_every": 4, "checkpoint.save_every": 2, "checkpoint.keep": 9}
OFF = {"tensorboard": False, "wandb": False, "wandb_project": "p"}


def broken_off(workdir):
    """Makes a finished run one that was left before step 6."""
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "step_00000008")


class Faulty:
    """A sink whose third record cannot be written."""

    def __init__(self):
        self.steps, self.closed = [], False

    def write(self, step, numbers):
        if step == 2:
            raise OSError("the disk\nis full")
        self.steps.append(step)

    def close(self):
        self.closed = True


def test_an_error_is_one_line_and_turns_the_sink_off(monkeypatch, tmp_path, capsys):
    faulty, whole = Faulty(), []
    monkeypatch.setattr(sinks, "TensorBoard", lambda workdir: faulty)
    good = types.SimpleNamespace(write=lambda step, _: whole.append(step), close=lambda: None)
    monkeypatch.setattr(sinks, "WeightsAndBiases", lambda *arguments: good)
    config = {"sinks": OFF | {"tensorboard": True, "wandb": True}}
    with sinks.Sinks(tmp_path, config, [{"step": 0}, {"step": 1}]) as shown:
        for step in range(2, 5):
            shown.append({"step": step, "loss": 1.0})
    assert (faulty.steps, faulty.closed, whole) == ([0, 1], False, [0, 1, 2, 3, 4])
    assert capsys.readouterr().err == (
        "--config.sinks.tensorboard=True: OSError: the disk is full: "
        "the sink is off, the run goes on\n"
    )


def test_a_sink_that_cannot_be_opened_does_not_stop_a_training(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # an import of it fails now
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    main(tiny_config(steps=2, **{"sinks.tensorboard": True}), tmp_path)
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 2
    errors = capsys.readouterr().err
    assert errors.count("--config.sinks.tensorboard=True: ModuleNotFoundError") == 1


def test_without_sinks_nothing_is_opened(monkeypatch, tmp_path):
    for name in ("TensorBoard", "WeightsAndBiases"):
        monkeypatch.setattr(sinks, name, lambda *arguments: pytest.fail("opened"))
    with sinks.Sinks(tmp_path, {"sinks": OFF}) as shown:
        shown.append({"step": 0, "loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_shown_and_lists_texts_and_nulls_are_not():
    record = {"step": 3, "loss": 0.5, "lag_max": 2, "lags": [1], "cosine": None, "collapsed": True}
    record |= {"name": "x", "broken": float("nan")}
    assert sinks.numbers(record) == {"loss": 0.5, "lag_max": 2.0, "collapsed": 1.0}


@pytest.mark.parametrize("name", sinks.PACKAGES)
def test_a_sink_without_its_package_is_refused_at_the_start(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sinks.check_sinks(OFF)
    with pytest.raises(FieldError) as error:
        sinks.check_sinks(OFF | {name: True})
    hint = f"{name} is not installed: pip install {name} (or the extra sinks), or give False"
    assert str(error.value) == f"{name}=True: {hint}"


def test_a_project_needs_a_name():
    with pytest.raises(FieldError, match="^wandb_project= : give a name"):
        sinks.check_sinks(OFF | {"wandb_project": " "})


def test_tensorboard_has_every_number_once_after_a_resume(tmp_path):
    reason = "the extra sinks is not installed"
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason=reason
    )
    from tensorboard.util import tensor_util

    config = tiny_config(**RUN, **{"sinks.tensorboard": True})
    main(config, tmp_path)
    broken_off(tmp_path)
    main(config, tmp_path)
    events = accumulator.EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}
    ).Reload()
    records = [
        sinks.numbers(r) | {"step": r["step"]} for r in read_jsonl(tmp_path / "metrics.jsonl")
    ]
    names = {name for record in records for name in record} - {"step"}
    assert set(events.Tags()["tensors"]) == names and "eval_reward" in names
    for name in names:
        points = [
            (event.step, float(tensor_util.make_ndarray(event.tensor_proto)))
            for event in events.Tensors(name)
        ]
        expected = {record["step"]: record[name] for record in records if name in record}
        assert [step for step, _ in points] == list(expected)
        assert dict(points) == pytest.approx(expected, rel=1e-6)  # float32 in the file


def wandb_records(content):
    """Yields the records of a .wandb file: blocks of 32 KiB, in the format of LevelDB's logs."""
    place, record = 7, b""  # after the header of the file
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:  # the rest of a block that has no room for a header is padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.slow
def test_weights_and_biases_has_every_number_once_after_a_resume(tmp_path):
    wandb = pytest.importorskip("wandb", reason="the extra sinks is not installed")
    from wandb.proto import wandb_internal_pb2

    config = tiny_config(**RUN, **{"sinks.wandb": True})
    main(config, tmp_path)
    broken_off(tmp_path)
    main(config, tmp_path)
    # The process that writes the file may lag behind `finish`. It is awaited at the end of a
    # command, and here.
    wandb.teardown()
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    history = []
    for data in wandb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["_step"] for row in history] == [record["step"] for record in records]
    for row, record in zip(history, records, strict=True):
        shown = {name: value for name, value in row.items() if not name.startswith("_")}
        assert shown == pytest.approx(sinks.numbers(record))
