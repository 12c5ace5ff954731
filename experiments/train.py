"""One asynchronous GRPO training: metrics.jsonl, one line per learner step, and summary.json.

    python -m experiments.train --workdir=DIR [--config=FILE.py] [--config.lag.max_lag=16 ...]

A finished workdir is left as it is; an unfinished one is run again from the start, and the records of the broken
run are kept beside the new ones. A run whose loss, gradient or parameters stop being finite ends there, marked as
collapsed in its last record and in summary.json.
"""

import pathlib

from ml_collections import ConfigDict

from experiments import cli


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains and writes the records as they come."""
    from staleness_grpo import metrics, train
    from staleness_grpo.policy import huggingface

    if (workdir / "summary.json").exists():
        print(f"finished already: {workdir / 'summary.json'}")
        return
    metrics.write_run_files(workdir, config)
    writer = metrics.MetricsWriter(workdir / "metrics.jsonl")
    run = train.build(config)
    records = []
    with metrics.Progress("learner steps", config.steps) as progress:
        for record in train.train(run, config):
            writer.write(record)
            records.append(metrics.plain(record))
            progress.advance(f"reward {record['reward']:.3f}  lag {record['lag_max']}")
    writer.close()
    summary = summarize(records)
    if not summary["collapsed"]:
        summary["final_eval_reward"] = run.generator.evaluate(run.state.params, config.steps)
    if config.save_policy:
        huggingface.save(workdir / "policy", run.generator.policy, run.state.params, config.policy.checkpoint)
    metrics.write_json(workdir / "summary.json", summary)
    print(f"{workdir / 'summary.json'}: {summary}")


def summarize(records: list[dict]) -> dict:
    """What the records say at a glance; rewards of the current policy are sampled pass rates."""
    evaluated = [record["eval_reward"] for record in records if "eval_reward" in record]
    return {
        "learner_steps": len(records),
        "collapsed": records[-1]["collapsed"],
        "first_eval_reward": evaluated[0] if evaluated else None,
        "peak_eval_reward": max(evaluated, default=None),
        "final_eval_reward": None,
        "median_time_step": sorted(record["time_step"] for record in records)[len(records) // 2],
    }


if __name__ == "__main__":
    cli.run(main)
