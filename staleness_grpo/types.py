"""Defines batch and state types, and the legend of the shape letters in names.

    N  prompts, which are the group slots of a learner step
    G  responses to one prompt (the group size)
    B  responses of a batch, N * G
    P  prompt positions, left-padded          R  response positions, right-padded
    T  positions of a sequence, P + R         V  tokens of the vocabulary
    D  parameters, flattened                  E  features of the residual stream (d_model)
    H  features of one attention head         K  key/value heads
    Q  query heads for each key/value head    L  query positions
    C  key positions                          F  chunks of the vocabulary
    S  the maximum lag                        I  learner steps
    W  groups that wait, or (step, slot) pairs that are due
    X  evaluations of a run, or comparisons of gradients
    J  blocks of groups                       U  kinds of inner products
    Y  responses that can be enumerated       M  levels of the reward
    Z  compositions of a group                A  terms of a sum
    O  anything else that its comment names

`rewards_NxG` has shape [N, G]. A name without letters is a scalar, a pytree, or has its shape in
its comment.
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
    """Holds the prompts of N group slots, left-padded to one length."""

    tokens_NxP: Array  # int32
    mask_NxP: Array  # bool, False on the padding
    index_N: Array  # int32, the task's prompt index, by which a group is known through the buffer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Responses:
    """Holds G responses to each of N prompts, as the sampler returns them."""

    tokens_NxGxR: Array  # int32, the pad token after the end of a response
    mask_NxGxR: Array  # bool, True up to and including the end token
    behavior_logprobs_NxGxR: Array  # float32 (float64 under x64), 0 where masked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """Holds N groups of scored responses, with the policy version that generated each.

    Every leaf has the group slot as its leading axis. So the ring buffer can keep, and a mesh can
    shard, any subset of slots.
    """

    prompts: Prompts
    responses: Responses
    rewards_NxG: Array | None  # float32; None while the rewards are on their way
    behavior_version_N: Array  # int32, optimizer updates applied when the group was generated
    # Like behavior_logprobs, under the policy at the start of the rollout batch. None with one
    # update per batch: then the learner's own policy is the proximal one.
    proximal_logprobs_NxGxR: Array | None = None
    # int8, for rewards judged in worker processes: 0 judged; 1 failed, 2 timed out, with reward 0.
    reward_outcome_NxG: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnerState:
    """Holds the state that one optimizer update reads and replaces; the update donates it."""

    policy_version: Array  # int32 scalar, optimizer updates applied so far
    params: PyTree
    opt_state: PyTree
    previous_gradient: PyTree  # of the last update, for the cosine of consecutive gradients
