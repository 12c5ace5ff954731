"""Makes the programs of a run, for the loop, sweeps, the memory report and the benchmark.

All users take their programs from `make_programs`. So a sweep or a benchmark runs the same program
as a training. The programs have no state and are not compiled yet.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.objective.update_rules import UPDATE_RULES
from staleness_grpo.policy import sampler
from staleness_grpo.policy.base import AnyPolicy
from staleness_grpo.policy.configured import make_policy
from staleness_grpo.policy.sampler import Unfinished
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.policy.truncation import Truncation, make_truncation
from staleness_grpo.tasks.base import Task
from staleness_grpo.training import diagnostics, learner
from staleness_grpo.training.loss import (
    logprobs_function,
    logprobs_loss,
    score_norms_function,
    surrogate_loss,
)
from staleness_grpo.training.samples import Take, make_take
from staleness_grpo.types import Array, LearnerState, Prompts, PyTree, Responses, Rollout


@dataclasses.dataclass(frozen=True)
class Programs:
    """Holds the functions of a run, for one policy and one task."""

    policy: AnyPolicy
    task: Task
    temperature: float
    # (params, rollout) -> (loss, diagnostics); the gradient of the loss is -H.
    loss: Callable[[PyTree, Rollout], tuple[jax.Array, dict[str, jax.Array]]]
    # learning rate -> optimizer. None stands for the learning rate of the config.
    make_optimizer: Callable[[Any], optax.GradientTransformation]
    # (params, rollout) -> cosine of two independent batches' gradients; None if the batch cannot be
    # cut into parts.
    cosine_ceiling: Callable[[PyTree, Rollout], Array] | None
    # (params, rollout) -> log-probabilities [N, G, R]; None with one update per rollout batch.
    proximal_logprobs: Callable[[PyTree, Rollout], Array] | None
    # (params, rollout) -> log-probabilities [N, G, R] of the reference policy; None without a
    # penalty.
    reference_logprobs: Callable[[PyTree, Rollout], Array] | None
    # (params, stale, fresh) -> inner products [4, J, J]; None if gradients are not compared.
    paired_gram: Callable[[PyTree, Rollout, Rollout], Array] | None
    samples: Take | None = None  # None if no samples are recorded
    truncation: Truncation | None = None  # of the sampler; None if it may sample every token

    def update_step(self, learning_rate: Any = None) -> Callable[[LearnerState, Rollout], tuple]:
        """Returns one optimizer update as a pure function; see `learner.update_step`."""
        if learning_rate is None:
            return _update_step(self.loss, self.make_optimizer)
        return learner.update_step(self.loss, self.make_optimizer(learning_rate))

    def compiled_update(self, state: LearnerState, mesh: Mesh) -> Any:
        """Jits `update_step` for states sharded like `state`. Each call donates its state."""
        return learner.compile_update(self.update_step(), state, mesh)

    def sampling(
        self,
        params: PyTree,
        prompts: Prompts,
        key: jax.Array,
        steps_N: Array,
        slots_N: Array,
        group_size: int,
    ) -> tuple[tuple, dict[str, Any]]:
        """Returns the arguments and keyword arguments of `sampler.sample` for these prompts."""
        arguments = (self.policy, params, prompts, key, steps_N, slots_N, self.temperature)
        return arguments, dict(
            group_size=group_size,
            max_length=self.task.max_response_length,
            end_token=self.task.end_token,
            pad_token=self.task.pad_token,
            truncation=self.truncation,
        )

    def sample(self, *args: Any) -> Responses:
        """Samples responses. The arguments are those of `sampling`. jit can trace this function."""
        arguments, limits = self.sampling(*args)
        return sampler.sample(*arguments, **limits)

    def begin(self, *args: Any) -> Unfinished:
        """Samples first tokens, as `sampler.begin` does. The arguments are those of `sampling`."""
        arguments, limits = self.sampling(*args)
        return sampler.begin(*arguments, **limits)

    def go_on(self, *args: Any, unfinished: Unfinished, end: Array | int) -> Unfinished:
        """Samples further tokens, as `sampler.go_on` does."""
        arguments, limits = self.sampling(*args)
        return sampler.go_on(*arguments, unfinished=unfinished, end=end, **limits)

    def read_again(self, *args: Any, unfinished: Unfinished) -> Unfinished:
        """Computes the cache anew, as `sampler.read_again` does."""
        arguments, limits = self.sampling(*args)
        return sampler.read_again(*arguments, unfinished=unfinished, **limits)


# The fields of a config that decide, with the policy and the task, what the functions of a run are.
FIELDS = (
    "steps",
    "num_prompts",
    "updates_per_batch",
    "microbatch_prompts",
    "drop_truncated",
    "entropy_bonus",
    "surrogate",
    "sampler",
    "correction",
    "reference",
    "optimizer",
    "guard",
    "metrics",
    "mesh",
)


def make_programs(config: ConfigDict, task: Task) -> Programs:
    """Makes the programs that a config describes.

    Runs of one process share functions if they differ only in fields that FIELDS lacks, as in seed
    and lag. So what one of them has compiled is not compiled again.

    Raises:
      FieldError: the decoder cannot have the shape in `config.policy`.
      ModelFolderError: `policy.checkpoint` cannot be read.
    """
    policy = make_policy(config.policy, task.vocab_size)
    # The vocabulary of a model may be larger than the task's. Other policies get the task's.
    known = policy.config.vocab_size if isinstance(policy, Policy) else task.vocab_size
    truncation = make_truncation(config.sampler, task.vocab_size, known)
    # A user may register other code under the same name.
    rules = (
        registry.CORRECTIONS[config.correction.name],
        UPDATE_RULES.get(config.correction.update_rule),
    )
    fields = {name: config[name] for name in FIELDS}
    settings = json.dumps(
        {
            name: value.to_dict() if isinstance(value, ConfigDict) else value
            for name, value in fields.items()
        }
    )
    functions = _functions(policy, truncation, task.end_token, rules, settings)
    return Programs(policy=policy, task=task, truncation=truncation, **functions)


@functools.lru_cache(maxsize=4)
def _functions(
    policy: AnyPolicy,
    truncation: Truncation | None,
    end_token: int | tuple[int, ...] | None,
    rules: tuple[Any, ...],
    settings: str,
) -> dict[str, Any]:
    """Returns the fields of Programs that are functions, and the temperature.

    Args:
      policy, truncation, end_token: of the run.
      rules: the correction and the update rule, of which `settings` has only the names.
      settings: the FIELDS of the config as JSON. No other field of it can be read here.
    """
    config = ConfigDict(json.loads(settings))
    surrogate = SurrogateConfig(**config.surrogate.to_dict())
    temperature, microbatch = config.sampler.temperature, config.microbatch_prompts
    # The learner, the proximal and the reference policy each truncate their own distribution.
    scored = truncation if config.sampler.learner_distribution == "truncated" else None
    terms: dict[str, Any] = dict(
        end_token=end_token,
        drop_truncated=config.drop_truncated,
        reference=config.reference if config.reference.kl else None,
    )
    loss = surrogate_loss(
        policy,
        surrogate,
        temperature,
        config.correction,
        microbatch,
        truncation=scored,
        entropy_bonus=config.entropy_bonus,
        **terms,
    )
    paired_gram = None
    if config.metrics.paired_every:
        num_blocks = config.metrics.paired_blocks or config.num_prompts
        ends: Any = (end_token, config.drop_truncated, scored)
        add_norms = score_norms_function(policy, temperature, microbatch, *ends)
        paired_gram = diagnostics.make_paired_gram(
            logprobs_function(policy, temperature, microbatch, scored),
            logprobs_loss(surrogate, config.correction, **terms),
            num_blocks,
            add_norms if registry.CORRECTIONS[config.correction.name].optimal_baseline else None,
        )
    samples = None
    if config.metrics.samples_every:
        shards = config.mesh.data * config.mesh.fsdp
        num_samples = config.metrics.num_samples
        samples = make_take(policy, temperature, num_samples, shards, microbatch, scored)
    score = learner.make_scorer(policy, temperature, scored)
    return dict(
        temperature=temperature,
        loss=loss,
        make_optimizer=lambda learning_rate: learner.make_optimizer(
            config.optimizer, config.steps, config.correction, learning_rate, config.guard
        ),
        cosine_ceiling=diagnostics.make_cosine_ceiling(
            loss, config.num_prompts // config.updates_per_batch
        ),
        proximal_logprobs=score if config.updates_per_batch > 1 else None,
        reference_logprobs=score if config.reference.kl else None,
        paired_gram=paired_gram,
        samples=samples,
    )


@functools.lru_cache(maxsize=4)
def _update_step(loss: Callable, make_optimizer: Callable) -> Callable:
    """Returns one update by the optimizer of the config. Equal arguments give the same function."""
    return learner.update_step(loss, make_optimizer(None))
