"""Asks which learning rate is safe at which lag: the default config of `experiments.advise`.

    python -m experiments.advise --workdir=results/advice --probe --horizon=600

The fields outside of `advise` describe the training of which a probe makes short runs. They are
those of `experiments.train`. With --config they come from the config of any training.

Hardware: 2 CPU cores, some minutes with a probe, and seconds without.
"""

from ml_collections import ConfigDict, config_dict

from experiments.configs import scaling_laws
from staleness_grpo.scaling.probe import NUM_STEPS


def get_config() -> ConfigDict:
    """Returns two-digit addition with 32 prompts, evaluated every 5 steps, and no runs to read."""
    config = scaling_laws.get_config()
    with config.unlocked():
        del config["sweep"], config["variants"]
        config.advise = section()
    return config


def section() -> ConfigDict:
    """Returns the section `advise`, with its default values."""
    return ConfigDict(
        dict(
            runs=(),  # finished workdirs of experiments.train or experiments.sweep
            logs=(),  # files that a trainer wrote
            format=config_dict.placeholder(str),  # of the logs, a name from docs/logs.md
            # Optimizer updates between two weight versions, for logs that count versions.
            updates_per_version=config_dict.placeholder(int),
            updates_per_step=1,  # optimizer updates of a recorded step
            first_step=config_dict.placeholder(int),  # number of the log's first step
            columns=(),  # for csv, pairs NAME=COLUMN of our names and the log's
            probe=False,  # make short runs of the config's training
            # The largest learning rate of the probe is so many times the smallest. The middle
            # one is optimizer.learning_rate.
            probe_span=64.0,
            probe_steps=NUM_STEPS,  # learner steps of each run of the probe
            horizon=600,  # T, the learner steps of the training that is planned
            max_lags=(1, 2, 4, 8, 16, 32, 64),  # the values of S that are asked about
            # S and eta of the run that is asked about. Logs without a lag or a learning rate
            # take these.
            max_lag=config_dict.placeholder(int),
            learning_rate=config_dict.placeholder(float),
            b1=config_dict.placeholder(float),  # momentum of the logged optimizer; unset: 0.9
        )
    )
