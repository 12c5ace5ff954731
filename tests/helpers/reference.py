"""An independent float64 NumPy reference of the surrogate.

It is written from the formulas, in plain loops, with no code of the package.

L = sum over responses and tokens of  weight * min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),
r = exp(policy_logprob - behavior_logprob),   A_i = (reward_i - mean) / (std + std_epsilon).
"""

import itertools
import math

import numpy as np


def group_advantages(rewards, normalize_std, std_epsilon):
    """Returns the advantages of one group, a list of rewards."""
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    if min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    return [(reward - mean) / (std + std_epsilon if normalize_std else 1.0) for reward in rewards]


def clipped_token(policy_logprob, behavior_logprob, advantage, clip_low, clip_high):
    """Returns min(r A, clip(r) A) of one token and its derivative in policy_logprob."""
    ratio = math.exp(policy_logprob - behavior_logprob)
    clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
    if ratio * advantage <= clipped * advantage:
        return ratio * advantage, ratio * advantage
    return clipped * advantage, 0.0


def token_divisor(mask_row, length_normalization, mean_length):
    """Returns the divisor of a sum over a response's tokens; `mean_length` is for 'tokens'."""
    return {"response": sum(mask_row), "constant": len(mask_row), "tokens": mean_length}[
        length_normalization
    ]


def surrogate(
    policy_logprobs, behavior_logprobs, advantages, mask, clip_low, clip_high, length_normalization
):
    """Returns L of a batch and dL/dpolicy_logprobs [B, R], in the direction of ascent.

    Log-probabilities and mask are [B, R], advantages [B].
    """
    policy_logprobs = np.asarray(policy_logprobs, np.float64)
    behavior_logprobs = np.asarray(behavior_logprobs, np.float64)
    mask = np.asarray(mask, bool)
    num_responses = len(mask)
    mean_length = mask.sum() / num_responses
    value, gradient = 0.0, np.zeros(mask.shape)
    for b, t in zip(*np.nonzero(mask), strict=True):
        weight = 1.0 / (num_responses * token_divisor(mask[b], length_normalization, mean_length))
        term, slope = clipped_token(
            policy_logprobs[b, t],
            behavior_logprobs[b, t],
            float(advantages[b]),
            clip_low,
            clip_high,
        )
        value += weight * term
        gradient[b, t] += weight * slope
    return value, gradient


def population_surrogate(
    policy_logprobs,
    behavior_logprobs,
    mask,
    rewards,
    group_size,
    clip_low,
    clip_high,
    length_normalization,
    normalize_std,
    std_epsilon,
):
    """Returns the population L by brute force over all Y^G groups, and dL/dpolicy_logprobs.

    The arrays run over every response: log-probabilities [N, Y, R], mask [Y, R], rewards [N, Y].
    'tokens' divides by the expected number of tokens of a response under the behavior policy.
    """
    num_prompts, num_responses, length = policy_logprobs.shape
    response_probs = [
        [math.exp(sum(behavior_logprobs[n, y, mask[y]])) for y in range(num_responses)]
        for n in range(num_prompts)
    ]
    mean_length = (
        sum(
            response_probs[n][y] * mask[y].sum()
            for n in range(num_prompts)
            for y in range(num_responses)
        )
        / num_prompts
    )
    value, gradient = 0.0, np.zeros(policy_logprobs.shape)
    for n in range(num_prompts):
        # Maps (response, sign of A) to (L, slope) of each token for |A| = 1, divided by the length.
        tokens = {}
        for y, sign in itertools.product(range(num_responses), (-1, 1)):
            divisor = token_divisor(mask[y], length_normalization, mean_length)
            terms = np.zeros((length, 2))
            for t in np.nonzero(mask[y])[0]:
                terms[t] = clipped_token(
                    policy_logprobs[n, y, t],
                    behavior_logprobs[n, y, t],
                    float(sign),
                    clip_low,
                    clip_high,
                )
            tokens[y, sign] = terms / divisor
        for group in itertools.product(range(num_responses), repeat=group_size):
            weight = math.prod(response_probs[n][y] for y in group) / (group_size * num_prompts)
            advantages = group_advantages(
                [float(rewards[n, y]) for y in group], normalize_std, std_epsilon
            )
            for y, advantage in zip(group, advantages, strict=True):
                if advantage == 0.0:
                    continue
                terms = weight * abs(advantage) * tokens[y, 1 if advantage > 0 else -1]
                value += terms[:, 0].sum()
                gradient[n, y] += terms[:, 1]
    return value, gradient
