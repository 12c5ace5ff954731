"""Detects the collapse of a run from the pass rates of its current policy alone."""

import dataclasses

import numpy as np

from staleness_grpo.scaling.bootstrap import CONFIDENCE

MEMORY = 0.7  # weight of the previous average in the exponential average
DOWN_FRACTION = 0.5  # a run is down while its average is below this fraction of its peak
HIGH_FRACTION = 0.9  # a fall starts where the average was last at this fraction of its peak
LASTING_STEPS = 20  # learner steps for which a run must stay down
NUM_REDRAWS = 200  # repetitions for the interval of the collapse step


@dataclasses.dataclass(frozen=True)
class Collapse:
    """Describes a lasting fall of the pass rate. All numbers are learner steps."""

    step: int  # of the first evaluation that begins a lasting stretch below half the peak
    interval: tuple[int, int]  # 95 % interval of `step` under the sampling noise of the pass rates
    stayed_down: bool  # the average never came back above half the peak
    # Steps from the last evaluation with 90 % of the peak to `step`. The number is large for a slow
    # decay and small for a sudden collapse.
    fall_steps: int


def detect_collapse(reward_X: np.ndarray, every: int, num_samples: int) -> Collapse | None:
    """Finds the first lasting fall of the pass rate below half its running peak.

    The pass rates at steps 0, every, 2 every, ... are averaged exponentially, starting at the first
    pass rate. The previous average has weight 0.7, so one bad evaluation moves the average only
    30 % of the way to its own pass rate. The peak is the running maximum of the average, including
    its start. The run has collapsed at the first evaluation where the average is below half its
    peak and stays there for 20 steps. A fall in the last 20 steps of a run is not counted. The rule
    uses neither the entropy nor the behavior policy's reward.

    The interval comes from NUM_REDRAWS repetitions. Each repetition draws every pass rate again, as
    the mean of `num_samples` Bernoulli trials with that rate, and detects the collapse again. The
    interval is the central 95 % of the detected steps. Repetitions without a collapse are ignored.

    Args:
      reward_X: pass rates in [0, 1] of the current policy, one for each evaluation. None may be
        missing.
      every: learner steps between evaluations.
      num_samples: number of responses in an evaluation.

    Returns:
      The collapse, or None if there is none.
    """
    fall = _first_fall(reward_X, every)
    if fall is None:
        return None
    step, average_X, peak_X = fall
    redraws = np.random.default_rng(0).binomial(
        num_samples, np.clip(reward_X, 0, 1), (NUM_REDRAWS, len(reward_X))
    )
    redrawn_falls = [_first_fall(redraw / num_samples, every) for redraw in redraws]
    steps = [redrawn[0] for redrawn in redrawn_falls if redrawn is not None]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(steps or [step], [tail, 1 - tail])
    evaluation = step // every
    high_evaluations = np.flatnonzero(average_X[:evaluation] >= HIGH_FRACTION * peak_X[:evaluation])
    return Collapse(
        step=step,
        interval=(int(low), int(high)),
        stayed_down=bool(np.all(average_X[evaluation:] < DOWN_FRACTION * peak_X[evaluation:])),
        fall_steps=step - every * int(high_evaluations[-1]),
    )


def _first_fall(reward_X: np.ndarray, every: int) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Returns the first lasting fall's step, the averages and the peaks; None without a fall."""
    average_X = np.empty(len(reward_X))
    average = reward_X[0]
    for evaluation, reward in enumerate(reward_X):
        average = MEMORY * average + (1 - MEMORY) * reward
        average_X[evaluation] = average
    peak_X = np.maximum.accumulate(average_X)
    down_X = average_X < DOWN_FRACTION * peak_X
    lasting_evaluations = -(-LASTING_STEPS // every)
    for evaluation in range(len(down_X) - lasting_evaluations):
        if down_X[evaluation : evaluation + lasting_evaluations + 1].all():
            return evaluation * every, average_X, peak_X
    return None
