"""Trains a map of cells over lag S and learning rate eta, and fits the scaling laws to the map.

    python -m experiments.sweep --workdir=DIR [--config=experiments/configs/scaling_laws_full.py]

Writes cells.jsonl (one line for each training), summary.json and the figures of the scaling laws. A
call on an unfinished workdir runs only the cells that have no record yet.

A cell may be any training that `experiments.train` runs. Small policies with rewards that are
arrays run as compiled programs. Every other cell is a training of the loop with a workdir of its
own, below DIR/trainings; a cell that was cut off goes on from its checkpoint.

With `--plan` a call measures a few learner steps, prints how long the cells will take, and ends.

With `--share=I/N` a call runs only the I-th of N shares of the cells, and writes their records to
separate files. Make N such calls. They may run at the same time, on any machines that see the
folder. Then make one call without `--share`. It gathers the records of all shares, runs the cells
that have no record yet, and draws the figures.
"""

import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from experiments.common import cli


def main(config: ConfigDict, workdir: pathlib.Path, share: str | None = None) -> None:
    """Trains every cell that has no record yet, then writes the summary.

    Args:
      config: the sweep's config.
      workdir: the folder of the results.
      share: I/N to train only this share of the cells and write no summary.

    Raises:
      FlagError: `share` has another form than I/N.
      FieldError: the workdir has cells of another task.
    """
    import jax

    from experiments.common.claims import KEY, records
    from experiments.common.contents import check_same, fingerprints
    from experiments.common.workdir import SUMMARY, write_run_files
    from experiments.sweep import grid
    from experiments.sweep.analysis import summarize
    from experiments.sweep.claims import claims
    from experiments.sweep.measure import Share, run_map
    from staleness_grpo.runtime.records import write_json
    from staleness_grpo.tasks import make_task

    parsed_share = None if share is None else Share.parse(share)
    task = make_task(config.task, config.policy.checkpoint)
    contents = fingerprints(config, task)
    check_same(workdir, config, contents)
    writes_files = jax.process_index() == 0
    if writes_files:
        write_run_files(workdir, config, contents)
    variants = grid.variant_configs(config)
    maps = {
        name: run_map(name, variant, workdir, parsed_share) for name, variant in variants.items()
    }
    if not writes_files:
        return
    if parsed_share is not None:
        done = f"share {parsed_share.index} of {parsed_share.count} is done"
        print(f"{done}; after the last share, run the command without --share to gather them")
        return
    summary = summarize(maps, config)
    write_json(workdir / SUMMARY, summary | {KEY: records(claims(summary))})


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the figures of a finished workdir from its records; returns the paths of the PNGs."""
    from experiments.sweep import figures

    return figures.draw(workdir)


if __name__ == "__main__":
    share_flag = flags.DEFINE_string(
        "share", None, "I/N: run only the I-th of N shares of the cells."
    )
    plan_flag = flags.DEFINE_bool(
        "plan", False, "Print how long the cells will take, and run none of them."
    )
    step_seconds_flag = flags.DEFINE_float(
        "plan_step_seconds",
        None,
        "Time of one learner step for --plan, if it was measured elsewhere.",
        lower_bound=0,
    )
    devices_flag = flags.DEFINE_integer(
        "plan_devices", None, "Devices of one training for --plan; all by default.", lower_bound=1
    )

    def _validate(config: ConfigDict) -> None:
        from experiments.sweep import grid
        from experiments.sweep.measure import Share

        if share_flag.value is not None:
            Share.parse(share_flag.value)
        grid.validate(config, elsewhere=plan_flag.value and step_seconds_flag.value is not None)
        if plan_flag.value:
            from experiments.sweep import plan

            given = plan.Given(step_seconds_flag.value, devices_flag.value)
            print(plan.plan(config, pathlib.Path(flags.FLAGS.workdir), given))
            sys.exit(0)

    def _part() -> str | None:
        share = share_flag.value
        return None if share is None else f"share-{share.replace('/', '-of-')}"

    cli.run(
        lambda config, workdir: main(config, workdir, share_flag.value),
        draw,
        part=_part,
        several_processes=True,
        default_config="experiments/configs/scaling_laws.py",
        validate=_validate,
        optional=("variants",),
    )
