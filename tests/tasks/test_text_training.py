"""Trainings on tasks of text: their rewards, their records, and what a resumed one needs."""

import json
import shutil
import threading

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.common.contents import check_same, fingerprints
from experiments.common.workdir import write_run_files
from experiments.train import measure
from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import plain
from staleness_grpo.training.checkpoint import Checkpoints
from staleness_grpo.training.loop import train
from staleness_grpo.training.rewards import FAILED, JUDGED

pytest.importorskip("tokenizers", reason="the extra hf is not installed")
from staleness_grpo.tasks import make_task, stories  # noqa: E402
from tests.helpers.byte_model import problems_file, text_config  # noqa: E402
from tests.helpers.judging import even as even_length  # noqa: E402
from tests.helpers.pages import described_fields  # noqa: E402


def test_a_run_goes_on_only_with_its_own_problems(folder, tmp_path, monkeypatch):
    """The same flags may name another file or tokenizer when a run is resumed."""
    shutil.copytree(folder, tmp_path / "copy")
    lines = [{"prompt": prompt, "answer": "2"} for prompt in ("1+1?", "4/2?")]
    config = text_config(tmp_path / "copy")
    config.task = ConfigDict(dict(name="jsonl", verifier="number", max_response_length=6))
    config.task.path = str(problems_file(tmp_path, *lines))

    def broken_off(*args):
        raise StopIteration

    monkeypatch.setattr(measure, "resume", broken_off)
    for _ in range(2):
        with pytest.raises(StopIteration):
            measure.measure(config, tmp_path / "out")
    record = (tmp_path / "out" / "environment.json").read_bytes()
    for changed in ([lines[1], lines[0]], lines[:1], [lines[0], lines[1] | {"answer": "3"}]):
        problems_file(tmp_path, *changed)
        with pytest.raises(
            FieldError,
            match="^task.path=.*jsonl: the results in .*out were made with other problems",
        ):
            measure.measure(config, tmp_path / "out")
    problems_file(tmp_path, *lines)
    (tmp_path / "copy" / "generation_config.json").write_text('{"eos_token_id": 7}')
    with pytest.raises(FieldError, match="or with other tokens"):
        measure.measure(config, tmp_path / "out")
    assert (tmp_path / "out" / "environment.json").read_bytes() == record
    (tmp_path / "out" / "environment.json").write_text("{")
    with pytest.raises(FlagError, match="^--workdir=.*environment.json cannot be read"):
        measure.measure(config, tmp_path / "out")


def test_held_out_problems_and_weights_of_the_reference_must_stay(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "copy")
    config = text_config(tmp_path / "copy")
    config.task = ConfigDict(dict(name="jsonl", verifier="number", max_response_length=6))
    config.task.path = str(problems_file(tmp_path, {"prompt": "1+1?", "answer": "2"}))
    (tmp_path / "other").mkdir()
    other = problems_file(tmp_path / "other", {"prompt": "2+2?", "answer": "4"})
    config.heldout.update(dict(path=str(other), every=2))
    config.reference.kl = 0.1
    contents = fingerprints(config, make_task(config.task, config.policy.checkpoint))
    assert set(contents) == {"problems", "held_out_problems", "reference_weights"}
    write_run_files(tmp_path / "out", config, contents)

    def refused(field):
        with pytest.raises(FieldError) as error:
            measure.measure(config, tmp_path / "out")
        assert error.value.field == field and "restore the original" in error.value.hint

    with pytest.raises(FieldError, match="^heldout.path=.* other held-out problems"):
        check_same(tmp_path / "out", config, {"problems": contents["problems"]})  # none now
    problems_file(tmp_path / "other", {"prompt": "2+2?", "answer": "5"})
    refused("heldout.path")
    problems_file(tmp_path / "other", {"prompt": "2+2?", "answer": "4"})
    weights = tmp_path / "copy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # the last byte of the last tensor
    weights.write_bytes(content)
    refused("policy.checkpoint")
    config.reference.checkpoint = str(tmp_path / "copy")
    refused("reference.checkpoint")
    config.reference.update(dict(kl=0.0, checkpoint=None))  # then no weights are read again
    assert "reference_weights" not in fingerprints(
        config, make_task(config.task, config.policy.checkpoint)
    )


def run_of(folder, monkeypatch, **fields):
    """Builds a training on random bytes judged by `even_length`."""
    monkeypatch.setitem(stories.STORY_RULES, "dialogue", (even_length, None))
    config = text_config(folder)
    config.update_from_flattened_dict(fields)
    return build_run(config), config


def test_a_training_counts_the_rewards_that_failed(folder, monkeypatch):
    run, config = run_of(folder, monkeypatch, **{"lag.max_lag": 2, "metrics.paired_every": 5})
    batches, update = [], run.update

    def recording_update(state, batch):
        batches.append(jax.device_get(batch))
        return update(state, batch)

    run.update = recording_update
    try:
        records = [json.loads(json.dumps(plain(record))) for record in train(run)]
    finally:
        run.close()
    total = 0
    for record, batch in zip(records, batches, strict=True):
        texts, _ = run.generator.task.samples(
            batch.prompts.index_N, batch.responses.tokens_NxGxR, batch.responses.mask_NxGxR
        )
        failed = np.array(["e" in response for response in texts]).reshape(4, 4)
        np.testing.assert_array_equal(batch.reward_outcome_NxG, np.where(failed, FAILED, JUDGED))
        even = np.array([len(response) % 2 == 0 for response in texts]).reshape(4, 4)
        np.testing.assert_array_equal(batch.rewards_NxG, (even & ~failed).astype(np.float32))
        assert (record["reward_errors"], record["reward_timeouts"]) == (failed.sum(), 0)
        total += record["reward_errors"]
    assert total > 0
    # At step 0 nothing is stale, so the fresh answers of the comparison are the same ones.
    assert records[0]["paired_reward_failures"] == records[0]["reward_errors"]
    assert ["paired_reward_failures" in record for record in records] == [
        step % 5 == 0 for step in range(8)
    ]
    assert "eval_reward_failures" in records[4] and records[4]["lag_max"] == 2
    assert set(records[0]) <= described_fields("metrics.jsonl of `experiments.train`")


class Held:
    """A Judging whose rewards are held back until the gate opens."""

    def __init__(self, judging, gate):
        self.judging, self.gate, self.waited_for = judging, gate, False

    def done(self):
        return self.gate.is_set() and self.judging.done()

    def result(self):
        self.waited_for = True
        return self.judging.result()


def test_the_loop_waits_for_a_reward_only_at_its_own_step(folder, monkeypatch):
    """With lag 3, the rewards of rollouts from step t are waited for at step t + 3, not earlier."""
    run, config = run_of(folder, monkeypatch, **{"lag.max_lag": 3, "eval_every": 0})
    gate, held, pool = threading.Event(), [], run.generator.reward_pool
    submit = pool.submit

    def held_submit(*samples):
        held.append(Held(submit(*samples), gate))
        return held[-1]

    monkeypatch.setattr(pool, "submit", held_submit)
    waiting = []
    try:
        for _ in train(run):
            waiting.append([not judging.waited_for for judging in held])
    finally:
        run.close()
    # A record comes a step late. With that of step t, step t + 1 has been learned from, and step
    # t + 4 has been generated.
    for step, still_waiting in enumerate(waiting[:-1]):
        assert still_waiting == [False] * (step + 2) + [True] * min(3, 6 - step)
    assert run.buffer.num_unread == 0 and not run.unjudged


@pytest.mark.slow
def test_a_checkpoint_holds_the_rewards_that_were_still_judged(folder, monkeypatch, tmp_path):
    """An interrupted and resumed run has the records of a whole one, its failures included."""
    fields = {"lag.max_lag": 3, "checkpoint.save_every": 4}
    run, config = run_of(folder, monkeypatch, **fields)
    try:
        whole = [plain(record) for record in train(run, Checkpoints(tmp_path / "a", config))]
    finally:
        run.close()
    first, _ = run_of(folder, monkeypatch, **fields)
    checkpoints = Checkpoints(tmp_path / "b", config)
    loop = train(first, checkpoints)
    try:
        for _ in range(5):  # the save before step 4 comes with the record of step 3
            next(loop)
        checkpoints.wait()
    finally:
        first.close()
    again, _ = run_of(folder, monkeypatch, **fields)
    again_checkpoints = Checkpoints(tmp_path / "b", config)
    again_checkpoints.restore(again, lambda reason, hint: AssertionError(f"{reason}: {hint}"))
    assert again.step == 4 and again.buffer.num_unread == 12
    try:
        rest = [plain(record) for record in train(again, again_checkpoints)]
    finally:
        again.close()
    for record in (*whole, *rest):
        del record["time_step"]
    assert rest == whole[4:]
    assert sum(record["reward_errors"] for record in rest) > 0
