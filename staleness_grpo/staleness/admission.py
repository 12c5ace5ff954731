"""Says which policy version an asynchronous generator may answer the groups of a step with.

A group of learner step t that version v answers has lag t - v, because every step reads groups that
were generated for it. So a bound of the lag is a bound of how far the generator runs ahead.
"""

from collections.abc import Mapping
from typing import Any

from staleness_grpo.errors import require, require_at_least, require_choice

# bounded       the newest version, as soon as the lag is at most S. This is the capacity of AReaL
#               and SkyRL: groups of step t start while (S + v + 1) N exceeds the groups that were
#               accepted or are running, which are t N.
# in_order      version t - S, so that each batch is bound to a version (NeMo-RL's in-order buffer).
# one_step_off  in_order with S = 1.
# synchronous   in_order with S = 0: generation and learning take turns.
ADMISSIONS = ("bounded", "in_order", "one_step_off", "synchronous")
FIXED_MAX_LAGS = {"one_step_off": 1, "synchronous": 0}

# What new weights do to responses that are being sampled.
# finish     they end with the weights that they began with.
# continue   they go on with the new weights and the old cache of keys and values (PipelineRL).
# recompute  as continue, but the new weights compute the cache anew (AReaL).
IN_FLIGHT = FINISH, CONTINUE, RECOMPUTE = "finish", "continue", "recompute"


def check_asynchronous(fields: Mapping[str, Any], max_lag: int) -> None:
    """Raises FieldError if a field of `config.asynchronous` has a value that cannot be used."""
    require_choice(fields, "admission", ADMISSIONS)
    require_choice(fields, "in_flight", IN_FLIGHT)
    require_at_least(fields, {"generator_devices": 0, "look_every": 1})
    fixed = FIXED_MAX_LAGS.get(fields["admission"], max_lag)
    hint = (
        f"its lag is {fixed}, but lag.max_lag={max_lag}: set lag.max_lag={fixed}, or take bounded"
    )
    require(max_lag == fixed, "admission", hint, fields["admission"])
    admission, in_flight = fields["admission"], fields["in_flight"]
    hint = f"admission={admission} binds a group to one version: give {FINISH}, or take bounded"
    require(admission == "bounded" or in_flight == FINISH, "in_flight", hint, in_flight)


def admitted_version(admission: str, step: int, newest: int, max_lag: int) -> int | None:
    """Returns the version that may answer groups of a step now; None if they have to wait.

    Args:
      admission: one of ADMISSIONS.
      step: the learner step that will read the groups.
      newest: the newest version that the generator has.
      max_lag: S.
    """
    oldest = max(step - max_lag, 0)
    if newest < oldest:
        return None
    return newest if admission == "bounded" else oldest
