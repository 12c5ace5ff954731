"""Evaluates the policy on held-out problems, which training never draws."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from staleness_grpo.errors import FieldError, require, require_at_least
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.runtime.hashing import hash64
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.base import Task
from staleness_grpo.training.rollouts import HELD_OUT, Generator
from staleness_grpo.types import PyTree

# At this temperature, the noise decides only between logits that differ by less than about 1e-5.
GREEDY_TEMPERATURE = 1e-6
LARGEST_SPLIT = 10**6  # prompts of a task whose prompts can be split
SPLIT_KEY = 0x5EED  # of the hash that splits the prompts


def check_heldout(fields: Mapping[str, Any]) -> None:
    """Raises FieldError if a field of `config.heldout` has a value that cannot be used."""
    require_at_least(fields, {"every": 0, "num_problems": 0, "num_samples": 1})
    fraction = fields["fraction"]
    require(0 <= fraction < 1, "fraction", "give a fraction in [0, 1)", fraction)
    if fields["every"] == 0:
        hint = "heldout.every=0 makes no use of it: leave it out, or give heldout.every"
        require(fields["path"] is None, "path", hint, fields["path"])
        require(fraction == 0, "fraction", hint, fraction)
        return
    hint = "give either heldout.path or heldout.fraction, to say which problems are held out"
    require(fields["path"] is not None or fraction > 0, "every", hint, fields["every"])
    hint = "heldout.path says which problems are held out: leave one of the two out"
    require(fields["path"] is None or fraction == 0, "fraction", hint, fraction)
    hint = "greedy answers are all the same: give 1"
    require(not fields["greedy"] or fields["num_samples"] == 1, "num_samples", hint)


def split(task: Task, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits the prompts of a task by a hash of their index.

    The split depends on the index only. So it is the same for every seed.

    Returns:
      (indices for training, held-out indices), both in ascending order.

    Raises:
      FieldError: the task has too many prompts, or one of the parts would be empty.
    """
    count = task.num_prompts
    hint = f"the task has {count} prompts, and at most {LARGEST_SPLIT} can be split: give a path"
    require(count <= LARGEST_SPLIT, "fraction", hint, fraction)
    is_held_out = hash64(SPLIT_KEY, np.arange(count)) < np.uint64(fraction * 2**64)
    parts = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    hint = f"of {count} prompts, {len(parts[1])} would be held out: give another fraction"
    require(min(map(len, parts)) > 0, "fraction", hint, fraction)
    return parts


def pass_at_k(num_samples: int, num_right: np.ndarray, k: int) -> np.ndarray:
    """Returns an unbiased estimate of the chance that one of k responses is right.

    1 - C(n - c, k) / C(n, k), with n samples of which c are right (Chen et al., arXiv 2107.03374,
    equation 1).

    Args:
      num_samples: n.
      num_right: c of each problem, an int array.
      k: at most n.
    """
    all_wrong = [math.comb(num_samples - int(right), k) for right in num_right]
    return 1 - np.array(all_wrong) / math.comb(num_samples, k)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Answers the same held-out problems at each call, and judges the answers."""

    generator: Generator  # with the task of the problems, and the number of samples as group size
    index_N: np.ndarray  # the problems
    success: float  # a response with at least this reward is right

    def evaluate(self, params: PyTree, step: int) -> dict[str, Any]:
        """Returns the results of the policy with these parameters.

        Returns:
          `heldout_reward`: the mean reward over problems and samples.
          `heldout_pass_at`: {k: pass@k} for k = 1, 2, 4, ... up to the number of samples.
          `heldout_failures`: the number of responses whose judging failed or timed out.
        """
        generator, num_samples = self.generator, self.generator.group_size
        size, ks = generator.num_prompts, [2**i for i in range(num_samples.bit_length())]
        rows = mesh_lib.own_rows(generator.mesh, size)
        sums = np.zeros(2 + len(ks))
        for start in range(0, len(self.index_N), size):
            # The last batch is filled up with its last problem, whose copies do not count.
            places = np.minimum(np.arange(start, start + size), len(self.index_N) - 1)
            counts = (np.arange(start, start + size) < len(self.index_N))[rows]
            prompts = generator.task.prompts(self.index_N[places])
            responses = generator.sample(
                params, prompts, HELD_OUT, np.full(size, step), places, num_samples
            )
            rollout = generator.score(prompts, responses, step)
            assert rollout.rewards_NxG is not None and rollout.reward_outcome_NxG is not None
            rewards = np.asarray(rollout.rewards_NxG)[counts]
            num_right = np.sum(rewards >= self.success, axis=1)
            failed = np.count_nonzero(np.asarray(rollout.reward_outcome_NxG)[counts])
            passed = [pass_at_k(num_samples, num_right, k).sum() for k in ks]
            sums += [rewards.sum(), failed, *passed]
        total, failures, *passed = mesh_lib.sum_over_processes(sums)
        count = len(self.index_N)
        return {
            "heldout_reward": float(total / (count * num_samples)),
            "heldout_pass_at": {
                str(k): float(of_k / count) for k, of_k in zip(ks, passed, strict=True)
            },
            "heldout_failures": int(failures),
        }


def make_heldout(config: ConfigDict, generator: Generator) -> HeldOut | None:
    """Makes the evaluation that `config.heldout` describes; None if there is none.

    Args:
      config: the config of the run.
      generator: the generator of the run, which gives mesh, programs and reward pool.

    Raises:
      FieldError: the problems cannot be had.
    """
    fields = config.heldout
    if not fields.every:
        return None
    task, index_N = problems(config, generator.task)
    temperature = GREEDY_TEMPERATURE if fields.greedy else generator.programs.temperature
    programs = dataclasses.replace(generator.programs, task=task, temperature=temperature)
    generator = dataclasses.replace(
        generator, programs=programs, group_size=fields.num_samples, prompt_indices=None
    )
    return HeldOut(generator, index_N, fields.success)


def problems(config: ConfigDict, task: Task) -> tuple[Task, np.ndarray]:
    """Returns the task of the held-out problems, and the indices of the problems in it.

    Args:
      config: the config of the run, with held-out problems.
      task: the run's own task.

    Raises:
      FieldError: the problems cannot be had.
    """
    fields = config.heldout
    task = heldout_task(config, task)
    if fields.path is None:
        index_N = split(task, fields.fraction)[1]
    else:
        index_N = np.arange(task.num_prompts)
    return task, index_N[: fields.num_problems or len(index_N)]


def heldout_task(config: ConfigDict, task: Task) -> Task:
    """Returns the task of the held-out problems: that of `heldout.path`, or the run's own.

    Raises:
      FieldError: the task reads no file, or the file cannot be used.
    """
    path = config.heldout.path
    if path is None:
        return task
    if "path" not in config.task:
        hint = f"the task {config.task.name} reads no file: give heldout.fraction"
        raise FieldError("path", hint, path)
    section = config.task.copy_and_resolve_references()
    section.path = path
    try:
        return make_task(section, config.policy.checkpoint)
    except FieldError as error:
        raise FieldError("path", f"{error.field}: {error.hint}", path) from error


def num_overlapping(config: ConfigDict, task: Task) -> int:
    """Returns how many held-out prompts of `heldout.path` training draws too."""
    if config.heldout.path is None:
        return 0
    other = heldout_task(config, task)
    own = {_text(task, index) for index in range(task.num_prompts)}
    return sum(_text(other, index) in own for index in range(other.num_prompts))


def _text(task: Task, index: int) -> bytes:
    """Returns the tokens of a prompt without padding, as bytes."""
    prompts = task.prompts(np.array([index]))
    return np.asarray(prompts.tokens_NxP)[np.asarray(prompts.mask_NxP)].tobytes()
