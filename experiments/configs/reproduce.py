"""Runs the two main experiments: the bias law and the scaling laws.

    bash launch/reproduce.sh

A job has a name and a command. The name is also the folder of its results in the workdir.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the jobs in order, and the lag that the report compares with synchronous training.

    The comparison is at eta = 2e-3. There, no synchronous run of the map collapses, and every run
    at S = 16 collapses.
    """
    return ConfigDict(
        dict(
            jobs=dict(bias=("experiments.bias",), scaling_laws=("experiments.sweep",)),
            contrast=dict(max_lag=16, learning_rate=2e-3),
        )
    )
