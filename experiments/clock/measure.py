"""Makes the trainings that have no record yet, each in a simulated pipeline."""

import contextlib
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.pipeline.grid import Cell, cells, make_cell
from staleness_grpo.errors import FieldError
from staleness_grpo.pipeline.measures import measure as measures_of
from staleness_grpo.pipeline.simulation import Result
from staleness_grpo.runtime.progress import Progress
from staleness_grpo.runtime.records import Appender, read_jsonl
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.base import Task
from staleness_grpo.training.loop import train
from staleness_grpo.training.rollouts import EVALUATION, TRAINING, Generator
from staleness_grpo.training.run import Run, assemble_run
from staleness_grpo.training.simulated import SimulatedPipeline

CELLS = "cells.jsonl"
MOST_PROMPTS = 64  # of a task whose rewards are recorded by prompt
ANSWERS = 32  # responses to each prompt, of which the mean is recorded
# What a record takes from the simulation; docs/metrics.md describes each.
SIMULATED = (
    "seconds_per_step",
    "lag_mean",
    "lag_max",
    "length_lag_correlation",
    "length_mean",
    "engine_idle",
    "learner_idle",
    "discarded_tokens",
)


def measure(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Returns the record of every training; makes those without one first.

    Raises:
      FieldError: a training has no more learner steps before its time is over.
    """
    path = workdir / CELLS
    recorded = {record["cell"] for record in read_jsonl(path)} if path.exists() else set()
    task = make_task(config.task, config.policy.checkpoint)
    grid = cells(config.clock)
    done = sum(cell.name in recorded for cell in grid)
    with Appender(path) as file, Progress("trainings", len(grid), done=done) as progress:
        for cell in grid:
            if cell.name not in recorded:
                file.append(train_cell(config, cell, task))
                progress.advance(cell.name)
    return read_jsonl(path)


def train_cell(config: ConfigDict, cell: Cell, task: Task) -> dict[str, Any]:
    """Trains until `clock.seconds` are over, and returns a line for cells.jsonl.

    Raises:
      FieldError: the training has no more learner steps before.
    """
    config = config.copy_and_resolve_references()
    config.seed = cell.seed
    cluster, rule = make_cell(config.clock, cell)
    with contextlib.closing(assemble_run(config, task)) as run:
        source = SimulatedPipeline(run, cluster, rule)
        records = []
        for record in train(run, source=source):
            if record["time_simulated"] > config.clock.seconds:
                break
            records.append(record)
            if record["collapsed"]:
                break
        else:
            hint = "the steps end before clock.seconds: give more steps, or a shorter time"
            raise FieldError("steps", hint, config.steps)
        result = source.result()
        simulated = measures_of(result, warm_up=0)
        evaluations = [record for record in records if "eval_reward" in record]
        return {
            "cell": cell.name,
            "buffer": cell.buffer,
            "max_lag": cell.max_lag,
            "seed": cell.seed,
            "learner_steps": len(records),
            "collapsed": record["collapsed"],
            "times": [record["time_simulated"] for record in evaluations],
            "eval_reward": [record["eval_reward"] for record in evaluations],
            **{name: simulated[name] for name in SIMULATED},
            **by_prompt(run, task, result),
        }


def by_prompt(run: Run, task: Task, result: Result) -> dict[str, Any]:
    """Returns what became of each prompt; nothing if the task has more than MOST_PROMPTS.

    Returns:
      `reward_by_prompt`: the mean reward of the last policy's responses.
      `length_by_prompt`: their mean number of tokens.
      `trained_by_prompt`: of the groups that were trained or discarded, the share that was trained.
        None where there is no such group.
    """
    if task.num_prompts > MOST_PROMPTS:
        return {}
    index_K = np.arange(task.num_prompts)
    places = (np.full_like(index_K, run.step), index_K)
    prompts = task.prompts(index_K)
    responses = run.generator.sample(run.state.params, prompts, EVALUATION, *places, ANSWERS)
    rollout = run.generator.score(prompts, responses, run.step)
    rewards_KxG = np.asarray(rollout.rewards_NxG, np.float64)
    lengths_KxG = np.sum(rollout.responses.mask_NxGxR, axis=-1)
    return {
        "reward_by_prompt": rewards_KxG.mean(axis=1).tolist(),
        "length_by_prompt": lengths_KxG.mean(axis=1).tolist(),
        "trained_by_prompt": trained_shares(run.generator, result, task.num_prompts),
    }


def trained_shares(generator: Generator, result: Result, num_prompts: int) -> list[float | None]:
    """Returns by prompt the share of groups that were trained, of those that met their fate."""
    ended = [group for group in result.groups if group.left is not None]
    steps, slots = np.divmod([group.number for group in ended], generator.num_prompts)
    index_W = generator.prompts(TRAINING, steps, slots).index_N
    is_trained_W = np.array([group.step is not None for group in ended])
    shares = [is_trained_W[index_W == prompt] for prompt in range(num_prompts)]
    return [float(share.mean()) if len(share) else None for share in shares]
