"""Experiments beside training and sweep take a task or a policy of one's own by a flag."""

import pathlib
import shutil
import sys

import pytest

from experiments.common import claims as common_claims
from experiments.common import cli
from experiments.corrections import stability
from experiments.corrections.validation import validate
from experiments.paired_bias import __main__ as paired_bias
from experiments.paired_bias import grid as paired_grid
from experiments.sweep import grid as sweep_grid
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import read_json, read_jsonl
from staleness_grpo.tasks import make_task
from tests.helpers import bigram
from tests.helpers.given import given

EXAMPLES = cli.ROOT / "docs" / "examples"
SHORT = (
    *("steps=12", "num_prompts=4", "group_size=8", "eval_every=6", "warm_start.steps=0"),
    *("metrics.paired_every=2", "metrics.paired_blocks=0"),
    *("paired.max_lags=(0,4)", "paired.learning_rates=(0.05,)"),
)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Returns a function that copies an example out of the repository and gives the path."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def copied(name: str) -> pathlib.Path:
        # Two files of one name cannot be imported, so each test has a name of its own.
        path = tmp_path / f"{name}_{tmp_path.name}.py"
        shutil.copyfile(EXAMPLES / f"{name}.py", path)
        return path

    return copied


def compared(config, workdir):
    """Runs the paired bias as its command does; returns its cells at lag 0 and 4."""
    paired_grid.validate(config)
    cli.complete(paired_bias.main, paired_bias.draw, config, workdir)
    cells = read_jsonl(workdir / "cells.jsonl")
    assert [cell["max_lag"] for cell in cells] == [0, 4]
    assert (workdir / "paired_bias.png").stat().st_size > 0
    claims = {
        claim.name: claim for claim in common_claims.read(read_json(workdir / "summary.json"))
    }
    assert claims["bias_at_lag_0"].holds
    return cells


def assert_only_the_stale_one_is_biased(synchronous, stale):
    """Asserts that the bias is exactly 0 at lag 0, and a number above 0 at lag 4."""
    # A comparison of two gradients that are 0 has no relative bias. So 0 is that of learning ones.
    assert synchronous["relative_bias"] == synchronous["bias_norm"] == 0
    # The upper bound of the relative one is open if a resample has no gradient that is not noise.
    assert synchronous["bias_norm_interval"] == [0, 0] and stale["relative_bias"] is not None
    assert (synchronous["num_comparisons"], stale["num_comparisons"]) == (6, 4)
    assert stale["first_step"] == 4 and stale["bias_norm_interval"][1] > 0
    for cell in (synchronous, stale):
        assert cell["num_not_finite"] == cell["num_reward_failures"] == 0
        assert cell["collapsed"] is False and 0 <= cell["final_eval_reward"] <= 1


def test_the_paired_bias_of_a_task_of_ones_own(example, tmp_path):
    name = f"{example('parity')}:Parity"
    task = (f"task.name={name}", "task.num_bits=3")
    config = given(*task, *SHORT, f"policy.name={bigram.NAME}", config="paired_bias")
    cells = compared(config, tmp_path / "bias")
    assert_only_the_stale_one_is_biased(*cells)
    # Each token is right for half of the prompts, whatever the policy: chance is 1/2.
    assert all(reward > 0.2 for cell in cells for reward in cell["eval_rewards"])
    for folder in (tmp_path / "bias", tmp_path / "bias" / "S4-eta0.05"):
        assert read_json(folder / "config.json")["task"] == {"name": name, "num_bits": 3}


def test_the_paired_bias_of_a_policy_of_ones_own(example, tmp_path):
    name = f"{example('gru')}:GRU"
    task = (
        *("task.name=enumerable", "task.vocab_size=5", "task.max_response_length=3"),
        "task.num_prompts=8",
    )
    own = (f"policy.name={name}", "policy.arguments.width=8")
    config = given(*task, *own, *SHORT, config="paired_bias")
    assert_only_the_stale_one_is_biased(*compared(config, tmp_path / "bias"))
    for folder in (tmp_path / "bias", tmp_path / "bias" / "S4-eta0.05"):
        saved = read_json(folder / "config.json")["policy"]
        assert (saved["name"], saved["arguments"]["width"]) == (name, 8)
        assert len(read_json(folder / "environment.json")["policy"]) > 8  # a digest of its code


def test_a_comparison_needs_the_warm_start_off_for_a_task_without_a_corpus(example):
    name = f"task.name={example('parity')}:Parity"
    config = given(name, *SHORT, "warm_start.steps=20", config="paired_bias")
    with pytest.raises(FieldError, match=r"^warm_start.steps=20: .*0"):
        paired_grid.validate(config)


def test_corrections_are_trained_on_a_task_of_ones_own(example):
    name = f"{example('parity')}:Parity"
    task = (f"stability.task.name={name}", "stability.task.num_bits=5")
    trained = ("stability.warm_start.steps=0", "trained=('grpo_clip','token_tis')")
    config = given(*task, *trained, config="corrections")
    validate(config)
    sweeps = stability.sweep_configs(config)
    assert len(sweeps) == len(config.trained) + len(config.trained_update_rules)
    for sweep in sweeps.values():
        for cell in sweep_grid.cells(sweep).values():
            assert cell.task.to_dict() == {"name": name, "num_bits": 5}
    task = make_task(cell.task)
    assert type(task).__name__ == "Parity" and task.num_prompts == 2**5
    # The exact part keeps its own task, whose responses it enumerates.
    assert config.task.name == "enumerable"


def test_corrections_refuse_what_such_a_task_cannot_have(example):
    name = f"stability.task.name={example('parity')}:Parity"
    with pytest.raises(FieldError, match=r"^stability.warm_start.steps=\d+: .*0"):
        validate(given(name, config="corrections"))
    with pytest.raises(FlagError, match=r"^--config.stability.task.name=.*has no Parities: did"):
        given(f"{name[: -len('Parity')]}Parities", config="corrections")
    with pytest.raises(FlagError, match=r"^--config.stability.task.num_bit=3: unknown field num_b"):
        given(name, "stability.task.num_bit=3", config="corrections")


@pytest.mark.slow
def test_cells_of_corrections_are_trained_on_it_in_worker_processes(example, tmp_path):
    config = given(
        f"stability.task.name={example('parity')}:Parity",
        *("stability.warm_start.steps=0", f"stability.policy.name={bigram.NAME}"),
        *("stability.steps=10", "stability.eval_every=5", "stability.num_prompts=4"),
        *("stability.group_size=4", "stability.sweep.horizons=(10,)", "stability.sweep.seeds=(0,)"),
        *("stability.sweep.max_lags=(2,)", "stability.sweep.learning_rates=(0.05,)"),
        *("stability.sweep.num_workers=1", "trained=('grpo_clip',)"),
        "trained_update_rules=('gac',)",
        config="corrections",
    )
    validate(config)
    cells = stability.train_cells(config, tmp_path / "cells.jsonl")
    assert [cell["method"] for cell in cells] == ["grpo_clip", "gac"]
    for cell in cells:
        assert cell["finite"] and cell["steps_run"] == 10 and cell["reward_errors"] == 0
        assert 0.2 < cell["first"] < 0.8  # chance is 1/2
