"""The benchmark: what it counts, that it times the program that trains, and what it refuses."""

import json
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from experiments import benchmark, cli
from staleness_grpo.config import ConfigError
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.transformer import Policy, TransformerConfig

CONFIG = cli.ROOT / "experiments/configs/benchmark.py"
POLICY = TransformerConfig(vocab_size=11, num_layers=3, d_model=4, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=5)
TASK = benchmark.RandomTokens(vocab_size=11, prompt_length=8, max_response_length=6)

MEASURE = textwrap.dedent(
    """
    import io, jax, json
    from experiments import benchmark, cli
    from staleness_grpo import train

    benchmark.WARM_UP_STEPS, benchmark.PEAK_SIZE, benchmark.COPY_BYTES = 0, {"cpu": 16}, 2**12
    config = cli.load_config(PATH)
    config.steps = 1
    config.policy.update(dict(num_layers=1, d_model=8, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16))
    config.mesh.update(dict(data=2, fsdp=2, tensor=2))
    config.benchmark.update(dict(vocab_size=16, prompt_length=4, max_response_length=3))
    build, meshes, devices = train.build, [], []

    def watched(*args):
        run = build(*args)
        update = run.update

        def seen(state, batch):
            meshes.append(jax.sharding.get_abstract_mesh() == run.mesh.abstract_mesh)
            return update(state, batch)

        run.update = seen
        return run

    def one_second(function, argument):
        devices.append([len(x.sharding.device_set) for x in (argument, function(argument))])
        devices.append([x.addressable_shards[0].data.size for x in (argument, function(argument))])
        return 1.0

    train.build, benchmark.fastest = watched, one_second
    benchmark.validate(config)
    found = benchmark.measure(config, io.StringIO())
    print(json.dumps([meshes, devices, found["peak_flops"], found["memory_bandwidth"]]))
    """
)


def test_on_eight_devices_the_update_is_that_of_training_and_peaks_are_those_of_all(run_on_devices):
    meshes, devices, flops, bandwidth = json.loads(
        run_on_devices(f"PATH = {str(CONFIG)!r}\n{MEASURE}", 8).splitlines()[-1]
    )
    assert meshes == [True]  # or what keeps arrays in parts does nothing, and another program is timed
    # Each device has a matrix, or array, of its own.
    assert devices == [[8, 8], [16 * 16] * 2, [8, 8], [2**12 // 4] * 2]
    assert (flops, bandwidth) == (8 * 2 * 16**3, 8 * 2 * 2**12)


def test_work_is_that_of_a_count_by_hand():
    """N = 2 prompts of 8 positions, G = 3 responses of 6 tokens; 3 layers, V = 11, E = 4, 4 and 2 heads of 6, F = 5."""
    layer = 4 * 24 + 4 * 12 + 4 * 12 + 24 * 4 + 3 * 4 * 5  # query, key, value, out; gate, up, down
    through_layers = 2 * 8 + 2 * 3 * 5  # the last token of a response predicts nothing
    assert benchmark.matmul_flops(POLICY, TASK, 2, 3) == 2 * (3 * layer * through_layers + 4 * 11 * 2 * 3 * 6)
    # A copy of the weights is read for its 6 responses at once; a token sees half of a response's 6 positions on
    # average, and a third of half a prompt's 8; float32.
    cached = 2 * 3 * 2 * 6 * (6 / 2 + 8 / 2 / 3)
    expected = 4 * ((3 * layer + 4 * 11) / 6 + cached)
    assert benchmark.bytes_per_sampled_token(POLICY, TASK, 3, 6) == pytest.approx(expected, rel=1e-12)


def test_work_is_that_of_the_products_of_the_forward_pass():
    """By the program that scores a rollout: a product without batch axes is one with weights."""

    def products(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            total += sum(products(inner) for inner in jaxprs_in_params(equation.params))
            if equation.primitive.name == "dot_general" and not equation.params["dimension_numbers"][1][0]:
                (contracted, _), _ = equation.params["dimension_numbers"]
                inner = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
                total += 2 * inner * np.prod(equation.outvars[0].aval.shape)
        return total

    policy = Policy(POLICY)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    prompts, mask = jax.ShapeDtypeStruct((2, 8), jnp.int32), jax.ShapeDtypeStruct((2, 8), bool)
    responses = jax.ShapeDtypeStruct((2, 3, 6), jnp.int32)
    jaxpr = jax.make_jaxpr(policy.response_logits)(params, prompts, mask, responses).jaxpr
    assert products(jaxpr) == benchmark.matmul_flops(POLICY, TASK, 2, 3)


@pytest.mark.parametrize(
    ("flag", "value", "mend"),
    [
        ("benchmark.vocab_size", 0, ">= 1"),
        ("benchmark.prompt_length", 0, ">= 1"),
        ("benchmark.max_response_length", -3, ">= 1"),
        ("policy.vocab_chunks", 3, "benchmark.vocab_size=512"),
        ("lag.max_lag", 2, "give 0"),
        ("updates_per_batch", 2, "give 1"),
        ("warm_start.steps", 5, "give 0"),
    ],
)
def test_what_cannot_be_timed_is_refused(flag, value, mend):
    config = cli.load_config(CONFIG)
    benchmark.validate(config)
    config.update_from_flattened_dict({flag: value})
    with pytest.raises(ConfigError, match=rf"^--config\.{flag}={value}: .*{mend}"):
        benchmark.validate(config)


def test_the_vocabulary_is_that_of_the_checkpoint(tmp_path):
    """Tokens that the policy does not know would make every loss NaN."""
    pytest.importorskip("safetensors.numpy", reason="the extra hf is not installed")
    policy = Policy(TransformerConfig(16, num_layers=1, d_model=8, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=8))
    huggingface.save(tmp_path, policy, policy.init(jax.random.key(0)))
    config = cli.load_config(CONFIG)
    config.policy = cli.load_config(cli.ROOT / "experiments/configs/arithmetic.py").policy
    config.policy.update(dict(checkpoint=str(tmp_path), vocab_chunks=2))
    with pytest.raises(ConfigError, match=r"^--config\.benchmark\.vocab_size=512: .* has 16 tokens: give 16"):
        benchmark.validate(config)
    config.benchmark.vocab_size = 16
    benchmark.validate(config)
