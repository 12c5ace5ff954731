"""report.html: one self-contained page, claim by claim, from the records of the main job alone."""

import base64
import dataclasses
import html
import json
import pathlib
from collections.abc import Collection

from experiments import lag_comparison
from experiments.figures import style
from experiments.figures import training as training_figures
from staleness_grpo import metrics

STYLE = """
body { font: 16px/1.5 Georgia, serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; }
h1, h2 { font-family: Helvetica, Arial, sans-serif; line-height: 1.2; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 1em 0; }
th, td { text-align: left; vertical-align: top; padding: .35em .6em; border-bottom: 1px solid #ddd; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.yes { color: #00694b; } td.no { color: #a33b00; font-weight: bold; }
img { max-width: 100%; } figure { margin: 1.5em 0; } figcaption { font-size: 14px; color: #444; }
.note { font-size: 12px; color: #555; }
code { font-size: 13px; background: #f4f4f4; padding: .1em .3em; overflow-wrap: anywhere; }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """One experiment: what was asked, what was found, and how to make it again."""

    title: str
    text: str
    command: str
    facts: list[dict]  # claim, measured, interval or None, n, holds, and perhaps a note and the paper's own number
    figures: list[tuple[pathlib.Path, str]]  # PNG and caption
    table: tuple[tuple[str, ...], ...] = ()  # measurements that are no claims: a header, then rows
    reading: str = ""  # what to make of it


def number(value) -> str:
    """A measured value for people: four digits, intervals and lists in brackets."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(number(item) for item in value) + "]"
    return f"{value:.4g}"


def fact_row(fact: dict, with_paper: bool) -> str:
    """One claim as a table row, with a cell for the paper's own number if its table has that column."""
    interval = "" if fact["interval"] is None else " " + number(fact["interval"])
    holds = "yes" if fact["holds"] else "no"
    note = f'<br><span class="note">{html.escape(fact["note"])}</span>' if fact.get("note") else ""
    paper = f"<td>{html.escape(fact.get('paper') or '')}</td>" if with_paper else ""
    return (
        f"<tr><td>{html.escape(fact['claim'])}{note}</td>{paper}"
        f'<td class="number">{html.escape(number(fact["measured"]) + interval)}</td>'
        f"<td>{html.escape(str(fact['n']))}</td>"
        f'<td class="{holds}">{holds}</td></tr>'
    )


def section_html(section: Section) -> str:
    """One section; a figure that is missing raises FileNotFoundError."""
    with_paper = any("paper" in fact for fact in section.facts)
    rows = "\n".join(fact_row(fact, with_paper) for fact in section.facts)
    paper = "<th>In the paper</th>" if with_paper else ""
    figures = "\n".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{html.escape(caption)}</figcaption></figure>'
        for path, caption in section.figures
    )
    return f"""<h2>{html.escape(section.title)}</h2>
<p>{html.escape(section.text)}</p>
<p>Made by <code>{html.escape(section.command)}</code></p>
<table><tr><th>Claim</th>{paper}<th>Measured, with 95 % interval</th><th>n</th><th>Holds here</th></tr>
{rows}
</table>
{table_html(section.table)}
{f"<p>{html.escape(section.reading)}</p>" if section.reading else ""}
{figures}"""


def table_html(table: tuple[tuple[str, ...], ...]) -> str:
    """A header and rows; nothing for no table."""
    if not table:
        return ""
    header, *rows = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in
                     zip(["th"] + ["td"] * (len(table) - 1), table, strict=True)]  # fmt: skip
    return f"<table><tr>{header}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def bias_section(workdir: pathlib.Path) -> Section:
    """The exact bias of stale rollouts."""
    folder = workdir / "bias"
    config = json.loads((folder / "config.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    return Section(
        title="The gradient bias of stale rollouts, computed exactly",
        text=(
            f"Problems so small that every response to every prompt is enumerated, so that the population surrogate "
            f"gradient H(theta, phi) is known to rounding and nothing in its bias is noise. {config['num_draws']} "
            f"independent draws of rewards and initial policy; each run is trained with its own lag, by SGD and by "
            f"Adam, on exact and on sampled gradients; lags {config['max_lags'][0]} to {config['max_lags'][-1]}."
        ),
        command="python -m experiments.bias --workdir=DIR",
        facts=summary["facts"],
        figures=[
            (folder / "bias_law.png", "The bias of every run, divided by its draw's gain: the law is the dashed line."),
            (folder / "bias_range.png", "Where the law ends, how tight the Lipschitz bound is, and how drift grows."),
        ],
    )


def load(folder: pathlib.Path) -> dict:
    """Config, records and summary of a finished training; raises FileNotFoundError where one is missing."""
    return {
        "config": json.loads((folder / "config.json").read_text()),
        "records": metrics.read_jsonl(folder / "metrics.jsonl"),
        "summary": json.loads((folder / "summary.json").read_text()),
    }


def training_section(workdir: pathlib.Path) -> Section:
    """The two trainings that differ in their lag alone."""
    runs = {lag: load(workdir / f"train_lag_{lag}") for lag in (0, 16)}
    figure = training_figures.draw({f"S = {lag}": run["records"] for lag, run in runs.items()})
    style.save(figure, workdir / "training")
    config = runs[16]["config"]
    seconds = [run["summary"]["median_time_step"] for run in runs.values()]
    return Section(
        title="Two trainings that differ in their lag alone",
        text=(
            f"Two-digit addition, a policy of 26k parameters warm-started on a corpus of right and wrong answers, "
            f"{config['steps']} learner steps of {config['num_prompts']} prompts x {config['group_size']} responses, "
            f"{config['optimizer']['name']} at eta = {config['optimizer']['learning_rate']:g}. Prompts and sampling "
            f"noise are the same in both; the lag changes which policy answers. Median time of a step: "
            f"{1e3 * seconds[0]:.0f} ms (S = 0), {1e3 * seconds[1]:.0f} ms (S = 16)."
        ),
        command="python -m experiments.train --config.optimizer.learning_rate=0.002 --config.lag.max_lag=16",
        facts=lag_comparison.facts(runs[0], runs[16], config["num_prompts"] * config["group_size"]),
        figures=[(workdir / "training.png", "Means over 15 learner steps, but for the evaluations and the ceiling.")],
    )


def scaling_section(workdir: pathlib.Path) -> Section:
    """The S x eta map and its laws."""
    folder = workdir / "scaling_laws"
    config = json.loads((folder / "config.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    sweep = config["sweep"]
    captions = {
        "reward": "Pass rate of the current policy against the learner step, by S.",
        "map": "Which (S, eta) collapse, and the fitted boundary.",
        "collapse_time": "Collapse step times eta against S.",
        "eta_max": "The largest stable learning rate against S, by horizon.",
        "cosine": "Cosine of consecutive gradients, stable against collapsing runs, and how well it predicts collapse.",
        "anatomy": "Ratio, entropy and drift through a collapse.",
    }
    return Section(
        title="The scaling laws: the S x eta map, collapse time and the two-constraint rule",
        text=(
            f"{len(sweep['max_lags'])} lags x {len(sweep['learning_rates'])} learning rates x {len(sweep['seeds'])} "
            f"seeds over {sweep['num_warm_starts']} warm starts; each cell is a whole asynchronous training of "
            f"{config['steps']} learner steps on two-digit addition. A run that has not collapsed by its end is "
            f"counted as censored there, not left out."
        ),
        command="python -m experiments.sweep --workdir=DIR",
        facts=summary["claims"],
        figures=[(folder / f"scaling_{name}.png", caption) for name, caption in captions.items()]
        + [
            (folder / f"scaling_{variant}_{name}.png", f"{variant}: {caption}")
            for variant, found in summary["variants"].items()
            if "rules" in found
            for name, caption in captions.items()
        ],
    )


def corrections_section(workdir: pathlib.Path) -> Section:
    """Every correction side by side."""
    folder = workdir / "corrections"
    config = json.loads((folder / "config.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    stability = config["stability"]
    lags = [str(lag) for lag in stability["sweep"]["max_lags"]]
    small, large = (f"{s_eta:g}" for s_eta in summary["s_eta"])

    def measured(row, *path):
        for key in path:
            row = row.get(key, {})
        value = next((row[name] for name in ("mean", "median", "ratio") if name in row), None)
        return "-" if value is None else f"{number(value)} {number(row['interval'])}"

    header = ("correction", "offset at lag 0", f"relative bias, S eta = {small}", f"S eta = {large}",
              f"own path, {large}", f"cosine, own path, {large}", "variance / grpo_clip",
              *(f"eta_max / grpo_clip, S = {lag}" for lag in lags), *(f"final reward, S = {lag}" for lag in lags),
              *(f"best final reward, S = {lag}" for lag in lags), "time of an update / grpo_clip")  # fmt: skip
    rows = [
        (name, measured(row, "offset"), measured(row, "relative_bias", "synchronous", small),
         measured(row, "relative_bias", "synchronous", large), measured(row, "relative_bias", "own", large),
         measured(row, "cosine", "own", large), measured(row, "variance_ratio"),
         *(measured(row, "eta_max_over_baseline", lag) for lag in lags),
         *(measured(row, "final_reward", lag) for lag in lags), *(measured(row, "best_reward", lag) for lag in lags),
         measured(row, "update_time_ratio"))
        for name, row in summary["corrections"].items()
    ]  # fmt: skip
    return Section(
        title="Every published correction side by side",
        text=(
            f"Exact bias against the synchronous gradient of GRPO, with the length and standard-deviation "
            f"normalization that the correction is defined with, on {config['num_draws']} enumerable problems at "
            f"S = {config['max_lag']}, SGD, on a synchronous path, where all corrections see the same pairs of "
            f"policies, and on the path that each makes for itself; variance of a batch's sampled gradient at one such "
            f"pair, at S eta = {config['variance']['s_eta']:g}; time of a whole update, all in turn on one batch; "
            f"and {len(config['trained']) + len(config['trained_update_rules'])} of them trained at S = "
            f"{', '.join(lags)} with {len(stability['sweep']['seeds'])} seeds for {stability['steps']} steps of "
            f"two-digit addition, Adam. Final reward is that at the learning rate of the grid nearest to grpo_clip's "
            f"eta_max, best final reward that at the best of the grid for each."
        ),
        command="python -m experiments.corrections --workdir=DIR",
        facts=summary["claims"],
        table=(header, *rows),
        reading=summary["reading"],
        figures=[
            (
                folder / "corrections_bias.png",
                "Relative bias and cosine, by family; gradients that agree share a line.",
            ),
            (folder / "corrections_tradeoff.png", "Bias and variance side by side, the most biased at the bottom."),
            (folder / "corrections_stability.png", "Stable learning rate and final reward, intervals over seeds."),
        ],
    )


SECTIONS = {
    "bias": bias_section,
    "train_lag_16": training_section,
    "scaling_laws": scaling_section,
    "corrections": corrections_section,
}


def write(workdir: pathlib.Path, jobs: Collection[str]) -> pathlib.Path:
    """Writes report.html from the results of these jobs and returns its path; raises FileNotFoundError on a gap."""
    sections = [make(workdir) for job, make in SECTIONS.items() if job in jobs]
    facts = [fact for section in sections for fact in section.facts]
    failing = [fact["claim"] for fact in facts if not fact["holds"]]
    did_not = "".join(f"<li>{html.escape(claim)}</li>" for claim in failing) or "<li>nothing: every claim held</li>"
    environment = json.loads((workdir / "environment.json").read_text())
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>staleness_grpo: report</title><style>{STYLE}</style></head><body>
<h1>What stale rollouts do to GRPO</h1>
<p>Claims of arXiv 2607.01083, and others that this project makes, tested here: {len(facts)} claims,
{len(facts) - len(failing)} hold. Words as in the README: S is the maximum lag in optimizer updates, eta the learning
rate, H(theta, phi) the surrogate gradient at parameters theta on rollouts of phi.</p>
<p>What did not hold:</p><ul>{did_not}</ul>
<p>Made with {html.escape(json.dumps(environment["versions"]))} on {html.escape(environment["platform"])}, commit
{html.escape(str(environment["commit"]))}. All of it again: <code>bash launch/reproduce.sh</code></p>
{"".join(map(section_html, sections))}
</body></html>
"""
    path = workdir / "report.html"
    path.write_text(page)
    return path
