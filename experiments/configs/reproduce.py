"""Runs the main job: the bias law and the scaling laws.

    bash launch/reproduce.sh

Each job is a name, under which its results stand in the workdir, and the command that makes them.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the jobs, in order, and the pair of lags that the report sets side by side.

    At eta = 2e-3 no synchronous run of the map collapses, and every one at S = 16 does.
    """
    return ConfigDict(
        dict(
            jobs=dict(bias=("experiments.bias",), scaling_laws=("experiments.sweep",)),
            contrast=dict(max_lag=16, learning_rate=2e-3),
        )
    )
