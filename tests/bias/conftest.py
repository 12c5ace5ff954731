"""Turns on float64 for every test of the exact bias, and for no other test."""

import jax
import pytest


@pytest.fixture(autouse=True)
def float64():
    # The decoder multiplies activations by vectors of scales, as Flax layers do.
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield
