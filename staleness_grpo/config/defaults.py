"""Defines the default configuration, and looks up fields of a config.

A comment at every field says what the field means. docs/config.md is made from these comments.
"""

import functools
import operator
from typing import Any

from ml_collections import ConfigDict, config_dict

from staleness_grpo.objective.corrections.settings import PARAMETERS


def default_config() -> ConfigDict:
    """Returns the default experiment: synchronous GRPO on two-digit addition, with a toy policy."""
    return ConfigDict(
        dict(
            seed=0,  # seeds the prompts, the sampling noise and random parameters
            steps=300,  # learner steps; each is one optimizer update
            num_prompts=64,  # N, the number of groups in a rollout batch
            group_size=8,  # G, the number of responses to each prompt
            # Groups per forward and backward pass (gradient accumulation); 0: all groups at once.
            microbatch_prompts=0,
            # Leave responses that were cut at the length limit out of the loss. Their rewards still
            # count in the advantages of their group.
            drop_truncated=False,
            # Weight of the policy's entropy in nats, which is added to the surrogate; 0: none.
            entropy_bonus=0.0,
            # Optimizer updates per rollout batch. Each update uses its own part of the N groups.
            updates_per_batch=1,
            save_policy=False,  # write the final policy to the model folder WORKDIR/policy
            # Learner steps between model folders WORKDIR/policy_STEP during the run; 0: none.
            save_policy_every=0,
            # Learner steps between evaluations of the current policy on N * G prompts; 0: never.
            eval_every=10,
            # Problems that training never draws. They are the same at each evaluation.
            heldout=dict(
                every=0,  # learner steps between evaluations on held-out problems; 0: never
                # File of held-out problems, for a task that reads a file.
                path=config_dict.placeholder(str),
                fraction=0.0,  # share of the task's own prompts that are held out
                num_problems=0,  # number of held-out problems that are answered; 0: all
                num_samples=1,  # responses to each problem, for pass@k
                greedy=False,  # answer with the most probable tokens instead of sampled ones
                success=1.0,  # least reward of a right response, for pass@k
            ),
            task=dict(
                name="arithmetic",  # arithmetic, enumerable, jsonl, reasoning_gym or stories
                num_terms=2,  # terms of a sum, 2 to 4
                num_digits=2,  # digits of each term
            ),
            policy=dict(
                # A class of one's own, path/to/file.py:Class or package.module:Class. The section
                # `policy.arguments` has its arguments. Unset: the decoder, which the other fields
                # describe.
                name=config_dict.placeholder(str),
                arguments=dict(),  # of the class, by their names
                # Model folder with the policy's shape and parameters; turns the warm start off.
                checkpoint=config_dict.placeholder(str),
                num_layers=2,  # decoder blocks
                d_model=32,  # features of the residual stream
                num_heads=4,  # query heads
                num_kv_heads=4,  # key/value heads
                head_dim=8,  # features of a head
                d_ff=64,  # features of the feed-forward layer
                rope_theta=10_000.0,  # base of the frequencies of rotary position embeddings
                norm_epsilon=1e-5,  # epsilon of RMSNorm
                tie_embeddings=False,  # use the embedding matrix as the output head too
                qkv_bias=False,  # add biases to query, key and value, as in Qwen2
                qk_norm=False,  # normalize query and key, as in Qwen3
                dtype="float32",  # type of activations: bfloat16, float32 or float64
                param_dtype="float32",  # type of parameters: float32 or float64
                attention="xla",  # xla, or a kernel that stores no weights: splash, cudnn
                # What the backward pass computes again to save memory: none, attention (the
                # attention weights) or blocks (whole blocks).
                remat="none",
                vocab_chunks=1,  # vocabulary parts; logits are held for one part at a time
            ),
            warm_start=dict(
                steps=2000,  # supervised steps before RL; 0: random parameters
                batch_size=256,  # responses of a supervised step
                learning_rate=3e-3,  # peak learning rate, which falls to 0 by a cosine
                fraction_correct=0.3,  # share of the corpus with the right answer
                fraction_no_carry=0.4,  # share with the sum computed without carries
                fraction_difference=0.3,  # share with |a - b|
                seed=0,  # seeds the corpus and the initial parameters
            ),
            sampler=dict(
                temperature=1.0,  # temperature of sampling and of every log-probability
                # Sample from the fewest most probable tokens with at least this mass; 1: all.
                top_p=1.0,
                top_k=0,  # sample from the k most probable tokens; 0: all
                # Never sample an entry of the policy's vocabulary beyond the task's tokens. Models
                # pad their vocabulary.
                task_tokens_only=False,
                # Whose log-probabilities the learner computes. truncated: of its own distribution
                # after the same truncation. full: of the whole distribution.
                learner_distribution="truncated",
                # Groups that are sampled at once, a divisor of num_prompts; unset: num_prompts.
                batch_prompts=config_dict.placeholder(int),
                # Devices that split a batch while it is sampled, each with a copy of the
                # parameters; unset: those of the mesh.
                devices=config_dict.placeholder(int),
            ),
            rewards=dict(
                num_workers=2,  # processes that judge the responses of text tasks
                time_limit=10.0,  # seconds to judge one response; a slower one gets reward 0
            ),
            lag=dict(
                schedule="constant",  # constant, cyclic, uniform, or trace
                trace=config_dict.placeholder(str),  # file of recorded lags, for schedule=trace
                max_lag=0,  # S, the largest lag, in optimizer updates
                # Lags of the first S steps. initial_policy: as scheduled, but never older than
                # version 0. synchronous: 0.
                start="initial_policy",
            ),
            surrogate=dict(
                clip_low=0.2,  # the ratio is clipped below 1 - clip_low
                clip_high=0.2,  # the ratio is clipped above 1 + clip_high
                # How tokens are averaged: response (GRPO), constant (Dr. GRPO) or tokens (DAPO).
                length_normalization="response",
                normalize_std=True,  # divide advantages by the group's standard deviation
                std_epsilon=1e-4,  # added to that standard deviation
            ),
            reference=dict(
                kl=0.0,  # weight of the divergence from a reference policy; 0: no penalty
                # Estimator of the divergence: k1, k2 or k3 (objective/reference_kl.py).
                estimator="k3",
                # Subtract the penalty from the rewards, instead of adding it to the loss.
                in_reward=False,
                # Model folder of the reference policy; unset: the policy at the start of the run.
                checkpoint=config_dict.placeholder(str),
            ),
            correction=dict(
                name="grpo_clip",  # correction of the loss, a name from docs/corrections.md
                # Correction of the update, a name from docs/corrections.md: vcpo, gac, ...
                update_rule=config_dict.placeholder(str),
                # Parameters of the correction. An unset parameter takes its published value.
                **{name: config_dict.placeholder(float) for name in PARAMETERS},
            ),
            optimizer=dict(
                name="adam",  # sgd, momentum (SGD with momentum b1), adam or adamw
                learning_rate=1e-3,  # eta
                warmup_steps=0,  # learner steps of linear warm-up
                decay="none",  # none, linear or cosine: how the learning rate falls to 0
                # Learner steps after which it is 0; unset: `steps`.
                decay_steps=config_dict.placeholder(int),
                max_grad_norm=0.0,  # the gradient's global norm is clipped to this; 0: no clip
                b1=0.9,  # decay of Adam's first moment, or of momentum
                b2=0.999,  # decay of Adam's second moment
                epsilon=1e-8,  # added to Adam's denominator
                weight_decay=0.0,  # weight decay, for AdamW only
                decay_norms=True,  # weight decay also for the scales of norms and for biases
            ),
            # Watches the mean of (log ratio)^2 of the batches, which rises before a collapse.
            guard=dict(
                # off, warn (alarms are recorded and printed), or scale (an alarm also multiplies
                # the learning rate by `factor`, for the rest of the run).
                mode="off",
                level=1.0,  # largest exponential average of the mean (log ratio)^2 without an alarm
                factor=0.5,  # what an alarm multiplies the learning rate by, for mode=scale
            ),
            metrics=dict(
                lags=False,  # record every group's lag at every step, to replay it as a trace
                # Learner steps between comparisons of the batch's gradient with the gradient of a
                # freshly sampled batch; 0: never.
                paired_every=0,
                # Blocks that the groups are joined into to compute intervals, 4 or more; 0: each
                # group is a block.
                paired_blocks=0,
                # Learner steps between samples of prompts and responses in samples.jsonl; 0: never.
                samples_every=0,
                num_samples=2,  # groups of a step that samples.jsonl has
                # Measure how far the parameters move. This keeps up to S + 1 copies of them.
                parameter_drift=True,
                # Keep sketches of so many random directions in place of these copies; 0: copies;
                # unset: copies, unless they are large (docs/metrics.md).
                drift_sketch=config_dict.placeholder(int),
            ),
            # What shows the records of a training while it runs, beside metrics.jsonl.
            sinks=dict(
                tensorboard=False,  # write TensorBoard's event files into WORKDIR/tensorboard
                wandb=False,  # write an offline run of Weights & Biases into WORKDIR/wandb
                wandb_project="staleness_grpo",  # the project that this run belongs to
            ),
            checkpoint=dict(
                save_every=50,  # learner steps between saves; a run also saves at its end
                keep=2,  # number of newest checkpoints that are kept
                fallback=False,  # resume from an older checkpoint if the newest is unusable
            ),
            mesh=dict(
                data=1,  # devices that split the batch
                fsdp=1,  # devices that split the batch and every large parameter
                tensor=1,  # devices that split heads, feed-forward features and the vocabulary
            ),
        )
    )


def field_value(config: ConfigDict, field: str) -> Any:
    """Returns the value of a field such as 'lag.max_lag'. Raises KeyError if it is missing."""
    return functools.reduce(operator.getitem, field.split("."), config)


def describe_type(expected_type: type, default_value: Any) -> str:
    """Returns, in words, which values a field accepts."""
    example = "" if default_value is None else f", as in {default_value}"
    return f"a value of type {expected_type.__name__}{example}"
