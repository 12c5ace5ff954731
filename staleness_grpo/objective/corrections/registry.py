"""Lists the corrections by name, with their parameters.

To add your own correction, write a function of a TokenBatch and add it to CORRECTIONS.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from staleness_grpo.objective.corrections import clipped, masked, signatures, weighted
from staleness_grpo.objective.surrogate import SurrogateConfig, TokenObjective
from staleness_grpo.types import Array


@dataclasses.dataclass(frozen=True)
class Correction:
    """Holds a token objective, its source, and the settings that its definition requires.

    The keyword arguments of `token_objective` are the parameters of the correction. They are
    floats, and their defaults are the published values. clip_low and clip_high may have no default.
    Then they are taken from the config of the surrogate.
    """

    # Maps (TokenBatch, *, parameters) to the objective [..., R], which is maximized.
    token_objective: Callable[..., Array]
    # The next three fields are used only in the documentation. `objective.tokens` defines the
    # symbols of the formula. clip(x) means clip(x, 1 - clip_low, 1 + clip_high).
    formula: str = ""  # the objective of one token, in one line
    source: str = ""  # the paper or code
    verified: str = ""  # how the agreement with the published rule was checked
    length_normalization: str | None = None  # the required value; None: every value is allowed
    normalize_std: bool | None = None  # the required value; None: every value is allowed
    # True if the objective depends on A in another way than by the sign of A and a factor |A|.
    reads_advantage_size: bool = False
    # False if the slope of a response does not depend on the log-probabilities of other responses.
    # Then microbatches need one pass over the policy instead of two; see
    # `training.microbatches.accumulated`.
    reads_other_responses: bool = True
    # True if the advantages have the baseline that minimizes the variance instead of the mean. It
    # needs the norm of every response's score; see `advantages.optimal_baseline_weights`.
    optimal_baseline: bool = False

    @property
    def has_exact_coefficients(self) -> bool:
        """Whether E[A+] and E[A-] determine the population gradient, as `bias` requires."""
        return not (self.reads_advantage_size or self.optimal_baseline)


# Makes a Correction in which the slope of a response does not depend on other responses.
_per_response = functools.partial(Correction, reads_other_responses=False)

_EQUALS_VERL = "compared with verl's code in float64, not in a test here"

CORRECTIONS: dict[str, Correction] = {
    "grpo_clip": _per_response(
        clipped.grpo_clip,
        formula="min(rho A, clip(rho) A)",
        source="GRPO, arXiv 2402.03300",
        verified=_EQUALS_VERL,
    ),
    "dr_grpo": _per_response(
        clipped.grpo_clip,
        formula="min(rho A, clip(rho) A), A without std, constant length normalization",
        source="Dr. GRPO, arXiv 2503.20783",
        verified="the objective is that of grpo_clip; not verified: a leave-one-out mean",
        length_normalization="constant",
        normalize_std=False,
    ),
    "clip_higher": _per_response(
        functools.partial(clipped.grpo_clip, clip_low=0.2, clip_high=0.28),
        formula="min(rho A, clip(rho) A), divided by all tokens of the batch",
        source="DAPO, arXiv 2503.14476",
        verified=_EQUALS_VERL,
        length_normalization="tokens",
    ),
    "dual_clip": _per_response(
        clipped.dual_clip,
        formula="max(min(rho A, clip(rho) A), cap A) if A < 0, else min(rho A, clip(rho) A)",
        source="dual-clip PPO, arXiv 1912.09729, as in verl",
        verified=_EQUALS_VERL,
    ),
    "sapo": _per_response(
        clipped.sapo,
        formula=(
            "(4 / tau) sigmoid(tau (rho - 1)) A, tau = tau_positive if A > 0, else tau_negative"
        ),
        source="SAPO, arXiv 2511.20347",
        verified=_EQUALS_VERL,
    ),
    "gspo": _per_response(
        clipped.gspo,
        formula="min(s A, clip(s) A), s = sg(exp(mean_t log rho)) pi_theta / sg(pi_theta)",
        source="GSPO, arXiv 2507.18071",
        verified=_EQUALS_VERL,
        length_normalization="response",
    ),
    "cispo": _per_response(
        clipped.cispo,
        formula="sg(clip(rho)) A log pi_theta",
        source="CISPO, MiniMax-M1, arXiv 2506.13585",
        verified=f"{_EQUALS_VERL}; not settled: the upper bound for stale rollouts",
    ),
    "decoupled_ppo": _per_response(
        clipped.decoupled_ppo,
        formula="sg(w) min(r A, clip(r) A)",
        source="AReaL, arXiv 2505.24298",
        verified="read in AReaL's code",
    ),
    "sat": Correction(
        clipped.sat,
        formula=(
            "min(rho A, clip(rho, 1 - c_low clip_low, 1 + c_high clip_high) A); beyond the "
            "quantile q of |log rho| the bound on its side has "
            "c = 2 h q^n / (q^n + |log rho|^n), else c = 1"
        ),
        source="SAT, arXiv 2607.18722",
        verified="second-hand; not verified: normalization of the Hill factor",
    ),
    "m2po_authors": Correction(
        clipped.m2po_authors,
        formula=(
            "min(rho A, clip(rho, min(e^-tau, 1 - clip_low), max(e^tau, 1 + clip_high)) A), "
            "tau from the batch's second moment of log rho"
        ),
        source="M2PO, arXiv 2510.01161",
        verified="read in the authors' code",
    ),
    "none": _per_response(
        weighted.none,
        formula="A log pi_theta",
        source="policy gradient on stale tokens",
        verified="standard",
    ),
    "token_is": _per_response(
        weighted.token_is,
        formula="rho A",
        source="importance sampling of tokens",
        verified="standard",
    ),
    "sequence_is": _per_response(
        weighted.sequence_is,
        formula="sg(prod_t rho) pi_theta / sg(pi_theta) A",
        source="importance sampling of responses",
        verified="standard; its exact bias is tested",
    ),
    "token_tis": _per_response(
        weighted.token_tis,
        formula="min(w, cap) min(r A, clip(r) A)",
        source="rollout correction of verl, TRL",
        verified=_EQUALS_VERL,
    ),
    "sequence_tis": _per_response(
        weighted.sequence_tis,
        formula="min(prod_t w, cap) min(r A, clip(r) A)",
        source="rollout correction of verl, TRL",
        verified=_EQUALS_VERL,
    ),
    "geometric_tis": _per_response(
        weighted.geometric_tis,
        formula="min(exp(mean_t log w), cap) min(r A, clip(r) A)",
        source="AReaL's code",
        verified="read in AReaL's code; not verified: the default cap",
    ),
    "opob": _per_response(
        weighted.opob,
        formula=(
            "sg(min(W, cap)) A log pi_theta, W = prod_t rho; the baseline of A is "
            "sum_i W_i^2 n_i R_i / sum_i W_i^2 n_i in place of the group's mean reward, "
            "n = |grad_theta log pi_theta(y)|^2"
        ),
        source="baseline of VCPO, arXiv 2602.17616",
        verified="read in the authors' code",
        optimal_baseline=True,
    ),
    "aipo": _per_response(
        weighted.aipo,
        formula="sg(min(rho, cap)) A log pi_theta",
        source="AIPO, LlamaRL, arXiv 2505.24034",
        verified="second-hand",
    ),
    "topr": _per_response(
        weighted.topr,
        formula="sg(alpha) A log pi_theta, alpha = 1 if A >= 0, else min(prod_t rho, 1)",
        source="TOPR, arXiv 2503.14286",
        verified="second-hand; splits by the advantage, the paper by the reward",
    ),
    "topr_token": _per_response(
        weighted.topr_token,
        formula="sg(alpha) A log pi_theta, alpha = 1 if A >= 0, else min(rho, 1)",
        source="ROLL's variant of TOPR",
        verified="second-hand; splits by the advantage, ROLL by the reward",
    ),
    "topr_geometric": _per_response(
        weighted.topr_geometric,
        formula="sg(alpha) A log pi_theta, alpha = 1 if A >= 0, else min(exp(mean_t log rho), 1)",
        source="variant of TOPR proposed for verl (#6986)",
        verified="second-hand",
    ),
    "vespo": _per_response(
        weighted.vespo,
        formula=(
            "sg(W^k exp(l (1 - W))) A log pi_theta, W = prod_t rho, k and l are exponent and decay "
            "by the sign of A"
        ),
        source="VESPO, arXiv 2602.10693, as in TRL",
        verified="compared with TRL's code in float64, not in a test here",
    ),
    "dro": _per_response(
        weighted.dro,
        formula="A log pi_theta - (beta / 2) (log rho)^2",
        source="DRO, arXiv 2405.19107, as in verl",
        verified=f"{_EQUALS_VERL}; not the paper's regression with a learned value",
    ),
    "token_mis": _per_response(
        masked.token_mis,
        formula="w 1[ratio_low <= w <= ratio_high] min(r A, clip(r) A)",
        source="IcePop, TRL",
        verified=_EQUALS_VERL,
    ),
    "sequence_mis": _per_response(
        masked.sequence_mis,
        formula="W 1[ratio_low <= W <= ratio_high] min(r A, clip(r) A), W = prod_t w",
        source="IcePop, TRL",
        verified=f"{_EQUALS_VERL}; no range is published for responses",
    ),
    "negative_mask": _per_response(
        masked.negative_mask,
        formula="0 if A < 0 and -mean_t log rho > delta, else min(rho A, clip(rho) A)",
        source="DeepSeek-V3.2, TRL",
        verified="read in TRL's documentation; delta is not published",
    ),
    "dppo_tv": _per_response(
        masked.dppo_tv,
        formula=(
            "1[sign(A) (pi_theta - pi_phi) <= probability_change] rho A - penalty (log rho)^2"
        ),
        source="DPPO, prime-rl",
        verified="read in prime-rl's code",
    ),
    "dppo_kl": _per_response(
        masked.dppo_kl,
        formula=(
            "sg(m min(rho, cap)) A log pi_theta; m = 0 if A log rho > 0 and D(pi_phi, pi_theta) > "
            "kl_threshold, else 1; D(p, q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q))"
        ),
        source="DPPO, arXiv 2602.04879, as in verl",
        verified=_EQUALS_VERL,
    ),
    "kpop": _per_response(
        masked.kpop,
        formula=(
            "w 1[D(pi_prox, pi_phi) and D(pi_phi, pi_prox) <= kl_threshold] min(r A, clip(r) A), "
            "D as in dppo_kl"
        ),
        source="KPop of the Ring team, as in AReaL",
        verified="read in AReaL's code; not settled: kl_threshold (0.1 or 2)",
    ),
    "m2po_areal": Correction(
        masked.m2po_areal,
        formula=(
            "1[kept] rho A; kept are the tokens of smallest (log w)^2, as many as have a mean "
            "< second_moment"
        ),
        source="M2PO, arXiv 2510.01161, as in AReaL",
        verified="read in AReaL's code",
    ),
    "mu_grpo": _per_response(
        masked.mu_grpo,
        formula=(
            "0 if A < 0 and an earlier rho of the response is outside [veto_low, veto_high], "
            "else min(rho A, clip(rho) A)"
        ),
        source="mu-GRPO, arXiv 2605.17570",
        verified=(
            "second-hand; not verified: the veto's direction and threshold, the clip range, "
            "whether the veto's own token stays"
        ),
    ),
    "r1_reward_stable_reinforce": _per_response(
        masked.r1_reward_stable_reinforce,
        formula=(
            "0 if |A - mean(A)| > sigmas std(A), else min(rho' A, clip(rho') A), "
            "rho' = exp(clip(log rho, log ratio_low, log ratio_high))"
        ),
        source="StableReinforce, R1-Reward, arXiv 2505.02835",
        verified="second-hand",
        reads_advantage_size=True,
    ),
}

# Former name -> current name.
RENAMED = {"stable_reinforce": "r1_reward_stable_reinforce"}


def parameters(name: str) -> dict[str, float]:
    """Returns the parameters of a correction that have defaults, with the defaults."""
    return signatures.own_parameters(CORRECTIONS[name].token_objective)


def uses_surrogate_clip(name: str) -> bool:
    """Returns whether the correction reads surrogate.clip_low and surrogate.clip_high."""
    return (
        inspect.Parameter.empty
        in signatures.keyword_arguments(CORRECTIONS[name].token_objective).values()
    )


def name_hint(name: Any) -> str:
    """Returns the hint for a name that is not a key of CORRECTIONS."""
    if name in RENAMED:
        return f"this correction is called {RENAMED[name]} now: give the new name"
    return f"choose one of {', '.join(CORRECTIONS)}"


def bind(name: str, surrogate: SurrogateConfig, overrides: Mapping[str, float]) -> TokenObjective:
    """Returns the token objective of a correction, with values for all its parameters.

    Args:
      name: a key of CORRECTIONS.
      surrogate: the settings of the surrogate. Its clip range is used by corrections that have no
        clip range of their own.
      overrides: values of parameters that replace the defaults.

    Raises:
      ValueError: the name or a parameter is unknown, or the definition of the correction requires
        another setting of the surrogate.
    """
    if name not in CORRECTIONS:
        raise ValueError(f"correction={name}: {name_hint(name)}")
    correction = CORRECTIONS[name]
    for field in ("length_normalization", "normalize_std"):
        required, given = getattr(correction, field), getattr(surrogate, field)
        if required is not None and given != required:
            hint = f"the correction {name} is defined with {required}: give {required}"
            raise ValueError(f"{field}={given}: {hint}")
    values = dict(overrides)
    if unknown := set(values) - set(parameters(name)):
        known_names = ", ".join(parameters(name)) or "no parameter"
        hint = f"remove this parameter: the correction {name} reads {known_names}"
        raise ValueError(f"{', '.join(sorted(unknown))}: {hint}")
    if uses_surrogate_clip(name):
        values |= {"clip_low": surrogate.clip_low, "clip_high": surrogate.clip_high}
    return functools.partial(correction.token_objective, **values)
