"""Makes the answer to a question from its runs."""

import numpy as np
from ml_collections import ConfigDict

from experiments.advise.sources import Known
from staleness_grpo.errors import FlagError
from staleness_grpo.scaling.advice import Advice, advise
from staleness_grpo.scaling.prior import of_small_models

SOURCE = {"runs": "run", "logs": "log", "probe": "probe"}  # field of the question -> flag


def answer(config: ConfigDict, known: Known) -> Advice:
    """Returns the answer.

    Raises:
      FlagError: the runs cannot carry one.
    """
    question = config.advise
    rate = float(np.exp(np.mean(np.log(known.runs.learning_rate))))
    # The unit of the learning rate is that of the setting, so nothing about it is carried over.
    prior = of_small_models().without_scale().at_momentum(known.b1)
    lags = tuple(int(lag) for lag in question.max_lags)
    advice = advise(known.runs, prior, rate, question.horizon, lags, known.at, known.signs)
    if advice.refusal is not None:
        flag = next(flag for field, flag in SOURCE.items() if question[field])
        raise FlagError(flag, _shown(question, flag), advice.refusal)
    return advice


def _shown(question: ConfigDict, flag: str) -> str:
    field = next(field for field, name in SOURCE.items() if name == flag)
    value = question[field]
    return str(value) if isinstance(value, bool) else ", ".join(value)
