"""Lists the values of the bias experiment's grid that have names.

The numbers of the grid (lags, learning rates, draws) are fields of the config.
"""

OPTIMIZER_LABELS = {"sgd": "SGD", "adam": "Adam"}  # name in records -> name in figures and claims
SCHEDULES = ("constant", "cyclic")
GRADIENT_KINDS = ("exact", "sampled")
