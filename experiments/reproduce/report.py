"""Writes report.html: one self-contained page from the records of the main job.

It can be written at any time: what is not measured yet says so.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.common import claims as claims_lib
from experiments.common import html
from experiments.common.claims import Claim
from experiments.common.workdir import SUMMARY
from experiments.reproduce import contrast, other_map
from experiments.reproduce.corrections_table import corrections_table
from experiments.reproduce.paper import PAPER_CLAIMS
from staleness_grpo.runtime.records import read_json

CONTRAST_COMMAND = "python -m experiments.sweep --workdir=DIR"


@dataclasses.dataclass(frozen=True)
class Job:
    """Knows one job of the main job, finished or not."""

    name: str
    folder: pathlib.Path
    command: str

    @property
    def summary(self) -> dict[str, Any] | None:
        """Returns the summary of a finished job; None while it runs or waits."""
        path = self.folder / SUMMARY
        return read_json(path) if path.exists() else None

    def claims(self) -> dict[str, Claim]:
        """Returns the claims of the job by name; none while it is not finished."""
        summary = self.summary
        found = [] if summary is None else claims_lib.read(summary)
        return {claim.name: claim for claim in found}


def write(
    workdir: pathlib.Path, config: dict[str, Any], running: str | None = None
) -> tuple[pathlib.Path, list[Claim]]:
    """Writes report.html from what is there.

    Args:
      workdir: the main job's; each job's results stand below it.
      config: of the main job.
      running: the job that is running.

    Returns:
      The path of the page, and all claims on it, each named JOB.NAME.
    """
    jobs = {
        name: Job(name, workdir / name, " ".join(("python -m", *command)))
        for name, command in config["jobs"].items()
    }
    found = {name: job.claims() for name, job in jobs.items()}
    pair_html, pair_claims = _contrast(workdir, jobs, config["contrast"])
    found["contrast"] = {claim.name: claim for claim in pair_claims}
    sections = [
        ("summary", "The paper's claims, in brief", _summary(found, jobs)),
        *(
            (f"claim-{place}", claim.title, _paper_section(place, found, jobs))
            for place, claim in enumerate(PAPER_CLAIMS, start=1)
        ),
        ("contrast", "The same training with and without lag", pair_html),
        ("findings", "What else was found", _findings(found, jobs)),
    ]
    for name in other_map.other_maps(config["jobs"]):
        job = jobs[name]
        part = other_map.section(job.folder, job.summary, functools.partial(_figures, job))
        sections.append((f"map-{name}", f"Another map: {name}", part))
    if "corrections" in jobs:
        sections.append(("corrections", "Corrections side by side", _corrections(jobs)))
    sections.append(("made", "How this page was made", _made(workdir, jobs, running)))
    contents = "".join(f'<li><a href="#{id_}">{html.text(t)}</a></li>' for id_, t, _ in sections)
    body = "\n".join(
        [
            "<h1>What stale rollouts do to GRPO</h1>",
            _progress(jobs, running),
            f'<h2 id="{sections[0][0]}">{html.text(sections[0][1])}</h2>{sections[0][2]}',
            f"<nav><h2>Contents</h2><ol>{contents}</ol></nav>",
            *(f'<h2 id="{id_}">{html.text(title)}</h2>{part}' for id_, title, part in sections[1:]),
        ]
    )
    path = workdir / "report.html"
    path.write_text(html.page("What stale rollouts do to GRPO", body), encoding="utf-8")
    every = [
        dataclasses.replace(claim, name=f"{job}.{name}")
        for job, by_name in found.items()
        for name, claim in by_name.items()
    ]
    return path, every


def _progress(jobs: dict[str, Job], running: str | None) -> str:
    done = [name for name, job in jobs.items() if job.summary is not None]
    state = f"{len(done)} of {len(jobs)} jobs are finished"
    if running is not None:
        state += f"; {running} is running, and this page is written again when it ends"
    return (
        "<p>Claims of arXiv 2607.01083, tested here on small models, and what else was seen. "
        "S is the maximum lag in optimizer updates, eta the learning rate, H the surrogate "
        f"gradient. {html.text(state)}.</p>"
    )


def _summary(found: dict[str, dict[str, Claim]], jobs: dict[str, Job]) -> str:
    """Returns a card for each claim of the paper."""
    cards = []
    for place, claim in enumerate(PAPER_CLAIMS, start=1):
        known = found.get(claim.job, {})
        verdict = claim.verdict(known)
        cards.append(
            f'<div class="card {verdict}"><p>{html.badge(verdict)} '
            f'<a href="#claim-{place}"><b>{html.text(claim.title)}</b></a></p>'
            f"<p>{html.text(claim.reading(known))}</p></div>"
        )
    return "".join(cards)


def _paper_section(place: int, found: dict[str, dict[str, Claim]], jobs: dict[str, Job]) -> str:
    claim = PAPER_CLAIMS[place - 1]
    known = found.get(claim.job, {})
    shown = [known[name] for name in (*claim.evidence, *claim.beside) if name in known]
    figures = _figures(jobs.get(claim.job), claim.figures)
    return (
        f"<p><b>In the paper.</b> {html.text(claim.statement)}</p>"
        f"<p><b>Here.</b> {html.badge(claim.verdict(known))} {html.text(claim.reading(known))}</p>"
        f"{figures}{html.claims_table(shown)}"
    )


def _figures(job: Job | None, figures: Sequence[tuple[str, str]]) -> str:
    """Returns figures of a finished job, and the reasons for those that it left out."""
    if job is None or job.summary is None:
        return ""
    parts = [
        html.figure(job.folder / name, caption)
        for name, caption in figures
        if (job.folder / name).exists()
    ]
    if len(parts) < len(figures):
        wanted = {pathlib.Path(name).stem for name, _ in figures}
        left_out = job.summary.get("figures_left_out", [])
        reasons = [reason for reason in left_out if reason.split(":")[0] in wanted]
        parts += [f"<p>{html.text(reason)}</p>" for reason in reasons]
    return "".join(parts)


def _contrast(
    workdir: pathlib.Path, jobs: dict[str, Job], settings: dict[str, Any]
) -> tuple[str, list[Claim]]:
    """Returns the section on trainings that differ in their lag alone, and its claims."""
    job = jobs.get("scaling_laws")
    if job is None or job.summary is None:
        return "<p>It is drawn from the map's cells, which are not there yet.</p>", []
    lag, rate = settings["max_lag"], settings["learning_rate"]
    try:
        pair = contrast.pair_of_lags(job.folder / "cells.jsonl", lag, rate)
    except ValueError as error:
        return f"<p>{html.text(str(error))}</p>", []
    found = contrast.claims(pair, rate, CONTRAST_COMMAND)
    path = contrast.draw(pair, workdir / "contrast")
    caption = "Mean over the seeds of the map, and their range. A collapsed run may end early."
    words = (
        "Cells of the map that differ in their lag alone: same warm starts, prompts and sampling "
        "noise. All seeds of the map are shown."
    )
    return f"<p>{words}</p>{html.figure(path, caption)}{html.claims_table(found)}", found


def _findings(found: dict[str, dict[str, Claim]], jobs: dict[str, Job]) -> str:
    """Returns all claims that belong to no claim of the paper, by job."""
    used = {(c.job, name) for c in PAPER_CLAIMS for name in (*c.evidence, *c.beside)}
    parts = []
    for name, job in jobs.items():
        own = [claim for key, claim in found[name].items() if (name, key) not in used]
        if own:
            parts.append(f"<h3>{html.text(name)}</h3><p>Made by <code>{html.text(job.command)}")
            parts.append("</code></p>" + html.claims_table(own))
    extra = _figures(
        jobs.get("scaling_laws"),
        (
            ("scaling_reward.png", "Pass rate of the current policy by learner step and S."),
            ("scaling_anatomy.png", "Ratio, entropy and drift through a collapse."),
        ),
    )
    return "".join(parts) + extra or "<p>Nothing yet.</p>"


def _corrections(jobs: dict[str, Job]) -> str:
    """Returns the table and the figures of the corrections."""
    job = jobs["corrections"]
    if job.summary is None:
        return "<p>Not measured yet.</p>"
    config = read_json(job.folder / "config.json")
    figures = _figures(
        job,
        (
            ("corrections_bias.png", "Relative bias and cosine, by family."),
            ("corrections_tradeoff.png", "Bias and variance, the most biased at the bottom."),
            ("corrections_stability.png", "Stable learning rate and final reward."),
        ),
    )
    return corrections_table(config, job.summary) + figures


def _made(workdir: pathlib.Path, jobs: dict[str, Job], running: str | None) -> str:
    environment = read_json(workdir / "environment.json")
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())

    def state(job: Job) -> str:
        if job.summary is not None:
            return "finished"
        return "running" if job.name == running else "not started"

    rows = [(name, job.command, state(job)) for name, job in jobs.items()]
    machine = f"{versions}; {environment['platform']}; commit {environment['commit']}"
    return (
        "<p>All of it again: <code>bash launch/reproduce.sh</code>. Versions: "
        f"{html.text(machine)}.</p>" + html.plain_table(("job", "command", "state"), rows)
    )
