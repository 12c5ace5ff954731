"""Trains a policy on a task's corpus before reinforcement learning, and caches the result."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from staleness_grpo.errors import require, require_at_least, require_positive
from staleness_grpo.policy import own
from staleness_grpo.policy.base import AnyPolicy
from staleness_grpo.policy.logprobs import response_logprobs
from staleness_grpo.runtime.cores import usable_cores
from staleness_grpo.runtime.preemption import Stopped
from staleness_grpo.runtime.progress import Progress
from staleness_grpo.runtime.records import replacing
from staleness_grpo.types import PyTree

FRACTIONS = ("fraction_correct", "fraction_no_carry", "fraction_difference")


def check_warm_start(fields: Mapping[str, Any]) -> None:
    """Raises FieldError if a field of `config.warm_start` has a value that cannot be used."""
    require_at_least(fields, {"steps": 0, "batch_size": 1, "seed": 0})
    require_positive(fields, ("learning_rate",))
    largest = 2**31 - 1
    require(fields["seed"] <= largest, "seed", f"give a number <= {largest}", fields["seed"])
    for name in FRACTIONS:
        require(0 <= fields[name] <= 1, name, "give a fraction in [0, 1]", fields[name])
    total = sum(fields[name] for name in FRACTIONS)
    hint = f"the sum with {FRACTIONS[1]} and {FRACTIONS[2]} is {total:g}: make the sum 1"
    require(abs(total - 1) < 1e-6, FRACTIONS[0], hint, fields[FRACTIONS[0]])


def warm_start(
    policy: AnyPolicy, task: Any, config: ConfigDict, must_stop: Callable[[], bool] = lambda: False
) -> PyTree:
    """Returns the parameters after `config.warm_start.steps` Adam steps on the task's corpus.

    The learning rate falls to 0 by a cosine. The fractions of the config set which shares of the
    corpus have wrong answers on purpose. A policy with mostly right answers would leave nothing to
    improve for reinforcement learning.

    The result is the same every time, to the last bit. It is cached in the user's cache folder,
    under a hash of:
      the settings of policy, task and warm start, and the code of a policy of one's own;
      the versions of JAX, optax and NumPy, JAX's backend, XLA's flags, and the number of cores;
      the code of policies, tasks, random numbers and this module.
    Libraries, flags and cores are in the hash because they can change the order of sums, and with
    it the last bits of the result. Near the edge of stability, these bits can change a whole run.

    Args:
      policy: the policy to train.
      task: a task with the method `corpus_batch` of ArithmeticTask.
      config: the run's config, of which the sections `task`, `warm_start` and `policy` are used.
      must_stop: is asked every few steps whether to stop.

    Raises:
      Stopped: `must_stop` returned True. Nothing is cached.
    """
    path = cache_path(policy, config)
    abstract = jax.eval_shape(policy.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(abstract)
    if path.exists():
        with np.load(path) as stored:
            return jax.tree.unflatten(structure, [stored[str(i)] for i in range(len(leaves))])
    params = jax.device_get(train_supervised(policy, task, config.warm_start, must_stop))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        np.savez(temporary, **{str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))})
    return params


def cache_path(policy: AnyPolicy, config: ConfigDict) -> pathlib.Path:
    """Returns the file that has the result of a warm start, or will have it."""
    settings = {
        "code": code_digest(),
        "policy": own.describe(config.get("policy", {})) or repr(policy),
        "task": config.task.to_dict(),
        "warm_start": config.warm_start.to_dict(),
        "jax": jax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "backend": jax.default_backend(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "cores": len(usable_cores()),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "warm_start" / f"{digest}.npz"


def code_digest() -> str:
    """Returns a hash of the code of policies, tasks, random numbers and this module."""
    package = pathlib.Path(__file__).parents[1]
    sources = [*package.glob("policy/*.py"), *package.glob("tasks/*.py")]
    sources += [package / "runtime" / "hashing.py", pathlib.Path(__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sorted(sources))).hexdigest()


def cache_folder() -> pathlib.Path:
    """Returns $XDG_CACHE_HOME/staleness_grpo; without the variable, ~/.cache/staleness_grpo."""
    folder = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(folder) / "staleness_grpo"


def train_supervised(
    policy: AnyPolicy, task: Any, config: ConfigDict, must_stop: Callable[[], bool] = lambda: False
) -> PyTree:
    """Trains a policy to minimize the negative log-likelihood of corpus responses.

    The loss is the mean over the response tokens of a batch, given their prompts. `config` is the
    section `warm_start`. Raises Stopped if `must_stop` returns True.
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
    opt_state = jax.jit(optimizer.init)(params)  # one program, not one for each shape
    fractions = tuple(config[name] for name in FRACTIONS)
    with Progress("warm start", config.steps) as progress:
        for i in range(config.steps):
            batch = task.corpus_batch(config.seed, i, config.batch_size, fractions)
            params, opt_state = step(params, opt_state, batch)
            if i % 8 == 7:  # a long queue of unfinished steps can deadlock on simulated devices
                jax.block_until_ready(opt_state)
                if must_stop():
                    raise Stopped
            progress.advance()
    return params
