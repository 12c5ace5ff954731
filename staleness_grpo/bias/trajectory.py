"""Runs lagged GRPO on an enumerable problem and measures the exact bias at every learner step.

As in the training loop, learner step t updates policy version t to version t + 1. Its rollouts come
from version t - lag.
"""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from staleness_grpo.bias import exact
from staleness_grpo.bias.enumeration import Problem, response_logprobs
from staleness_grpo.bias.sampling import sampled_cotangent
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.types import Array, PyTree

# Recorded at every learner step t; phi is the behavior policy of that step.
QUANTITIES = (
    "bias",  # ||H(theta_t, phi) - H(theta_t, theta_t)||
    "displacement",  # ||theta_t - phi||
    "gradient",  # ||H(theta_t, theta_t)||
    "cosine",  # cosine of H(theta_t, phi) and H(theta_t, theta_t)
    "noise",  # ||sampled gradient - H(theta_t, phi)||; 0 without sampling
    "update_norm",  # ||theta_{t+1} - theta_t|| / learning_rate
    "clip_fraction",  # see `exact.clip_fraction`; of GRPO's clip, whatever the correction
    "log_ratio_max",  # largest |log pi_theta - log pi_phi| of any token
)


def lagged_trajectory(
    problem: Problem,
    params: PyTree,
    lags_I: Array,
    num_steps: Array | int,
    learning_rate: Array | float,
    key: jax.Array,
    *,
    objective: SurrogateConfig,
    optimizer: optax.GradientTransformation,
    batch_prompts: int,
    max_lag: int,
    coefficients: exact.Coefficients | None = None,
    synchronous: Array | bool = False,
) -> tuple[dict[str, jax.Array], PyTree]:
    """Runs `num_steps` learner steps from `params`, each trained with its own lag.

    Lags, steps and learning rate may be traced. So one compiled program can run every cell of a
    grid. vmap over the learning rate, the key, the parameters or the problem's rewards runs many
    cells at once.

    Args:
      problem: the enumerable problem.
      params: policy version 0.
      lags_I: int, the lag of each learner step, at most min(t, max_lag). I is the largest possible
        number of steps.
      num_steps: learner steps to run, at most I.
      learning_rate: eta.
      key: the random key of the sampled groups. The batch of step t depends on (key, t) only.
      objective: the surrogate.
      optimizer: maps the ascent direction to the update that is added, for a learning rate of 1. It
        must not negate, and it gets no parameters.
      batch_prompts: number of random prompts in a batch. Each has one sampled group. 0: train on
        the exact H without sampling.
      max_lag: the largest lag. The parameters of max_lag + 1 versions are stored.
      coefficients: coefficients of a correction. The correction's gradient G(theta_t, phi) then
        replaces H(theta_t, phi) in the training and in all quantities but `clip_fraction`. The
        reference H(theta_t, theta_t) remains GRPO's. Cannot be combined with sampling.
      synchronous: bool, may be traced. If true, train on H(theta_t, theta_t), and measure the stale
        gradient without using it. Cannot be combined with sampling.

    Returns:
      (records, last_params). records has an array [I] for each of QUANTITIES, which is 0 from step
      `num_steps` on. last_params are the parameters theta_t of the last recorded step.

    Raises:
      ValueError: coefficients or synchronous is given together with batch_prompts.
    """
    if batch_prompts and coefficients is not None:
        raise ValueError(
            "training on sampled groups supports only GRPO's clip: "
            "give batch_prompts=0, or no coefficients"
        )
    if batch_prompts and synchronous is not False:
        raise ValueError("synchronous training is on the exact H: give batch_prompts=0")
    start_D, unravel = ravel_pytree(params)
    clip = exact.clip_coefficients(objective)
    coefficients = clip if coefficients is None else coefficients
    num_versions = max_lag + 1

    def logprobs_of(theta_D: jax.Array) -> jax.Array:
        return response_logprobs(problem, unravel(theta_D))

    def step(t: jax.Array, carry: tuple) -> tuple:
        theta_D, optimizer_state, versions, logprobs_of_versions, records = carry
        policy_logprobs, pull_back = jax.vjp(logprobs_of, theta_D)
        versions = versions.at[t % num_versions].set(theta_D)
        logprobs_of_versions = logprobs_of_versions.at[t % num_versions].set(policy_logprobs)
        slot = (t - lags_I[t]) % num_versions
        behavior_logprobs = logprobs_of_versions[slot]

        fresh = exact.logprob_cotangent(problem, policy_logprobs, policy_logprobs, objective, clip)
        stale = exact.logprob_cotangent(
            problem, policy_logprobs, behavior_logprobs, objective, coefficients
        )
        cotangents = [fresh, stale - fresh]
        if batch_prompts:
            step_key = jax.random.fold_in(key, t)
            cotangents.append(
                sampled_cotangent(
                    problem, policy_logprobs, behavior_logprobs, objective, batch_prompts, step_key
                )
            )
        (pulled,) = jax.vmap(pull_back)(jnp.stack(cotangents))
        exact_D = pulled[0] + pulled[1]  # H(theta_t, phi)
        # The sampled gradient is not computed as exact_D plus noise. A batch of equal rewards must
        # leave every bit of the parameters unchanged.
        ascent_D = pulled[2] if batch_prompts else jnp.where(synchronous, pulled[0], exact_D)
        update_D, optimizer_state = optimizer.update(ascent_D, optimizer_state)

        values = {
            "bias": jnp.linalg.norm(pulled[1]),
            "displacement": jnp.linalg.norm(theta_D - versions[slot]),
            "gradient": jnp.linalg.norm(pulled[0]),
            "cosine": pulled[0] @ exact_D / (jnp.linalg.norm(pulled[0]) * jnp.linalg.norm(exact_D)),
            "noise": jnp.linalg.norm(ascent_D - exact_D) if batch_prompts else 0.0,
            "update_norm": jnp.linalg.norm(update_D),
            "clip_fraction": exact.clip_fraction(
                problem, policy_logprobs, behavior_logprobs, objective
            ),
            "log_ratio_max": jnp.max(jnp.abs(policy_logprobs - behavior_logprobs)),
        }
        records = records.at[:, t].set(jnp.stack([values[name] for name in QUANTITIES]))
        return (
            theta_D + learning_rate * update_D,
            optimizer_state,
            versions,
            logprobs_of_versions,
            records,
        )

    logprobs_shape = jax.eval_shape(logprobs_of, start_D).shape
    carry = (
        start_D,
        optimizer.init(start_D),
        jnp.zeros((num_versions, *start_D.shape), start_D.dtype),
        jnp.zeros((num_versions, *logprobs_shape), start_D.dtype),
        jnp.zeros((len(QUANTITIES), len(lags_I)), start_D.dtype),
    )
    _, _, versions, _, records = jax.lax.fori_loop(0, num_steps, step, carry)
    last_params = unravel(versions[(num_steps - 1) % num_versions])
    return dict(zip(QUANTITIES, records, strict=True)), last_params
