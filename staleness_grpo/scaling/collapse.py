"""The collapse of a run, from the pass rates of its current policy alone."""

import dataclasses

import numpy as np

MEMORY = 0.7  # of the exponential average, for one evaluation
FRACTION = 0.5  # of the peak, below which a run is down
LASTING_STEPS = 20
HIGH = 0.9  # of the peak: where a fall begins
RESAMPLES = 200
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Collapse:
    """A collapse; all numbers in learner steps."""

    step: int  # the first evaluation of the lasting stretch below half the peak
    interval: tuple[int, int]  # for the sampling noise of the pass rates
    stayed_down: bool  # it never came back above half the peak
    fall_steps: int  # since the average was last at 90 % of the peak: long for a slow decay, short for a collapse


def detect_collapse(reward_E: np.ndarray, every: int, num_samples: int) -> Collapse | None:
    """The first lasting fall below half the running peak.

    Definition. The pass rates at steps 0, every, 2 every, ... are averaged exponentially (memory 0.7 for an
    evaluation, started at the first pass rate, so that one bad evaluation moves it by 30 %). The peak is the
    average's running maximum, the start included. The run has collapsed at the first evaluation where the average
    is below half its peak and stays there for 20 steps; a fall in the last 20 steps of a run is not counted.
    Entropy and the behavior
    policy's reward have no part in it.

    The interval is the central 95 % of the steps found when every pass rate is drawn again as the mean of
    `num_samples` Bernoulli trials of that rate; draws that find no collapse are left out of it.

    Args:
      reward_E: pass rates in [0, 1] of the current policy, one for each evaluation, none missing.
      every: learner steps between evaluations.
      num_samples: responses of an evaluation.
    """
    found = _first_fall(reward_E, every)
    if found is None:
        return None
    step, average_E, peak_E = found
    draws = np.random.default_rng(0).binomial(num_samples, np.clip(reward_E, 0, 1), (RESAMPLES, len(reward_E)))
    steps = [again[0] for draw in draws if (again := _first_fall(draw / num_samples, every))]
    tail = (1 - CONFIDENCE) / 2
    interval = tuple(int(bound) for bound in np.quantile(steps or [step], [tail, 1 - tail]))
    place = step // every
    high = np.flatnonzero(average_E[:place] >= HIGH * peak_E[:place])
    return Collapse(
        step=step,
        interval=interval,
        stayed_down=bool(np.all(average_E[place:] < FRACTION * peak_E[place:])),
        fall_steps=step - every * int(high[-1]),
    )


def _first_fall(reward_E: np.ndarray, every: int) -> tuple[int, np.ndarray, np.ndarray] | None:
    """(step, average_E, peak_E) of the first lasting fall, or None."""
    average_E = np.empty(len(reward_E))
    average = reward_E[0]
    for i, reward in enumerate(reward_E):
        average = MEMORY * average + (1 - MEMORY) * reward
        average_E[i] = average
    peak_E = np.maximum.accumulate(average_E)
    low_E = average_E < FRACTION * peak_E
    lasting = -(-LASTING_STEPS // every)
    for i in range(len(low_E) - lasting):
        if low_E[i : i + lasting + 1].all():
            return i * every, average_E, peak_E
    return None
