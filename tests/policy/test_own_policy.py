"""A class of one's own is a policy by a flag: trained, resumed, swept and measured exactly."""

import dataclasses
import importlib.util
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.flag_parsing import parse
from experiments.sweep import __main__ as sweep
from experiments.sweep import grid
from experiments.train import __main__ as train
from staleness_grpo.bias.enumeration import Problem
from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.policy import own
from staleness_grpo.runtime.records import read_json, read_jsonl
from staleness_grpo.tasks.enumerable import EnumerableTask
from staleness_grpo.training.checkpoint import config_hash
from staleness_grpo.training.loop import train as records_of
from tests.bias import problems
from tests.helpers.tiny import decoder_config

EXAMPLE = cli.ROOT / "docs" / "examples" / "gru.py"
SHAPE = ("num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")
CONFIGS = cli.ROOT / "experiments" / "configs"
TINY = ("warm_start.steps=0", "num_prompts=4", "group_size=4", "policy.arguments.width=8")
specification = importlib.util.spec_from_file_location("gru_of_the_page", EXAMPLE)
module = importlib.util.module_from_spec(specification)
specification.loader.exec_module(module)
GRU = module.GRU


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Copies the example to a folder outside the repository, and returns the path of the copy."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / f"gru_{tmp_path.name}.py"  # two files of one name cannot be imported
    shutil.copyfile(EXAMPLE, path)
    return path


def given(*overrides, config="small_map"):
    """Returns the config of flags, as a command parses them."""
    words = [f"--config.{override}" for override in overrides]
    flag_values = flags.FlagValues()
    parse(["prog", f"--config={CONFIGS / config}.py", *words], flag_values, CONFIGS / "unused.py")
    return flag_values.config


def trained(path, *overrides):
    task = ("task.name=enumerable", "task.vocab_size=5", "task.max_response_length=3")
    own_policy = (f"policy.name={path}:GRU", *TINY)
    return given(*own_policy, *task, "task.num_prompts=8", *overrides, config="arithmetic")


def test_the_page_shows_the_example_as_it_is_and_it_is_short():
    text = EXAMPLE.read_text()
    assert f"```python\n{text}```" in (cli.ROOT / "docs" / "own_policy.md").read_text()
    assert len(text.splitlines()) <= 60


def test_it_is_trained_and_resumes_with_the_same_code_only(path, tmp_path):
    length = ("steps=6", "eval_every=3", "lag.max_lag=2", "checkpoint.save_every=2")
    config, whole, broken = trained(path, *length), tmp_path / "whole", tmp_path / "broken"
    validation.validate(config, 1)
    cli.complete(train.main, train.draw, config, whole)
    saved = read_json(whole / "config.json")["policy"]
    assert (saved["name"], saved["arguments"]) == (f"{path}:GRU", {"width": 8, "dtype": "float32"})
    records = read_jsonl(whole / "metrics.jsonl")
    assert records[-1]["drift_from_start"] > 0
    # The last steps are run again from the checkpoint before step 4, and give the same.
    shutil.copytree(whole, broken)
    (broken / "summary.json").unlink()
    shutil.rmtree(broken / "checkpoints" / "step_00000006")
    cli.complete(train.main, train.draw, config, broken)
    again = read_jsonl(broken / "metrics.jsonl")
    assert [r["reward"] for r in again] == [r["reward"] for r in records]
    assert [r["grad_norm"] for r in again] == [r["grad_norm"] for r in records]
    before = config_hash(config)
    path.write_text(path.read_text().replace("jnp.tanh", "jnp.sin"))
    assert config_hash(config) != before  # so a checkpoint refuses it too
    (broken / "summary.json").unlink()
    with pytest.raises(FieldError, match=r"^policy.name=.*made by other code of the policy: rest"):
        cli.complete(train.main, train.draw, config, broken)


def test_without_lag_the_ratio_is_one(path):
    *_, record = records_of(build_run(trained(path, "steps=3", "eval_every=0")))
    # The sampler and the loss sum in another order, so the ratio is 1 up to float32.
    assert record["log_ratio_second_moment"] < 1e-10


def test_it_learns(path):
    config = trained(path, "steps=60", "eval_every=0", "optimizer.learning_rate=0.05")
    rewards = [record["reward"] for record in records_of(build_run(config))]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.2


@pytest.mark.slow
def test_it_is_swept_in_worker_processes(path, tmp_path):
    swept = ("sweep.max_lags=(0,2)", "sweep.learning_rates=(1e-2,1e-1)", "sweep.seeds=(0,)")
    length = ("steps=10", "eval_every=5", "sweep.horizons=(10,)", "sweep.num_workers=1")
    config = given(f"policy.name={path}:GRU", *TINY, *swept, *length)
    grid.validate(config)
    cli.complete(sweep.main, sweep.draw, config, tmp_path / "map")
    cells = read_jsonl(tmp_path / "map" / "cells.jsonl")
    assert len(cells) == 4 and all(cell["steps_run"] == 10 for cell in cells)
    assert "policy" in read_json(tmp_path / "map" / "environment.json")


def test_its_bias_is_exact_and_grows_with_the_lag():
    with jax.enable_x64(True):
        task = EnumerableTask(vocab_size=3, max_response_length=2, num_prompts=2)
        policy = GRU(3, width=4, dtype="float64")
        problem = Problem.from_task(policy.apply, task, 3)
        params, _ = problems.fresh_and_stale(policy, 0.0)
        # Without sharing of prefixes, the policy runs on every whole response.
        np.testing.assert_allclose(
            problems.logprobs(problem, params),
            problems.full_sequence_logprobs(policy, task, params),
            atol=1e-12,
        )
        norms = []
        for scale in (0.0, 0.01, 0.1):
            _, stale = problems.fresh_and_stale(policy, scale)
            bias = problems.surrogate_bias(problem, params, stale, problems.OBJECTIVE)
            norms.append(float(jnp.linalg.norm(problems.flatten(bias))))
        assert norms[0] < 1e-14 and norms[0] < norms[1] < norms[2]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("policy.attention=splash", "^policy.attention=splash: only the decoder reads it"),
        ("policy.checkpoint=folder", "^policy.checkpoint=folder: only the decoder reads it"),
        ("policy.d_model=64", "^policy.d_model=64: only the decoder reads it"),
        ("save_policy=True", "^save_policy=True: a policy of one's own has no model folder"),
        ("policy.arguments.width=-1", r"^policy.name=.*its parameter \['loop'\] .* complex64"),
        (
            "policy.arguments.dtype=bfloat16",
            r"its parameter \['loop'\] has the type bfloat16: give",
        ),
        ("policy.arguments.dtype=float64", "its dtype is float64: set JAX_ENABLE_X64=1"),
    ],
)
def test_what_it_cannot_have_is_refused_in_one_line(path, flag, message):
    with pytest.raises(FieldError, match=message) as caught:
        validation.validate(trained(path, flag), 1)
    assert "\n" not in str(caught.value)


def test_the_reference_policy_is_that_of_the_start_only(path):
    config = trained(path, "reference.kl=0.1", "steps=2", "eval_every=0")
    *_, record = records_of(build_run(config))
    assert np.isfinite(record["loss"])
    config.reference.checkpoint = "folder"
    with pytest.raises(FieldError, match="^reference.checkpoint=folder: a policy of one's own has"):
        validation.validate(config, 1)


def test_names_and_arguments_that_lead_nowhere_are_one_line(path):
    with pytest.raises(FlagError, match=r"^--config.policy.name=.*has no GRUU: did you mean GRU"):
        given(f"policy.name={path}:GRUU")
    with pytest.raises(FlagError, match="name a class of your own as package.module:Class"):
        given("policy.name=gru")
    with pytest.raises(FlagError, match="constructor has no argument vocab_size"):
        given("policy.name=fractions:Fraction")
    with pytest.raises(FlagError, match="unknown field widht: did you mean width"):
        given(f"policy.name={path}:GRU", "policy.arguments.widht=3")
    config = decoder_config()
    with config.unlocked():
        config.policy.arguments.width = 3
    with pytest.raises(FieldError, match=r"^policy.arguments.width=3: .*set policy.name"):
        validation.validate(config, 1)
    config.policy.name = f"{path}:GRU"
    config.policy.arguments = ConfigDict(dict(wide=3))
    config.policy.update({name: default_config().policy[name] for name in SHAPE})
    hint = r"^policy.name=.*GRU: it has no argument wide: its arguments are width, dtype$"
    with pytest.raises(FieldError, match=hint):
        validation.validate(config, 1)
    config.policy.arguments = ConfigDict(dict(width=3))
    validation.validate(config, 1)


def test_what_a_class_lacks_or_does_wrong_is_named():
    class Lacks:
        dtype = "float32"
        init = apply = prefill = empty_cache = unembed = GRU.init

    with pytest.raises(FieldError, match="^name=Lacks: this class lacks decode, response_hidden"):
        own.check_interface(Lacks())

    class ReadsThePadding(GRU):
        def prefill(self, params, tokens, mask):
            return super().prefill(params, tokens, jnp.ones_like(mask))

    class KeepsTheFirstState(GRU):
        def decode(self, params, tokens, index, cache, prefix, prefix_mask):
            return super().decode(params, tokens, 0, cache, prefix, prefix_mask)

    class GivesLogits(GRU):
        def unembed(self, params, hidden):
            return super().unembed(params, hidden)[..., :2]

    class SplitBadly(GRU):
        def init(self, key):
            return super().init(key) | {"embedding": jnp.zeros(3)}

    @dataclasses.dataclass
    class Changes(GRU.__bases__[0]):
        dtype: str = "float32"
        init = apply = prefill = empty_cache = decode = response_hidden = unembed = GRU.init

    for kind, message in (
        (ReadsThePadding, "its response_hidden and its apply give logits that differ"),
        (KeepsTheFirstState, "its response_hidden and its prefill and decode give logits"),
        (GivesLogits, r"its apply gives the shape \(2, 4, 2\): give \(2, 4, 5\)"),
        (SplitBadly, "its parameter embedding has 1 axes"),
    ):
        with pytest.raises(FieldError, match=f"^name={kind.__name__}: {message}"):
            own.check_interface(kind(5, width=4))
    with pytest.raises(FieldError, match="^name=Changes: it cannot be hashed .*frozen=True"):
        own.check_interface(Changes())


def test_the_config_hash_of_a_run_with_the_decoder_is_as_it_was():
    config = decoder_config()
    before = config_hash(config)
    with config.unlocked():
        del config.policy.name, config.policy.arguments
    assert config_hash(config) == before
