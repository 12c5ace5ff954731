"""Holds the one default configuration, and looks up its fields.

Every field has its meaning behind it, as a comment: docs/config.md is made from this file.
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
            seed=0,  # of prompts, sampling noise and random parameters
            steps=300,  # learner steps, one optimizer update each
            num_prompts=64,  # N, the groups of a rollout batch
            group_size=8,  # G, the responses to each prompt
            # Groups per forward and backward pass (gradient accumulation); 0: the whole batch at
            # once.
            microbatch_prompts=0,
            # Optimizer updates per rollout batch, each on its share of the N groups.
            updates_per_batch=1,
            save_policy=False,  # at the end, as the model folder WORKDIR/policy
            # Learner steps between evaluations of the current policy on N * G prompts; 0: never.
            eval_every=10,
            task=dict(
                name="arithmetic",  # arithmetic, enumerable, jsonl, reasoning_gym or stories
                num_terms=2,  # terms of a sum, 2 to 4
                num_digits=2,  # digits of each term
            ),
            policy=dict(
                # A model folder, which gives shape and parameters; there is no warm start then.
                checkpoint=config_dict.placeholder(str),
                num_layers=2,  # decoder blocks
                d_model=32,  # features of the residual stream
                num_heads=4,  # query heads
                num_kv_heads=4,  # key/value heads
                head_dim=8,  # features of a head
                d_ff=64,  # features of the feed-forward layer
                rope_theta=10_000.0,  # base of the rotary frequencies
                norm_epsilon=1e-5,  # of RMSNorm
                tie_embeddings=False,  # whether the embedding is the output head as well
                qkv_bias=False,  # biases of query, key and value, as in Qwen2
                qk_norm=False,  # norms of query and key, as in Qwen3
                dtype="float32",  # of activations: bfloat16, float32 or float64
                param_dtype="float32",  # of parameters: float32 or float64
                attention="xla",  # or splash, a kernel for TPUs that keeps no attention weights
                # Computed again in the backward pass: none, the attention weights, or whole blocks.
                remat="none",
                vocab_chunks=1,  # parts of the vocabulary, whose logits exist one after another
            ),
            warm_start=dict(
                steps=2000,  # supervised steps before RL; 0: random parameters
                batch_size=256,  # responses of a supervised step
                learning_rate=3e-3,  # peak; falls to 0 by a cosine
                fraction_correct=0.3,  # share of the corpus with the right answer
                fraction_no_carry=0.4,  # share with the sum without carry
                fraction_difference=0.3,  # share with |a - b|
                seed=0,  # of the corpus and the parameters
            ),
            sampler=dict(
                temperature=1.0,  # of sampling, and of every log-probability
            ),
            rewards=dict(
                num_workers=2,  # processes that judge the responses of text tasks
                time_limit=10.0,  # seconds for one response; after that its reward is 0
            ),
            lag=dict(
                schedule="constant",  # constant, cyclic, uniform, or trace
                trace=config_dict.placeholder(str),  # a file of lags, for the schedule trace
                max_lag=0,  # S, in optimizer updates
                # The first S steps draw from version 0; "synchronous": they have lag 0.
                start="initial_policy",
            ),
            surrogate=dict(
                clip_low=0.2,  # the ratio is clipped below 1 - clip_low
                clip_high=0.2,  # and above 1 + clip_high
                # Which mean over tokens: response (GRPO), constant (Dr. GRPO) or tokens (DAPO).
                length_normalization="response",
                normalize_std=True,  # divide advantages by the group's standard deviation
                std_epsilon=1e-4,  # added to that standard deviation
            ),
            correction=dict(
                name="grpo_clip",  # how the ratio enters: a name of docs/corrections.md
                update_rule=config_dict.placeholder(
                    str
                ),  # a correction of the update: vcpo, gac, ...
                # The correction's own parameters; unset: the published value.
                **{name: config_dict.placeholder(float) for name in PARAMETERS},
            ),
            optimizer=dict(
                name="adam",  # sgd, adam or adamw
                learning_rate=1e-3,  # eta
                warmup_steps=0,  # learner steps of linear warm-up
                max_grad_norm=0.0,  # clip of the gradient's global norm; 0: none
                b1=0.9,  # decay of Adam's first moment
                b2=0.999,  # decay of Adam's second moment
                epsilon=1e-8,  # of Adam's denominator
                weight_decay=0.0,  # of AdamW alone
            ),
            metrics=dict(
                lags=False,  # record the lag of every group at every step, as a trace needs
                # Learner steps between comparisons of a batch's gradient with a fresh one; 0:
                # never.
                paired_every=0,
                # Blocks of groups that intervals are made of, 4 or more; 0: each group is one.
                paired_blocks=0,
                # Measure how far the parameters have moved; keeps up to S + 1 copies of them.
                parameter_drift=True,
            ),
            checkpoint=dict(
                save_every=50,  # learner steps between saves; a run also saves at its end
                keep=2,  # how many of the newest stay
                fallback=False,  # go on from an older one where the newest cannot be used
            ),
            mesh=dict(
                data=1,  # devices that split the batch
                fsdp=1,  # devices that split the batch and every large parameter
                tensor=1,  # devices that split heads, feed-forward features and the vocabulary
            ),
        )
    )


def field_value(config: ConfigDict, field: str) -> Any:
    """Returns the value of 'a.b.c'. Raises KeyError."""
    return functools.reduce(operator.getitem, field.split("."), config)


def describe_type(kind: type, default_value: Any) -> str:
    """Returns in words what a field takes."""
    example = "" if default_value is None else f", as in {default_value}"
    return f"a value of type {kind.__name__}{example}"
