"""Sharding: the same run on 1 and on 8 simulated devices, and where the parameters lie after an update."""

import json
import textwrap

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from staleness_grpo import mesh as mesh_lib

RUN = textwrap.dedent(
    """
    import json, jax, numpy as np
    from staleness_grpo import train
    from staleness_grpo.metrics import plain
    from tests.test_train import tiny_config

    config = tiny_config(**{"num_prompts": 8, "lag.max_lag": 2, "steps": 5, "eval_every": 4, **OVERRIDES})
    run = train.build(config)
    records = list(train.train(run, config))
    leaves = jax.tree_util.tree_leaves_with_path(run.state)
    specs = {jax.tree_util.keystr(path): [str(leaf.sharding.spec), leaf.size] for path, leaf in leaves}
    shards = {jax.tree_util.keystr(path): leaf.addressable_shards[0].data.size for path, leaf in leaves}
    params = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(run.state.params)]
    print(json.dumps(plain({"records": records, "specs": specs, "shards": shards, "params": params})))
    """
)


def run(run_on_devices, num_devices, **overrides):
    code = f"OVERRIDES = {overrides!r}\n{RUN}"
    return json.loads(run_on_devices(code, num_devices).splitlines()[-1])


def test_one_and_eight_devices_agree(run_on_devices):
    single = run(run_on_devices, 1)
    sharded = run(run_on_devices, 8, **{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})
    for one, eight in zip(single["records"], sharded["records"], strict=True):
        assert one["reward"] == eight["reward"]  # the same tokens were sampled
        for name in ("loss", "grad_norm", "update_norm", "entropy", "drift_from_behavior", "ratio_mean"):
            assert one[name] == pytest.approx(eight[name], rel=1e-4, abs=1e-6), name
    for one, eight in zip(single["params"], sharded["params"], strict=True):
        # Sums in another order: 1e-7 in a gradient, up to 1e-4 after five Adam steps with their division.
        np.testing.assert_allclose(one, eight, atol=2e-4)

    # After five updates every large parameter, and its optimizer moments, still lies in parts.
    large = {name: spec for name, (spec, size) in sharded["specs"].items() if size >= 256}
    assert len(large) == 7 * 4  # q, k, v, out, gate, up, down: parameters, two moments, previous gradient
    for name in large:
        assert sharded["shards"][name] == sharded["specs"][name][1] // 4, (name, large[name])


SPLIT = textwrap.dedent(
    """
    import re, jax
    from staleness_grpo import config, learner, mesh as mesh_lib
    from staleness_grpo.loss import surrogate_loss
    from staleness_grpo.objective.surrogate import SurrogateConfig
    from staleness_grpo.policy.transformer import Policy, TransformerConfig
    from tests.policy.test_logprobs import rollout_of

    mesh = mesh_lib.make_mesh(fsdp=8)
    policy = Policy(TransformerConfig(vocab_size=16, num_layers=2, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8,
                                      d_ff=48))
    optimizer = learner.make_optimizer(config.default().optimizer)
    state = learner.init_state(policy, optimizer, mesh, jax.random.key(0))
    batch = jax.device_put(rollout_of(8, 2, 6), mesh_lib.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        update = learner.make_update(surrogate_loss(policy, SurrogateConfig(), 1.0), optimizer, state, mesh)
        program = update.lower(state, batch).compile().as_text()
    print([len(re.findall(fr"\\[{n},2,5,48\\]|\\[{10 * n},48\\]", program)) for n in (1, 8)])

    batch = jax.device_put(rollout_of(32, 2, 6), mesh_lib.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        paired_gram = learner.make_paired_gram(policy, SurrogateConfig(), 1.0, None, 0, num_blocks=4)
        program = paired_gram.lower(state.params, batch, batch).compile().as_text()
        loss_fn = surrogate_loss(policy, SurrogateConfig(), 1.0, None, microbatch_prompts=8)
        gradient = jax.jit(jax.grad(lambda params, batch: loss_fn(params, batch)[0]))
        loops = re.findall(r"[^\\n]* while\\(", gradient.lower(state.params, batch).compile().as_text())
    print([len(re.findall(fr"\\[4,{n},48\\]", program)) for n in (2, 16)], end=" ")
    print(sum("f32[2,48]" in loop for loop in loops))
    """
)


def test_a_device_computes_its_own_groups_and_no_others(run_on_devices):
    """With parameters in parts too: weights are what travels, and not the feed-forward features of the whole batch."""
    activations, gradients = run_on_devices(SPLIT, 8).splitlines()[-2:]
    own, whole = json.loads(activations)
    assert own > 0 and whole == 0
    # Nor are gradients whole: those of the blocks that are compared, [4, E / 8, F], and the one that is accumulated.
    blocks, accumulated = gradients.rsplit(maxsplit=1)
    own, whole = json.loads(blocks)
    assert own > 0 and whole == 0 and int(accumulated) > 0


def test_rules_follow_names_and_divisibility():
    mesh = mesh_lib.make_mesh()
    key = jax.tree_util.DictKey
    kernel = (key("layer_0_mlp"), key("gate"), key("kernel"))
    assert mesh_lib.parameter_spec(kernel, (8, 16), mesh) == P("fsdp", "tensor")
    assert mesh_lib.parameter_spec((jax.tree_util.GetAttrKey("mu"), *kernel), (8, 16), mesh) == P("fsdp", "tensor")
    assert mesh_lib.parameter_spec((key("final_norm"), key("scale")), (8,), mesh) == P()
    with pytest.raises(ValueError, match="axes"):
        mesh_lib.parameter_spec(kernel, (8, 16, 2), mesh)


def test_too_few_devices():
    with pytest.raises(ValueError, match="needs 64 devices"):
        mesh_lib.make_mesh(data=64)
