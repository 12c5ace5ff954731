"""Reads the workdirs of other commands, also while these write them; writes nothing."""

import argparse
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from experiments.common.workdir import SUMMARY
from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.records import RESTORE, DamagedFileError, read_json

LOCKS = pathlib.Path("/proc/locks")
TRAINING = "experiments.train"
METRICS = "metrics.jsonl"  # only a training writes this file
LEARNER_STEPS = "learner_steps"  # only the summary of a training has this key
ONE_TRAINING = (TRAINING, "one training")
# A field that only configs of one command have -> the command, and what its workdir holds.
KINDS = {
    "advise": ("experiments.advise", "an answer about safe learning rates"),
    "clock": ("experiments.clock", "trainings in simulated pipelines"),
    "law": ("experiments.law", "maps of many settings, and the law of their collapses"),
    "proof": ("experiments.async_proof", "asynchronous trainings and their replays"),
    "speed": ("experiments.async_speed", "the time of an asynchronous learner step"),
    "sweep": ("experiments.sweep", "maps of trainings over lag and learning rate"),
    "stability": ("experiments.corrections", "a comparison of corrections"),
    "jobs": ("experiments.reproduce", "the jobs of the main result"),
    "scaling": ("experiments.benchmark --scaling", "time and memory of steps of growing sizes"),
    "topology": ("experiments.memory", "the memory of a learner step"),
    "benchmark": ("experiments.benchmark", "the time of learner steps"),
    "paired": ("experiments.paired_bias", "trainings whose gradient bias is measured"),
    "cluster": ("experiments.pipeline", "simulated pipelines"),
    "first_trainings": (
        "experiments.performance.first_minute",
        "first trainings of this checkout and of an older one",
    ),
    "rounds": ("experiments.performance.peers.alternate", "steps of this project and of peers"),
    "sampled": ("experiments.bias", "the exact bias of small problems"),
    "steps": ONE_TRAINING,
}
GUARD = ("experiments.guard", "maps of trainings with and without a guard")
GUARDED = {"warn", "scale"}  # its variants, by which its config differs from that of a sweep


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Holds what config.json says about a folder of results."""

    folder: pathlib.Path
    config: dict[str, Any]

    @property
    def _kind(self) -> tuple[str, str]:
        """Returns the command that made the folder, and what it holds, in words.

        A training's config may have the section of another command. So its files come first.
        """
        is_training = (self.folder / METRICS).exists() or LEARNER_STEPS in (self.summary() or {})
        if is_training:
            return ONE_TRAINING
        return GUARD if _is_guard(self.config) else KINDS[_sections(self.config)[0]]

    @property
    def command(self) -> str:
        """Returns the module that made the folder."""
        return self._kind[0]

    @property
    def holds(self) -> str:
        """Returns what the folder holds, in words."""
        return self._kind[1]

    @property
    def is_training(self) -> bool:
        """Returns whether the folder holds one training."""
        return self.command == TRAINING

    def summary(self) -> dict[str, Any] | None:
        """Returns summary.json; None while the command is not finished."""
        with contextlib.suppress(FileNotFoundError):
            return read_json(self.folder / SUMMARY)
        return None


def read_workdir(path: str) -> Workdir:
    """Returns a folder of results. Raises FlagError if it is none."""

    def refuse(reason: str) -> FlagError:
        hint = f"{reason}: give the --workdir of a command that has started"
        return FlagError.of_variable("WORKDIR", path, hint)

    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise refuse("this is a file" if folder.exists() else "there is no such folder")
    try:
        config = read_json(folder / "config.json")
    except FileNotFoundError as error:
        if is_locked(folder):  # the command writes config.json when all that may fail has succeeded
            hint = "its run has not come to its first step: try again soon, or add --follow"
            raise FlagError.of_variable("WORKDIR", path, hint) from error
        raise refuse("no workdir, because it has no config.json") from error
    except (OSError, ValueError) as error:
        raise refuse(f"its config.json cannot be read ({error})") from error
    if not _sections(config):
        raise refuse("its config.json is that of no command")
    return Workdir(folder, config)


def _sections(config: Any) -> list[str]:
    """Returns the keys of KINDS that a config has, in their order."""
    return [name for name in KINDS if isinstance(config, dict) and name in config]


def _is_guard(config: dict[str, Any]) -> bool:
    return "sweep" in config and set(config.get("variants") or {}) == GUARDED


def is_locked(folder: pathlib.Path) -> bool:
    """Returns whether a process of this machine writes into the folder.

    The folder itself is not locked to find out, because that could refuse a run that just starts.
    """
    with contextlib.suppress(OSError):
        inode = str(folder.stat().st_ino)
        for line in LOCKS.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if "FLOCK" in words and "WRITE" in words and f":{inode} " in f"{line} ":
                return True
    return False


class Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line, with the form of the command."""

    def __init__(self, form: str, description: str):
        super().__init__(
            prog=form.partition(" ")[0],
            usage=f"python -m {form}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._form = form

    def error(self, message: str) -> NoReturn:
        """Prints the message, and exits with code 2."""
        print(f"{message}: write python -m {self._form}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def exits_in_one_line() -> Iterator[None]:
    """Turns an error that the user can fix into one line on stderr and exit code 2."""
    try:
        yield
    except FlagError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except DamagedFileError as error:
        print(f"{error}: {RESTORE}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe, such as head, has read enough
        sys.stderr.close()
        sys.exit(0)
