"""Samples are what was trained on, with the log-ratio of the learner's policy at that step."""

import contextlib
import functools
import json

import jax
import numpy as np
import pytest

from staleness_grpo.config.build import build_run
from staleness_grpo.policy.logprobs import response_logprobs
from staleness_grpo.runtime.records import plain
from staleness_grpo.training.loop import train
from tests.helpers.tiny import tiny_config

LAGGING = {"lag.max_lag": 2, "lag.schedule": "uniform"}
SAMPLED = {"metrics.samples_every": 2, "metrics.num_samples": 3}


def seen_by_the_update(run):
    """Trains, and returns (parameters, batch) of every update, and the records."""
    seen, update = [], run.update
    run.update = lambda state, batch: (
        seen.append(jax.device_get((state.params, batch))),
        update(state, batch),
    )[1]
    return seen, list(train(run))


@pytest.mark.parametrize("microbatch_prompts", [0, 2])
def test_samples_are_the_first_groups_of_the_batch_under_the_policy_before_the_update(
    microbatch_prompts,
):
    run = build_run(tiny_config(**LAGGING, **SAMPLED, microbatch_prompts=microbatch_prompts))
    seen, records = seen_by_the_update(run)
    assert [record["step"] for record in records if "samples" in record] == [0, 2, 4]
    largest = 0.0
    score = jax.jit(functools.partial(response_logprobs, run.programs.policy))
    for record in records[::2]:
        step = record["step"]
        params, batch = seen[step]
        responses = batch.responses
        logprobs, _ = score(
            params,
            batch.prompts,
            responses.tokens_NxGxR,
            responses.mask_NxGxR,
            1.0,
        )
        assert len(record["samples"]) == 3
        for slot, sample in enumerate(map(plain, record["samples"])):
            assert (sample["step"], sample["slot"]) == (step, slot)
            assert sample["lag"] == step - batch.behavior_version_N[slot]
            assert sample["prompt_index"] == batch.prompts.index_N[slot]
            assert sample["rewards"] == batch.rewards_NxG[slot].tolist()
            for g, text in enumerate(sample["responses"]):
                mask = responses.mask_NxGxR[slot, g]
                assert [int(word) for word in text.split()] == (
                    responses.tokens_NxGxR[slot, g][mask].tolist()
                )
                log_ratio = (logprobs - responses.behavior_logprobs_NxGxR)[slot, g][mask]
                assert sample["lengths"][g] == mask.sum()
                # Float32 sums in another order.
                assert sample["log_ratio_sum"][g] == pytest.approx(float(log_ratio.sum()), abs=2e-6)
                assert sample["log_ratio_mean"][g] == pytest.approx(
                    float(log_ratio.mean()), abs=2e-6
                )
                largest = max(largest, abs(sample["log_ratio_sum"][g]))
    assert largest > 0.01  # the learner did move away from the behavior policy


def test_without_lag_the_ratio_is_one():
    records = list(train(build_run(tiny_config(**SAMPLED, steps=3))))
    for record in records[::2]:
        for sample in record["samples"]:
            assert sample["lag"] == 0
            # Sampler and learner sum in another order, in float32.
            np.testing.assert_allclose(sample["log_ratio_sum"], 0, atol=1e-5)


def test_records_are_those_of_a_run_without_samples():
    def lines(**overrides):
        for record in train(build_run(tiny_config(**LAGGING, **overrides))):
            record.pop("samples", None)
            del record["time_step"]
            yield json.dumps(plain(record))

    assert list(lines(**SAMPLED)) == list(lines())


def test_responses_of_text_are_those_that_the_verifier_reads(tmp_path):
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    from tests.helpers import byte_model

    byte_model.write(tmp_path)
    config = byte_model.text_config(tmp_path)
    config.update(dict(steps=1, eval_every=0))
    config.metrics.samples_every = 1
    with contextlib.closing(build_run(config)) as run:
        seen, (record,) = seen_by_the_update(run)
    ((_, batch),) = seen
    arrays = batch.prompts.index_N, batch.responses.tokens_NxGxR, batch.responses.mask_NxGxR
    texts, _ = run.programs.task.samples(*arrays)
    assert [text for sample in record["samples"] for text in sample["responses"]] == texts[:8]
    assert all(sample["prompt"] for sample in record["samples"])
