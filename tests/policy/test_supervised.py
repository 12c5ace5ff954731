"""The warm start: the same bytes every time, from the cache when nothing it depends on has changed."""

import chex
import jax
import numpy as np
import pytest

from staleness_grpo import config as config_lib
from staleness_grpo import train
from staleness_grpo.policy import supervised
from staleness_grpo.policy.configured import make_policy
from staleness_grpo.tasks.arithmetic import ArithmeticTask

TASK = ArithmeticTask(num_terms=2, num_digits=1)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = config_lib.default()
    config.task.num_digits = 1
    config.warm_start.update(dict(steps=20, batch_size=16))
    config.policy.update(dict(num_layers=1, d_model=8, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=8))
    return config


def policy_of(config):
    return make_policy(config.policy, TASK.vocab_size)


def stored(tmp_path):
    return sorted((tmp_path / "staleness_grpo" / "warm_start").iterdir())


def test_deterministic_and_cached(config, tmp_path, monkeypatch):
    policy = policy_of(config)
    first = supervised.warm_start(policy, TASK, config)
    (file,) = stored(tmp_path)
    file.unlink()
    again = supervised.warm_start(policy, TASK, config)
    chex.assert_trees_all_equal(first, again)

    monkeypatch.setattr(supervised, "train_supervised", None)  # to be called no more
    chex.assert_trees_all_equal(first, supervised.warm_start(policy, TASK, config))
    for name, value in (("warm_start.seed", 1), ("warm_start.fraction_correct", 0.5), ("task.num_digits", 2)):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({name: value})
        with pytest.raises(TypeError):
            supervised.warm_start(policy, TASK, other)
    monkeypatch.setattr(supervised, "code_digest", lambda: "another version of the code")
    with pytest.raises(TypeError):
        supervised.warm_start(policy, TASK, config)


def test_learns_the_mixture(config):
    """All-correct corpus: the likelihood of right answers rises well above that of the untrained policy."""
    config.warm_start.update(dict(steps=150, batch_size=64, learning_rate=1e-2))
    config.warm_start.update(dict(fraction_correct=1.0, fraction_no_carry=0.0, fraction_difference=0.0))
    policy = policy_of(config)
    prompts, tokens, mask = TASK.corpus_batch(9, 9, 64, (1.0, 0.0, 0.0))
    logprobs_of = jax.jit(supervised.response_logprobs, static_argnums=(0, 5))

    def mean_logprob(params):
        return float(np.sum(logprobs_of(policy, params, prompts, tokens[:, None], mask[:, None], 1.0)[0]) / mask.sum())

    untrained = mean_logprob(jax.jit(policy.init)(jax.random.key(0)))
    trained = mean_logprob(supervised.warm_start(policy, TASK, config))
    assert untrained < -2.0  # about log(1/14)
    assert trained > -1.2


@pytest.mark.slow
def test_reinforcement_raises_the_warm_start():
    """The default config: from a pass rate near 0.3 to above 0.8 within 150 synchronous steps."""
    config = config_lib.default()
    config.update(dict(steps=150, eval_every=149))
    records = list(train.train(train.build(config), config))
    first, last = (record["eval_reward"] for record in records if "eval_reward" in record)
    assert 0.2 < first < 0.45
    assert last > 0.8
