"""Trainings whose reward is a weighted sum: their records, also after an interruption."""

import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.flag_parsing import load_config
from staleness_grpo.config.build import build_run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.runtime.records import plain
from staleness_grpo.training.checkpoint import Checkpoints, config_hash
from staleness_grpo.training.loop import train

pytest.importorskip("tokenizers", reason="the extra hf is not installed")
from staleness_grpo.tasks import stories  # noqa: E402
from staleness_grpo.tasks.components import WeightedSum  # noqa: E402
from tests.helpers.byte_model import problems_file, text_config  # noqa: E402
from tests.helpers.judging import even, length  # noqa: E402

WEIGHTS = {"even": 1.0, "length": -0.25}


def run_of(folder, monkeypatch, verify, **fields):
    """Builds a training on random bytes with this verifier."""
    monkeypatch.setitem(stories.STORY_RULES, "dialogue", (verify, None))
    config = text_config(folder)
    config.update_from_flattened_dict({"lag.max_lag": 3, "checkpoint.save_every": 4} | fields)
    return build_run(config), config


def weighted():
    return WeightedSum({"even": even, "length": length}, WEIGHTS)


def recorded(records):
    """Returns records as JSON has them, without times."""
    return [{k: v for k, v in plain(record).items() if k != "time_step"} for record in records]


@pytest.mark.slow
def test_each_component_is_recorded_as_its_mean_over_the_batch(folder, monkeypatch):
    run, _ = run_of(folder, monkeypatch, weighted(), **{"metrics.paired_every": 4})
    batches, update = [], run.update

    def recording_update(state, batch):
        batches.append(jax.device_get(batch))
        return update(state, batch)

    run.update = recording_update
    try:
        records = recorded(train(run))
    finally:
        run.close()
    num_failed = 0
    for record, batch in zip(records, batches, strict=True):
        assert batch.reward_components_NxGxO is None  # the devices do not get them
        texts, _ = run.generator.task.samples(
            batch.prompts.index_N, batch.responses.tokens_NxGxR, batch.responses.mask_NxGxR
        )
        # A response whose judging fails counts as 0 in every component.
        judged = [response for response in texts if "e" not in response]
        num_failed += len(texts) - len(judged)
        means = {
            name: sum(verify(response, None) for response in judged) / len(texts)
            for name, verify in (("even", even), ("length", length))
        }
        assert record["reward_even"] == pytest.approx(means["even"], rel=1e-6)  # float32
        assert record["reward_length"] == pytest.approx(means["length"], rel=1e-6)
        expected = sum(WEIGHTS[name] * mean for name, mean in means.items())
        assert record["reward"] == pytest.approx(expected, abs=1e-6)  # a sum of float32
    assert num_failed > 0


@pytest.mark.slow
def test_one_component_alone_trains_like_its_verifier(folder, monkeypatch):
    """Carrying components changes nothing else in a run."""
    both = []
    for verify in (even, WeightedSum({"even": even}, {"even": 1.0})):
        run, _ = run_of(folder, monkeypatch, verify, **{"metrics.paired_every": 4})
        try:
            both.append(recorded(train(run)))
        finally:
            run.close()
    alone, summed = both
    assert not any("reward_even" in record for record in alone)
    means = [record.pop("reward_even") for record in summed]
    assert summed == alone
    assert means == pytest.approx([record["reward"] for record in alone], rel=1e-6)  # float32


@pytest.mark.slow
def test_a_resumed_run_has_the_components_of_groups_in_flight(folder, monkeypatch, tmp_path):
    run, config = run_of(folder, monkeypatch, weighted())
    try:
        whole = recorded(train(run, Checkpoints(tmp_path, config)))
    finally:
        run.close()
    shutil.rmtree(tmp_path / "step_00000008")  # as if the run had been broken off after step 4
    with np.load(tmp_path / "step_00000004" / "buffer_0.npz") as stored:
        components = stored[".reward_components_NxGxO"]
    assert components.shape == (12, 4, 2)  # three steps of four groups of four
    assert np.any(components)
    again, _ = run_of(folder, monkeypatch, weighted())
    again_checkpoints = Checkpoints(tmp_path, config)
    again_checkpoints.restore(again, lambda reason, hint: AssertionError(f"{reason}: {hint}"))
    assert again.step == 4 and again.buffer.num_unread == 12
    try:
        rest = recorded(train(again, again_checkpoints))
    finally:
        again.close()
    assert rest == whole[4:] and all("reward_length" in record for record in rest)


@pytest.mark.slow
def test_a_file_of_problems_is_trained_on_with_all_its_fields(folder, tmp_path):
    messages = [{"role": "user", "content": "1+1?"}]
    path = problems_file(tmp_path, {"asked": messages, "key": {"right": 2}})
    config = text_config(folder)
    config.steps = 2
    config.task = ConfigDict(
        dict(
            name="jsonl",
            path=str(path),
            verifier="number",
            max_response_length=6,
            chat=True,
            max_prompt_length=32,
            prompt_column="asked",
            answer_column="key.right",
            answer_after="=",
            reward_weights=dict(format=0.5, length=0.25, exact=None),
            format_pattern=".*[a-z].*",
            length_range=[0, 6],
        )
    )
    run = build_run(config)
    try:
        records = recorded(train(run))
    finally:
        run.close()
    for record in records:
        parts = [record[f"reward_{name}"] for name in ("number", "format", "length")]
        assert record["reward"] == pytest.approx(np.dot(parts, [1, 0.5, 0.25]), abs=1e-6)
        assert "reward_exact" not in record and record["reward_length"] > 0


def test_unset_fields_leave_the_hash_of_a_config_as_it_was():
    """A run of the shipped config that an older version began goes on."""
    config = load_config(cli.ROOT / "experiments" / "configs" / "gsm8k_llama32_1b.py")
    old = config.copy_and_resolve_references()
    fields = "name path verifier prompt chat system max_response_length".split()
    old.task = ConfigDict({name: config.task[name] for name in fields})
    assert config_hash(config) == config_hash(old) != config_hash(default_config())
