"""The shipped configs of text tasks are valid, with a random checkpoint for the pretrained one."""

import json
import subprocess
import sys

import jax
import pytest
from absl import flags

from experiments.common import cli
from experiments.common.flag_parsing import load_config, parse
from experiments.paired_bias.measure import trainings
from experiments.sweep import grid as sweep_grid
from experiments.sweep.engine import LOOP, engine
from staleness_grpo.config import validation
from staleness_grpo.config.defaults import field_value
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.transformer import Policy

pytest.importorskip("tokenizers", reason="the extra hf is not installed")
from staleness_grpo.policy import huggingface  # noqa: E402
from staleness_grpo.runtime.records import flattened, read_json, read_jsonl  # noqa: E402
from staleness_grpo.tasks import components, make_task, task_fields  # noqa: E402
from staleness_grpo.tasks.text import PromptedTask  # noqa: E402
from tests.helpers import byte_tokenizer  # noqa: E402

CONFIGS = cli.ROOT / "experiments" / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    policy = Policy(
        TransformerConfig(
            vocab_size=272,
            num_layers=1,
            d_model=16,
            num_heads=8,
            num_kv_heads=8,
            head_dim=2,
            d_ff=16,
        )
    )
    huggingface.save(folder, policy, jax.jit(policy.init)(jax.random.key(0)))
    byte_tokenizer.write(folder, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "stories260k_cpu",
        "stories260k_map",
        "stories260k_longer",
        "gsm8k_llama32_1b",
        "gsm8k_llama32_3b",
        "paper_map_1b",
        "paper_map_3b",
        "reasoning_gym_qwen",
    ],
)
def test_shipped_configs_are_valid(name, folder, tmp_path, monkeypatch):
    config = load_config(CONFIGS / f"{name}.py")
    config.policy.checkpoint = str(folder)
    if config.task.name == "jsonl":
        pytest.importorskip("math_verify", reason="the extra tasks is not installed")
        problem = {
            "question": "Ann has 2 cats and gets 3 more. How many?",
            "answer": "2 + 3 = <<2+3=5>>5\n#### 5",
        }
        (tmp_path / "train.jsonl").write_text(json.dumps(problem) + "\n")
        config.task.path = str(tmp_path / "train.jsonl")
    if config.task.name == "reasoning_gym":
        pytest.importorskip("reasoning_gym", reason="the extra tasks is not installed")
        config.task.size = 8
    # Every field of the task can be given as a flag.
    assert set(config.task) - {"name"} == set(task_fields(config.task.name))
    if "sweep" in config:
        monkeypatch.setattr(jax, "device_count", lambda: 16)
        sweep_grid.validate(config)
        variants = sweep_grid.variant_configs(config).values()
        assert {engine(variant) for variant in variants} == {LOOP}
        return
    cells = trainings(config).values() if "paired" in config else [config]
    for cell in cells:
        validation.validate(cell, num_devices=16)


@pytest.mark.slow
def test_the_papers_map_runs_on_a_mesh_of_eight_devices(folder, tmp_path, run_on_devices):
    pytest.importorskip("math_verify", reason="the extra tasks is not installed")
    problems = tmp_path / "train.jsonl"
    lines = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(4)]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_on_devices("paper_map_in_small", tmp_path / "map", folder, problems)
    cyclic = read_jsonl(tmp_path / "map" / "cells.jsonl")
    constant = read_jsonl(tmp_path / "map" / "cells-constant.jsonl")
    assert [cell["max_lag"] for cell in cyclic + constant] == [0, 2, 2]
    assert [cell["schedule"] for cell in cyclic + constant] == ["cyclic", "cyclic", "constant"]
    assert all(cell["steps_run"] == 4 and cell["finite"] for cell in cyclic + constant)
    assert read_json(tmp_path / "map" / "summary.json")["num_cells"] == 2


def test_the_papers_map_is_planned_where_its_devices_are_not(folder, tmp_path):
    problems = tmp_path / "train.jsonl"
    problems.write_text('{"question": "What is 1 + 1?", "answer": "#### 2"}\n')
    command = [
        *(sys.executable, "-m", "experiments.sweep", f"--config={CONFIGS}/paper_map_1b.py"),
        *(f"--workdir={tmp_path}/map", f"--config.policy.checkpoint={folder}"),
        *(f"--config.task.path={problems}", "--plan"),
    ]

    def planned(*flags):
        return subprocess.run(
            [*command, *flags], cwd=cli.ROOT, capture_output=True, text=True, check=False
        )

    done = planned("--plan_step_seconds=6", "--plan_devices=8")
    assert done.returncode == 0, done.stderr
    cyclic, constant, total, _ = done.stdout.splitlines()
    assert cyclic.startswith("main: 72 of 72 cells are left, 50400 learner steps; cells: loop")
    assert cyclic.endswith("1 at once on 8 device(s) each; a step takes 6 s (given): 84 h 0 min")
    assert constant.startswith("constant: 36 of 36 cells are left, 25200 learner steps")
    assert total.startswith("together at most 126 h 0 min, 1.01e+03 device-hours")
    assert not (tmp_path / "map").exists()
    measured = planned()
    assert measured.returncode == 2 and "--config.mesh.fsdp=8: " in measured.stderr


def test_every_unset_field_of_a_file_of_problems_can_be_given_as_a_flag():
    values = {
        "max_prompt_length": ("512", 512),
        "too_long": ("drop", "drop"),
        "template_arguments.enable_thinking": ("False", False),
        "prompt_column": ("problem", "problem"),
        "answer_column": ("reward_model.ground_truth", "reward_model.ground_truth"),
        "answer_after": ("</think>", "</think>"),
        "format_pattern": ("<think>.*</think>.*", "<think>.*</think>.*"),
        "length_range": ("(200, 800)", (200, 800)),
        "length_unit": ("words", "words"),
    } | {f"reward_weights.{name}": ("-1", -1.0) for name in components.NAMES}
    path = CONFIGS / "gsm8k_llama32_1b.py"
    given = [f"--config.task.{name}={value}" for name, (value, _) in values.items()]
    flag_values = flags.FlagValues()
    parse(["train", f"--config={path}", *given], flag_values, path)
    task = flag_values["config"].value.task
    for name, (_, value) in values.items():
        assert field_value(task, name) == value
    default = load_config(path).task
    # The others are unset, so they leave results of an older version as they are.
    given_by_default = "name path verifier prompt chat system max_response_length"
    assert set(flattened(default.to_dict())) == set(given_by_default.split())


def test_gsm8k_itself(folder, data):
    """All of its problems are read, and each one's own answer is right by the verifier `number`."""
    file = data / "gsm8k" / "test.jsonl"
    if not file.exists():
        pytest.skip(f"no {file}")
    fields = dict(name="jsonl", path=str(file), verifier="number", max_response_length=8)
    task = make_task(fields, str(folder))
    assert isinstance(task, PromptedTask)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert task.num_prompts == len(lines) == 1319
    for line, reference in zip(lines, task._references, strict=True):
        assert task.verify(line["answer"], reference) == 1.0
        assert task.verify("I do not know", reference) == 0.0
