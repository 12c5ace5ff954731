"""Hands the records of a run to TensorBoard and to Weights & Biases, beside metrics.jsonl.

A sink only shows what metrics.jsonl has, so it may not stop a run. The first error of a sink is one
line on stderr, and turns the sink off.

A sink begins anew with every call on a workdir. It first gets the records that the call keeps. So
after a resume each step is there once, also steps that a killed process had not written out.
"""

import importlib.util
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from staleness_grpo.errors import require

PACKAGES = ("tensorboard", "wandb")  # a field of `config.sinks` has the name of its package

FLUSH_SECONDS = 10


class Sink(Protocol):
    """A place that shows numbers by learner step."""

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Adds the numbers of one learner step."""
        ...

    def close(self) -> None:
        """Writes out what is left."""
        ...


def check_sinks(fields: Mapping[str, Any]) -> None:
    """Raises FieldError if a chosen sink's package is not installed, or a name is empty."""
    for name in PACKAGES:
        installed = importlib.util.find_spec(name) is not None
        hint = f"{name} is not installed: pip install {name} (or the extra sinks), or give False"
        require(installed or not fields[name], name, hint, fields[name])
    project = fields["wandb_project"]
    require(bool(project.strip()), "wandb_project", "give a name", project)


class TensorBoard:
    """Writes event files into WORKDIR/tensorboard, in place of those of earlier calls."""

    def __init__(self, workdir: pathlib.Path):
        from tensorboard.summary import Writer

        folder = workdir / "tensorboard"
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer, self._flushed = Writer(str(folder)), time.monotonic()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Adds a point to the curve of each number. The file gets them every FLUSH_SECONDS."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        if time.monotonic() > self._flushed + FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes out what is left."""
        self._writer.close()


class WeightsAndBiases:
    """Writes an offline run into WORKDIR/wandb, in place of those of earlier calls.

    Nothing is sent anywhere. `wandb sync WORKDIR/wandb/offline-run-*` uploads the run. A run that
    was uploaded before stays on the server, beside the new one.
    """

    def __init__(self, workdir: pathlib.Path, project: str, config: dict[str, Any]):
        import wandb

        for folder in (workdir / "wandb").glob("offline-run-*"):
            shutil.rmtree(folder)
        # Without these settings, it would replace sys.stdout and read git and the machine.
        quiet: dict[str, Any] = dict(
            console="off", silent=True, disable_git=True, x_disable_stats=True, x_disable_meta=True
        )
        self._run = wandb.init(
            mode="offline",
            dir=str(workdir),
            project=project,
            name=workdir.name,
            config=config,
            settings=wandb.Settings(**quiet),
        )

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Adds the numbers of a step."""
        self._run.log(numbers, step=step)

    def close(self) -> None:
        """Writes out what is left."""
        self._run.finish()


class Sinks:
    """A context manager that hands records to the chosen sinks of a config.

    Args:
      workdir: the folder of the results.
      config: a run's config as a dict, with the section `sinks`.
      records: records that the run has already, in order.
    """

    def __init__(self, workdir: pathlib.Path, config: dict[str, Any], records: Sequence[dict] = ()):
        fields = config["sinks"]
        openers: dict[str, Callable[[], Sink]] = {
            "tensorboard": lambda: TensorBoard(workdir),
            "wandb": lambda: WeightsAndBiases(workdir, fields["wandb_project"], config),
        }
        self._sinks: dict[str, Sink] = {}
        for name, open_sink in openers.items():
            if fields[name]:
                self._attempt(name, self._open, name, open_sink)
        for record in records:
            self.append(record)

    def __enter__(self) -> "Sinks":
        return self

    def __exit__(self, *exception: object) -> None:
        for name, sink in list(self._sinks.items()):
            self._attempt(name, sink.close)

    def append(self, record: Mapping[str, Any]) -> None:
        """Hands the numbers of a record to every sink that works. Lists and nulls are left out."""
        if not self._sinks:
            return
        shown = numbers(record)
        for name, sink in list(self._sinks.items()):
            self._attempt(name, sink.write, record["step"], shown)

    def _open(self, name: str, open_sink: Callable[[], Sink]) -> None:
        self._sinks[name] = open_sink()

    def _attempt(self, name: str, action: Callable[..., None], *arguments: Any) -> None:
        """Calls a function of a sink. After an error the sink is off."""
        try:
            action(*arguments)
        except Exception as error:
            self._sinks.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(
                f"--config.sinks.{name}=True: {reason}: the sink is off, the run goes on",
                file=sys.stderr,
            )


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the fields of a record that are finite numbers, without `step`; true counts as 1."""
    return {
        name: float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
