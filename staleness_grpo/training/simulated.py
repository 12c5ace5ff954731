"""Gives a training the groups that a simulated pipeline chooses, and samples their lengths.

The simulation decides when a group starts, under which weights, and which groups a learner step
takes. When a group starts, the policy of that version answers it at once. The lengths of these
responses are the simulation's, so what the policy has learned changes the clock. Nothing is
measured: equal configs give equal trainings.
"""

from typing import Any

import numpy as np

from staleness_grpo.pipeline.cluster import Cluster
from staleness_grpo.pipeline.rules import Rule
from staleness_grpo.pipeline.simulation import Result, Simulation
from staleness_grpo.staleness.trace import Trace
from staleness_grpo.training.diagnostics import copied
from staleness_grpo.training.rollouts import PendingRollout
from staleness_grpo.training.run import Run
from staleness_grpo.types import PyTree


class SimulatedPipeline:
    """A source of groups for `loop.train`, whose batches and lags come from a simulation.

    Group n has the prompts and the noise of step n // N and slot n % N. A rule that trains groups
    in the order of their start thus trains what the synchronous loop trains with the same lags.

    All responses of a group have the weights of the group's start, also those that wait for a slot.
    The run's `lag.max_lag` bounds the lags that it accepts. It may be above the S of the rule.

    Args:
      run: a new run, with `sampler.batch_prompts` of 1. Its schedule is replaced.
      cluster: the engines and the learner. Its lengths are not read.
      rule: the buffer rule.
    """

    def __init__(self, run: Run, cluster: Cluster, rule: Rule):
        config = run.config
        self._generator, self._cluster = run.generator, cluster
        self._num_groups = config.num_prompts
        self._simulation = Simulation(cluster, rule, self._answer)
        self._params: dict[int, PyTree] = {}  # by version; those that a group may still start with
        self._waiting: dict[int, PendingRollout] = {}  # by group; not trained or discarded yet
        self._start = 0.0  # of the newest learner step
        self._lags_IxN = np.full((config.steps, config.num_prompts), -1, np.int64)
        run.schedule = Trace(config.lag.max_lag, config.num_prompts, lags_IxN=self._lags_IxN)

    def provide(self, run: Run, step: int) -> dict[str, float]:
        """Gives the simulation version `step`, and pushes the batch that its learner takes.

        Returns:
          `time_simulated`: seconds on the simulation's clock at which version `step` was made.
        """
        self._params[step] = copied(run.state.params)  # the update donates the state
        made = self._start + self._cluster.step_seconds if step else 0.0
        self._start, groups = self._simulation.next_batch()
        for slot, group in enumerate(groups):
            self._lags_IxN[step, slot] = group.lag
            place = (np.array([step]), np.array([slot]), group.version)
            run.unjudged.append((*place, self._waiting.pop(group.number)))
        run.push_judged(needed=step)
        self._forget()
        return {"time_simulated": made}

    def settle(self, run: Run) -> bool:
        """Refuses a snapshot, because a simulation cannot be saved."""
        raise NotImplementedError("a training in a simulated pipeline has no checkpoints")

    def result(self) -> Result:
        """Returns what has happened in the simulation until now."""
        return self._simulation.result()

    def _answer(self, number: int, version: int) -> list[int]:
        """Samples the responses of a group when it starts, and returns their lengths."""
        step, slot = divmod(number, self._num_groups)
        place: Any = (np.array([step]), np.array([slot]))
        ((_, _, pending),) = self._generator.generate(self._params[version], version, *place)
        self._waiting[number] = pending
        return [int(n) for n in np.sum(pending.rollout.responses.mask_NxGxR, axis=-1)[0]]

    def _forget(self) -> None:
        """Drops rollouts of discarded groups, and parameters that no later group starts with."""
        oldest = self._simulation.published
        self._params = {v: params for v, params in self._params.items() if v >= oldest}
        groups = self._simulation.groups
        self._waiting = {n: p for n, p in self._waiting.items() if not groups[n].is_discarded}
