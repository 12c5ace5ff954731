"""Times a whole optimizer update of each correction, all of them in turn on one batch.

Sampling is the same for all, so a learner step's ratio is nearer to 1 than an update's.
"""

import time
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.corrections.stability import BASELINE, methods


def cost_records(config: ConfigDict) -> Iterator[dict]:
    """Yields one record for each trained method and round: `time_update`, seconds.

    A round times every method once, in an order of its own. So what else the machine does falls on
    all alike.
    """
    from staleness_grpo.training.run import build_run

    with jax.enable_x64(False):  # the updates are float32, as in training
        runs = {}
        for method, settings in methods(config).items():
            settings.warm_start.steps = 0  # any policy will do
            runs[method] = build_run(settings)
        baseline = runs[BASELINE]
        slots = np.arange(config.stability.num_prompts)
        generated = baseline.generator.generate(
            baseline.state.params, 0, np.zeros_like(slots), slots
        )
        batch = jax.device_put(next(generated)[2].result())
        rng = np.random.default_rng(config.seed)
        for number in range(-1, config.cost.num_rounds):  # the first compiles, and is not kept
            for method in rng.permutation(list(runs)):
                run = runs[method]
                start = time.perf_counter()
                run.state, _ = jax.block_until_ready(run.update(run.state, batch))
                seconds = time.perf_counter() - start
                if number >= 0:
                    yield {"method": str(method), "round": number, "time_update": seconds}
