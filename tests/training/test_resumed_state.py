"""A run that was broken off goes on to the same bytes, with every piece of state that it may have.

All pieces are in one config, so that its programs are compiled once. The checkpoint comes between
the two updates of a batch, in the fall of the learning rate and after alarms of the guard.
"""

import jax
import numpy as np
import pytest

from staleness_grpo.config.build import build_run
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.configured import make_policy
from staleness_grpo.runtime.records import plain
from staleness_grpo.tasks import make_task
from staleness_grpo.training.checkpoint import Checkpoints
from staleness_grpo.training.checkpoint_files import by_path
from staleness_grpo.training.loop import train
from tests.helpers.tiny import decoder_config, tiny_config

EVERYTHING = {
    "steps": 10,
    "lag.max_lag": 3,
    "lag.schedule": "uniform",
    "updates_per_batch": 2,
    "correction.name": "decoupled_ppo",
    "eval_every": 4,
    "checkpoint.save_every": 5,
    "optimizer.name": "adamw",
    "optimizer.weight_decay": 0.01,
    "optimizer.learning_rate": 0.1,
    "optimizer.decay": "cosine",
    "optimizer.warmup_steps": 3,
    "reference.kl": 0.1,
    "reference.in_reward": True,
    "entropy_bonus": 0.02,
    "sampler.top_p": 0.8,
    "sampler.learner_distribution": "full",
    "task.num_prompts": 20,
    "heldout.every": 2,
    "heldout.fraction": 0.4,
    "heldout.num_samples": 2,
    "guard.mode": "scale",
    "guard.level": 1e-3,
    "guard.factor": 0.7,
}
BROKEN_OFF = 7  # records before the run is broken off; its checkpoint comes before step 5


def without_times(records):
    """Returns the records as a file has them, without their times."""
    return [{k: v for k, v in plain(r).items() if not k.startswith("time_")} for r in records]


def bytes_of(tree):
    """Returns shape and bytes of every array of a tree, by its path."""
    arrays = by_path(jax.device_get(tree))
    return {path: (np.shape(leaf), np.asarray(leaf).tobytes()) for path, leaf in arrays.items()}


def broken_off(config, folder):
    """Trains a run up to BROKEN_OFF records, and returns a new one, restored from its checkpoint.

    The records before the checkpoint and the new run's checkpoints are returned too.
    """
    first = build_run(config)
    checkpoints = Checkpoints(folder, first.config)
    steps = train(first, checkpoints)
    records = [next(steps) for _ in range(BROKEN_OFF)]
    checkpoints.wait()
    again = build_run(config)
    checkpoints = Checkpoints(folder, again.config)
    checkpoints.restore(again, lambda reason, hint: AssertionError(f"{reason}: {hint}"))
    assert again.step == config.checkpoint.save_every
    return records[: again.step], again, checkpoints


@pytest.fixture(scope="module")
def whole():
    """A run that was never broken off, at its end, and its records."""
    run = build_run(tiny_config(**EVERYTHING))
    return run, list(train(run))


def test_the_config_has_every_piece_of_state_at_work(whole):
    """Each piece changes from step to step, so that a lost one would show."""
    run, records = whole
    rates = [record["learning_rate"] for record in records]
    assert rates[0] < rates[2] and rates[3] > rates[5] > rates[9]  # it rises and falls
    scales = [record["guard_scale"] for record in records]
    assert 1 > scales[4] > scales[9]  # there are alarms on both sides of the checkpoint
    assert abs(records[0]["reference_kl"]) < 1e-6 < 1e-3 < records[5]["reference_kl"]
    heldout = {record["heldout_reward"] for record in records if "heldout_reward" in record}
    assert len(heldout) > 1
    assert len({tuple(record["lag_histogram"]) for record in records}) > 1
    assert run.step == 10 and int(run.state.policy_version) == 10


def test_it_ends_with_the_bytes_of_a_run_that_was_never_broken_off(whole, tmp_path):
    expected, records = whole
    before, run, checkpoints = broken_off(tiny_config(**EVERYTHING), tmp_path)
    # `train` copies the proximal parameters at even steps. Here they are the checkpoint's.
    assert run.step % 2 == 1 and bytes_of(run.proximal_params) != bytes_of(run.state.params)
    assert bytes_of(run.reference_params) == bytes_of(expected.reference_params)
    found = [*before, *train(run, checkpoints)]
    assert without_times(found) == without_times(records)
    assert bytes_of(run.arrays()) == bytes_of(expected.arrays())
    assert run.drift_versions() == expected.drift_versions()
    assert bytes_of(run.reference_params) == bytes_of(expected.reference_params)


def test_a_restored_run_has_the_buffer_that_the_saved_one_had(whole, tmp_path):
    """What is in flight is read back group by group: its step, slot, version and rollout."""
    config = tiny_config(**EVERYTHING)
    _, run, _ = broken_off(config, tmp_path)
    fresh = build_run(config)
    steps = train(fresh)
    for _ in range(run.step - 1):
        next(steps)
    assert fresh.step == run.step
    found, expected = run.snapshot().groups(), fresh.snapshot().groups()
    assert len(expected.steps_W) > 0

    def in_order(groups):
        order = np.lexsort((groups.slots_W, groups.steps_W))
        columns = (groups.steps_W, groups.slots_W, groups.versions_W)
        rollout = jax.tree.map(lambda leaf: np.asarray(leaf)[order], groups.rollout)
        return [column[order].tolist() for column in columns], bytes_of(rollout)

    assert in_order(found) == in_order(expected)


def test_the_reference_of_a_folder_is_read_again_and_ends_the_same(tmp_path):
    pytest.importorskip("safetensors", reason="the extra hf is not installed")
    config = decoder_config(
        **{
            "lag.max_lag": 1,
            "steps": 8,
            "checkpoint.save_every": 5,
            "reference.kl": 0.1,
            "reference.in_reward": True,
            "reference.checkpoint": str(tmp_path / "reference"),
        }
    )
    task = make_task(config.task)
    policy = make_policy(config.policy, task.vocab_size)
    params = jax.jit(policy.init)(jax.random.key(99))
    tokens = dict(end_token=task.end_token, pad_token=task.pad_token)
    huggingface.save(tmp_path / "reference", policy, params, None, **tokens)
    expected = build_run(config)
    records = list(train(expected))
    assert records[0]["reference_kl"] > 1e-3  # it is not the policy of the start
    before, run, checkpoints = broken_off(config, tmp_path / "checkpoints")
    assert bytes_of(run.reference_params) == bytes_of(expected.reference_params)
    assert without_times([*before, *train(run, checkpoints)]) == without_times(records)
    assert bytes_of(run.arrays()) == bytes_of(expected.arrays())
