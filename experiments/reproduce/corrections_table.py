"""Makes the report's table of corrections from their summary."""

from typing import Any

from experiments.common import html


def corrections_table(config: dict[str, Any], summary: dict[str, Any]) -> str:
    """Returns how it was measured, one row for each correction, and what to make of it."""
    lags = [str(lag) for lag in config["stability"]["sweep"]["max_lags"]]
    small, large = (f"{s_eta:g}" for s_eta in summary["s_eta"])
    # (column, where the entry stands in a row of the summary)
    columns: list[tuple[str, tuple[str, ...]]] = [
        ("offset at lag 0", ("offset",)),
        (f"relative bias, S eta = {small}", ("relative_bias", "synchronous", small)),
        (f"S eta = {large}", ("relative_bias", "synchronous", large)),
        (f"own path, {large}", ("relative_bias", "own", large)),
        (f"cosine, own path, {large}", ("cosine", "own", large)),
        ("variance / grpo_clip", ("variance_ratio",)),
        *((f"eta_max / grpo_clip, S = {lag}", ("eta_max_over_baseline", lag)) for lag in lags),
        *((f"final reward, S = {lag}", ("final_reward", lag)) for lag in lags),
        *((f"best final reward, S = {lag}", ("best_reward", lag)) for lag in lags),
        ("time of an update / grpo_clip", ("update_time_ratio",)),
    ]
    rows = [
        (name, *(_entry(row, path) for _, path in columns))
        for name, row in summary["corrections"].items()
    ]
    header = ("correction", *(column for column, _ in columns))
    num_trained = len(config["trained"]) + len(config["trained_update_rules"])
    words = (
        "Exact bias against GRPO's synchronous gradient on "
        f"{config['num_draws']} enumerable problems at S = {config['max_lag']}, with SGD. On the "
        "synchronous path all corrections see the same pairs of policies; the own path is the one "
        "that a correction makes for itself. The variance is that of a batch's gradient at "
        f"S eta = {config['variance']['s_eta']:g}. {num_trained} of them were trained at "
        f"S = {', '.join(lags)} with Adam. Final reward is taken at the learning rate of the grid "
        "nearest to grpo_clip's eta_max, best final reward at the best of the grid."
    )
    reading = f"<p>{html.text(summary['reading'])}</p>"
    return f"<p>{html.text(words)}</p>{html.plain_table(header, rows)}{reading}"


def _entry(row: dict[str, Any], path: tuple[str, ...]) -> str:
    for key in path:
        row = row.get(key, {})
    value = next((row[name] for name in ("mean", "median", "ratio") if name in row), None)
    return "-" if value is None else f"{html.number(value)} {html.number(row['interval'])}"
