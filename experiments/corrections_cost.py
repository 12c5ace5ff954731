"""What each correction costs: the time of a whole optimizer update, all methods in turn on one batch.

Sampling is the same for all, so a learner step's ratio is nearer to 1 than an update's.
"""

import time
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import corrections_stability


def cost_records(config: ConfigDict) -> Iterator[dict]:
    """One record for each trained method and round: `time_update`, seconds.

    A round times every method once, in an order of its own, so that what else the machine does falls on all alike.
    """
    from staleness_grpo import train

    with jax.enable_x64(False):  # the updates are float32, as in training
        runs = {}
        for method, settings in corrections_stability.methods(config).items():
            settings.warm_start.steps = 0  # any policy will do
            runs[method] = train.build(settings)
        baseline = runs[corrections_stability.BASELINE]
        slots = np.arange(config.stability.num_prompts)
        generated = baseline.generator.generate(baseline.state.params, 0, np.zeros_like(slots), slots)
        batch = jax.device_put(next(generated)[2].result())
        rng = np.random.default_rng(config.seed)
        for number in range(-1, config.cost.num_rounds):  # the first compiles, and is not kept
            for method in rng.permutation(list(runs)):
                start = time.perf_counter()
                runs[method].state, _ = jax.block_until_ready(runs[method].update(runs[method].state, batch))
                if number >= 0:
                    yield {"method": str(method), "round": number, "time_update": time.perf_counter() - start}
