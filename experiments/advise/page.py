"""Writes an answer as a page and as a record."""

import dataclasses
from typing import Any

from experiments.advise.sources import Known
from staleness_grpo.scaling.advice import COSTS, INTERVAL, SAFE_RISK, Advice, Range

NAME = "advice.md"
SMALL_RISK = 0.1  # of a run that is called fit to go on
SMALL = (
    "How collapse times depend on S and eta is known from small models (26k to 260k parameters, "
    "short responses). For large ones it is an assumption."
)


def text(advice: Advice, known: Known) -> str:
    """Returns the answer as a page of Markdown."""
    percent = f"{100 * INTERVAL:.0f} %"
    lines = [
        f"# Safe learning rates up to T = {advice.num_steps} learner steps",
        "",
        sentence(advice),
        "",
        f"Intervals hold {percent} of the probability. `eta_max` is the learning rate at which a "
        f"run collapses with a probability of one half, and `safe` that with {SAFE_RISK:g}.",
        "",
        "| S | eta_max | safe | what binds |",
        "| --- | --- | --- | --- |",
    ]
    for at_lag in advice.by_lag:
        binds = f"{at_lag.binds} ({100 * at_lag.bind_share:.0f} %)"
        cells = (str(at_lag.max_lag), shown(at_lag.eta_max), shown(at_lag.safe), binds)
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    if advice.cost_lag is not None:
        lines.append(
            f"- From S = {shown(advice.cost_lag)} on, eta_max is below the synchronous one by a "
            f"factor of {COSTS:g} or more."
        )
    if advice.risk is not None and advice.at is not None:
        lag, rate = advice.at
        lines.append(f"- Risk of a collapse at S = {lag:g}, eta = {rate:g}: {shown(advice.risk)}.")
    collapsed = f"{advice.num_collapsed} of {advice.num_runs} runs collapsed"
    lines.append(f"- It rests on {known.kind}; {collapsed}. Momentum b1 = {known.b1:g}.")
    if known.cost:
        lines.append(f"- The probe cost {known.cost} learner steps.")
    lines += [f"- {note}" for note in (*advice.notes, *known.notes)]
    lines.append(f"- {SMALL}")
    return "\n".join(lines) + "\n"


def sentence(advice: Advice) -> str:
    """Returns the recommendation as one sentence, with what it is worth."""
    lag = advice.by_lag[0].max_lag if advice.at is None else advice.at[0]
    asked = min(advice.by_lag, key=lambda answer: abs(answer.max_lag - lag))
    low, high = asked.eta_max.low, asked.eta_max.high
    if low is None:
        return f"At S = {asked.max_lag}, stay below {high:.2g}: no run was stable."
    if high is None:
        return f"At S = {asked.max_lag}, {low:.2g} is likely to be stable, and more is not tried."
    half = f"half of the runs would collapse at {asked.eta_max.value:.2g} [{low:.2g}, {high:.2g}]"
    safe = f"{asked.safe.value:.2g}"
    if advice.at is None or advice.risk is None:
        return f"At S = {asked.max_lag}, take a learning rate of at most {safe}; {half}."
    rate, risk = advice.at[1], f"a risk of {100 * advice.risk.value:.0f} %"
    if advice.risk.value <= SMALL_RISK:
        return f"At S = {asked.max_lag}, keep {rate:g}, with {risk}; {half}."
    if rate <= asked.safe.value:
        return f"At S = {asked.max_lag}, {rate:g} has {risk}, as far as these runs tell; {half}."
    return f"At S = {asked.max_lag}, lower {rate:g}, with {risk}, to {safe} or less; {half}."


def shown(value: Range) -> str:
    """Returns a value with its interval. An end that no run bounds is left open."""
    if value.low is None:
        return f"below {value.high:.2g}"
    if value.high is None:
        return f"above {value.low:.2g}"
    return f"{value.value:.2g} [{value.low:.2g}, {value.high:.2g}]"


def record(advice: Advice, known: Known) -> dict[str, Any]:
    """Returns the contents of summary.json."""
    fields = dataclasses.asdict(advice)
    fields |= {"b1": known.b1, "kind": known.kind, "probe_learner_steps": known.cost}
    fields["source_notes"] = list(known.notes)
    fields["recommendation"] = sentence(advice)
    return fields
