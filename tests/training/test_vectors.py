"""Inner products and norms of trees agree with NumPy in float64."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.training import vectors
from tests.conftest import ROOT

HIGHEST = jax.lax.Precision.HIGHEST
LARGE = (vectors.JOINED_ELEMENTS // 256 + 1, 256)


def trees(shapes, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return [[jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes] for _ in range(2)]


def exact(a, b):
    return sum(
        np.vdot(np.asarray(x, float), np.asarray(y, float)) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shapes",
    [[(3, 4), (5,), ()], [LARGE], [LARGE, (7, 2), LARGE], []],
    ids=["small", "large", "both", "none"],
)
def test_small_and_large_arrays_count_alike(shapes, dtype):
    a, b = trees(shapes, dtype)
    product, norm = jax.jit(lambda a, b: (vectors.inner(a, b), vectors.norm(a)))(a, b)
    assert product.dtype == norm.dtype == np.float32
    np.testing.assert_allclose(norm, np.sqrt(exact(a, a)), rtol=1e-6)
    np.testing.assert_allclose(product, exact(a, b), atol=1e-6 * np.sqrt(exact(a, a) * exact(b, b)))


def test_float64_stays_float64():
    with jax.enable_x64(True):
        a, b = trees([(3, 4), LARGE], "float64")
        assert vectors.inner(a, b).dtype == np.float64
        np.testing.assert_allclose(vectors.inner(a, b), exact(a, b), rtol=1e-13)


@pytest.mark.parametrize("shape", [(3, 4), LARGE])
def test_accelerators_multiply_with_full_precision(shape):
    """Their default would round float32 to fewer bits first."""
    (a,), (b,) = trees([shape])
    products = [
        equation
        for equation in jax.make_jaxpr(vectors.inner)([a], [b]).jaxpr.eqns
        if equation.primitive.name == "dot_general"
    ]
    assert [equation.params["precision"] for equation in products] == [(HIGHEST, HIGHEST)]


def test_arrays_that_differ_in_number_are_refused():
    a, b = trees([(3,), (4,)])
    with pytest.raises(ValueError):
        vectors.inner(a, b[:1])


PROGRAM = """
import jax, numpy as np
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.training import vectors
jax.config.update("jax_num_cpu_devices", 2)
mesh = mesh_lib.make_mesh(fsdp=2)
array = [np.full((vectors.JOINED_ELEMENTS // 256 + 1, 256), 0.5, np.float32)]
with jax.set_mesh(mesh):
    split = mesh_lib.put(array, mesh_lib.parameter_shardings(array, mesh))
    program = jax.jit(vectors.norm).lower(split).compile()
print("all-gather" in program.as_text(), float(program(split)) ** 2 / array[0].size)
"""


def test_a_large_array_is_not_gathered():
    """Each device multiplies its own part, and only a number is sent."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    gathers, mean_square = done.stdout.split()
    assert gathers == "False"
    np.testing.assert_allclose(float(mean_square), 0.25, rtol=1e-6)
