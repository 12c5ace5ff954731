"""Lists the formats of logs: what each trainer calls our signals, and in which units.

A name stands in a table only if its definition is that of docs/metrics.md, or can be converted
exactly. The comments say what was left out, and why. Names that were not seen as a literal in the
trainer's own public source are marked so.
"""

import dataclasses
import math
from collections.abc import Mapping

# Our signals, and the bounds of their values. docs/metrics.md defines them.
SIGNALS: dict[str, tuple[float, float]] = {
    "reward": (-math.inf, math.inf),
    "learning_rate": (0.0, math.inf),
    "grad_norm": (0.0, math.inf),
    "update_norm": (0.0, math.inf),
    "clip_fraction": (0.0, 1.0),
    "lag_mean": (0.0, math.inf),  # in optimizer updates, as lag_max
    "lag_max": (0.0, math.inf),
    "approx_kl": (0.0, math.inf),
    "log_ratio_second_moment": (0.0, math.inf),
    "ess": (0.0, 1.0),
    "entropy": (0.0, math.inf),
    "eval_reward": (-math.inf, math.inf),
}
# Signals that rounding can take a little beyond a bound.
ROUNDED = {"clip_fraction", "lag_mean", "lag_max", "approx_kl", "ess", "entropy"}
LAGS = ("lag_mean", "lag_max")
# Names of the step, the first that the log has counts. W&B's own `_step` comes last.
STEPS = ("step", "Step", "global_step", "train/global_step", "trainer/global_step", "_step")


@dataclasses.dataclass(frozen=True)
class Column:
    """Says where a signal stands in a log."""

    names: tuple[str, ...]  # the first of them that has a value in the log counts
    plus: str | None = None  # a column that is added, if the log has it
    factor: float = 1.0  # the signal is this many times the column
    behind: bool = False  # the column counts steps; the signal is how far it lies behind the step
    in_versions: bool = False  # weight versions, which are converted to optimizer updates
    after: bool = False  # measured after the updates of the step, not before them
    otherwise: str = ""  # a sentence for the notes if another name than the first counts
    remark: str = ""  # a sentence for the notes of a log that has the signal


@dataclasses.dataclass(frozen=True)
class Format:
    """Says what a trainer writes."""

    about: str  # what is read, for messages
    signals: Mapping[str, Column]  # by our names
    first_step: int | None  # number of the first step; None: 0 or 1, whichever the log begins with
    steps: tuple[str, ...] = STEPS  # names of the step
    one_update: bool = False  # a step is one optimizer update, always
    steps_are_versions: bool = False  # each step publishes the one new weight version
    is_document: bool = False  # one JSON document with a list `log_history`, not lines


def _named(**names: str) -> dict[str, Column]:
    return {signal: Column((name,)) for signal, name in names.items()}


STALENESS_GRPO = {signal: Column((signal,)) for signal in SIGNALS}

NEWEST = "It counts from the newest version of a trajectory, so that its lags are lower bounds."

# Left out: actor/ppo_kl and rollout_corr/kl estimate a divergence by the mean log ratio, ours is
# the mean of r - 1 - log r. rollout_corr/rollout_is_eff_sample_size is taken after the weights were
# clamped, ours before. rollout_corr/chi2_token lacks the mean ratio that would make it `ess`.
VERL = {
    # With a KL penalty in the reward, critic/rewards has it subtracted. The score has not.
    "reward": Column(
        ("critic/score/mean", "critic/rewards/mean"),
        otherwise="A KL penalty may have been subtracted from it.",
    ),
    "learning_rate": Column(("actor/lr",)),  # prefix not seen as a literal
    "grad_norm": Column(("actor/grad_norm",)),  # prefix not seen as a literal
    # The clip acts below 1 - eps or above 1 + eps, the dual clip above c: never on one token.
    "clip_fraction": Column(("actor/pg_clipfrac",), plus="actor/pg_clipfrac_lower"),
    # The ratio of the policy before the step's updates to the sampler.
    "approx_kl": Column(("rollout_corr/k3_kl",)),
    "entropy": Column(("actor/entropy",)),
    # A lag counts from the oldest token, as in a trace. The plain name counts from the newest.
    "lag_mean": Column(
        (
            "training/off_policy/trajectory_staleness_worst/mean",
            "training/off_policy/trajectory_staleness/mean",
        ),
        in_versions=True,
        otherwise=NEWEST,
    ),
    "lag_max": Column(
        (
            "training/off_policy/trajectory_staleness_worst/max",
            "training/off_policy/trajectory_staleness/max",
        ),
        in_versions=True,
        otherwise=NEWEST,
    ),
}

# Left out: kl is the divergence from the reference policy. sampling/sampling_logp_difference/mean
# is a mean of absolute values, and the extremes of the ratio give no moment of it.
TRL = {
    **_named(reward="reward", learning_rate="learning_rate", grad_norm="grad_norm"),
    **_named(clip_fraction="clip_ratio/region_mean", entropy="entropy"),
    # Not seen as a literal: the trainer puts eval_ before the names of an evaluation.
    "eval_reward": Column(("eval_reward",), after=True),
}

# Left out: off_policy/in_flight and off_policy/in_queue are parts of the lag.
PRIME_RL = {
    "reward": Column(("reward/all/mean", "reward/mean")),
    **_named(learning_rate="optim/lr", grad_norm="optim/grad_norm"),
    # Not seen as a literal: /all/mean, formed as in mismatch_kl/all/mean.
    "clip_fraction": Column(("is_masked/all/mean", "is_masked")),
    # The trainer's ratio to the sampler, as r - 1 - log r.
    **_named(approx_kl="mismatch_kl/all/mean", entropy="entropy/all/mean"),
    **_named(lag_mean="off_policy/mean", lag_max="off_policy/max"),
}

# Left out: train/gen_kl_error has the estimator that the config `reference_policy_kl_type` names,
# which the log does not tell. train/approx_entropy is an estimate from the sampled tokens alone.
# train/probs_ratio_clamped is a mean ratio. train/kl_penalty is to the reference policy.
NEMO_RL = {  # prefix train/ not seen as a literal
    **_named(reward="train/reward", learning_rate="train/lr", grad_norm="train/grad_norm"),
    "lag_mean": Column(("train/avg_trajectory_age",), in_versions=True),
}

# Left out: approx_kl and behave_approx_kl are mean log ratios. final_reward is the reward after
# normalization, near 0 for every policy. sample_staleness_theta_max is a mean of maxima over parts
# of a batch, so it is below the largest lag.
_AREAL = (
    "ppo_actor/update/"  # not seen as a literal in the trainer, but in code that reads its logs
)
AREAL = {
    "reward": Column(("ppo_actor/task_reward/avg",)),
    "learning_rate": Column((f"{_AREAL}lr",)),
    "grad_norm": Column((f"{_AREAL}grad_norm",)),
    "clip_fraction": Column((f"{_AREAL}clip_ratio/avg",), plus=f"{_AREAL}dual_clip_ratio/avg"),
    "entropy": Column((f"{_AREAL}entropy/avg",)),
    "lag_mean": Column(
        (f"{_AREAL}version_stats/sample_staleness_theta_avg",),
        in_versions=True,
        remark="lag_mean is a mean over tokens, not over groups.",
    ),
}

# Left out: policy/policy_kl is to the reference policy, and
# policy/rollout_train_logprobs_abs_diff_mean is a mean of absolute values.
SKYRL = {
    "reward": Column(("reward/avg_raw_reward",)),
    # The names with policy/ were not seen as literals in the trainer, but in code that reads them.
    "learning_rate": Column(("policy/policy_lr",)),
    "grad_norm": Column(("policy/raw_grad_norm", "policy/grad_norm")),
    "clip_fraction": Column(("policy/loss_metrics/clip_ratio", "policy/clip_ratio")),
    "entropy": Column(("policy/policy_entropy",)),
    **_named(lag_mean="async/staleness_mean", lag_max="async/staleness_max"),
}

# Left out: optim/kl_sample_train_v1 is a mean log ratio. optim/entropy is minus the mean
# log-probability of the sampled tokens under the sampler.
TINKER = {
    **_named(reward="env/all/reward/total", learning_rate="optim/lr"),
    # v2 is half the mean of (log r)^2.
    "log_ratio_second_moment": Column(("optim/kl_sample_train_v2",), factor=2.0),
    "lag_mean": Column(("sampling_client/step_mean",), behind=True, in_versions=True),
    "lag_max": Column(("sampling_client/step_min",), behind=True, in_versions=True),
}

FORMATS: dict[str, Format] = {
    "staleness_grpo": Format("metrics.jsonl of this project", STALENESS_GRPO, 0, one_update=True),
    "verl": Format(
        "the file log of verl",
        VERL,
        1,
        steps=("step", "training/global_step", "Step", "_step"),
    ),
    "trl": Format(
        "trainer_state.json of TRL", TRL, 1, steps=("step",), one_update=True, is_document=True
    ),
    "prime_rl": Format("the file monitor of prime-rl", PRIME_RL, 1, one_update=True),
    "nemo_rl": Format("metrics of NeMo-RL", NEMO_RL, None),
    "areal": Format("metrics of AReaL", AREAL, None),
    # async/staleness counts steps, and an asynchronous step of SkyRL is one update.
    "skyrl": Format("metrics of SkyRL", SKYRL, None, steps=("trainer/global_step", *STEPS)),
    "tinker": Format(
        "metrics.jsonl of tinker-cookbook",
        TINKER,
        0,
        steps=("step", "progress/batch", "Step", "_step"),
        steps_are_versions=True,
    ),
    "csv": Format("a table with our names, or with columns that are mapped", STALENESS_GRPO, None),
}
