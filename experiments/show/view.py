"""Makes the terminal view of a workdir: what it is, its state, curves, numbers and samples."""

import math
import statistics
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from experiments.common.reading import METRICS, Workdir
from experiments.show.records import seconds_since_last_record
from staleness_grpo.runtime.records import flattened, read_jsonl

LEVELS = "▁▂▃▄▅▆▇█"
NOT_FINITE, UNDEFINED = "×", "·"
CURVES = (
    "reward",
    "eval_reward",
    "heldout_reward",
    "entropy",
    "clip_fraction",
    "approx_kl",
    "ess",
    "ratio_max",
    "guard_average",
    "guard_scale",
    "gradient_cosine",
    "grad_norm",
    "update_norm",
    "drift_from_behavior",
    "response_length",
    "truncated_fraction",
)
# Fields that tell one training from another.
WHAT = (
    "task.name",
    "policy.checkpoint",
    "lag.schedule",
    "lag.max_lag",
    "correction.name",
    "correction.update_rule",
    "optimizer.name",
    "optimizer.learning_rate",
    "num_prompts",
    "group_size",
    "seed",
)
COLUMNS = ("metric", "curve", "first", "last", "lowest", "highest")
HEADER = dict(zip(COLUMNS, COLUMNS, strict=True))
# Columns that a narrow terminal leaves out, one by one, until curves have MIN_CURVE characters.
LEFT_OUT = ("first", "highest", "lowest")
MIN_CURVE, GAP = 20, 2
# The cosine with a gradient of 0 is undefined, which is no fault. It is null in the records.
COSINE = "gradient_cosine"
# Fields of summary.json about the policy after the last step, which no record has.
FINAL = ("final_eval_reward", "final_heldout_reward", "final_heldout_pass_at")
STYLES = {"finished": "green", "collapsed": "red", "running": "cyan"}
MAX_GROUPS, MAX_RESPONSES, MAX_NAMES = 2, 4, 8


def sparkline(values: list[float | None], width: int, absent: str = NOT_FINITE) -> str:
    """Returns a line of at most `width` characters whose heights are means of neighboring values.

    The lowest mean has the lowest level, and the highest mean the highest. `absent` stands where
    one of the values is None.
    """
    num_parts = min(width, len(values))
    means = []
    for part in range(num_parts):
        start, end = (len(values) * i // num_parts for i in (part, part + 1))
        finite = [value for value in values[start:end] if value is not None]
        means.append(statistics.fmean(finite) if len(finite) == end - start else math.nan)
    known = [mean for mean in means if math.isfinite(mean)]
    if not known:
        return absent * num_parts
    low, height = min(known), max(known) - min(known)

    def character(mean: float) -> str:
        if not math.isfinite(mean):
            return absent
        level = (mean - low) / height * (len(LEVELS) - 1) if height > 0 else 0
        return LEVELS[round(level)]

    return "".join(map(character, means))


def number(value: Any, absent: str = "not finite") -> str:
    """Returns a number with four significant digits; `absent` for null."""
    if value is None:
        return absent
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def printable(text: str, width: int) -> str:
    """Returns text in which nothing moves the cursor, cut to a width."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= width else shown[: max(0, width - 3)] + "..."


def training_view(
    workdir: Workdir, state: str, records: list[dict], samples: list[dict], width: int
) -> RenderableType:
    """Returns the view of one training."""
    parts: list[RenderableType] = [_title(workdir, state), Text(_what(workdir.config))]
    if not records:
        return Group(*parts, Text("no record yet"))
    parts.append(Text(_progress(workdir, records)))
    parts.append(_curves(records, width))
    rest = {
        name: value
        for name, value in records[-1].items()
        if name not in CURVES and isinstance(value, int | float) and not isinstance(value, bool)
    }
    line = "  ".join(f"{name} {number(value)}" for name, value in rest.items())
    parts.append(Text(f"last record: {line}", style="dim"))
    if final := _final(workdir.summary() or {}):
        parts.append(Text(f"after the last step: {final}"))
    if not_finite := records[-1].get("not_finite"):
        parts.append(Text(f"not finite: {', '.join(not_finite)}", style="red"))
    if samples:
        parts.append(_samples(samples, width))
    return Group(*parts)


def other_view(workdir: Workdir, state: str) -> RenderableType:
    """Returns the view of a folder that holds something else than one training."""
    parts: list[RenderableType] = [_title(workdir, state)]
    for path in sorted(workdir.folder.glob("*.jsonl")):
        parts.append(Text(f"{path.name}: {len(read_jsonl(path))} records"))
    trainings = [
        path.parent
        for pattern in ("*/config.json", "trainings/*/*/config.json")  # the second: of a sweep
        for path in sorted(workdir.folder.glob(pattern))
        if (path.parent / METRICS).exists()
    ]
    if trainings:
        names = ", ".join(folder.name for folder in trainings[:MAX_NAMES])
        rest = f" and {len(trainings) - MAX_NAMES} more" if len(trainings) > MAX_NAMES else ""
        hint = f"python -m experiments.show {trainings[0]}"
        parts.append(Text(f"trainings in it: {names}{rest}; show one by {hint}"))
    for claim in (workdir.summary() or {}).get("claims", []):
        verdict = {True: "holds", False: "does not hold", None: "finding"}[claim["holds"]]
        measured = claim["measured"]
        shown = f" [{number(measured)}]" if isinstance(measured, int | float) else ""
        if shown and claim.get("interval"):
            low, high = claim["interval"]
            shown = f" [{number(measured)}, between {number(low)} and {number(high)}]"
        parts.append(Text(f"{verdict}: {claim['claim']}{shown}"))
    parts.append(Text("only trainings have curves here", style="dim"))
    return Group(*parts)


def _title(workdir: Workdir, state: str) -> Text:
    title = Text(f"{workdir.folder}: {workdir.holds}, by {workdir.command}: ")
    return title.append(state, style=STYLES.get(state, "yellow"))


def _what(config: dict[str, Any]) -> str:
    """Returns the fields that tell one training from another."""
    flat = flattened(config)
    return "  ".join(f"{name} {flat[name]}" for name in WHAT if name in flat)


def _progress(workdir: Workdir, records: list[dict]) -> str:
    done, steps = records[-1]["step"] + 1, workdir.config["steps"]
    times = [record["time_step"] for record in records[-50:] if record.get("time_step") is not None]
    line = f"{done} of {steps} learner steps"
    if times:
        line += f", {statistics.median(times):.3g} s each"
    age = seconds_since_last_record(workdir)
    if workdir.summary() is None and age is not None:
        line += f", the last one {age:.0f} s ago"
    return line


def _final(summary: dict[str, Any]) -> str:
    """Returns what summary.json says about the policy after the last step; "" if nothing."""
    flat = flattened({name: summary.get(name) for name in FINAL})
    return "  ".join(
        f"{name.removeprefix('final_')} {number(value)}" for name, value in flat.items()
    )


def _curves(records: list[dict], width: int) -> Table:
    """Returns the table of curves. It fits into `width` columns, so no newest value is cut off."""
    rows, curves = [], []
    for name in CURVES:
        # The first step has no gradient before it, so its cosine is null without a fault.
        measured = records[1:] if name == COSINE else records
        values = [record[name] for record in measured if name in record]
        if not values:
            continue
        finite = [value for value in values if value is not None]
        ends = [values[0], values[-1], min(finite, default=None), max(finite, default=None)]
        word, mark = ("undefined", UNDEFINED) if name == COSINE else ("not finite", NOT_FINITE)
        numbers = [number(value, word) for value in ends]
        rows.append(dict(zip(COLUMNS, [name, "", *numbers], strict=True)))
        curves.append((_held(measured, name), mark))
    shown, room = _columns(rows, width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for column in shown:
        is_text = column in ("metric", "curve")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    for row, (values, mark) in zip(rows, curves, strict=True):
        row["curve"] = sparkline(values, room, mark)
        table.add_row(*(row[column] for column in shown))
    return table


def _columns(rows: list[dict[str, str]], width: int) -> tuple[list[str], int]:
    """Returns the columns that a terminal of this width shows, and the width of curves in it."""
    shown = list(COLUMNS)

    def room() -> int:
        others = [column for column in shown if column != "curve"]
        widths = [max(len(row[column]) for row in (HEADER, *rows)) for column in others]
        return width - sum(widths) - GAP * len(others)

    for column in LEFT_OUT:
        if room() < MIN_CURVE:
            shown.remove(column)
    return shown, max(1, room())


def _held(records: list[dict], name: str) -> list[float | None]:
    """Returns a value for each record from the first that has the field on.

    A record without the field, as between two evaluations, gets the value before it. So the curves
    of all fields have the same horizontal axis.
    """
    held: list[float | None] = []
    for record in records:
        if name in record or held:
            held.append(record.get(name, held[-1] if held else None))
    return held


def _samples(samples: list[dict], width: int) -> RenderableType:
    step = samples[-1]["step"]
    newest = [sample for sample in samples if sample["step"] == step]
    parts: list[RenderableType] = [Text(f"samples of step {step}:")]
    for sample in newest[:MAX_GROUPS]:
        head = f"lag {sample['lag']}  prompt {printable(sample['prompt'], width - 20)}"
        parts.append(Padding(Text(head), (0, 0, 0, 2)))
        columns = ("rewards", "log_ratio_sum", "responses")
        rows = zip(*(sample[name] for name in columns), strict=True)
        for reward, log_ratio, response in list(rows)[:MAX_RESPONSES]:
            shown = printable(response, width - 42)
            line = f"reward {number(reward):>6}  log-ratio {number(log_ratio):>10}  {shown}"
            parts.append(Padding(Text(line), (0, 0, 0, 4)))
    return Group(*parts)
