"""Measures what the guard prevents beyond the boundary, what it costs inside, and its warnings.

    python -m experiments.guard --workdir=DIR

The same trainings run without a guard, with `guard.mode=warn` and with `guard.mode=scale`. Writes
cells.jsonl, cells-warn.jsonl and cells-scale.jsonl, summary.json and a figure. A call on an
unfinished workdir trains only cells that have no record yet.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot be run, or has no such variants. Raises FieldError."""
    from experiments.guard.analysis import SCALE, WARN
    from experiments.sweep import grid
    from staleness_grpo.errors import require

    names = sorted(config.get("variants", {}))
    hint = f"give the variants {SCALE} and {WARN}, which set guard.mode"
    require(names == [SCALE, WARN], "variants", hint, tuple(names))
    grid.validate(config)
    maps = grid.variant_configs(config)
    for name, mode in {grid.MAIN: "off", WARN: WARN, SCALE: SCALE}.items():
        found = maps[name].guard.mode
        field = "guard.mode" if name == grid.MAIN else f"variants.{name}.guard.mode"
        require(found == mode, field, f"a study of the guard needs {mode} there: give it", found)
    for name in (WARN, SCALE):
        same = list(grid.cells(maps[name])) == list(grid.cells(maps[grid.MAIN]))
        hint = "it has other cells than the map without a guard: leave sweep out of the variant"
        require(same, f"variants.{name}", hint, name)
    levels = maps[WARN].guard.level, maps[SCALE].guard.level
    hint = "the two variants have other levels: give both the same guard.level"
    require(levels[0] == levels[1], f"variants.{WARN}.guard.level", hint, levels[0])


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains every cell that has no record yet, then writes summary.json."""
    from experiments.common.claims import KEY, records
    from experiments.common.workdir import SUMMARY, write_run_files
    from experiments.guard.analysis import summarize
    from experiments.guard.claims import claims
    from experiments.sweep import grid
    from experiments.sweep.measure import run_map
    from staleness_grpo.runtime.records import write_json

    write_run_files(workdir, config)
    maps = {
        name: run_map(name, variant, workdir)
        for name, variant in grid.variant_configs(config).items()
    }
    level = config.variants.warn.guard.get("level", config.guard.level)
    summary = summarize(maps, level)
    write_json(workdir / SUMMARY, summary | {KEY: records(claims(summary))})


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the figure of a finished workdir from its records."""
    from experiments.guard import figures

    return figures.draw(workdir)


if __name__ == "__main__":
    cli.run(
        main,
        draw,
        default_config="experiments/configs/guard.py",
        validate=validate,
        optional=("variants",),
    )
