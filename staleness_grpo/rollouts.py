"""Generating and scoring rollouts: which prompts, which noise, padded into batches of one compiled shape."""

import dataclasses
import operator
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from staleness_grpo import mesh as mesh_lib
from staleness_grpo.hashing import uniform_integers
from staleness_grpo.policy.sampler import sample
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.tasks.base import Task
from staleness_grpo.types import Prompts, PyTree, Responses, Rollout

# The purpose of a random draw: draws for different purposes are independent.
TRAINING, EVALUATION = 1, 2


@dataclasses.dataclass(frozen=True)
class Generator:
    """Samples responses for (step, slot) pairs from any parameters, and has the task score them on the host."""

    policy: Policy
    task: Task
    mesh: Mesh
    seed: int
    num_prompts: int  # N, the groups sampled at once
    group_size: int  # G
    temperature: float

    def generate(
        self, params: PyTree, version: int, steps_K: np.ndarray, slots_K: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Rollout]]:
        """Yields (steps, slots, Rollout) until all K pairs are done, at most N groups at a time.

        A last batch with fewer than N pairs is filled with copies of its first pair, which are dropped again:
        the sampler is compiled for one shape.
        """
        for first in range(0, len(steps_K), self.num_prompts):
            steps, slots = (array[first : first + self.num_prompts] for array in (steps_K, slots_K))
            used = len(steps)
            fill = self.num_prompts - used
            padded_steps, padded_slots = (np.append(array, np.repeat(array[:1], fill)) for array in (steps, slots))
            prompts = self.prompts(TRAINING, padded_steps, padded_slots)
            responses = self.sample(params, prompts, TRAINING, padded_steps, padded_slots, self.group_size)
            rollout = self.score(prompts, responses, version)
            yield steps, slots, rollout if not fill else jax.tree.map(operator.itemgetter(slice(used)), rollout)

    def evaluate(self, params: PyTree, step: int) -> float:
        """Mean reward of one sampled response to each of N * G prompts, the same prompts at every step."""
        slots = np.arange(self.num_prompts * self.group_size)
        prompts = self.prompts(EVALUATION, np.zeros_like(slots), slots)
        responses = self.sample(params, prompts, EVALUATION, np.full_like(slots, step), slots, 1)
        return float(np.mean(self.score(prompts, responses, step).rewards_NxG))

    def prompts(self, purpose: int, steps_N: np.ndarray, slots_N: np.ndarray) -> Prompts:
        """The prompt of each (step, slot), uniform with replacement and a function of (seed, purpose, step, slot)."""
        return self.task.prompts(uniform_integers(self.task.num_prompts, self.seed, purpose, steps_N, slots_N))

    def sample(
        self, params: PyTree, prompts: Prompts, purpose: int, steps_N: np.ndarray, slots_N: np.ndarray, group_size: int
    ) -> Responses:
        """Responses on the device, group slots sharded over the mesh, with the noise of (seed, purpose, step, slot)."""
        indices = (steps_N.astype(np.int32), slots_N.astype(np.int32))
        with jax.set_mesh(self.mesh):
            prompts, steps_N, slots_N = jax.device_put((prompts, *indices), mesh_lib.batch_sharding(self.mesh))
            return sample(
                self.policy,
                params,
                prompts,
                jax.random.fold_in(jax.random.key(self.seed), purpose),
                steps_N,
                slots_N,
                self.temperature,
                group_size=group_size,
                max_length=self.task.max_response_length,
                end_token=self.task.end_token,
                pad_token=self.task.pad_token,
            )

    def score(self, prompts: Prompts, responses: Responses, version: int) -> Rollout:
        """Fetches the responses and has the task judge them."""
        responses = jax.device_get(responses)
        rewards = self.task.rewards(prompts.index_N, responses.tokens_NxGxR, responses.mask_NxGxR)
        versions = np.full(len(prompts.index_N), version, np.int32)
        return Rollout(prompts=prompts, responses=responses, rewards_NxG=rewards, behavior_version_N=versions)
