"""Sharding: one run on 1 and on 8 simulated devices, and where parameters lie after an update."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from staleness_grpo.runtime import mesh as mesh_lib
from tests.programs import tiny_training_state

STEPS = {"num_prompts": 8, "lag.max_lag": 2, "steps": 5, "eval_every": 4}


def train_tiny(run_on_devices, num_devices, **overrides):
    """Returns records and final state of a tiny training on that many devices."""
    if num_devices == 1:  # as this process has
        assert jax.device_count() == 1
        return json.loads(tiny_training_state.trained(STEPS | overrides))
    words = "tiny_training_state", json.dumps(STEPS | overrides)
    return json.loads(run_on_devices(*words, num_devices=num_devices).splitlines()[-1])


def test_one_and_eight_devices_agree(run_on_devices):
    guard = {"guard.mode": "scale", "guard.level": 1e-3}
    single = train_tiny(run_on_devices, 1, **guard)
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    sharded = train_tiny(run_on_devices, 8, **guard, **mesh)
    close = "loss", "grad_norm", "update_norm", "entropy", "drift_from_behavior", "ratio_mean"
    for expected, record in zip(single["records"], sharded["records"], strict=True):
        assert expected["reward"] == record["reward"]  # both sampled the same tokens
        assert expected["guard_scale"] == record["guard_scale"]
        for name in close:
            assert expected[name] == pytest.approx(record[name], rel=1e-4, abs=1e-6), name
    assert single["records"][-1]["guard_scale"] < 1  # there was an alarm
    for expected, params in zip(single["params"], sharded["params"], strict=True):
        # Sums are in another order: 1e-7 in a gradient. Adam divides, so five steps make it 1e-4.
        np.testing.assert_allclose(expected, params, atol=2e-4)

    # After five updates every large parameter, and its optimizer moments, still lies in parts.
    large = {name: spec for name, (spec, size) in sharded["specs"].items() if size >= 256}
    # query, key, value, out, gate, up, down: parameters, two moments, previous gradient.
    assert len(large) == 7 * 4
    for name in large:
        assert sharded["shards"][name] == sharded["specs"][name][1] // 4, (name, large[name])


@pytest.mark.slow
def test_a_device_computes_its_own_groups_and_no_others(run_on_devices):
    """Weights travel between devices. The feed-forward features of the whole batch do not."""
    counts = json.loads(run_on_devices("partitioned_shapes", num_devices=8).splitlines()[-1])
    own, whole = counts["activations"]
    assert own > 0 and whole == 0
    # Gradients are not whole either: neither those of compared blocks, nor the accumulated one.
    own, whole = counts["blocks"]
    assert own > 0 and whole == 0 and counts["accumulated"] > 0


def test_rules_follow_names_and_divisibility():
    mesh = mesh_lib.make_mesh()
    key = jax.tree_util.DictKey
    kernel = (key("layer_0_mlp"), key("gate"), key("kernel"))
    assert mesh_lib.parameter_spec(kernel, (8, 16), mesh) == P("fsdp", "tensor")
    assert mesh_lib.parameter_spec((jax.tree_util.GetAttrKey("mu"), *kernel), (8, 16), mesh) == P(
        "fsdp", "tensor"
    )
    assert mesh_lib.parameter_spec((key("final_norm"), key("scale")), (8,), mesh) == P()
    with pytest.raises(ValueError, match="axes"):
        mesh_lib.parameter_spec(kernel, (8, 16, 2), mesh)


def test_too_few_devices():
    with pytest.raises(ValueError, match="needs 64 devices"):
        mesh_lib.make_mesh(data=64)
