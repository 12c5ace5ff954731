"""The one default configuration, and its validation: contradictions are refused by flag name."""

from ml_collections import ConfigDict


class ConfigError(ValueError):
    """A configuration that cannot be run. The message is one line: flag, value, mend."""

    def __init__(self, flag: str, value, mend: str):
        super().__init__(f"--config.{flag}={value}: {mend}")


def default() -> ConfigDict:
    """The default experiment: synchronous GRPO on two-digit addition with the toy policy."""
    return ConfigDict(
        dict(
            seed=0,
            steps=300,  # learner steps, one optimizer update each
            num_prompts=64,  # N
            group_size=8,  # G
            eval_every=10,  # learner steps between evaluations of the current policy on N * G prompts; 0: never
            task=dict(
                name="arithmetic",
                num_terms=2,  # 2 to 4
                num_digits=2,  # of each term
            ),
            policy=dict(
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
            lag=dict(
                schedule="constant",  # constant, cyclic, uniform
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
            correction=dict(name="grpo_clip"),
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
                parameter_drift=True,  # keeps the parameters of every version in flight, up to S + 1 copies
            ),
            mesh=dict(data=1, fsdp=1, tensor=1),
        )
    )
