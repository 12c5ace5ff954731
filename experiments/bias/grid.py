"""Names the axes of the bias experiment's grid, beside its numbers, which are in the config."""

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}  # name in records -> name in figures and claims
SCHEDULES = ("constant", "cyclic")
GRADIENTS = ("exact", "sampled")
