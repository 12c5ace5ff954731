"""The main job: the bias law, the scaling laws, and two trainings on arithmetic that differ in their lag alone.

    bash launch/reproduce.sh

Each job is a name, under which its results stand in the workdir, and the command that makes them.
"""

from ml_collections import ConfigDict

TRAIN = ("experiments.train", "--config.optimizer.learning_rate=0.002")


def get_config():
    """The jobs, in order."""
    return ConfigDict(
        dict(
            jobs=dict(
                bias=("experiments.bias",),
                scaling_laws=("experiments.sweep",),
                train_lag_0=(*TRAIN, "--config.lag.max_lag=0"),
                train_lag_16=(*TRAIN, "--config.lag.max_lag=16"),
            )
        )
    )
