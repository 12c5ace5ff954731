"""Writes a page with the curves of a training and some of its sampled responses."""

import pathlib
from typing import Any

import numpy as np

from experiments.common import html
from staleness_grpo.runtime.records import read_jsonl, replacing

NAME, SAMPLES = "samples.html", "samples.jsonl"
MAX_STEPS, MAX_GROUPS = 8, 4  # steps of the page, and groups of each


def write(workdir: pathlib.Path, figure: pathlib.Path) -> list[pathlib.Path]:
    """Writes samples.html into a workdir; returns its path in a list, or an empty list.

    A training without samples has no page.

    Args:
      workdir: the folder of a finished training.
      figure: the PNG of its curves, which becomes a part of the page.
    """
    if not (workdir / SAMPLES).exists():
        return []
    samples = read_jsonl(workdir / SAMPLES)
    if not samples:
        return []
    caption = "Curves of the training, as in training.png."
    parts = [f"<h1>{html.text('Samples of a training')}</h1>", html.figure(figure, caption)]
    for step in chosen_steps(sorted({sample["step"] for sample in samples})):
        parts.append(f"<h2>Learner step {step}</h2>")
        groups = [sample for sample in samples if sample["step"] == step]
        parts += [_group(sample) for sample in groups[:MAX_GROUPS]]
    path = workdir / NAME
    with replacing(path) as temporary:
        temporary.write_text(html.page("Samples", "\n".join(parts)), encoding="utf-8")
    return [path]


def chosen_steps(steps: list[int]) -> list[int]:
    """Returns at most MAX_STEPS of the steps, evenly spaced, with the first and the last."""
    places = np.linspace(0, len(steps) - 1, min(MAX_STEPS, len(steps)))
    return [steps[round(place)] for place in places]


def _group(sample: dict[str, Any]) -> str:
    """Returns one group: the prompt, and a table of its responses."""
    rows = [
        (html.number(reward), html.number(log_ratio), visible(response))
        for reward, log_ratio, response in zip(
            sample["rewards"], sample["log_ratio_sum"], sample["responses"], strict=True
        )
    ]
    head = f"lag {sample['lag']}; prompt: {visible(sample['prompt'])}"
    table = html.plain_table(("reward", "log-ratio", "response"), rows)
    return f"<p><b>{html.text(head)}</b></p>{table}"


def visible(words: str) -> str:
    """Returns text with a mark in place of characters that are not printed."""
    return "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{MIDDLE DOT}" for c in words
    )
