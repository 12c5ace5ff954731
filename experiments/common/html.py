"""Makes the parts of an HTML page that needs no other files and is readable on a phone."""

import base64
import html
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.common.claims import Claim

STYLE = """
* { box-sizing: border-box; }
body { font: 16px/1.5 Georgia, serif; max-width: 60em; margin: 0 auto; padding: 1em; color: #222; }
h1, h2, h3, nav, .badge, th { font-family: Helvetica, Arial, sans-serif; line-height: 1.25; }
h2 { margin-top: 2em; border-top: 2px solid #eee; padding-top: .8em; }
nav ol { columns: 2; column-gap: 2.5em; padding-left: 1.4em; }
.card { border: 1px solid #ddd; border-left: 5px solid #999; padding: .6em .9em; margin: .6em 0; }
.card p { margin: .2em 0; }
.holds { border-left-color: #00694b; }
.part { border-left-color: #b07d00; }
.fails { border-left-color: #a33b00; }
.open { border-left-color: #999; }
.badge { font-size: 13px; font-weight: bold; padding: .1em .5em; color: #fff; }
.badge.holds { background: #00694b; }
.badge.part { background: #8a6100; }
.badge.fails { background: #a33b00; }
.badge.open { background: #666; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 1em 0; }
th, td { text-align: left; vertical-align: top; padding: .35em .6em; }
th, td { border-bottom: 1px solid #ddd; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.note { font-size: 13px; color: #555; }
img { max-width: 100%; height: auto; }
figure { margin: 1.5em 0; }
figcaption { font-size: 14px; color: #444; }
code { font-size: 13px; background: #f4f4f4; padding: .1em .3em; overflow-wrap: anywhere; }
@media (max-width: 40em) {
  nav ol { columns: 1; }
  table.claims thead { display: none; }
  table.claims tr { display: block; border-bottom: 2px solid #ddd; padding: .4em 0; }
  table.claims td { display: block; border: 0; padding: .1em 0; }
  table.claims td[data-label]:not(:empty)::before { content: attr(data-label) ": "; color: #777; }
  td.number { white-space: normal; }
}
"""
# The CSS class of a verdict -> the words of its label.
VERDICTS = {
    "holds": "holds",
    "part": "holds in part",
    "fails": "does not hold here",
    "open": "not measured yet",
}


def number(value: Any) -> str:
    """Returns a measured value as text: numbers with four digits, lists in brackets."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(number(item) for item in value) + "]"
    return f"{value:.4g}"


def text(words: str) -> str:
    """Returns plain text as HTML, with the special characters escaped."""
    return html.escape(words)


def badge(verdict: str) -> str:
    """Returns the colored label of a verdict. `verdict` is a key of VERDICTS."""
    return f'<span class="badge {verdict}">{VERDICTS[verdict]}</span>'


def claim_verdict(claim: Claim) -> str:
    """Returns 'holds' or 'does not hold'; for a finding, which is no claim, an empty text."""
    return "" if claim.holds is None else ("holds" if claim.holds else "does not hold")


def claims_table(claims: Sequence[Claim]) -> str:
    """Returns a table with one row per claim. On a narrow screen it is shown as a list."""
    if not claims:
        return ""
    rows = []
    for claim in claims:
        note = f'<br><span class="note">{text(claim.note)}</span>' if claim.note else ""
        interval = "" if claim.interval is None else " " + number(claim.interval)
        cells = (
            ("", "", text(claim.claim) + note),
            ("In the paper", "", text(claim.paper)),
            ("Measured", "number", text(number(claim.measured) + interval)),
            ("n", "", text(f"{claim.n} {claim.unit}".strip())),
            ("", "", claim_verdict(claim)),
        )
        rows.append(
            "<tr>"
            + "".join(
                f'<td class="{css_class}" data-label="{label}">{cell}</td>'
                if label
                else f'<td class="{css_class}">{cell}</td>'
                for label, css_class, cell in cells
            )
            + "</tr>"
        )
    header = ("", "In the paper", "Measured, with 95 % interval", "n", "Here")
    head = "".join(f"<th>{name}</th>" for name in header)
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<table class="claims">{body}</table>'


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table that scrolls sideways on a narrow screen."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def figure(path: pathlib.Path, caption: str) -> str:
    """Returns a figure whose PNG is embedded in the page. Raises FileNotFoundError."""
    data = base64.b64encode(path.read_bytes()).decode()
    source = f"data:image/png;base64,{data}"
    return (
        f'<figure><img alt="{text(caption)}" src="{source}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def page(title: str, body: str) -> str:
    """Returns a complete HTML page with this title and body."""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title><style>{STYLE}</style></head><body>
{body}
</body></html>
"""
