"""The programme for accelerators: errors against float64, parts that fail, and a rehearsal."""

import time

import jax
import numpy as np
import pytest

from experiments.common import cli
from experiments.common.flag_parsing import load_config
from experiments.performance import accelerator, gradient
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime.records import read_json, read_jsonl

CONFIGS = cli.ROOT / "experiments" / "configs"
TINY = dict(vocab_size=16, num_layers=1, d_model=8, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=8)


def tiny(**fields):
    config = load_config(CONFIGS / "accelerator_small.py")
    config.accelerator.update(fields)
    return config


def test_errors_are_those_of_the_dtype(monkeypatch):
    for name, value in {"SHAPE": TINY, "N": 2, "G": 2, "P": 4, "R": 6}.items():
        monkeypatch.setattr(gradient, name, value)
    with jax.enable_x64(True):
        exact = gradient.compute("float64", "xla", None)
        again = gradient.compute("float64", "xla", exact)
    assert exact["gradient"].dtype == np.float64 and np.linalg.norm(exact["gradient"]) > 0.01
    np.testing.assert_array_equal(again["logprobs"], exact["logprobs"])
    found = {
        dtype: gradient.errors(gradient.compute(dtype, attention, again), again)
        for dtype, attention in (("float32", "xla"), ("bfloat16", "cudnn"))
    }
    assert (
        0 < found["float32"]["gradient_error"] < 1e-4 and found["float32"]["logprob_error"] < 1e-5
    )
    assert 1e-3 < found["bfloat16"]["gradient_error"] < 0.1
    assert found["bfloat16"]["gradient_cosine"] > 0.99
    assert gradient.errors(again, again)["gradient_error"] == 0


def test_a_part_that_fails_or_takes_too_long_is_recorded_and_the_others_run(monkeypatch, tmp_path):
    calls = []

    def broken(programme):
        programme.run("broken", "no_such_module_of_ours")

    def endless(programme):
        programme.run("endless", "timeit", "-n1", "-r1", "import time; time.sleep(60)")

    def fine(programme):
        calls.append(programme.attentions())
        return {"kernel": {"share": 0.5, "list": [1]}, "same": True}

    monkeypatch.setattr(accelerator, "PARTS", {"a": broken, "b": endless, "c": fine})
    monkeypatch.setattr(accelerator, "devices_of_parts", lambda: ("gpu", 2, "A Chip"))
    config = tiny(parts=("a", "b", "c"), seconds=0.7)
    accelerator.main(config, tmp_path)
    records = {record["part"]: record for record in read_jsonl(tmp_path / "cells.jsonl")}
    assert records["a"]["failure"].startswith("broken ended with code 1: ")
    assert "No module named no_such_module_of_ours" in records["a"]["failure"]
    assert records["b"]["failure"] == "endless took more than 0.7 s"
    assert records["c"]["numbers"]["kernel"]["share"] == 0.5 and calls == [["xla", "cudnn"]]
    summary = read_json(tmp_path / "summary.json")
    text = accelerator.table(summary).splitlines()
    assert text[0] == "2 x A Chip" and "  kernel.share = 0.5" in text and "  same = True" in text
    accelerator.main(config, tmp_path)  # nothing is run again
    assert len(calls) == 1 and len(read_jsonl(tmp_path / "cells.jsonl")) == 3


PROCESS = """
import os, pathlib, sys, time
from staleness_grpo.runtime import distributed
hosts = distributed.find(dict.fromkeys(distributed.VARIABLES), os.environ)
if sys.argv[1] == "find":
    print(hosts.coordinator, hosts.num_processes, hosts.process_id, flush=True)
elif hosts.process_id == 1:
    sys.exit("the second one failed")
else:
    time.sleep(60)
"""


def test_processes_of_one_run_find_each_other_and_end_with_the_first_failure(tmp_path, monkeypatch):
    (tmp_path / "process.py").write_text(PROCESS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{cli.ROOT}")
    programme = accelerator.Programme(tiny(seconds=30.0).accelerator, tmp_path, "cpu")
    programme.run("find", "process", "find", num_processes=2)
    lines = (tmp_path / "logs" / "find.txt").read_text().splitlines()
    assert sorted(line.split()[1:] for line in lines) == [["2", "0"], ["2", "1"]]
    assert len({line.split()[0] for line in lines}) == 1
    start = time.perf_counter()
    with pytest.raises(accelerator.Failed, match="fail ended with code 1: the second one failed"):
        programme.run("fail", "process", "fail", num_processes=2)
    assert time.perf_counter() - start < 20  # the first one was not waited for


def test_the_devices_are_those_of_a_new_process():
    platform, count, kind = accelerator.devices_of_parts()
    assert (platform, count >= 1, kind) == ("cpu", True, "cpu")


@pytest.mark.parametrize(
    ("field", "value"),
    [("parts", ()), ("parts", ("speed",)), ("seconds", 0.0), ("chunk_sizes", (0,))],
)
def test_a_config_that_cannot_run_is_refused(field, value):
    with pytest.raises(FieldError) as error:
        accelerator.validate(tiny(**{field: value}))
    assert error.value.field == f"accelerator.{field}"
    accelerator.validate(tiny())


@pytest.mark.slow
def test_a_rehearsal_has_numbers_of_every_part(tmp_path):
    programme = accelerator.Programme(tiny().accelerator, tmp_path, "cpu")
    found = {name: part(programme) for name, part in accelerator.PARTS.items()}
    assert found["gradients"]["float32_xla"]["gradient_error"] < 1e-4
    assert 0 < found["benchmark"]["xla"]["peak_share_of_update"] < 1
    assert found["map"]["4"]["num_cells"] == 16 and found["map"]["4"]["cell_seconds"] > 0
    assert found["repeat"]["same_metrics"] and found["repeat"]["same_parameters"]
