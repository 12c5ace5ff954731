"""Compares the cells of three maps: without a guard, with warnings, and with a scaled rate."""

from typing import Any

import numpy as np

from experiments.sweep.grid import MAIN

WARN, SCALE = "warn", "scale"


def summarize(maps: dict[str, list[dict]], level: float) -> dict[str, Any]:
    """Returns the contents of summary.json without the claims.

    A setting is one S and one learning rate. It is beyond the boundary if more than half of its
    seeds collapse without a guard, and inside if none does.

    Args:
      maps: the records of each map, by name. The cells are the same in all three.
      level: the level of the alarm.

    Returns:
      `settings`: what happens in each setting. `beyond`, `inside`: sums over settings. `warnings`:
      how many collapses an alarm foretold and how early, and the false alarms.
    """
    settings = [_setting(maps, key) for key in sorted({_key(record) for record in maps[MAIN]})]
    beyond = [s for s in settings if s["collapsed"] > s["seeds"] / 2]
    inside = [s for s in settings if s["collapsed"] == 0]
    return {
        "level": level,
        "settings": settings,
        "beyond": {
            "settings": len(beyond),
            "collapsed": sum(s["collapsed"] for s in beyond),
            "collapsed_with_guard": sum(s["collapsed_with_guard"] for s in beyond),
            "least_prevented_share": min(
                (1 - s["collapsed_with_guard"] / s["seeds"] for s in beyond), default=None
            ),
            "final": _mean(beyond, "final"),
            "final_with_guard": _mean(beyond, "final_with_guard"),
        },
        "inside": {
            "settings": len(inside),
            "final": _mean(inside, "final"),
            "final_with_guard": _mean(inside, "final_with_guard"),
            "largest_cost": max((c for s in inside if (c := cost(s)) is not None), default=None),
            "mean_scale": _mean(inside, "scale"),
        },
        "warnings": warnings(maps[MAIN], maps[SCALE]),
        "same_as_without": _same(maps[MAIN], maps[WARN]),
    }


def _key(record: dict) -> tuple[int, float]:
    return record["max_lag"], record["learning_rate"]


def _setting(maps: dict[str, list[dict]], key: tuple[int, float]) -> dict[str, Any]:
    """Returns the collapses, final rewards and final scale of one setting."""
    without, guarded = (
        [record for record in maps[name] if _key(record) == key] for name in (MAIN, SCALE)
    )
    return {
        "max_lag": key[0],
        "learning_rate": key[1],
        "seeds": len(without),
        "collapsed": _num_collapsed(without),
        "collapsed_with_guard": _num_collapsed(guarded),
        "final": float(np.mean([record["final"] for record in without])),
        "final_with_guard": float(np.mean([record["final"] for record in guarded])),
        "scale": float(np.mean([_last(record["traces"]["guard_scale"]) for record in guarded])),
        "lowest_reward": min(record.get("lowest_reward", 0.0) for record in without + guarded),
    }


def _last(trace: list[float | None]) -> float:
    """Returns the last value of a trace. A block in which a run ended may have none."""
    return [value for value in trace if value is not None][-1]


def _num_collapsed(records: list[dict]) -> int:
    return sum(record["collapse_step"] is not None or not record["finite"] for record in records)


def _mean(settings: list[dict], name: str) -> float | None:
    return float(np.mean([setting[name] for setting in settings])) if settings else None


def cost(setting: dict[str, Any]) -> float | None:
    """Returns the share of the final reward, above the task's lowest, that the guard costs.

    None if the final reward is the lowest.
    """
    floor = min(setting["lowest_reward"], setting["final"], setting["final_with_guard"])
    height = setting["final"] - floor
    return 1 - (setting["final_with_guard"] - floor) / height if height else None


def first_alarm(record: dict) -> int | None:
    """Returns the learner step of the first alarm of a run with a scaled rate; None without one.

    A record has means over blocks of learner steps. The alarm is in the first block in which the
    mean scale is below 1, and is dated to the end of that block.
    """
    scaled = np.flatnonzero(np.array(record["traces"]["guard_scale"], float) < 1)
    return None if not scaled.size else int((scaled[0] + 1) * record["trace_every"])


def warnings(without: list[dict], guarded: list[dict]) -> dict[str, Any]:
    """Returns how many collapses were foretold, how early, and the false alarms.

    Up to its first alarm, a run with a scaled rate is the same as without a guard. So its first
    alarm is the one that warns of the collapse of the run without a guard. Runs with S = 0 are left
    out: their ratio is 1.

    Args:
      without: the records without a guard.
      guarded: the records of the same cells with a scaled rate.

    Returns:
      `found`: the share of the collapsing runs with an alarm before the collapse. `median_lead`:
      the median of the learner steps between. `false_alarms`: the share of stable runs with an
      alarm. `collapsed`, `stable`: the numbers of runs.
    """
    alarms = {record["cell"]: first_alarm(record) for record in guarded}
    stale = [record for record in without if record["max_lag"] >= 1]
    collapsed = [record for record in stale if record["collapse_step"] is not None]
    stable = [record for record in stale if record["collapse_step"] is None]
    leads = []
    for record in collapsed:
        alarm = alarms[record["cell"]]
        if alarm is not None and alarm < record["collapse_step"]:
            leads.append(record["collapse_step"] - alarm)
    return {
        "found": len(leads) / len(collapsed) if collapsed else None,
        "median_lead": float(np.median(leads)) if leads else None,
        "false_alarms": (
            float(np.mean([alarms[r["cell"]] is not None for r in stable])) if stable else None
        ),
        "collapsed": len(collapsed),
        "stable": len(stable),
    }


def _same(without: list[dict], warned: list[dict]) -> bool:
    """Says whether warnings leave every cell as it is without a guard."""
    by_name = {record["cell"]: record for record in warned}
    return all(
        record["traces"]["eval_reward"] == by_name[record["cell"]]["traces"]["eval_reward"]
        for record in without
    )
