"""Measures the exact bias of stale rollouts: the default config of `experiments.bias`.

    python -m experiments.bias --workdir=results/bias [--config.num_draws=4]

Learning rates are evenly spaced in their logarithm. They span at least two decades. At the largest
lag, the highest ones are well above the learning rate at which the first token is clipped.

Hardware: 2 CPU cores. experiments/bias/README.md says how long it takes, and which numbers to
expect.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config of a task whose responses are enumerated, in float64."""
    return ConfigDict(
        dict(
            seed=0,
            # Independent problems, each with its own rewards and initial policy. Intervals resample
            # them.
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
                batch_prompts=1,  # prompts in the batch of a step, chosen from the N prompts
                num_batches=200_000,  # the exact gradient is compared with their mean gradient
            ),
            num_resamples=2000,  # bootstrap resamples per interval
        )
    )
