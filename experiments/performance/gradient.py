"""Computes the loss and its gradient on a fixed batch, and writes them to a file.

    python -m experiments.performance.gradient OUT.npz DTYPE ATTENTION [REFERENCE.npz]

`experiments.accelerator` runs it in processes of their own: one on the CPU in float64, the others
on the devices under test. Parameters and batch are random numbers of NumPy, equal in all runs.
The behavior log-probabilities are those of the reference, if there is one, plus a small noise. So
all ratios are inside the clip range, where rounding moves no token over an edge.
"""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.performance.random_tokens import RandomTokens
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.training.learner import make_scorer
from staleness_grpo.training.loss import surrogate_loss
from staleness_grpo.types import Responses, Rollout

SHAPE: dict[str, Any] = dict(
    vocab_size=1024, num_layers=2, d_model=256, num_heads=8, num_kv_heads=2, head_dim=64, d_ff=512
)
N, G, P, R = 4, 4, 64, 128  # prompts, responses to each, and their lengths in tokens
TEMPERATURE = 1.0
NOISE = 0.01  # standard deviation of the behavior log-probabilities around the reference's


def random_params(policy: Policy) -> Any:
    """Returns parameters of the scale of an initialization, equal for all dtypes."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        is_matrix = len(leaf.shape) > 1
        values = rng.normal(size=leaf.shape) if is_matrix else np.ones(leaf.shape)
        if is_matrix:
            values *= leaf.shape[0] ** -0.5
        return values.astype(np.float32).astype(leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(policy.init, jax.random.key(0)))


def random_batch(logprobs_NxGxR: np.ndarray | None) -> Rollout:
    """Returns N groups of random tokens with random rewards and lengths."""
    rng, vocabulary = np.random.default_rng(1), SHAPE["vocab_size"]
    index_N = np.arange(N, dtype=np.int32)
    prompts = RandomTokens(vocabulary, P, R).prompts(index_N)
    mask = np.arange(R) < rng.integers(R // 2, R + 1, (N, G))[..., None]
    tokens = rng.integers(0, vocabulary, (N, G, R)) * mask
    noise = NOISE * rng.normal(size=(N, G, R))
    behavior = noise if logprobs_NxGxR is None else logprobs_NxGxR + noise
    dtype = jnp.result_type(float)  # float64 under x64
    responses = Responses(tokens.astype(np.int32), mask, (behavior * mask).astype(dtype))
    rewards = rng.normal(size=(N, G)).astype(np.float32)
    return Rollout(prompts, responses, rewards, 0 * index_N)


def compute(dtype: str, attention: str, reference: dict[str, np.ndarray] | None) -> dict[str, Any]:
    """Returns `loss`, `gradient` (one vector) and `logprobs` [N, G, R], all in float64.

    Args:
      dtype: of the activations; parameters have float64 with it and float32 otherwise.
      attention: one of `architecture.ATTENTION`.
      reference: the result in float64; None for the run that makes it.
    """
    param_dtype = "float64" if dtype == "float64" else "float32"
    config = TransformerConfig(**SHAPE, dtype=dtype, param_dtype=param_dtype, attention=attention)
    policy = Policy(config)
    params = random_params(policy)

    score = make_scorer(policy, TEMPERATURE)
    logprobs = np.asarray(score(params, random_batch(None)), np.float64)
    known = logprobs if reference is None else reference["logprobs"]
    loss = surrogate_loss(policy, SurrogateConfig(), TEMPERATURE)
    value, gradient = jax.jit(
        lambda params, batch: jax.value_and_grad(lambda p: loss(p, batch)[0])(params)
    )(params, random_batch(known))
    parts = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]
    return {"loss": float(value), "gradient": np.concatenate(parts), "logprobs": logprobs}


def errors(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns how far a result is from the reference.

    Returns:
      `gradient_error`: the norm of the difference over that of the reference. `gradient_cosine`:
      the cosine of the two. `logprob_error`: the largest difference, in nats.
    """
    ours, exact = found["gradient"], reference["gradient"]
    norm = np.linalg.norm(exact)
    return {
        "gradient_error": float(np.linalg.norm(ours - exact) / norm),
        "gradient_cosine": float(ours @ exact / (np.linalg.norm(ours) * norm)),
        "logprob_error": float(np.max(np.abs(found["logprobs"] - reference["logprobs"]))),
    }


def main(path: str, dtype: str, attention: str, reference: str | None = None) -> None:
    """Computes the numbers, and writes them to `path`."""
    known = None if reference is None else dict(np.load(reference))
    np.savez(pathlib.Path(path), **compute(dtype, attention, known))


if __name__ == "__main__":
    main(*sys.argv[1:])
