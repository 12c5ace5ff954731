"""Drift by sketches is that of whole copies within the stated error, and resumes to the byte."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.performance import memory
from staleness_grpo.config.build import build_run
from staleness_grpo.config.validation import validate
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime.records import plain
from staleness_grpo.training import drift
from staleness_grpo.training.checkpoint import Checkpoints
from staleness_grpo.training.drift import relative_error, sketch
from staleness_grpo.training.loop import train
from tests.helpers.tiny import decoder_config, tiny_config

SIZE = 64


def estimates(matrix, seeds=200):
    """Squared norms of sketches of a matrix, whose rows and columns are in another order each time.

    The directions of a sketch are fixed, so random orders and signs stand in for other directions.
    """
    rng = np.random.default_rng(0)
    square_of = jax.jit(lambda x: jnp.sum(sketch({"w": x}, SIZE)["w"] ** 2))
    found = []
    for _ in range(seeds):
        rows, columns = (rng.permutation(n) for n in matrix.shape)
        signs = [rng.choice((-1.0, 1.0), size=n) for n in matrix.shape]
        moved = signs[0][:, None] * matrix[rows][:, columns] * signs[1]
        found.append(float(square_of(np.float32(moved))))
    return np.array(found) / np.square(matrix).sum()


@pytest.mark.parametrize("rank", [1, 100])
def test_the_squared_norm_is_unbiased_with_an_error_within_the_bound(rank):
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(300, rank)) @ rng.normal(size=(rank, 200))
    ratios = estimates(matrix)
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / np.sqrt(len(ratios))
    bound = relative_error(SIZE)
    assert ratios.std() < 1.2 * bound  # 200 samples know a deviation to 5 %
    if rank == 1:  # the worst case
        assert ratios.std() > 0.8 * bound
    else:
        assert ratios.std() < 0.5 * bound


def test_small_leaves_lose_nothing_and_leading_axes_are_kept():
    rng = np.random.default_rng(2)
    shapes = {"scalar": (), "scale": (SIZE,), "square": (SIZE, SIZE), "layers": (3, 2 * SIZE, 5)}
    tree = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    small = sketch(tree, SIZE)
    for name in ("scalar", "scale", "square"):
        np.testing.assert_array_equal(small[name], tree[name])
    assert small["layers"].shape == (3, SIZE, 5)


def test_a_training_has_the_drift_of_copies_where_leaves_are_small():
    """No axis of the tiny decoder is longer than 16, so only the order of sums differs."""
    overrides = {"lag.max_lag": 3, "steps": 6}
    exact = list(train(build_run(decoder_config(**overrides))))
    sketched = list(train(build_run(decoder_config(**overrides | {"metrics.drift_sketch": 16}))))
    for one, other in zip(exact, sketched, strict=True):
        assert one["drift_from_start"] == other["drift_from_start"]
        np.testing.assert_allclose(
            other["drift_from_behavior"], one["drift_from_behavior"], rtol=1e-4
        )
    assert exact[-1]["drift_from_behavior"] > 0


def test_a_training_with_longer_leaves_is_within_three_errors():
    wide = {"policy.d_model": 64, "policy.d_ff": 64, "lag.max_lag": 3, "steps": 6}
    exact = list(train(build_run(decoder_config(**wide))))
    sketched = list(train(build_run(decoder_config(**wide | {"metrics.drift_sketch": 16}))))
    ratios = [
        other["drift_from_behavior"] / one["drift_from_behavior"]
        for one, other in zip(exact[1:], sketched[1:], strict=True)
    ]
    assert len(set(ratios)) > 1 and all(ratio != 1 for ratio in ratios)
    np.testing.assert_allclose(ratios, 1, atol=3 * relative_error(16) / 2)


def test_sketches_are_saved_and_restored(tmp_path):
    fields = {"lag.max_lag": 3, "steps": 8, "checkpoint.save_every": 4, "metrics.drift_sketch": 16}
    config = tiny_config(**fields)
    whole = [plain(record) for record in train(build_run(config))]
    checkpoints = Checkpoints(tmp_path, config)
    records = train(build_run(config), checkpoints)
    for _ in range(6):
        next(records)
    records.close()
    checkpoints.wait()
    again = build_run(config)
    checkpoints.restore(again, lambda reason, hint: ValueError(reason))
    assert again.step == 4 and len(again.drift.versions) == 3
    rest = [plain(record) for record in train(again)]
    for one, other in zip(whole[4:], rest, strict=True):
        assert one | {"time_step": 0} == other | {"time_step": 0}


def test_sketches_take_the_place_of_copies_in_memory():
    config = decoder_config(**{"lag.max_lag": 3, "policy.d_model": 64})
    params = jax.eval_shape(build_run(config).programs.policy.init, jax.random.key(0))
    assert memory.parameter_copies(config)["sampling"] == 1 + 3
    assert memory.sketch_bytes(config, params) == 0
    config.metrics.drift_sketch = 16
    assert memory.parameter_copies(config)["sampling"] == 1
    assert (
        0
        < memory.sketch_bytes(config, params)
        < 4 * 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    )


def test_versions_that_would_take_much_memory_are_sketched(monkeypatch, capsys):
    """The config can say otherwise, and a chosen sketch is the same as one that is asked for."""
    fields = {"lag.max_lag": 3, "policy.d_model": 64, "steps": 5}
    shapes = jax.eval_shape(
        build_run(decoder_config(**fields)).programs.policy.init, jax.random.key(0)
    )
    limit = 4 * 3 * sum(leaf.size for leaf in jax.tree.leaves(shapes))  # three versions in float32
    assert drift.copies_bytes(shapes, 3) == limit
    monkeypatch.setattr(drift, "CHOSEN_SKETCH", 16)

    def measured(limit, asked=None):
        monkeypatch.setattr(drift, "COPIES_BYTES", limit)
        config = decoder_config(**fields | {"metrics.drift_sketch": asked})
        found = [record["drift_from_behavior"] for record in train(build_run(config))]
        return found, "drift is estimated from sketches of 16" in capsys.readouterr().err

    copies, told = measured(limit)
    assert not told and measured(limit - 1, asked=0) == (copies, False)
    chosen, told = measured(limit - 1)
    assert told and chosen != copies
    assert measured(limit, asked=16) == (chosen, False)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"metrics.drift_sketch": 8},
            "metrics.drift_sketch=8: leave it unset, or give 0, or 16 or more directions",
        ),
        (
            {"metrics.drift_sketch": 64, "metrics.parameter_drift": False},
            "metrics.drift_sketch=64: without metrics.parameter_drift no version is kept: leave it",
        ),
    ],
)
def test_a_sketch_that_cannot_be_used_is_refused(fields, line):
    with pytest.raises(FieldError, match=line):
        validate(tiny_config(**fields), 1)
