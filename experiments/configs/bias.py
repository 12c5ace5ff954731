"""Configures the exact bias of stale rollouts on an enumerable task.

This is the default of `experiments.bias`.

    python -m experiments.bias --workdir=results/bias [--config.num_draws=4]

Hardware: 2 CPU cores, float64. A grid of learning rates is even in its logarithm. Each spans two
decades or more, and reaches well past the first clipped token at the largest lag. How long it
takes, and which numbers to expect, is in experiments/bias/README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the default configuration."""
    return ConfigDict(
        dict(
            seed=0,
            # Independent problems: rewards and initial policy. Intervals resample them.
            num_draws=8,
            num_prompts=8,  # N
            group_size=8,  # G
            task=dict(
                name="enumerable",
                vocab_size=3,
                max_response_length=3,
                variable_length=True,
                reward_levels=(0.0, 1.0),
                difficulty=0.7,
            ),
            policy=dict(
                num_layers=1,
                d_model=8,
                num_heads=2,
                num_kv_heads=1,
                head_dim=4,
                d_ff=16,
                dtype="float64",
                param_dtype="float64",
            ),
            surrogate=dict(
                clip_low=0.2,
                clip_high=0.2,
                length_normalization="response",
                normalize_std=True,
                std_epsilon=1e-4,
            ),
            max_lags=(1, 2, 4, 8, 16, 32, 64),  # S
            sgd=dict(lowest_learning_rate=2.0**-16, highest_learning_rate=2.0**-7),
            adam=dict(lowest_learning_rate=2.0**-20, highest_learning_rate=2.0**-11),
            exact=dict(num_learning_rates=13),
            sampled=dict(
                num_learning_rates=7,
                batch_prompts=1,  # prompts, of the N, in the batch of a step
                num_batches=200_000,  # averaged to compare with the exact gradient
            ),
            num_resamples=2000,  # of the bootstrap
        )
    )
