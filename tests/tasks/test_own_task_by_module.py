"""A task of one's own may be named by its module, as package.module:Class."""

import subprocess
import sys

import numpy as np

from docs.examples.parity import Parity
from experiments.common import cli
from experiments.train import __main__ as train
from staleness_grpo.config import validation
from staleness_grpo.runtime.records import read_json, read_jsonl
from staleness_grpo.tasks import make_task, task_fields
from tests.helpers import bigram
from tests.helpers.given import given

NAME = "docs.examples.parity:Parity"
SHORT = (
    *("steps=4", "num_prompts=4", "group_size=4", "eval_every=2", "warm_start.steps=0"),
    f"policy.name={bigram.NAME}",
)


def test_the_class_of_a_module_is_the_task_and_its_arguments_are_flags():
    config = given(f"task.name={NAME}", "task.num_bits=3", *SHORT, config="arithmetic")
    assert config.task.to_dict() == {"name": NAME, "num_bits": 3}
    assert list(task_fields(NAME)) == ["num_bits"]
    task = make_task(config.task)
    assert type(task) is Parity  # the module is imported once, so the class is the same
    assert task == Parity(num_bits=3)
    assert given(f"task.name={NAME}", config="arithmetic").task.num_bits == 4  # its default


def test_it_is_trained_as_the_same_class_by_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    by_file = f"{cli.ROOT / 'docs' / 'examples' / 'parity.py'}:Parity"
    records = []
    for number, name in enumerate((NAME, by_file)):
        folder = tmp_path / str(number)
        config = given(f"task.name={name}", "task.num_bits=3", *SHORT, config="arithmetic")
        validation.validate(config, 1)
        cli.complete(train.main, train.draw, config, folder)
        assert read_json(folder / "config.json")["task"] == {"name": name, "num_bits": 3}
        assert len(read_json(folder / "environment.json")["problems"]) == 16
        steps = read_jsonl(folder / "metrics.jsonl")
        records.append([{k: v for k, v in step.items() if k != "time_step"} for step in steps])
    assert records[0] == records[1] and len(records[0]) == 4
    # A constant answer is right for half of the strings, and this policy knows the last bit alone.
    assert 0 < np.mean([record["reward"] for record in records[0]]) < 1


def test_the_command_finds_a_module_below_the_current_folder(tmp_path):
    """It parses the flags in a process of its own, whose modules are those of `python -m`."""
    (tmp_path / "mine").mkdir()
    text = (cli.ROOT / "docs" / "examples" / "parity.py").read_text(encoding="utf-8")
    (tmp_path / "mine" / "bits.py").write_text(text, encoding="utf-8")
    program = (
        "import sys; sys.path.append(sys.argv.pop()); from tests.helpers.given import given; "
        "from staleness_grpo.tasks import make_task; "
        "task = make_task(given('task.name=mine.bits:Parity', config='arithmetic').task); "
        "print(type(task).__module__, task.num_bits)"
    )
    command = [sys.executable, "-c", program, str(cli.ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["mine.bits", "4"], done.stderr
