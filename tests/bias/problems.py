"""Makes the tiny problems that the tests of the exact bias share."""

import dataclasses
import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from staleness_grpo.bias import exact
from staleness_grpo.bias.enumeration import Problem, response_logprobs
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.tasks.enumerable import EnumerableTask

# Asymmetric, so that swapped bounds show.
OBJECTIVE = SurrogateConfig(clip_low=0.2, clip_high=0.35, std_epsilon=1e-4)


@dataclasses.dataclass(frozen=True)
class TabularPolicy:
    """A policy that shares no parameters: it has free logits for every prefix of tokens."""

    vocab_size: int
    max_length: int

    def init(self, key):
        num_prefixes = sum(self.vocab_size**k for k in range(1, self.max_length + 1))
        return {"table": 0.7 * jax.random.normal(key, (num_prefixes, self.vocab_size), jnp.float64)}

    def apply(self, params, tokens_BxT):
        code, offset, rows = 0, 0, []
        for t in range(tokens_BxT.shape[1]):
            code = code * self.vocab_size + tokens_BxT[:, t]
            rows.append(offset + code)
            offset += self.vocab_size ** (t + 1)
        return params["table"][jnp.stack(rows, axis=1)]


def toy_transformer(vocab_size):
    return Policy(
        TransformerConfig(
            vocab_size=vocab_size,
            num_layers=1,
            d_model=8,
            num_heads=2,
            num_kv_heads=1,
            head_dim=4,
            d_ff=12,
            dtype="float64",
            param_dtype="float64",
        )
    )


def make(policy_name, group_size=3, **task_fields):
    """Returns (problem, task, policy) of a small enumerable task."""
    task = EnumerableTask(
        **{"vocab_size": 3, "max_response_length": 2, "num_prompts": 2, **task_fields}
    )
    if policy_name == "transformer":
        policy = toy_transformer(task.vocab_size)
    else:
        policy = TabularPolicy(task.vocab_size, task.prompt_length + task.max_response_length)
    return Problem.from_task(policy.apply, task, group_size), task, policy


@functools.cache
def initial_params(policy):
    return jax.jit(policy.init)(jax.random.key(0))


def fresh_and_stale(policy, scale):
    """Returns parameters and a behavior version that differs by normal noise of this scale."""
    params = initial_params(policy)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return params, unravel(flat + scale * np.random.default_rng(0).normal(size=flat.size))


@functools.partial(jax.jit, static_argnums=(0, 1))
def full_sequence_logprobs(policy, task, params):
    """Returns log pi of every response, [N, Y, R], without sharing of prefixes.

    The policy runs on whole sequences.
    """
    tokens_YxR, mask_YxR = task.responses
    rows = []
    for prompt_P in task.prompts(np.arange(task.num_prompts)).tokens_NxP:
        sequences = np.concatenate([np.tile(prompt_P, (len(tokens_YxR), 1)), tokens_YxR], axis=1)
        logprobs = jax.nn.log_softmax(policy.apply(params, sequences), axis=-1)[
            :, len(prompt_P) - 1 : -1
        ]
        chosen = jnp.take_along_axis(logprobs, tokens_YxR[..., None], axis=-1)[..., 0]
        rows.append(jnp.where(jnp.asarray(mask_YxR), chosen, 0.0))
    return jnp.stack(rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def pulled_back(policy, task, params, cotangent):
    """Returns the gradient of the sum of `cotangent` times the log-probabilities of responses."""
    _, pull_back = jax.vjp(lambda p: full_sequence_logprobs(policy, task, p), params)
    return pull_back(cotangent)[0]


def flatten(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def relative_error(a, b):
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(x)]) for x in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


jitted = functools.partial(jax.jit, static_argnames="objective")
logprobs = jax.jit(response_logprobs)
surrogate = jitted(exact.surrogate)
behavior_gradient_of_surrogate = jitted(jax.grad(exact.surrogate, 2))
policy_gradient_of_surrogate = jitted(jax.grad(exact.surrogate, 1))
surrogate_gradient = jitted(exact.surrogate_gradient)
surrogate_bias = jitted(exact.surrogate_bias)
clip_fraction = jitted(exact.clip_fraction)
