"""Tests which law collapse times follow, and predicts the largest stable rate of other settings.

    python -m experiments.law --workdir=DIR [--config.stories=SWEEP_WORKDIR]

Each setting is a map of S x eta, of the same kind as those of `experiments.sweep`. Writes
cells.jsonl and cells-NAME.jsonl (a line for each training), summary.json and figures. A call on an
unfinished workdir trains only cells that have no record yet.

With --config.stories, a finished map of stories260k is one more held-out setting.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot be run. Raises FieldError."""
    from experiments.law import settings

    settings.validate(config)


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains every cell that has no record yet, then writes summary.json."""
    from experiments.common.claims import KEY, records
    from experiments.common.workdir import SUMMARY, write_run_files
    from experiments.law import settings
    from experiments.law.analysis import summarize
    from experiments.law.claims import claims
    from experiments.sweep.measure import run_map
    from staleness_grpo.runtime.records import write_json

    write_run_files(workdir, config)
    maps = {
        name: run_map(name, setting, workdir) for name, setting in settings.configs(config).items()
    }
    summary = summarize(settings.read(config, maps), config.law)
    write_json(workdir / SUMMARY, summary | {KEY: records(claims(summary))})


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the figures of a finished workdir from its records."""
    from experiments.law import figures

    return figures.draw(workdir)


if __name__ == "__main__":
    cli.run(
        main,
        draw,
        default_config="experiments/configs/law.py",
        validate=validate,
        optional=("variants",),
    )
