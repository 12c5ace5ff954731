"""Simulates what a doubled response limit discards, beside a public study that measured it.

    python -m experiments.pipeline --config=experiments/configs/pipeline_limits.py \\
        --workdir=results/pipeline_limits

The study is https://github.com/marin-community/marin/issues/8936: 32 groups of 4 responses, S = 1,
8 accelerators for generation. Its times are those of this config: 9.4 s for an update and 20.4 s
for the weights. Two limits cut 14.6 % and 3.6 % of its responses, which gives mean and sigma of a
lognormal distribution. The rate of the engines is set so that a learner step at the smaller limit
takes as long as in the study. All else is a prediction.

Hardware: 2 CPU cores, half a minute. The numbers to expect are in
experiments/results/pipeline_limits/summary.json.
"""

from ml_collections import ConfigDict

from experiments.configs import pipeline
from staleness_grpo.pipeline.cluster import ALL


def get_config() -> ConfigDict:
    """Returns the cluster of the study, at two response limits."""
    config = pipeline.get_config()
    config.buffers = ("synchronous", "bounded", "windowed", "drop")
    config.max_lags = (1,)
    config.limits = (2048, 4096)
    config.learner_share = 0.8
    config.cluster.update(dict(num_groups=32, group_size=4, step_seconds=9.4, publish_seconds=20.4))
    config.cluster.publish_blocks = ALL
    config.cluster.engines.update(dict(count=8, slots=32, tokens_per_second=90.0))
    config.cluster.lengths.update(dict(mean=1183.0, sigma=0.93))
    return config
