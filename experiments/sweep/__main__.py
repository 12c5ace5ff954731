"""Trains the S x eta map and reads the scaling laws off it.

    python -m experiments.sweep --workdir=DIR [--config=experiments/configs/scaling_laws_full.py]

Writes cells.jsonl (one line for each training), summary.json and the figures of the scaling laws. A
call on an unfinished workdir runs the cells that are missing.

With `--share=I/N` only the I-th of N shares of the cells is run, into files of its own. Make N such
calls, at the same time and on any machines that see the folder. Then make one without it, which
gathers the shares, runs what is missing, and draws.
"""

import pathlib

from absl import flags
from ml_collections import ConfigDict

from experiments.common import cli


def main(config: ConfigDict, workdir: pathlib.Path, share: str | None = None) -> None:
    """Trains every cell that has no record yet, then summarizes; a share is trained alone.

    Raises:
      FlagError: `share` is not I/N.
    """
    from experiments.common.claims import KEY, records
    from experiments.common.workdir import SUMMARY, write_run_files
    from experiments.sweep import grid
    from experiments.sweep.analysis import summarize
    from experiments.sweep.claims import claims
    from experiments.sweep.measure import Share, run_map
    from staleness_grpo.runtime.records import write_json

    part = None if share is None else Share.parse(share)
    write_run_files(workdir, config)
    variants = grid.variant_configs(config)
    maps = {name: run_map(name, variant, workdir, part) for name, variant in variants.items()}
    if part is not None:
        print(f"share {part.index} of {part.count} done; a call without --share gathers them")
        return
    summary = summarize(maps, config)
    write_json(workdir / SUMMARY, summary | {KEY: records(claims(summary))})


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the figures of a finished workdir from its records."""
    from experiments.sweep import figures

    return figures.draw(workdir)


if __name__ == "__main__":
    flag = flags.DEFINE_string("share", None, "I/N: run the I-th of N shares of the cells alone.")

    def _validate(config: ConfigDict) -> None:
        from experiments.sweep import grid
        from experiments.sweep.measure import Share

        if flag.value is not None:
            Share.parse(flag.value)
        grid.validate(config)

    cli.run(
        lambda config, workdir: main(config, workdir, flag.value),
        draw,
        default_config="experiments/configs/scaling_laws.py",
        validate=_validate,
        optional=("variants",),
    )
