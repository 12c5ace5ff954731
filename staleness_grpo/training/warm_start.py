"""Trains on a task's corpus before reinforcement learning, and keeps the result by hash."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from staleness_grpo.errors import require, require_at_least, require_positive
from staleness_grpo.policy.logprobs import response_logprobs
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.runtime.records import replacing
from staleness_grpo.types import PyTree

FRACTIONS = ("fraction_correct", "fraction_no_carry", "fraction_difference")


def check_warm_start(fields: Mapping[str, Any]) -> None:
    """Raises FieldError for what `config.warm_start` cannot hold."""
    require_at_least(fields, {"steps": 0, "batch_size": 1, "seed": 0})
    require_positive(fields, ("learning_rate",))
    largest = 2**31 - 1
    require(fields["seed"] <= largest, "seed", f"give a number <= {largest}", fields["seed"])
    for name in FRACTIONS:
        require(0 <= fields[name] <= 1, name, "give a fraction in [0, 1]", fields[name])
    total = sum(fields[name] for name in FRACTIONS)
    hint = f"with {FRACTIONS[1]} and {FRACTIONS[2]} it sums to {total:g}: make that 1"
    require(abs(total - 1) < 1e-6, FRACTIONS[0], hint, fields[FRACTIONS[0]])


def warm_start(policy: Policy, task: Any, config: ConfigDict) -> PyTree:
    """Returns the parameters after `config.warm_start.steps` Adam steps on the task's corpus.

    The learning rate falls to 0 by a cosine. A share of the corpus may be wrong on purpose (the
    fractions of the config). A policy that is mostly right leaves reinforcement learning nothing to
    raise.

    The bytes are the same every time. They are kept in the user's cache folder under a hash of:
      the settings of policy, task and warm start;
      JAX's version and backend, XLA's flags, and the number of cores;
      the code of policies, tasks, random numbers and this module.
    Another order of sums changes the last bits. Near the edge of stability, those change a whole
    run.

    Args:
      policy: the policy to train.
      task: a task with the method `corpus_batch` of ArithmeticTask.
      config: the run's config; its sections `task` and `warm_start` are read.
    """
    settings = {
        "code": code_digest(),
        "policy": repr(policy),
        "task": config.task.to_dict(),
        "warm_start": config.warm_start.to_dict(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "cores": len(os.sched_getaffinity(0)),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "warm_start" / f"{digest}.npz"
    abstract = jax.eval_shape(policy.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(abstract)
    if path.exists():
        with np.load(path) as stored:
            return jax.tree.unflatten(structure, [stored[str(i)] for i in range(len(leaves))])
    params = jax.device_get(train_supervised(policy, task, config.warm_start))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        np.savez(temporary, **{str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))})
    return params


def code_digest() -> str:
    """Hashes the sources that a warm start depends on: policies, tasks, and random numbers."""
    package = pathlib.Path(__file__).parents[1]
    sources = [*package.glob("policy/*.py"), *package.glob("tasks/*.py")]
    sources += [package / "runtime" / "hashing.py", pathlib.Path(__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sorted(sources))).hexdigest()


def cache_folder() -> pathlib.Path:
    """Returns $XDG_CACHE_HOME/staleness_grpo, by default under ~/.cache."""
    folder = os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")
    return pathlib.Path(folder) / "staleness_grpo"


def train_supervised(policy: Policy, task: Any, config: ConfigDict) -> PyTree:
    """Minimizes the mean negative log-likelihood of corpus responses, given their prompts.

    The mean is over the response tokens of a batch. `config` is the section `warm_start`.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))

    def loss_fn(params, prompts, tokens_BxR, mask_BxR):
        logprobs, _ = response_logprobs(
            policy, params, prompts, tokens_BxR[:, None], mask_BxR[:, None], 1.0
        )
        return -jnp.sum(logprobs) / jnp.sum(mask_BxR)

    @jax.jit
    def step(params, opt_state, batch):
        gradient = jax.grad(loss_fn)(params, *batch)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state

    params = jax.jit(policy.init)(jax.random.key(config.seed))
    opt_state = optimizer.init(params)
    fractions = tuple(config[name] for name in FRACTIONS)
    for i in range(config.steps):
        batch = task.corpus_batch(config.seed, i, config.batch_size, fractions)
        params, opt_state = step(params, opt_state, batch)
        if i % 8 == 7:  # a long queue of steps nobody waits for deadlocks on simulated devices
            jax.block_until_ready(opt_state)
    return params
