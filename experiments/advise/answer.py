"""Makes the answer to a question from its runs."""

import numpy as np
from ml_collections import ConfigDict

from experiments.advise.question import SOURCES
from experiments.advise.sources import Known
from staleness_grpo.errors import FlagError
from staleness_grpo.scaling.advice import Advice, advise
from staleness_grpo.scaling.prior import of_small_models


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
        field, flag = next(source for source in SOURCES.items() if question[source[0]])
        value = question[field]
        shown = str(value) if isinstance(value, bool) else ", ".join(value)
        raise FlagError(flag, shown, advice.refusal)
    return advice
