"""The one default configuration, and what is said of a field that is refused; `validation` refuses."""

import functools
import operator

from ml_collections import ConfigDict, config_dict

from staleness_grpo.objective.corrections.settings import PARAMETERS


class FlagError(ValueError):
    """A command that cannot be run. The message is one line: flag, value, mend."""

    def __init__(self, flag: str, value, mend: str):
        super().__init__(" ".join(f"--{flag}={value}: {mend}".split()))


class ConfigError(FlagError):
    """A configuration that cannot be run; the flag is named from below `config`."""

    def __init__(self, flag: str, value, mend: str):
        super().__init__(f"config.{flag}", value, mend)
        self._parts = flag, value, mend

    def below(self, section: str) -> "ConfigError":
        """The same of a config that is a section of another."""
        flag, value, mend = self._parts
        return ConfigError(f"{section}.{flag}", value, mend)


def default() -> ConfigDict:
    """The default experiment: synchronous GRPO on two-digit addition with the toy policy."""
    return ConfigDict(
        dict(
            seed=0,
            steps=300,  # learner steps, one optimizer update each
            num_prompts=64,  # N, the groups of a rollout batch
            group_size=8,  # G
            microbatch_prompts=0,  # groups whose gradient is taken at once, the rest after them; 0: all of an update
            updates_per_batch=1,  # optimizer updates per rollout batch of N groups, each with N / this of them
            save_policy=False,  # at the end, as the folder WORKDIR/policy, which transformers reads
            eval_every=10,  # learner steps between evaluations of the current policy on N * G prompts; 0: never
            task=dict(
                name="arithmetic",
                num_terms=2,  # 2 to 4
                num_digits=2,  # of each term
            ),
            policy=dict(
                checkpoint=config_dict.placeholder(str),  # a folder; it gives shape and parameters, without warm start
                num_layers=2,
                d_model=32,
                num_heads=4,
                num_kv_heads=4,
                head_dim=8,
                d_ff=64,
                rope_theta=10_000.0,
                norm_epsilon=1e-5,
                tie_embeddings=False,
                qkv_bias=False,
                qk_norm=False,
                dtype="float32",  # of activations
                param_dtype="float32",
                attention="xla",  # or "splash", a kernel for TPUs that keeps no attention weights in memory
                remat="none",  # or "attention" weights alone, or whole "blocks": computed again in the backward pass
                vocab_chunks=1,  # parts of the vocabulary that log-probabilities are computed in, one after another
            ),
            warm_start=dict(
                steps=2000,  # supervised steps before RL; 0: random initialisation
                batch_size=256,
                learning_rate=3e-3,
                fraction_correct=0.3,  # the corpus: right answers,
                fraction_no_carry=0.4,  # sums without carry,
                fraction_difference=0.3,  # and |a - b|
                seed=0,
            ),
            sampler=dict(temperature=1.0),
            rewards=dict(  # of tasks that judge text
                num_workers=2,  # processes
                time_limit=10.0,  # seconds that one response may take; then its reward is 0
            ),
            lag=dict(
                schedule="constant",  # constant, cyclic, uniform; trace: the lags of the file below
                trace=config_dict.placeholder(str),  # as staleness.trace describes it
                max_lag=0,  # S, in optimizer updates
                start="initial_policy",  # the first S steps draw from version 0; "synchronous": they have lag 0
            ),
            surrogate=dict(
                clip_low=0.2,
                clip_high=0.2,
                length_normalization="response",
                normalize_std=True,
                std_epsilon=1e-4,
            ),
            correction=dict(
                name="grpo_clip",  # a key of objective.corrections.registry.CORRECTIONS
                update_rule=config_dict.placeholder(str),  # unset, or a key of UPDATE_CORRECTIONS beside it
                # Parameters, whose meaning stands where the correction is defined. Unset: the published value.
                **{name: config_dict.placeholder(float) for name in PARAMETERS},
            ),
            optimizer=dict(
                name="adam",  # sgd, adam, adamw
                learning_rate=1e-3,
                warmup_steps=0,
                max_grad_norm=0.0,  # global-norm clip; 0: none
                b1=0.9,
                b2=0.999,
                epsilon=1e-8,
                weight_decay=0.0,  # adamw alone
            ),
            metrics=dict(
                lags=False,  # the lag of every group in every record: what staleness.trace makes a trace of
                paired_every=0,  # learner steps between comparisons of a batch's gradient with a fresh one's; 0: never
                paired_blocks=0,  # parts of whole groups that intervals are made of, 4 or more; 0: each group is one
                parameter_drift=True,  # keeps the parameters of every version in flight, up to S + 1 copies
            ),
            checkpoint=dict(
                save_every=50,  # learner steps; also at the end and on SIGTERM
                keep=2,  # the newest
                fallback=False,  # go on from an older checkpoint where the newest cannot be used
            ),
            mesh=dict(data=1, fsdp=1, tensor=1),
        )
    )


def field(config: ConfigDict, flag: str):
    """The value of 'a.b.c'. Raises KeyError."""
    return functools.reduce(operator.getitem, flag.split("."), config)


def of_type(kind: type, default_value) -> str:
    """What a field takes, in words."""
    return f"a value of type {kind.__name__}" + ("" if default_value is None else f", as in {default_value}")
