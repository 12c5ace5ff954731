"""An independent float64 NumPy reference of the corrections.

It has the published formulas, token by token, in plain loops. Each function returns the per-token
objective [B, R] of a batch and its derivative in the policy's log-probabilities. Two conventions
are those of every implementation that was read. Ratios are exp(clip(log-ratio, -20, 20)), with no
gradient beyond. The weight in a formula is held constant. Masked places are never read.
"""

import math

import numpy as np


def clamped_exp(x):
    return math.exp(min(max(x, -20.0), 20.0))


def ppo(log_ratio, advantage, low, high):
    """Returns min(r A, clip(r, low, high) A) and its derivative in log r."""
    ratio = clamped_exp(log_ratio)
    bounded = min(max(ratio, low), high)
    slope = ratio * advantage if abs(log_ratio) < 20 else 0.0
    if ratio * advantage <= bounded * advantage:
        return ratio * advantage, slope
    return bounded * advantage, 0.0


class Batch:
    """Holds log-probabilities [B, R] of three policies, advantages [B] and the mask [B, R]."""

    def __init__(self, policy, behavior, proximal, advantages, mask):
        self.policy, self.behavior, self.proximal = (
            np.asarray(x, np.float64) for x in (policy, behavior, proximal)
        )
        self.advantages, self.mask = [float(a) for a in advantages], np.asarray(mask, bool)

    def tokens(self):
        return [
            (b, t)
            for b in range(len(self.mask))
            for t in range(self.mask.shape[1])
            if self.mask[b, t]
        ]

    def log_rho(self, b, t):
        return self.policy[b, t] - self.behavior[b, t]

    def log_r(self, b, t):
        return self.policy[b, t] - self.proximal[b, t]

    def log_w(self, b, t):
        return self.proximal[b, t] - self.behavior[b, t]

    def total(self, log, b):
        return math.fsum(log(b, t) for t in range(self.mask.shape[1]) if self.mask[b, t])

    def mean(self, log, b):
        return self.total(log, b) / self.mask[b].sum()


def per_token(formula):
    """Turns a formula (batch, b, t, parameters) of one token into one of the whole batch."""

    def apply(batch, **parameters):
        objective, slope = np.zeros(batch.mask.shape), np.zeros(batch.mask.shape)
        for b, t in batch.tokens():
            objective[b, t], slope[b, t] = formula(batch, b, t, **parameters)
        return objective, slope

    return apply


@per_token
def grpo_clip(batch, b, t, clip_low, clip_high):
    return ppo(batch.log_rho(b, t), batch.advantages[b], 1 - clip_low, 1 + clip_high)


@per_token
def gspo(batch, b, t, clip_low, clip_high):
    advantage, s = batch.advantages[b], clamped_exp(batch.mean(batch.log_rho, b))
    bounded = min(max(s, 1 - clip_low), 1 + clip_high)
    if s * advantage <= bounded * advantage:
        return s * advantage, s * advantage
    return bounded * advantage, 0.0


def reinforce(weight_of):
    """Makes sg(weight) A log pi_theta of a weight."""

    @per_token
    def formula(batch, b, t, **parameters):
        slope = weight_of(batch, b, t, **parameters) * batch.advantages[b]
        return slope * batch.policy[b, t], slope

    return formula


def weighted_ppo(weight_of):
    """Makes sg(weight) min(r A, clip(r) A) of a weight, with r against the proximal policy."""

    @per_token
    def formula(batch, b, t, clip_low, clip_high, **parameters):
        weight = weight_of(batch, b, t, **parameters)
        value, slope = ppo(batch.log_r(b, t), batch.advantages[b], 1 - clip_low, 1 + clip_high)
        return weight * value, weight * slope

    return formula


@per_token
def token_is(batch, b, t):
    return ppo(batch.log_rho(b, t), batch.advantages[b], 0.0, math.inf)


@per_token
def sequence_is(batch, b, t):
    value = clamped_exp(batch.total(batch.log_rho, b)) * batch.advantages[b]
    return value, value


def inside(weight, ratio_low, ratio_high):
    return weight if ratio_low <= weight <= ratio_high else 0.0


def taper(log_ratio, advantage):
    return 1.0 if advantage >= 0 else min(clamped_exp(log_ratio), 1.0)


none = reinforce(lambda batch, b, t: 1.0)
cispo = reinforce(
    lambda batch, b, t, clip_low, clip_high: min(
        max(clamped_exp(batch.log_rho(b, t)), 1 - clip_low), 1 + clip_high
    )
)
opob = reinforce(lambda batch, b, t, cap: min(clamped_exp(batch.total(batch.log_rho, b)), cap))
aipo = reinforce(lambda batch, b, t, cap: min(clamped_exp(batch.log_rho(b, t)), cap))
topr = reinforce(lambda batch, b, t: taper(batch.total(batch.log_rho, b), batch.advantages[b]))
topr_token = reinforce(lambda batch, b, t: taper(batch.log_rho(b, t), batch.advantages[b]))
topr_geometric = reinforce(
    lambda batch, b, t: taper(batch.mean(batch.log_rho, b), batch.advantages[b])
)
decoupled_ppo = weighted_ppo(lambda batch, b, t: clamped_exp(batch.log_w(b, t)))
token_tis = weighted_ppo(lambda batch, b, t, cap: min(clamped_exp(batch.log_w(b, t)), cap))
sequence_tis = weighted_ppo(
    lambda batch, b, t, cap: min(clamped_exp(batch.total(batch.log_w, b)), cap)
)
geometric_tis = weighted_ppo(
    lambda batch, b, t, cap: min(clamped_exp(batch.mean(batch.log_w, b)), cap)
)
token_mis = weighted_ppo(
    lambda batch, b, t, **bounds: inside(clamped_exp(batch.log_w(b, t)), **bounds)
)
sequence_mis = weighted_ppo(
    lambda batch, b, t, **bounds: inside(clamped_exp(batch.total(batch.log_w, b)), **bounds)
)


@per_token
def negative_mask(batch, b, t, clip_low, clip_high, delta):
    if batch.advantages[b] < 0 and -batch.mean(batch.log_rho, b) > delta:
        return 0.0, 0.0
    return ppo(batch.log_rho(b, t), batch.advantages[b], 1 - clip_low, 1 + clip_high)


@per_token
def dppo_tv(batch, b, t, probability_change, penalty):
    advantage, x = batch.advantages[b], batch.log_rho(b, t)
    change = math.exp(batch.policy[b, t]) - math.exp(batch.behavior[b, t])
    dropped = (advantage > 0 and change > probability_change) or (
        advantage < 0 and change < -probability_change
    )
    value, slope = (0.0, 0.0) if dropped else ppo(x, advantage, 0.0, math.inf)
    return value - penalty * x * x, slope - 2 * penalty * x


@per_token
def mu_grpo(batch, b, t, clip_low, clip_high, veto_low, veto_high):
    earlier = [clamped_exp(batch.log_rho(b, s)) for s in range(t) if batch.mask[b, s]]
    vetoed = any(not veto_low <= ratio <= veto_high for ratio in earlier)
    if batch.advantages[b] < 0 and vetoed:
        return 0.0, 0.0
    return ppo(batch.log_rho(b, t), batch.advantages[b], 1 - clip_low, 1 + clip_high)


def sat(batch, clip_low, clip_high, quantile, hill_exponent, hill_at_quantile):
    magnitudes = sorted(abs(batch.log_rho(b, t)) for b, t in batch.tokens())
    q = magnitudes[math.ceil(quantile * len(magnitudes)) - 1] if magnitudes else math.inf

    @per_token
    def formula(batch, b, t):
        x, c_low, c_high = batch.log_rho(b, t), 1.0, 1.0
        if abs(x) > q and q > 0:
            q_power, x_power = q**hill_exponent, abs(x) ** hill_exponent
            c = 2 * hill_at_quantile * q_power / (q_power + x_power)
            c_low, c_high = (1.0, c) if x > 0 else (c, 1.0)
        return ppo(x, batch.advantages[b], 1 - clip_low * c_low, 1 + clip_high * c_high)

    return formula(batch)


def m2po_authors(batch, second_moment, clip_low, clip_high):
    squares = sorted(
        batch.log_rho(b, t) ** 2
        for b, t in batch.tokens()
        if batch.advantages[b] * batch.log_rho(b, t) > 0
    )
    low, high = 0.0, math.inf
    if squares and sum(squares) > second_moment * len(squares):
        fitting = [
            v for v in squares if sum(min(u, v) for u in squares) < second_moment * len(squares)
        ]
        # Slightly below the observed value, as in the code. So the cap clips its own token.
        cap = math.sqrt(max(fitting)) * (1 - 1e-14) if fitting else 0.0
        low, high = math.exp(-cap), math.exp(cap)
    low, high = min(low, 1 - clip_low), max(high, 1 + clip_high)

    @per_token
    def formula(batch, b, t):
        return ppo(batch.log_rho(b, t), batch.advantages[b], low, high)

    return formula(batch)


def m2po_areal(batch, second_moment):
    squares = {bt: batch.log_w(*bt) ** 2 for bt in batch.tokens()}
    kept = set(squares)
    while kept and sum(squares[bt] for bt in kept) / len(kept) >= second_moment:
        largest = max(squares[bt] for bt in kept)
        # Equal squares go together. This is a convention of the package.
        kept = {bt for bt in kept if squares[bt] < largest}

    @per_token
    def formula(batch, b, t):
        return (
            ppo(batch.log_rho(b, t), batch.advantages[b], 0.0, math.inf)
            if (b, t) in kept
            else (0.0, 0.0)
        )

    return formula(batch)


def r1_reward_stable_reinforce(batch, clip_low, clip_high, ratio_low, ratio_high, sigmas):
    mean, std = np.mean(batch.advantages), np.std(batch.advantages)

    @per_token
    def formula(batch, b, t):
        advantage, x = batch.advantages[b], batch.log_rho(b, t)
        if abs(advantage - mean) > sigmas * std:
            return 0.0, 0.0
        bounded = min(max(x, math.log(ratio_low)), math.log(ratio_high))
        value, slope = ppo(bounded, advantage, 1 - clip_low, 1 + clip_high)
        return value, slope if bounded == x else 0.0

    return formula(batch)


@per_token
def dual_clip(batch, b, t, clip_low, clip_high, cap):
    advantage, x = batch.advantages[b], batch.log_rho(b, t)
    if advantage < 0 and clamped_exp(x) > cap:
        return cap * advantage, 0.0
    return ppo(x, advantage, 1 - clip_low, 1 + clip_high)


@per_token
def sapo(batch, b, t, tau_positive, tau_negative):
    advantage, x = batch.advantages[b], batch.log_rho(b, t)
    tau, rho = tau_positive if advantage > 0 else tau_negative, clamped_exp(x)
    exponential = math.exp(-abs(tau * (rho - 1)))
    smaller, larger = exponential / (1 + exponential), 1 / (1 + exponential)
    gate = larger if rho > 1 else smaller
    slope = 4 * larger * smaller * rho * advantage if abs(x) < 20 else 0.0
    return 4 / tau * gate * advantage, slope


@reinforce
def vespo(batch, b, t, exponent_positive, decay_positive, exponent_negative, decay_negative):
    k, decay = exponent_positive, decay_positive
    if batch.advantages[b] < 0:
        k, decay = exponent_negative, decay_negative
    weight = clamped_exp(batch.total(batch.log_rho, b))
    return math.exp(decay) * weight**k * math.exp(-decay * weight)


@per_token
def dro(batch, b, t, beta):
    advantage, x = batch.advantages[b], batch.log_rho(b, t)
    return batch.policy[b, t] * advantage - beta / 2 * x * x, advantage - beta * x


def binary_kl(log_p, log_q):
    """Returns the divergence of a coin of probability p from one of q, both at most 1 - 1e-8."""
    p, q = min(math.exp(log_p), 1.0), math.exp(log_q)
    other_p, other_q = max(1 - math.exp(log_p), 1e-8), max(1 - q, 1e-8)
    return p * math.log(math.exp(log_p) / q) + (1 - p) * math.log(other_p / other_q)


@reinforce
def dppo_kl(batch, b, t, kl_threshold, cap):
    x, advantage = batch.log_rho(b, t), batch.advantages[b]
    leaves = (advantage > 0 and x > 0) or (advantage < 0 and x < 0)
    if leaves and binary_kl(batch.behavior[b, t], batch.policy[b, t]) > kl_threshold:
        return 0.0
    return min(clamped_exp(x), cap)


@weighted_ppo
def kpop(batch, b, t, kl_threshold):
    pair = batch.proximal[b, t], batch.behavior[b, t]
    far = max(binary_kl(*pair), binary_kl(*reversed(pair))) > kl_threshold
    return 0.0 if far else clamped_exp(batch.log_w(b, t))


# Other parameters and another normalization, the same objective.
dr_grpo = clip_higher = grpo_clip
