"""Makes the simulations of a config: one for each rule, lag bound, response limit and seed."""

import contextlib
import dataclasses
from collections.abc import Iterator

from ml_collections import ConfigDict

from staleness_grpo.errors import FieldError, require
from staleness_grpo.pipeline.cluster import Cluster, Engines
from staleness_grpo.pipeline.lengths import Lengths
from staleness_grpo.pipeline.rules import RULES, Rule, make_rule

# The synchronous run in which engines and learner share all accelerators in time.
COLOCATED = "colocated"
SYNCHRONOUS = "synchronous"


@dataclasses.dataclass(frozen=True)
class Cell:
    """Names one simulation."""

    buffer: str  # a key of RULES, or COLOCATED
    max_lag: int  # S
    limit: int  # largest tokens of a response
    seed: int

    @property
    def name(self) -> str:
        """Returns the cell's name."""
        return f"{self.buffer}-S{self.max_lag}-limit{self.limit}-seed{self.seed}"


def cells(config: ConfigDict) -> list[Cell]:
    """Returns the simulations of a config. `synchronous` brings COLOCATED with it.

    Raises:
      FieldError: a buffer rule is unknown.
    """
    found = []
    for limit in config.limits:
        for buffer in config.buffers:
            names = [buffer, COLOCATED] if buffer == SYNCHRONOUS else [buffer]
            for name in names:
                for max_lag in _lags(config, buffer):
                    found += [Cell(name, max_lag, limit, seed) for seed in config.seeds]
    return found


def _lags(config: ConfigDict, buffer: str) -> list[int]:
    """Returns the lag bounds of a rule: those of the config, or its own one."""
    if buffer not in RULES:
        raise FieldError("buffers", f"choose among {', '.join(RULES)}", buffer)
    own = RULES[buffer].only_lag
    return sorted(config.max_lags) if own is None else [own]


def make_cell(config: ConfigDict, cell: Cell) -> tuple[Cluster, Rule]:
    """Returns the cluster and the rule of a cell.

    Raises:
      FieldError: the cell cannot be run. The error names a field of the config.
    """
    cluster = make_cluster(config, cell.limit)
    buffer = cell.buffer
    if buffer == COLOCATED:
        cluster, buffer = colocated(cluster, config.learner_share), SYNCHRONOUS
    with _renamed({"max_lag": "max_lags", "buffer": "buffers"}):
        return cluster, make_rule(buffer, cell.max_lag, cluster.num_groups)


def make_cluster(config: ConfigDict, limit: int) -> Cluster:
    """Returns the cluster of a config with a response limit. Raises FieldError."""
    fields = config.cluster.to_dict()
    with _renamed({}, "cluster.engines."):
        engines = Engines(**fields.pop("engines"))
    with _renamed({"limit": "limits"}, "cluster.lengths."):
        lengths = Lengths(limit=limit, **fields.pop("lengths"))
    with _renamed({}, "cluster."):
        return Cluster(engines, lengths, **fields)


def colocated(cluster: Cluster, learner_share: float) -> Cluster:
    """Returns the cluster in which each phase has the accelerators of both.

    Generation has 1 / (1 - learner_share) times as many engines. The update takes learner_share of
    its time, as if it were divided without loss.

    Raises:
      FieldError: the share is outside (0, 1), or the number of engines would not be whole.
    """
    require(0 < learner_share < 1, "learner_share", "give a number between 0 and 1", learner_share)
    count = cluster.engines.count / (1 - learner_share)
    hint = (
        f"{cluster.engines.count} engines would become {count:g}: give a share that makes it whole"
    )
    require(abs(count - round(count)) < 1e-6, "learner_share", hint, learner_share)
    engines = dataclasses.replace(cluster.engines, count=round(count))
    step_seconds = cluster.step_seconds * learner_share
    return dataclasses.replace(cluster, engines=engines, step_seconds=step_seconds)


@contextlib.contextmanager
def _renamed(names: dict[str, str], section: str = "") -> Iterator[None]:
    """Gives the fields of errors the names that they have in the config."""
    try:
        yield
    except FieldError as error:
        name = names.get(error.field, section + error.field)
        raise FieldError(name, error.hint, error.value) from error
    except TypeError as error:  # a field is unknown, missing, or of another type
        hint = f"{error}: give the same fields as experiments/configs/pipeline.py"
        raise FieldError(section.rstrip(".") or "cluster", hint) from error
