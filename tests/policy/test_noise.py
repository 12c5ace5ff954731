"""The sampler's random numbers are those of JAX to the last bit, without a loop on CPUs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.policy import noise
from staleness_grpo.policy.sampler import response_keys, sample
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.types import Prompts
from tests.policy.test_transformer import TOY

# Key, counter and words from the known answers of Random123, threefry2x32 with 20 rounds.
KNOWN = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "expected"), KNOWN)
def test_the_words_are_those_of_the_authors(key, counter, expected):
    words = noise.threefry(jnp.array(key, jnp.uint32), *map(jnp.uint32, counter))
    assert tuple(map(int, words)) == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_noise_is_that_of_jax_to_the_last_bit(seed, dtype):
    with jax.enable_x64(dtype == "float64"):
        key = jax.random.key(seed)
        unrolled = noise.unrolled(key)
        assert unrolled.dtype != key.dtype  # or the test would compare JAX with itself

        @jax.jit
        def of_tokens(key):
            keys = response_keys(key, jnp.array([0, 3, 2**31 - 1]), jnp.array([5, 0, 1]), 4)

            def token(key):
                return jax.random.gumbel(jax.random.fold_in(key, 6), (13,), dtype)

            return jax.vmap(jax.vmap(token))(keys)

        np.testing.assert_array_equal(of_tokens(unrolled), of_tokens(key))


def test_no_loop_is_left_in_the_program():
    def program(key):
        return jax.jit(lambda key: jax.random.gumbel(jax.random.fold_in(key, 1), (64,))).lower(key)

    key = jax.random.key(0)
    assert "while" in program(key).as_text()
    assert "while" not in program(noise.unrolled(key)).as_text()


def test_the_sampler_has_no_loop_but_that_over_its_tokens():
    toy = dataclasses.replace(TOY, dtype="float32", param_dtype="float32")
    policy, prompt = Policy(toy), jnp.zeros((2, 3), jnp.int32)
    prompts = Prompts(prompt, jnp.ones((2, 3), bool), jnp.arange(2))
    params = jax.eval_shape(policy.init, jax.random.key(0))
    limits = dict(group_size=2, max_length=4, end_token=1, pad_token=0)
    slots = jnp.arange(2)
    program = sample.lower(policy, params, prompts, jax.random.key(0), slots, slots, 1.0, **limits)
    assert program.as_text().count("stablehlo.while") == 1


def test_other_keys_stay_as_they_are(monkeypatch):
    other = jax.random.key(0, impl="rbg")
    assert noise.unrolled(other) is other
    key = jax.random.key(0)
    monkeypatch.setattr(noise, "platform", lambda: "tpu")
    assert noise.unrolled(key) is key
    monkeypatch.undo()
    with jax.threefry_partitionable(False):
        assert noise.unrolled(key) is key
