"""The benchmark counts work, times the program that trains, and refuses what it cannot time."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from experiments.common import cli
from experiments.common.flag_parsing import load_config
from experiments.performance import benchmark, machine
from experiments.performance.random_tokens import RandomTokens
from staleness_grpo.errors import FieldError
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.transformer import Policy

CONFIG = cli.ROOT / "experiments/configs/benchmark.py"
POLICY = TransformerConfig(
    vocab_size=11, num_layers=3, d_model=4, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=5
)
TASK = RandomTokens(vocab_size=11, prompt_length=8, max_response_length=6)


@pytest.mark.slow
def test_on_eight_devices_the_update_is_that_of_training_and_peaks_are_those_of_all(run_on_devices):
    seen = json.loads(run_on_devices("benchmark_on_mesh", num_devices=8).splitlines()[-1])
    # Outside the mesh nothing keeps arrays in parts, and another program would be timed.
    assert seen["in_mesh"] == [True]
    # The matrix and the array, and what is computed from them: each device has a part of its own.
    assert seen["devices"] == [[8, 8], [8, 8]]
    assert seen["sizes"] == [[16 * 16] * 2, [2**12 // 4] * 2]
    assert seen["peak_flops"] == 8 * 2 * 16**3
    assert seen["memory_bandwidth"] == 8 * 2 * 2**12


def test_work_is_that_of_a_count_by_hand():
    """N = 2 prompts of 8 positions, G = 3 responses of 6 tokens; the shape is that of POLICY."""
    layer = 4 * 24 + 4 * 12 + 4 * 12 + 24 * 4 + 3 * 4 * 5  # query, key, value, out; gate, up, down
    through_layers = 2 * 8 + 2 * 3 * 5  # the last token of a response predicts nothing
    assert machine.matmul_flops(POLICY, TASK, 2, 3) == 2 * (
        3 * layer * through_layers + 4 * 11 * 2 * 3 * 6
    )
    # float32. A copy of the weights is read for its 6 responses at once. On average a token sees
    # half of a response's 6 positions, and a third of half a prompt's 8.
    cached = 2 * 3 * 2 * 6 * (6 / 2 + 8 / 2 / 3)
    expected = 4 * ((3 * layer + 4 * 11) / 6 + cached)
    assert machine.bytes_per_sampled_token(POLICY, TASK, 3, 6) == pytest.approx(expected, rel=1e-12)


def test_work_is_that_of_the_products_of_the_forward_pass():
    """Counts in the program that scores a rollout: a product without batch axes has weights.

    Products with ones and with the identity, which only copy, ask for the highest precision.
    """

    def products(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            total += sum(products(inner) for inner in jaxprs_in_params(equation.params))
            if equation.primitive.name != "dot_general":
                continue
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            if not batched and equation.params["precision"] is None:
                inner = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
                total += 2 * inner * np.prod(equation.outvars[0].aval.shape)
        return total

    policy = Policy(POLICY)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    prompts, mask = jax.ShapeDtypeStruct((2, 8), jnp.int32), jax.ShapeDtypeStruct((2, 8), bool)
    responses = jax.ShapeDtypeStruct((2, 3, 6), jnp.int32)
    jaxpr = jax.make_jaxpr(policy.response_logits)(params, prompts, mask, responses).jaxpr
    assert products(jaxpr) == machine.matmul_flops(POLICY, TASK, 2, 3)


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("benchmark.vocab_size", 0, ">= 1"),
        ("benchmark.prompt_length", 0, ">= 1"),
        ("benchmark.max_response_length", -3, ">= 1"),
        ("policy.vocab_chunks", 3, "benchmark.vocab_size=512"),
        ("lag.schedule", "uniform", "give constant"),
        ("updates_per_batch", 2, "give 1"),
        ("warm_start.steps", 5, "give 0"),
        ("metrics.samples_every", 5, "only experiments.train .* give 0"),
    ],
)
def test_what_cannot_be_timed_is_refused(field, value, hint):
    config = load_config(CONFIG)
    benchmark.validate(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(FieldError, match=rf"^{re.escape(field)}={value}: .*{hint}"):
        benchmark.validate(config)


def test_the_vocabulary_is_that_of_the_checkpoint(tmp_path):
    """A token that the policy does not know would make every loss NaN."""
    pytest.importorskip("safetensors.numpy", reason="the extra hf is not installed")
    policy = Policy(
        TransformerConfig(
            16, num_layers=1, d_model=8, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=8
        )
    )
    huggingface.save(tmp_path, policy, jax.jit(policy.init)(jax.random.key(0)))
    config = load_config(CONFIG)
    config.policy = load_config(cli.ROOT / "experiments/configs/arithmetic.py").policy
    config.policy.update(dict(checkpoint=str(tmp_path), vocab_chunks=2))
    refused = r"^benchmark\.vocab_size=512: .* has 16 tokens: give 16"
    with pytest.raises(FieldError, match=refused):
        benchmark.validate(config)
    config.benchmark.vocab_size = 16
    benchmark.validate(config)
