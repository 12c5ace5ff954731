"""Supervised warm start: next-token training on a task's corpus, cached by the hash of all it depends on."""

import hashlib
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from staleness_grpo.policy.logprobs import response_logprobs
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.types import PyTree


def warm_start(policy: Policy, task, config) -> PyTree:
    """Parameters after `config.warm_start.steps` Adam steps on `task.corpus_batch`; the same bytes every time.

    The corpus may be wrong on purpose (config fractions): a policy that is right too often leaves reinforcement
    learning nothing to raise. The learning rate falls to 0 by a cosine. The result is kept in the user's cache
    folder under a hash of the policy, task and warm-start settings, of the library versions, of XLA's flags and cores,
    and of the code that made it: another order of sums changes the last bits, and near the edge of stability those
    change a whole run.
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
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    np.savez(temporary, **{str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))})
    temporary.replace(path)
    return params


def code_digest() -> str:
    """Hash of the sources that a warm start depends on: policies, tasks, and their random numbers."""
    package = pathlib.Path(__file__).parents[1]
    sources = sorted([*package.glob("policy/*.py"), *package.glob("tasks/*.py"), package / "hashing.py"])
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def cache_folder() -> pathlib.Path:
    """$XDG_CACHE_HOME/staleness_grpo, by default under ~/.cache."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "staleness_grpo"


def train_supervised(policy: Policy, task, config) -> PyTree:
    """Minimises the mean negative log-likelihood of the corpus responses given their prompts."""
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))

    def loss_fn(params, prompts, tokens_BxR, mask_BxR):
        logprobs, _ = response_logprobs(policy, params, prompts, tokens_BxR[:, None], mask_BxR[:, None], 1.0)
        return -jnp.sum(logprobs) / jnp.sum(mask_BxR)

    @jax.jit
    def step(params, opt_state, batch):
        gradient = jax.grad(loss_fn)(params, *batch)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state

    params = jax.jit(policy.init)(jax.random.key(config.seed))
    opt_state = optimizer.init(params)
    fractions = (config.fraction_correct, config.fraction_no_carry, config.fraction_difference)
    for i in range(config.steps):
        batch = task.corpus_batch(config.seed, i, config.batch_size, fractions)
        params, opt_state = step(params, opt_state, batch)
        if i % 8 == 7:  # a long queue of un-awaited steps deadlocks on simulated devices
            jax.block_until_ready(opt_state)
    return params
