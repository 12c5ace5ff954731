"""Models when a run collapses, as a function of its lag S and its learning rate eta.

    log t_c = log t_ref - b log(eta / eta_ref) + log f(S) + sigma * normal

t_c is the collapse time in learner steps. The factor f of the lag depends on the law:

    saturating  f = 1 + S0 / S. Up to S0 a lag is paid for in full, far above S0 no longer. So t_ref
                is the collapse time of a very stale run with the learning rate eta_ref.
    power       f = S^-a.
    horizon     f = 1 for S >= 1, and b = 1: the horizon bound of arXiv 2607.01083 alone.

At S = 0 this cause of a collapse is absent. A second cause acts at every S: a run whose learning
rate is above a cap collapses after about EARLY_STEPS learner steps. In `paper`, the cap is the
smaller of the cap and A / S, and f and b are those of `horizon`. So a run is stable up to T if
eta < min(A / S, B / T), which is the rule of the paper.

Laws are judged by the likelihood of collapse times. A run without a collapse counts as one that
collapses after its last learner step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_ndtr, ndtr

EARLY_STEPS, EARLY_SPREAD = 15.0, 0.5  # median, and spread of the logarithm, of the second cause
CAP_WIDTH = 0.2  # spread of log eta around the log of the cap
SMALLEST_SIGMA = 0.05
SEARCHED = 30.0  # largest |log(eta / eta_ref)| in which eta_max is looked for


@dataclasses.dataclass(frozen=True)
class Runs:
    """Holds when each of n runs collapsed. Every field is an array [n]."""

    max_lag: np.ndarray  # S
    learning_rate: np.ndarray  # eta
    step: np.ndarray  # of the collapse, or the number of learner steps of a run without one
    collapsed: np.ndarray  # bool
    resolution: np.ndarray  # learner steps between two evaluations
    seed: np.ndarray

    def __getitem__(self, rows: Any) -> "Runs":
        return Runs(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def __len__(self) -> int:
        return len(self.seed)

    def cut(self, num_steps: int) -> "Runs":
        """Returns the runs as they are known after `num_steps` learner steps."""
        collapsed = self.collapsed & (self.step <= num_steps)
        return dataclasses.replace(self, step=np.minimum(self.step, num_steps), collapsed=collapsed)


# The mean lag of each schedule that has one, as a function of S.
MEAN_AGES: dict[str, Callable[[Any], Any]] = {
    "constant": lambda lag: lag,
    "cyclic": lambda lag: np.maximum(lag - 1, 0) / 2,
    "uniform": lambda lag: lag / 2,
}


def mean_age(schedule: str, max_lag: Any) -> Any:
    """Returns the mean lag of a schedule after its first S steps, in optimizer updates.

    Args:
      schedule: `lag.schedule`, a key of MEAN_AGES.
      max_lag: S, a number or an array.
    """
    return MEAN_AGES[schedule](max_lag)


def runs(records: list[dict], age: Callable[[int], float] = float) -> Runs:
    """Returns the runs of a map.

    A run that was frozen without a detected collapse counts as collapsed when it was frozen.

    Args:
      records: lines of a sweep's cells.jsonl.
      age: what takes the place of S in the law, as a function of S.
    """
    rows = []
    for record in records:
        step, is_whole = record["collapse_step"], record["steps_run"] >= record["steps"]
        fell = step is not None or not is_whole or not record["finite"]
        rows.append(
            (
                age(record["max_lag"]),
                record["learning_rate"],
                record["steps_run"] if step is None else step,
                fell,
                record["trace_every"],
                record["seed"],
            )
        )
    lag, rate, step, collapsed, resolution, seed = (np.array(c) for c in zip(*rows, strict=True))
    # The first evaluation is before the first learner step. A collapse found there is later.
    step = np.maximum(step, resolution).astype(float)
    return Runs(lag.astype(float), rate, step, collapsed.astype(bool), resolution, seed)


def _saturating(of_lag: np.ndarray, max_lag: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, of_lag - np.log(max_lag))


def _power(of_lag: np.ndarray, max_lag: np.ndarray) -> np.ndarray:
    return -of_lag * np.log(max_lag)


def _flat(of_lag: np.ndarray, max_lag: np.ndarray) -> np.ndarray:
    return np.zeros(np.broadcast(of_lag, max_lag).shape)


@dataclasses.dataclass(frozen=True)
class Law:
    """Describes one law: its factor of the lag, and which constants are free."""

    # (constant of the lag, S >= 1) -> log f. The constant is log S0, a, or log A.
    log_factor: Callable[[np.ndarray, np.ndarray], np.ndarray]
    free: tuple[str, ...]  # of NAMES
    caps_by_lag: bool = False  # whether the constant of the lag is log A, with a cap of A / S


# The constants: log t_ref, b, the constant of the lag, the log of the cap, and log sigma.
NAMES = ("log_time", "b", "of_lag", "log_cap", "log_sigma")
LAWS: dict[str, Law] = {
    "saturating": Law(_saturating, NAMES),
    "power": Law(_power, NAMES),
    "horizon": Law(_flat, ("log_time", "log_cap", "log_sigma")),
    "paper": Law(_flat, ("log_time", "of_lag", "log_cap", "log_sigma"), caps_by_lag=True),
}


def log_median(
    law: str, constants: np.ndarray, max_lag: ArrayLike, log_rate: ArrayLike
) -> np.ndarray:
    """Returns the log of the median collapse time by lag, where S > 0.

    Args:
      law: a key of LAWS.
      constants: [..., 5], in the order of NAMES. log t_ref is at log_rate = 0.
      max_lag, log_rate: S, and log(eta / eta_ref). They broadcast against each other and against
        the leading axes of `constants`.
    """
    log_time, b, of_lag, _, _ = np.moveaxis(np.asarray(constants), -1, 0)
    return log_time - b * np.asarray(log_rate) + LAWS[law].log_factor(of_lag, np.asarray(max_lag))


def log_survival(
    law: str,
    constants: np.ndarray,
    max_lag: ArrayLike,
    log_rate: ArrayLike,
    log_step: ArrayLike,
) -> np.ndarray:
    """Returns the log of the probability that a run has not collapsed by a learner step.

    Args:
      law: a key of LAWS.
      constants: [..., 5], in the order of NAMES. log t_ref is at log_rate = 0.
      max_lag, log_rate, log_step: S, log(eta / eta_ref) and log t. They broadcast against each
        other and against the leading axes of `constants`.
    """
    _, _, of_lag, log_cap, log_sigma = np.moveaxis(np.asarray(constants), -1, 0)
    is_stale = np.asarray(max_lag) > 0
    lag = np.where(is_stale, max_lag, 1.0)
    if LAWS[law].caps_by_lag:
        log_cap = np.where(is_stale, np.minimum(log_cap, of_lag - np.log(lag)), log_cap)
    median = log_median(law, constants, lag, log_rate)
    sigma = SMALLEST_SIGMA + np.exp(log_sigma)
    of_lag_cause = np.where(is_stale, log_ndtr((median - log_step) / sigma), 0.0)
    above_cap = ndtr((np.asarray(log_rate) - log_cap) / CAP_WIDTH)
    early = ndtr((np.asarray(log_step) - np.log(EARLY_STEPS)) / EARLY_SPREAD)
    # The product is 1 only where the float has no room for the rest; the log stays finite.
    of_cap = np.log1p(-np.minimum(above_cap * early, 1 - 1e-12))
    return of_lag_cause + of_cap


def log_likelihood(law: str, constants: np.ndarray, runs: Runs, rate: float) -> np.ndarray:
    """Returns the log-likelihood [..., n] of each run.

    A collapse that an evaluation finds happened since the evaluation before.

    Args:
      law: a key of LAWS.
      constants: [..., 5], in the order of NAMES.
      runs: n runs.
      rate: eta_ref.
    """
    constants = np.asarray(constants)[..., None, :]
    log_rate = np.log(runs.learning_rate / rate)

    def survival(step: np.ndarray) -> np.ndarray:
        return log_survival(law, constants, runs.max_lag, log_rate, np.log(step))

    after = survival(runs.step)
    before = survival(np.maximum(runs.step - runs.resolution, 0.5))
    # log(exp(before) - exp(after)); a collapse that the law excludes is as likely as 1e-10.
    collapsed = before + np.log(np.maximum(-np.expm1(np.minimum(after - before, 0.0)), 1e-10))
    return np.where(runs.collapsed, collapsed, after)


def eta_max(
    law: str,
    constants: np.ndarray,
    max_lag: np.ndarray,
    num_steps: float,
    rate: float,
    risk: float = 0.5,
) -> np.ndarray:
    """Returns the learning rate at which a run collapses within T steps with a given probability.

    Args:
      law: a key of LAWS.
      constants: [..., 5], in the order of NAMES.
      max_lag: S [m].
      num_steps: T.
      rate: eta_ref.
      risk: the probability of a collapse.

    Returns:
      eta [..., m].
    """
    constants = np.asarray(constants)[..., None, :]
    shape = np.broadcast_shapes(constants.shape[:-1], np.shape(max_lag))
    low, high = np.full(shape, -SEARCHED), np.full(shape, SEARCHED)
    target, log_step = np.log1p(-risk), np.log(num_steps)
    for _ in range(50):  # the survival falls with eta
        middle = (low + high) / 2
        survives = log_survival(law, constants, max_lag, middle, log_step) > target
        low, high = np.where(survives, middle, low), np.where(survives, high, middle)
    return rate * np.exp((low + high) / 2)
