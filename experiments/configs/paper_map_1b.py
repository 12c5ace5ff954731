"""Trains the paper's map of S x eta: Llama-3.2-1B on GSM8K, long enough for its boundary to show.

    python -m experiments.sweep --config=experiments/configs/paper_map_1b.py --workdir=DIR \
        --config.policy.checkpoint=FOLDER --config.task.path=FILE.jsonl [--share=I/N]

FOLDER: the downloaded files of Llama-3.2-1B-Instruct.
FILE.jsonl: train.jsonl of GSM8K, with lines {"question", "answer"}.

Why this grid: arXiv 2607.01083 is stable while S eta stays below about 1.6e-6, and collapses at
t_c eta of about 3.2e-5. We know both from a public note on its full text. At the lags 8, 16 and 32
the first bound is at 2e-7, 1e-7 and 5e-8. The second one is at 4.6e-8 for 700 steps. The grid has
learning rates on both sides of all of them.

Hardware: 8 GPUs or TPU chips with 80 GB each for one cell; `--plan` says for how long.
Run time and outcome: not known. The config has not been run, because no accelerator was available.
A test runs it with a small model of the same family, on eight simulated devices.
"""

from ml_collections import ConfigDict

from experiments.configs import gsm8k_llama32_1b, scaling_laws


def get_config() -> ConfigDict:
    """Returns a map under cyclic lag with three seeds, and a smaller one under constant lag.

    The paper most likely refreshes the rollouts every S steps, which is the cyclic schedule.
    """
    config = gsm8k_llama32_1b.get_config()
    with config.unlocked():
        del config.paired
    config.update(dict(steps=700, eval_every=20))
    # The sketch measures R_batch without a copy of the parameters for each version.
    metrics = dict(paired_every=0, paired_blocks=0, parameter_drift=True, drift_sketch=256)
    config.metrics.update(metrics)
    config.lag.schedule = "cyclic"
    config.checkpoint.save_every = 100
    config.sweep = scaling_laws.get_config().sweep
    config.sweep.update(
        dict(
            max_lags=(0, 8, 16, 32),
            learning_rates=(2.5e-8, 5e-8, 1e-7, 2e-7, 5e-7, 1e-6),
            seeds=(0, 1, 2),
            horizons=(200, 400, 700),
            freeze_after=100,
        )
    )
    config.variants = ConfigDict(
        dict(
            constant=dict(
                lag=dict(schedule="constant"), sweep=dict(max_lags=(8, 16, 32), seeds=(0, 1))
            )
        )
    )
    return config
