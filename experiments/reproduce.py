"""The main job: runs the experiments of its config one after the other and writes report.html.

    python -m experiments.reproduce --workdir=DIR

Jobs that are finished are skipped. The last line printed is the path of the report.
"""

import pathlib
import subprocess
import sys
import time

from ml_collections import ConfigDict

from experiments import cli


def command(job: tuple[str, ...], folder: pathlib.Path) -> list[str]:
    """The command line of a job, without the interpreter."""
    module, *overrides = job
    return ["-m", module, f"--workdir={folder}", *overrides]


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs the jobs, each in its own process: one needs float64, and each gives its memory back."""
    from experiments import report
    from staleness_grpo import metrics

    metrics.write_run_files(workdir, config)
    for name, job in config.jobs.items():
        print(f"== {name}: python {' '.join(command(job, workdir / name))}", flush=True)
        start = time.perf_counter()
        result = subprocess.run([sys.executable, *command(job, workdir / name)], cwd=cli.ROOT, check=False)
        if result.returncode:
            print(f"{name} failed; its message is above", file=sys.stderr)
            sys.exit(result.returncode)
        print(f"== {name}: {time.perf_counter() - start:.0f} s", flush=True)
    report.write(workdir, config.jobs.keys())
    print(workdir / "report.html")


if __name__ == "__main__":
    cli.run(main, default_config="experiments/configs/reproduce.py", validate=lambda config: None)
