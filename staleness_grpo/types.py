"""Defines the types of batches and states. Lists the shape letters, as docs/words.md does.

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
    W  groups that wait to be read, or (step, slot) pairs that must be generated
    X  evaluations of a run, or comparisons of gradients
    J  blocks of groups                       U  kinds of inner products
    Y  responses that can be enumerated       M  levels of the reward
    Z  compositions of a group                A  terms of a sum
    O  any other axis, which a comment beside the name explains

`rewards_NxG` has shape [N, G]. A name without letters is a scalar, a pytree, or an array whose
comment gives the shape.
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
    index_N: Array  # int32, the task's number of each prompt; identifies it in the buffer


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

    The leading axis of every leaf is the group slot. So the ring buffer can store any subset of
    slots, and a mesh can shard the slots.
    """

    prompts: Prompts
    responses: Responses
    rewards_NxG: Array | None  # float32; None until the rewards are judged
    behavior_version_N: Array  # int32, optimizer updates applied when the group was generated
    # Log-probabilities under the proximal policy, which is the policy at the start of the rollout
    # batch. Dtype and masking are as in behavior_logprobs. None with one update per batch, because
    # the learner's own policy is then the proximal policy.
    proximal_logprobs_NxGxR: Array | None = None
    # Log-probabilities under the reference policy; None without a penalty. Dtype as above.
    reference_logprobs_NxGxR: Array | None = None
    # Squared norm of each response's score, in at least float32. The learner computes it for a
    # correction with the optimal baseline. None with other corrections, and in the buffer.
    score_norms_NxG: Array | None = None
    # int8. 0: judged; 1: failed; 2: timed out. A failed or timed-out response has reward 0. None
    # until the rewards are judged.
    reward_outcome_NxG: Array | None = None
    # float32, [N, G, O] with one entry for each component of the reward. None if the reward is no
    # weighted sum, and on the devices, which do not need it.
    reward_components_NxGxO: Array | None = None
    # int32. The policy version that sampled the token at each position of a group's responses. None
    # if one version sampled all of them, and on the devices, which do not need it.
    token_version_NxR: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnerState:
    """Holds the state that an optimizer update reads, replaces and donates."""

    policy_version: Array  # int32 scalar, optimizer updates applied so far
    params: PyTree
    opt_state: PyTree
    previous_gradient: PyTree  # the last update's gradient, for the cosine of consecutive gradients
