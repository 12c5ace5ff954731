"""Lists the claims of arXiv 2607.01083, and which of our claims speak to each."""

import dataclasses
from collections.abc import Mapping

from experiments.common.claims import Claim
from experiments.common.html import number


@dataclasses.dataclass(frozen=True)
class PaperClaim:
    """Holds one statement of the paper, with the evidence on it."""

    title: str
    statement: str  # in our words
    job: str  # the job whose claims are the evidence
    evidence: tuple[str, ...]  # names of claims that decide the verdict
    finding: str  # what was found; {name} stands for a claim's number and interval
    beside: tuple[str, ...] = ()  # names of claims that belong here and decide nothing
    figures: tuple[tuple[str, str], ...] = ()  # (PNG of the job's folder, caption)

    def verdict(self, claims: Mapping[str, Claim]) -> str:
        """Returns a key of `html.VERDICTS`, from the claims of the job by name."""
        holding = [claims[name].holds for name in self.evidence if name in claims]
        if len(holding) < len(self.evidence):
            return "open"
        return "holds" if all(holding) else ("part" if any(holding) else "fails")

    def reading(self, claims: Mapping[str, Claim]) -> str:
        """Returns `finding` with its numbers, or why there is none."""
        if self.verdict(claims) == "open":
            return f"The job {self.job} has no fit of this yet."
        shown = {name: _shown(claim) for name, claim in claims.items()}
        return self.finding.format_map(shown)


def _shown(claim: Claim) -> str:
    interval = "" if claim.interval is None else f" {number(claim.interval)}"
    return number(claim.measured) + interval


PAPER_CLAIMS = (
    PaperClaim(
        title="The surrogate gradient is not a total derivative",
        statement="With the behavior policy explicit, the learner follows H(theta, phi) = "
        "grad_theta L(theta, phi). This is not the derivative of an objective whose data "
        "distribution depends on theta.",
        job="bias",
        evidence=("diagonal_is_zero", "phi_gradient_is_minus_h"),
        finding="On enumerable problems L(theta, theta) is 0 everywhere, so its total derivative "
        "is 0 where H is not. H points {fixed_length_angle} degrees away from the gradient of "
        "expected reward with responses of fixed length, and {variable_length_angle} degrees with "
        "1/|y| and variable length.",
        beside=(
            "fixed_length_is_a_gradient_field",
            "fixed_length_three_levels",
            "fixed_length_angle",
            "variable_length_angle",
        ),
    ),
    PaperClaim(
        title="Stale rollouts bias each step by O(S eta)",
        statement="Under local boundedness and smoothness, the bias of a step is at most of order "
        "the maximum lag S times the learning rate eta.",
        job="bias",
        evidence=("sgd_constant_slope", "adam_constant_slope"),
        finding="The exponent of S eta is {sgd_constant_slope} with SGD and {adam_constant_slope} "
        "with Adam, exact to rounding, up to the first clipped token. There the law ends.",
        beside=(
            "sgd_constant_linear_range_end",
            "adam_constant_linear_range_end",
            "sgd_cyclic_same_line",
            "adam_cyclic_same_line",
            "exact_against_all_groups",
            "sampled_mean_fresh",
            "sampled_mean_stale",
        ),
        figures=(
            ("bias_law.png", "The bias of every run over its problem's gain; dashed: slope 1."),
            ("bias_range.png", "Where the law ends, the Lipschitz bound, and how drift grows."),
        ),
    ),
    PaperClaim(
        title="Collapse time times eta is a constant, and eta_max falls as 1/S",
        statement="While drift stays below a clipping radius, collapse comes at a fixed t eta, "
        "whatever S (about 3.2e-5 for 1B and 3B models). Where staleness binds, eta_max is "
        "proportional to 1/S.",
        job="scaling_laws",
        evidence=(
            "eta_max_slope_falling",
            "collapse_step_times_eta",
            "collapse_time_eta_exponent",
            "collapse_time_s_exponent",
        ),
        finding="eta_max falls as S to the power {eta_max_slope_falling} up to S = 16, where the "
        "paper has -1. Collapse times fall as eta to the power {collapse_time_eta_exponent} and S "
        "to the power {collapse_time_s_exponent}, where the paper has -1 and 0.",
        beside=("eta_max_slope_flat",),
        figures=(
            ("scaling_map.png", "Which (S, eta) collapse, and the fitted boundary."),
            ("scaling_collapse_time.png", "Collapse step times eta against S."),
            ("scaling_eta_max.png", "The largest stable learning rate against S, by horizon."),
        ),
    ),
    PaperClaim(
        title="Two constraints: eta below the smaller of R_batch/(S G) and R_crit/(T G)",
        statement="Stability needs eta well below the smaller of a staleness bound and a horizon "
        "bound.",
        job="scaling_laws",
        evidence=("smaller_bound_is_best",),
        finding="Fitted to half of the seeds and judged on the other half, the smaller of the "
        "two bounds is not the best rule. Its log-likelihood minus that of the best rule is "
        "{smaller_bound_is_best}.",
        beside=("boundary_classifies_other_seeds", "scale_free_ratio"),
    ),
    PaperClaim(
        title="A persistently positive gradient cosine precedes collapse",
        statement="The cosine of consecutive gradients stays above 0.5 before a collapse and is "
        "near 0 in stable runs.",
        job="scaling_laws",
        evidence=("early_cosine", "alarm_gradient_cosine"),
        finding="A larger early cosine tells collapsing from stable runs with a ROC area of "
        "{early_cosine}, where 0.5 is chance and 1 is perfect. An alarm on it finds a share of "
        "{alarm_gradient_cosine} of the collapses.",
        beside=("relative_early_cosine",),
        figures=(
            ("scaling_cosine.png", "Cosine of consecutive gradients, stable and collapsing runs."),
        ),
    ),
)
