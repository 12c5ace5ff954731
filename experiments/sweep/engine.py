"""Chooses how the cells of a map run: as compiled programs, or as trainings of the loop.

Both engines make the same rollouts and updates, so they give the same records up to the order of
sums. A compiled cell is many times as fast where the policy is small. The loop runs everything that
`experiments.train` runs.
"""

import math

import jax
from ml_collections import ConfigDict

from experiments.common.training_only import OFF
from staleness_grpo.config.defaults import field_value
from staleness_grpo.errors import FieldError, require
from staleness_grpo.policy.configured import make_policy
from staleness_grpo.sweeps.program import SCHEDULES
from staleness_grpo.tasks import make_task

ENGINES = COMPILED, LOOP = "compiled", "loop"
REWARD_MEMBERS = ("answer_key", "judge")  # of a task whose rewards can be compiled
# A compiled cell keeps the parameters of S + 1 versions. Above this number of floats, the loop is
# used: its buffer keeps rollouts and no parameters.
LARGEST_RING = 10**8
# Fields that a compiled cell makes no use of -> the value that it needs.
NEEDED = {
    "microbatch_prompts": 0,
    "updates_per_batch": 1,
    "heldout.every": 0,
    "sampler.batch_prompts": None,
    "sampler.devices": None,
    "policy.checkpoint": None,
    "reference.checkpoint": None,
    "metrics.paired_every": 0,
    "metrics.lags": False,
    "save_policy": False,
    "save_policy_every": 0,
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
    **OFF,
}


def engine(config: ConfigDict) -> str:
    """Returns the engine of a map, of ENGINES: the given one, or the fastest that can run it.

    Raises:
      FieldError: there is no such engine, or the map needs the loop and `sweep.engine` forbids it.
    """
    given = config.sweep.get("engine")
    hint = f"choose one of {', '.join(ENGINES)}, or leave it unset"
    require(given in (None, *ENGINES), "sweep.engine", hint, given)
    obstacle = why_loop(config)
    if given == COMPILED and obstacle is not None:
        raise obstacle
    return given or (COMPILED if obstacle is None else LOOP)


def why_loop(config: ConfigDict) -> FieldError | None:
    """Returns why the cells of a map cannot be compiled, as an error; None if they can."""
    try:
        _require_compiled(config)
    except FieldError as error:
        return error
    return None


def _require_compiled(config: ConfigDict) -> None:
    """Raises FieldError if the cells of a map cannot be compiled."""
    schedule = config.lag.schedule
    hint = f"a compiled sweep can run {' and '.join(SCHEDULES)} alone"
    require(schedule in SCHEDULES, "lag.schedule", hint, schedule)
    for field, needed in NEEDED.items():
        value = field_value(config, field)
        require(value == needed, field, f"a compiled sweep needs {needed}", value)
    task = make_task(config.task)
    lacking = [name for name in REWARD_MEMBERS if not hasattr(task, name)]
    hint = f"a compiled sweep compiles the rewards, and this task has no {' and no '.join(lacking)}"
    require(not lacking, "task.name", hint, config.task.name)
    policy = make_policy(config.policy, task.vocab_size)
    shapes = jax.tree.leaves(jax.eval_shape(policy.init, jax.random.key(0)))
    num_params = sum(math.prod(leaf.shape) for leaf in shapes)
    largest = max(config.sweep.max_lags)
    hint = f"a compiled cell would keep {largest + 1} versions of {num_params} parameters"
    require(num_params * (largest + 1) <= LARGEST_RING, "sweep.max_lags", hint)
