"""Runs that sample by top-p and top-k: neutral values, the ratio at lag 0, and other programs."""

import dataclasses

import jax
import numpy as np
import pytest

from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FieldError
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.sampler import sample
from staleness_grpo.runtime.records import plain
from staleness_grpo.sweeps import program as cell_program
from staleness_grpo.tasks import make_task
from staleness_grpo.training.loop import train
from staleness_grpo.training.programs import make_programs
from staleness_grpo.types import Rollout
from tests.helpers.tiny import decoder_config, tiny_config

NEUTRAL = {
    "sampler.top_p": 1.0,
    "sampler.top_k": 5,  # the task has 5 tokens
    "sampler.task_tokens_only": True,
    "sampler.learner_distribution": "full",
}
TRUNCATED = {"sampler.top_p": 0.8, "sampler.top_k": 4}
FULL = {**TRUNCATED, "sampler.learner_distribution": "full"}


def records_of(config):
    records = [plain(record) for record in train(build_run(config))]
    for record in records:
        del record["time_step"]
    return records


def parts_of(config):
    """Returns the programs of a config, parameters, and one rollout batch of theirs."""
    programs = make_programs(config, make_task(config.task, config.policy.checkpoint))
    slots = np.arange(config.num_prompts, dtype=np.int32)
    params = jax.jit(programs.policy.init)(jax.random.key(0))
    batch = (programs.task.prompts(slots), jax.random.key(1), slots * 0, slots)
    responses = programs.sample(params, *batch, config.group_size)
    rewards = np.random.default_rng(0).normal(size=responses.mask_NxGxR.shape[:2])
    rewards = rewards.astype(np.float32)
    return programs, params, batch, Rollout(batch[0], responses, rewards, slots * 0)


@pytest.mark.slow
def test_neutral_values_leave_records_as_they_are():
    extra = {"lag.max_lag": 2, "reference.kl": 0.1, "eval_every": 3, "metrics.paired_every": 3}
    unset, neutral = tiny_config(**extra), tiny_config(**extra, **NEUTRAL)
    assert records_of(unset) == records_of(neutral)


def test_neutral_values_leave_the_programs_as_they_are():
    texts = []
    for overrides in ({}, NEUTRAL, TRUNCATED):
        programs, params, batch, rollout = parts_of(tiny_config(**overrides))
        arguments, limits = programs.sampling(params, *batch, 4)
        sampling = sample.lower(*arguments, **limits).as_text()
        update = jax.jit(jax.grad(lambda p, r, loss=programs.loss: loss(p, r)[0]))
        texts.append((sampling, update.lower(params, rollout).as_text()))
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[2][0] and texts[0][1] != texts[2][1]


def test_at_lag_0_the_ratio_is_1_with_the_same_truncation_and_less_with_the_full_distribution():
    for overrides, is_one in ((TRUNCATED, True), (FULL, False)):
        programs, params, _, rollout = parts_of(tiny_config(**overrides))
        diagnostics = jax.jit(programs.loss)(params, rollout)[1]
        # Float32 logits of one position and of many.
        assert (abs(diagnostics["approx_kl"]) < 1e-9) == is_one
        assert (abs(diagnostics["ratio_q01"] - 1) < 1e-5) == is_one
        assert diagnostics["ratio_q01"] > 0.7 and diagnostics["ratio_max"] < 1 + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [TRUNCATED, FULL])
def test_the_sweeps_program_is_the_loop(overrides):
    config = tiny_config(**overrides, **{"lag.max_lag": 2, "eval_every": 3})
    records = list(train(build_run(config)))
    program = cell_program.make_cell_program(config, max_lag=2, freeze_after=100)
    traces = jax.device_get(jax.jit(program)(cell_program.cell_inputs(config)))
    for name in ("grad_norm", "param_norm", "entropy", "reward"):
        found = [record[name] for record in records]
        # Float32 sums in another order.
        np.testing.assert_allclose(traces[name], found, rtol=2e-4, err_msg=name)


@pytest.mark.parametrize("overrides", [TRUNCATED, FULL])
def test_paired_gradients_are_the_same_at_lag_0_and_differ_under_lag(overrides):
    config = tiny_config(**overrides, **{"metrics.paired_every": 1})
    programs, params, batch, rollout = parts_of(config)
    gram = np.asarray(programs.paired_gram(params, rollout, rollout))
    assert not np.any(gram[0]) and np.any(gram[1])
    other = jax.tree.map(lambda leaf: 1.5 * leaf, params)
    stale = dataclasses.replace(rollout, responses=programs.sample(other, *batch, 4))
    assert np.any(np.asarray(programs.paired_gram(params, stale, rollout))[0])


def test_a_run_under_lag_stays_finite_and_microbatches_change_nothing():
    """Behavior tokens leave the learner's own kept set here: their ratio is finite all the same."""
    fields = {"lag.max_lag": 3, "sampler.top_k": 2, "steps": 8, "optimizer.learning_rate": 0.1}
    whole = records_of(tiny_config(**fields))
    assert all(np.isfinite(record["loss"]) and record["entropy"] <= np.log(2) for record in whole)
    parts = records_of(tiny_config(**fields, microbatch_prompts=2))
    np.testing.assert_allclose(
        [record["loss"] for record in parts[:4]],
        [record["loss"] for record in whole[:4]],
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.slow
def test_tokens_that_only_pad_the_models_vocabulary_are_never_sampled(tmp_path):
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    from tests.helpers import byte_model

    byte_model.write(tmp_path / "narrow")
    policy, _ = huggingface.load(tmp_path / "narrow")
    wide = dataclasses.replace(policy, config=dataclasses.replace(policy.config, vocab_size=1024))
    params = jax.jit(wide.init)(jax.random.key(0))
    huggingface.save(tmp_path / "wide", wide, params, source=tmp_path / "narrow")
    largest = []
    for only in (False, True):
        config = byte_model.text_config(tmp_path / "wide")
        config.sampler.task_tokens_only = only
        validation.validate(config, 1)
        programs, params, _, rollout = parts_of(config)
        known, tokens = programs.task.vocab_size, np.asarray(rollout.responses.tokens_NxGxR)
        assert known < 300
        largest.append(tokens.max())
        assert abs(jax.jit(programs.loss)(params, rollout)[1]["approx_kl"]) < 1e-9
    assert largest[0] > known > largest[1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sampler.top_p", 0.0, r"give a number in \(0, 1\]"),
        ("sampler.top_p", 1.01, r"give a number in \(0, 1\]"),
        ("sampler.top_p", -0.5, r"give a number in \(0, 1\]"),
        ("sampler.top_k", -1, "give a number >= 0"),
        ("sampler.learner_distribution", "half", "choose one of truncated, full"),
    ],
)
def test_bad_values_are_refused(field, value, message):
    with pytest.raises(FieldError, match=f"^{field}={value}: {message}"):
        validation.validate(tiny_config(**{field: value}), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [{"sampler.top_p": 0.9}, {"sampler.top_k": 3}, {"sampler.task_tokens_only": True}]
)
def test_a_vocabulary_in_parts_needs_the_full_distribution(overrides):
    overrides = {**overrides, "policy.vocab_chunks": 5}
    with pytest.raises(FieldError, match="^policy.vocab_chunks=5: .*learner_distribution=full$"):
        validation.validate(decoder_config(**overrides), 1)
    full = decoder_config(**overrides, **{"sampler.learner_distribution": "full"})
    validation.validate(full, 1)
    whole = decoder_config(
        **{**overrides, "policy.vocab_chunks": 1}, **{"sampler.learner_distribution": "full"}
    )
    for ours, expected in zip(records_of(full)[:2], records_of(whole)[:2], strict=True):
        np.testing.assert_allclose(ours["loss"], expected["loss"], rtol=1e-3, atol=1e-5)
