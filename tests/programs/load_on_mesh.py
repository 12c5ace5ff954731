"""Loads model folders into a mesh of 2 x 2 x 2 devices, and samples there from the first one.

    python -m tests.programs.load_on_mesh FOLDER [FOLDER ...]

It asserts that the parameters are those of a load onto one device, that every part of a tensor is
read by itself and once, and that large parameters of the first folder are cut into quarters.
Printed are the log-probabilities of 2 responses to each of 4 prompts, as JSON.
"""

import json
import pathlib
import sys
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh

from staleness_grpo.policy import huggingface
from staleness_grpo.policy.huggingface import weights
from staleness_grpo.policy.sampler import sample
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.types import Prompts, PyTree


def load_in_parts(folder: str, mesh: Mesh) -> tuple[Policy, PyTree]:
    """Loads a policy into the mesh, and asserts that each part is read by itself, and once."""
    expected = huggingface.load(folder)[1]
    read_tensor = weights.read_tensor
    sizes: list[int] = []

    def counted_read(path: pathlib.Path, name: str, index: tuple[slice, ...]) -> np.ndarray:
        part = read_tensor(path, name, index)
        sizes.append(part.size)
        return part

    with mock.patch.object(weights, "read_tensor", counted_read):
        policy, params = huggingface.load(folder, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    parts: list[int] = []
    for leaf in jax.tree.leaves(params):
        by_index = {str(shard.index): shard for shard in leaf.addressable_shards}
        parts.extend(shard.data.size for shard in by_index.values())
    assert sorted(sizes) == sorted(parts), (sizes, parts)
    return policy, params


def sample_on(mesh: Mesh, policy: Policy, params: PyTree) -> list:
    """Samples responses on the mesh, and returns their log-probabilities [4, 2, 4]."""
    with jax.set_mesh(mesh):
        tokens = np.arange(12, dtype=np.int32).reshape(4, 3)
        prompts = Prompts(tokens, np.ones_like(tokens, bool), np.arange(4))
        prompts = jax.device_put(prompts, mesh_lib.batch_sharding(mesh))
        indices = np.arange(4, dtype=np.int32)
        responses = sample(
            policy,
            params,
            prompts,
            jax.random.key(0),
            indices,
            indices,
            1.0,
            group_size=2,
            max_length=4,
            end_token=(2, 3),
            pad_token=0,
        )
    return np.asarray(responses.behavior_logprobs_NxGxR).tolist()


def main(folder: str, *other_folders: str) -> None:
    """Runs the program."""
    mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
    for other_folder in other_folders:
        load_in_parts(other_folder, mesh)
    policy, params = load_in_parts(folder, mesh)
    for leaf in jax.tree.leaves(params):
        in_quarters = leaf.addressable_shards[0].data.size == leaf.size // 4
        assert leaf.ndim == 1 or in_quarters, leaf.sharding
    print(json.dumps(sample_on(mesh, policy, params)))


if __name__ == "__main__":
    main(*sys.argv[1:])
