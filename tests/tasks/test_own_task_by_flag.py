"""A class of one's own is a task of every experiment, by a flag, from a file anywhere."""

import re
import shutil
import subprocess
import sys

import pytest
from absl import flags

from experiments.common import cli
from experiments.common.examples import by_name
from experiments.common.flag_parsing import parse
from experiments.sweep import __main__ as sweep
from experiments.sweep import grid
from experiments.sweep.engine import LOOP, engine
from experiments.train import __main__ as train
from staleness_grpo.config import validation
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import read_json, read_jsonl
from staleness_grpo.tasks import make_task

EXAMPLES = cli.ROOT / "docs" / "examples"
TASK_EXAMPLES = [EXAMPLES / "parity.py", EXAMPLES / "colors.py"]
CONFIGS = cli.ROOT / "experiments" / "configs"
TINY = (
    "warm_start.steps=0",
    "policy.num_layers=1",
    "policy.d_model=16",
    "policy.num_heads=2",
    "policy.num_kv_heads=2",
    "policy.d_ff=16",
    "num_prompts=4",
    "group_size=4",
)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Copies an example to a folder outside the repository, and returns the path of the copy."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def copied(name):
        # Two files of one name cannot be imported, so each test has a name of its own.
        path = tmp_path / f"{name}_{tmp_path.name}.py"
        shutil.copyfile(EXAMPLES / f"{name}.py", path)
        return path

    return copied


def given(*overrides, config="arithmetic"):
    """Returns the config of flags, as a command parses them."""
    words = [f"--config.{override}" for override in overrides]
    flag_values = flags.FlagValues()
    parse(["prog", f"--config={CONFIGS / config}.py", *words], flag_values, CONFIGS / "unused.py")
    return flag_values.config


def test_the_examples_are_short_enough_to_be_read():
    for path in TASK_EXAMPLES:
        assert len(path.read_text().splitlines()) <= 40, path


def test_the_page_shows_the_examples_as_they_are():
    page = (cli.ROOT / "docs" / "own_task.md").read_text()
    for path in TASK_EXAMPLES:
        assert f"```python\n{path.read_text()}```" in page, path


def test_an_array_task_is_trained_and_its_code_is_remembered(example, tmp_path):
    path = example("parity")
    config = given(f"task.name={path}:Parity", "task.num_bits=3", *TINY, "steps=4", "eval_every=2")
    validation.validate(config, 1)
    cli.complete(train.main, train.draw, config, tmp_path / "run")
    assert read_json(tmp_path / "run" / "config.json")["task"] == {
        "name": f"{path}:Parity",
        "num_bits": 3,
    }
    assert len(read_json(tmp_path / "run" / "environment.json")["problems"]) == 16
    (tmp_path / "run" / "summary.json").unlink()
    cli.complete(train.main, train.draw, config, tmp_path / "run")
    # In another process, the class has other code.
    text = path.read_text().replace("== key_N", "!= key_N")
    assert text != path.read_text()
    path.write_text(text)
    del sys.modules[path.stem]
    message = r"^task.name=.*were made by other code of the task: rest"
    with pytest.raises(FieldError, match=message):  # the folder is finished
        cli.complete(train.main, train.draw, config, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(FieldError, match=message):
        cli.complete(train.main, train.draw, config, tmp_path / "run")


@pytest.mark.slow
def test_an_array_task_is_swept_in_worker_processes(example, tmp_path):
    swept = ("sweep.max_lags=(0,2)", "sweep.learning_rates=(1e-2,1e-1)", "sweep.seeds=(0,1)")
    length = ("steps=20", "eval_every=5", "sweep.horizons=(20,)", "sweep.num_workers=1")
    path = example("parity")
    config = given(f"task.name={path}:Parity", *TINY, *swept, *length, config="small_map")
    grid.validate(config)
    cli.complete(sweep.main, sweep.draw, config, tmp_path / "map")
    cells = read_jsonl(tmp_path / "map" / "cells.jsonl")
    assert len(cells) == 8 and all(cell["steps_run"] == 20 for cell in cells)
    assert sum(read_json(tmp_path / "map" / "summary.json")["outcomes"].values()) == 8


def test_a_text_task_gets_the_tokenizer_and_is_judged_in_processes(example, tmp_path):
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    from tests.helpers import byte_model

    byte_model.write(tmp_path)
    name = f"task.name={example('colors')}:Colors"
    length = ("task.max_response_length=6", "task.repeat=2", "steps=2", "eval_every=0")
    config = given(name, f"policy.checkpoint={tmp_path}", *length, "num_prompts=4", "group_size=4")
    validation.validate(config, 1)
    cli.complete(train.main, train.draw, config, tmp_path / "run")
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    # Each short answer has at least 0.1, and no verifier failed.
    assert all(record["reward"] >= 0.099 and record["reward_errors"] == 0 for record in records)
    # A map of this task is one of trainings: tests/experiments/test_sweep_trainings.py.
    map_config = given(name, f"policy.checkpoint={tmp_path}", config="small_map")
    assert engine(map_config) == LOOP


@pytest.mark.parametrize("name", ["enumerable", "arithmetic"])
def test_a_flag_chooses_another_task_of_the_package_with_its_fields(name):
    config = given(f"task.name={name}", config="small_map")
    task = make_task(config.task)
    assert type(task).__name__.lower() == f"{name}task"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such.module:Task", "there is no module no_such: run from its folder, or give"),
        ("no_such.py:Task", "there is no file no_such.py"),
        ("json:JSONDecode", "json has no JSONDecode: did you mean JSONDecoder"),
        ("json:", "json has no class of this name"),
        ("json:decoder", "this is a module and no class: name a class"),
        ("math:pi", "this is a float and no class: name a class"),
        ("builtins:dict", "the arguments of this type are not known: name a class"),
        ("parity", "choose one of arithmetic, .*, or name a class of your own as"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(name, message):
    with pytest.raises(FlagError, match=f"^--config.task.name={name}: {message}"):
        given(f"task.name={name}")


def test_a_policy_that_is_no_class_is_one_line_too():
    with pytest.raises(FlagError, match=r"^--config.policy.name=math:pi: this is a float and no"):
        given("policy.name=math:pi")


FAULTS = """

class Broken(Parity):
    def __init__(self):
        raise RuntimeError("no network")


class BadShape(Parity):
    def rewards(self, index_N, tokens_NxGxR, mask_NxGxR):
        return np.zeros(3)
"""


def test_a_class_that_cannot_train_is_refused_before_a_folder_is_made(example, tmp_path):
    path = example("parity")
    path.write_text(path.read_text() + FAULTS)
    run = tmp_path / "run"

    def refusal(name):
        config = given(f"task.name={path}:{name}", *TINY, "steps=1")
        with pytest.raises(FieldError) as error:
            cli.execute(
                train.main,
                train.draw,
                config,
                str(run),
                lambda fields: validation.validate(fields, 1),
            )
        assert not run.exists()
        return str(by_name(error.value, config)).removeprefix(f"task.name={path}:{name}: ")

    place = rf"\({re.escape(str(path))}, line \d+\)"
    failure = rf"its constructor fails with RuntimeError: no network {place}: correct the class"
    assert re.match(failure, refusal("Broken"))
    assert refusal("BadShape").startswith("its rewards have shape (3,): return one for each resp")


def test_a_file_that_fails_or_has_a_namesake_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    broken = tmp_path / "broken_task_file.py"
    broken.write_text("import math\n\nmath.floor('x')\n")
    with pytest.raises(FlagError, match=r"fails with TypeError: .*broken_task_file.py, line 3\)"):
        given(f"task.name={broken}:Task")
    (tmp_path / "json.py").write_text("class Task: pass\n")
    with pytest.raises(FlagError, match=r"another module is named json \(.*\): rename the file"):
        given(f"task.name={tmp_path / 'json.py'}:Task")


def test_a_field_that_the_class_lacks_is_answered_with_the_nearest(example):
    with pytest.raises(FlagError, match="unknown field num_bit: did you mean num_bits"):
        given(f"task.name={example('parity')}:Parity", "task.num_bit=3")


@pytest.mark.slow
def test_by_the_command_line(example, tmp_path):
    words = [f"--config.{override}" for override in (*TINY, "steps=2", "eval_every=0")]
    command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}", *words]
    task = f"--config.task.name={example('parity')}:Parity"
    command.append(task)
    done = subprocess.run(command, cwd=cli.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "training.png").exists()
