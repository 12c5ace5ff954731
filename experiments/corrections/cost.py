"""Times an optimizer update of each trained method, on the same batch.

Sampling takes the same time with every method. So the times of whole learner steps differ less than
the times of updates.
"""

import time
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.corrections.stability import BASELINE, sweep_configs


def cost_records(config: ConfigDict) -> Iterator[dict]:
    """Yields one record per (round, method): `time_update`, in seconds.

    A round times every method once, in random order. So other load on the machine slows all methods
    alike.
    """
    from staleness_grpo.config.build import build_run

    with jax.enable_x64(False):  # the updates are float32, as in training
        runs = {}
        for method, run_config in sweep_configs(config).items():
            run_config.warm_start.steps = 0  # the time of an update does not depend on the policy
            runs[method] = build_run(run_config)
        baseline = runs[BASELINE]
        slots = np.arange(config.stability.num_prompts)
        generated = baseline.generator.generate(
            baseline.state.params, 0, np.zeros_like(slots), slots
        )
        batch = jax.device_put(next(generated)[2].result())
        rng = np.random.default_rng(config.seed)
        # Round -1 compiles the updates, and is not recorded.
        for round_index in range(-1, config.cost.num_rounds):
            for method in rng.permutation(list(runs)):
                run = runs[method]
                start = time.perf_counter()
                run.state, _ = jax.block_until_ready(run.update(run.state, batch))
                seconds = time.perf_counter() - start
                if round_index >= 0:
                    yield {"method": str(method), "round": round_index, "time_update": seconds}
