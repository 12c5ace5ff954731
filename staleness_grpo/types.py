"""Batch and state types, and the legend of shape letters used in names everywhere.

    N  prompts (= group slots) of a learner step     G  group size: responses per prompt
    B  responses, N * G                              P  prompt length, left-padded
    R  response length, right-padded                 T  sequence length, P + R
    V  vocabulary size                               D  parameters, flattened

`rewards_NxG` has shape [N, G]; a name without a suffix is a scalar, a pytree, or has its shape in its comment.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

PyTree = Any
Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of N group slots, left-padded to one length."""

    tokens_NxP: Array  # int32
    mask_NxP: Array  # bool, False on the padding
    index_N: Array  # int32, the task's prompt index: the payload's identity through the buffer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Responses:
    """What the sampler returns for G responses to each of N prompts."""

    tokens_NxGxR: Array  # int32, the pad token after the end of a response
    mask_NxGxR: Array  # bool, True up to and including the end token
    behavior_logprobs_NxGxR: Array  # float32 (float64 under x64), 0 where masked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """N groups of scored responses with the policy version that generated each group.

    Every leaf has the group slot as its leading axis, so that the ring buffer can keep, and a mesh can
    shard, any subset of slots.
    """

    prompts: Prompts
    responses: Responses
    rewards_NxG: Array  # float32
    behavior_version_N: Array  # int32, optimizer updates applied when the group was generated
    # Like behavior_logprobs, under the policy at the start of the rollout batch. None where a batch is learned from in
    # one optimizer update: then the learner's own policy is the proximal one.
    proximal_logprobs_NxGxR: Array | None = None
    # int8, for rewards judged in worker processes, `rewards.OUTCOMES`: 0 judged; 1 failed, 2 timed out, with reward 0.
    reward_outcome_NxG: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnerState:
    """All that one optimizer update reads and replaces; donated to it."""

    policy_version: Array  # int32 scalar, optimizer updates applied so far
    params: PyTree
    opt_state: PyTree
    previous_gradient: PyTree  # of the last update, for the cosine of consecutive gradients
