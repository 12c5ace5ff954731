"""Detects the collapse of a run from the rewards of its current policy alone.

The rewards may be pass rates or any other rewards. They are measured from their floor.
"""

import dataclasses

import numpy as np

from staleness_grpo.scaling.bootstrap import CONFIDENCE

MEMORY = 0.7  # weight of the previous average in the exponential average
DOWN_FRACTION = 0.5  # a run is down while its average is below this fraction of its peak
HIGH_FRACTION = 0.9  # a fall starts where the average was last at this fraction of its peak
LASTING_STEPS = 20  # learner steps for which a run must stay down
NUM_REDRAWS = 200  # repetitions for the interval of the collapse step
# Half the peak must be this many standard deviations of one evaluation. The average starts at one
# evaluation, so a lower peak may be noise.
NOISE_FACTOR = 3.0
# The median of |x - y| over the standard deviation of x, for independent normal x and y.
MEDIAN_DIFFERENCE = 0.6745 * 2**0.5


@dataclasses.dataclass(frozen=True)
class Collapse:
    """Describes a lasting fall of the reward. All numbers are learner steps."""

    step: int  # of the first evaluation that begins a lasting stretch below half the peak
    interval: tuple[int, int]  # 95 % interval of `step` under the sampling noise of the rewards
    stayed_down: bool  # the average never came back above half the peak
    # Steps from the last evaluation with 90 % of the peak to `step`. The number is large for a slow
    # decay and small for a sudden collapse.
    fall_steps: int


def detect_collapse(
    reward_X: np.ndarray, every: int, num_samples: int, floor: float = 0.0
) -> Collapse | None:
    """Finds the first lasting fall of the reward below half its running peak.

    The rewards at steps 0, every, 2 every, ... are averaged exponentially, starting at the first
    reward. The previous average has weight 0.7, so one bad evaluation moves the average only 30 %
    of the way to its own reward. The peak is the running maximum of the average, including its
    start. Averages and peak are measured from the floor, the task's lowest reward. The run has
    collapsed at the first evaluation where the average is below half its peak and stays there for
    20 steps. A fall in the last 20 steps of a run is not counted. Nor is a fall from a peak that is
    not above the noise. The rule uses neither the entropy nor the behavior policy's reward.

    The interval comes from NUM_REDRAWS repetitions. Each repetition draws every reward again, and
    detects the collapse again. If all rewards are in [0, 1], a reward is the mean of `num_samples`
    Bernoulli trials. Other rewards get normal noise, as large as that of the run. The interval is
    the central 95 % of the detected steps. Repetitions without a collapse are ignored.

    Args:
      reward_X: rewards of the current policy, one for each evaluation.
      every: learner steps between evaluations.
      num_samples: number of responses in an evaluation.
      floor: the task's lowest reward. If a reward is lower, the lowest reward of the run is used.

    Returns:
      The collapse, or None if there is none.

    Raises:
      ValueError: a reward is not finite.
    """
    reward_X = np.asarray(reward_X, float)
    if not np.isfinite(reward_X).all():
        missing = np.flatnonzero(~np.isfinite(reward_X))[0] * every
        raise ValueError(f"the reward of the evaluation at step {missing} is not finite")
    floor = min(floor, float(reward_X.min()))
    step = _first_fall(reward_X, every, floor, num_samples)
    if step is None:
        return None
    rng, shape = np.random.default_rng(0), (NUM_REDRAWS, len(reward_X))
    if _are_rates(reward_X):
        redraws = rng.binomial(num_samples, reward_X, shape) / num_samples
    else:
        redraws = reward_X + _noise(reward_X, num_samples) * rng.normal(size=shape)
    redrawn_falls = [_first_fall(redraw, every, floor, num_samples) for redraw in redraws]
    steps = [redrawn for redrawn in redrawn_falls if redrawn is not None]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(steps or [step], [tail, 1 - tail])
    height_X = averages(reward_X) - floor
    peak_X = np.maximum.accumulate(height_X)
    evaluation = step // every
    high_evaluations = np.flatnonzero(height_X[:evaluation] >= HIGH_FRACTION * peak_X[:evaluation])
    return Collapse(
        step=step,
        interval=(int(low), int(high)),
        stayed_down=bool(is_down(averages(reward_X), floor)[evaluation:].all()),
        fall_steps=step - every * int(high_evaluations[-1]),
    )


def averages(reward_X: np.ndarray) -> np.ndarray:
    """Returns the exponential average at each evaluation, which starts at the first reward."""
    average_X = np.empty(len(reward_X))
    average = reward_X[0]
    for evaluation, reward in enumerate(reward_X):
        average = MEMORY * average + (1 - MEMORY) * reward
        average_X[evaluation] = average
    return average_X


def is_down(average_X: np.ndarray, floor: float) -> np.ndarray:
    """Returns for each evaluation whether the average is below the middle of floor and peak."""
    height_X = average_X - floor
    return height_X < DOWN_FRACTION * np.maximum.accumulate(height_X)


def noise_of_average(reward_X: np.ndarray) -> float:
    """Returns the standard deviation of the average that comes from sampling the responses."""
    return _noise(reward_X) * ((1 - MEMORY) / (1 + MEMORY)) ** 0.5


def _noise(reward_X: np.ndarray, num_samples: int | None = None) -> float:
    """Returns the standard deviation of a reward, from the differences of consecutive ones.

    The median of the differences is used, which a trend or a sudden fall hardly changes. It is 0 if
    more than half of the rewards equal the one before: successes are rare, or the run stands still.
    Then it is the noise of `num_samples` Bernoulli trials with the mean reward, if rewards may be
    their means. Otherwise it is the root mean square of the differences over the root of 2.
    """
    if len(reward_X) < 2:
        return 0.0
    differences = np.diff(reward_X)
    if median := float(np.median(np.abs(differences))):
        return median / MEDIAN_DIFFERENCE
    if num_samples is not None and _are_rates(reward_X):
        mean = float(reward_X.mean())
        return float((mean * (1 - mean) / num_samples) ** 0.5)
    return float(np.mean(differences**2) / 2) ** 0.5


def _are_rates(reward_X: np.ndarray) -> bool:
    """Returns whether rewards may be means of trials, all of them in [0, 1]."""
    return bool(((reward_X >= 0) & (reward_X <= 1)).all())


def _first_fall(reward_X: np.ndarray, every: int, floor: float, num_samples: int) -> int | None:
    """Returns the step of the first lasting fall; None without a fall."""
    average_X = averages(reward_X)
    peak_X = np.maximum.accumulate(average_X - floor)
    is_sure_X = DOWN_FRACTION * peak_X > NOISE_FACTOR * _noise(reward_X, num_samples)
    down_X = is_down(average_X, floor) & is_sure_X
    lasting_evaluations = -(-LASTING_STEPS // every)
    for evaluation in range(len(down_X) - lasting_evaluations):
        if down_X[evaluation : evaluation + lasting_evaluations + 1].all():
            return evaluation * every
    return None
