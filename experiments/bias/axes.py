"""Lists the values of the bias experiment's grid that have names, and its threads.

The numbers of the grid (lags, learning rates, draws) are fields of the config.
"""

OPTIMIZER_LABELS = {"sgd": "SGD", "adam": "Adam"}  # name in records -> name in figures and claims
SCHEDULES = ("constant", "cyclic")
GRADIENT_KINDS = ("exact", "sampled")
# Compilation and small programs use only one core per thread. Each thread has a device.
NUM_THREADS = 2
