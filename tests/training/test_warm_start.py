"""The warm start gives the same bytes every time, from the cache if nothing has changed."""

import pathlib
import re
import signal
import time

import chex
import jax
import numpy as np
import pytest

from staleness_grpo.config.build import build_run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.policy.configured import make_policy
from staleness_grpo.runtime.preemption import EXIT_CODE
from staleness_grpo.tasks.arithmetic import ArithmeticTask
from staleness_grpo.training import warm_start as warm_start_lib
from staleness_grpo.training.loop import train
from tests.helpers import killing

TASK = ArithmeticTask(num_terms=2, num_digits=1)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = default_config()
    config.task.num_digits = 1
    config.warm_start.update(dict(steps=20, batch_size=16))
    config.policy.update(
        dict(num_layers=1, d_model=8, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=8)
    )
    return config


def policy_of(config):
    return make_policy(config.policy, TASK.vocab_size)


def stored(tmp_path):
    return sorted((tmp_path / "staleness_grpo" / "warm_start").iterdir())


def test_deterministic_and_cached(config, tmp_path, monkeypatch):
    policy = policy_of(config)
    first = warm_start_lib.warm_start(policy, TASK, config)
    (file,) = stored(tmp_path)
    file.unlink()
    again = warm_start_lib.warm_start(policy, TASK, config)
    chex.assert_trees_all_equal(first, again)

    monkeypatch.setattr(warm_start_lib, "train_supervised", None)  # it must not be called any more
    chex.assert_trees_all_equal(first, warm_start_lib.warm_start(policy, TASK, config))
    for name, value in (
        ("warm_start.seed", 1),
        ("warm_start.fraction_correct", 0.5),
        ("task.num_digits", 2),
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({name: value})
        with pytest.raises(TypeError):
            warm_start_lib.warm_start(policy, TASK, other)
    monkeypatch.setattr(warm_start_lib, "code_digest", lambda: "another version of the code")
    with pytest.raises(TypeError):
        warm_start_lib.warm_start(policy, TASK, config)


def test_learns_the_mixture(config):
    """On an all-correct corpus, right answers become much more likely than they were untrained."""
    config.warm_start.update(dict(steps=150, batch_size=64, learning_rate=1e-2))
    config.warm_start.update(
        dict(fraction_correct=1.0, fraction_no_carry=0.0, fraction_difference=0.0)
    )
    policy = policy_of(config)
    prompts, tokens, mask = TASK.corpus_batch(9, 9, 64, (1.0, 0.0, 0.0))
    logprobs_of = jax.jit(warm_start_lib.response_logprobs, static_argnums=(0, 5))

    def mean_logprob(params):
        logprobs, _ = logprobs_of(policy, params, prompts, tokens[:, None], mask[:, None], 1.0)
        return float(np.sum(logprobs) / mask.sum())

    untrained = mean_logprob(jax.jit(policy.init)(jax.random.key(0)))
    trained = mean_logprob(warm_start_lib.warm_start(policy, TASK, config))
    assert untrained < -2.0  # about log(1/14)
    assert trained > -1.2


@pytest.mark.slow
def test_reinforcement_raises_the_warm_start():
    """The default config raises a pass rate near 0.3 above 0.8 within 150 synchronous steps."""
    config = default_config()
    config.update(dict(steps=150, eval_every=149))
    records = list(train(build_run(config)))
    first, last = (record["eval_reward"] for record in records if "eval_reward" in record)
    assert 0.2 < first < 0.45
    assert last > 0.8


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_signal_in_the_warm_start_ends_it_soon(tmp_path):
    """It does not wait for the last of the steps, which would take half an hour here."""
    fields = {"task": dict(name="arithmetic", num_terms=2, num_digits=2)}
    overrides = fields | {"warm_start.steps": 1_000_000}
    process = killing.start(tmp_path / "run", overrides, XDG_CACHE_HOME=str(tmp_path / "cache"))
    status = pathlib.Path(f"/proc/{process.pid}/status")
    catches, deadline = re.compile(r"SigCgt:\s*(\w+)"), time.monotonic() + 60
    bit = 1 << (signal.SIGTERM - 1)
    while not int(catches.search(status.read_text())[1], 16) & bit:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(2)  # the warm start compiles, or trains
    process.send_signal(signal.SIGTERM)
    code, errors = killing.end(process, seconds=30)
    assert code == EXIT_CODE and "stopped in the warm start; run the same command" in errors
    assert not (tmp_path / "cache" / "staleness_grpo").exists()
