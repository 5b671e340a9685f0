"""The outcome of ``medmae data check`` as one HTML file that opens offline.

Names from data are text here, never markup. Cases appear as short codes unless ``identify`` is set, because a
report is made to be sent around; the remarks and faults of the listing quote file names, so they are counted
instead.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from medmae.data.check import Checked
from medmae.data.facts import LABEL, MASK, Facts
from medmae.data.layouts import printable

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem;color:#1b1f24;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #d0d7de;padding:.25rem .6rem}
td,th{text-align:left;font-size:13px}
th{background:#f6f8fa}.bad{background:#ffebe9}.warn{background:#fff8c5}.none{color:#8c959f}.good{color:#1a7f37}
"""


def html_report(checked: Checked, *, identify: bool = False) -> str:
    """The whole page as text."""
    codes = {case.key: checked.code(case.key) for case in checked.cohort.cases}

    def name(key: str) -> str:
        return printable(key) if identify else codes.get(key, "a case")

    title = f"Data check: {checked.cohort.spec.name}"
    verdict = f"<p class=bad>{escape(checked.summary())}</p>" if checked.errors else "<p class=good>No fault found.</p>"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>",
        verdict,
        _listing(checked, identify=identify),
        _findings(checked, name),
        _table(checked, name),
        "</body></html>",
    ]
    return "\n".join(parts)


def _listing(checked: Checked, *, identify: bool) -> str:
    if not identify:
        if not checked.listing:
            return ""
        count = len(checked.listing)
        return f"<p class=bad>{count} fault(s) of the listing quote file names; --identify shows them.</p>"
    lines = [f"<li class=bad>{escape(printable(text, limit=400))}</li>" for text in checked.listing]
    lines += [f"<li>{escape(printable(text, limit=400))}</li>" for text in checked.cohort.notes]
    return f"<h2>Listing</h2><ul>{''.join(lines)}</ul>"


def _findings(checked: Checked, name: Callable[[str], str]) -> str:
    if not checked.findings:
        return ""
    rows = "".join(
        f"<tr class={'bad' if finding.error else 'warn'}><td>{escape(name(finding.case))}</td>"
        f"<td>{escape(finding.role)}</td><td>{escape(finding.kind)}</td><td>{escape(finding.problem)}"
        + (f" ({escape(name(finding.other[0]))} {escape(finding.other[1])})" if finding.other else "")
        + "</td></tr>"
        for finding in checked.findings
    )
    return f"<h2>Findings</h2><table><tr><th>case<th>file<th>kind<th>what is wrong</tr>{rows}</table>"


def _table(checked: Checked, name: Callable[[str], str]) -> str:
    columns = [*checked.cohort.sequences, LABEL, MASK]
    rows = []
    for case in checked.cohort.cases:
        cells = "".join(_cell(checked.facts.get((case.key, role)), checked.kinds(case.key, role)) for role in columns)
        rows.append(f"<tr><td>{escape(name(case.key))}</td>{cells}</tr>")
    heads = "".join(f"<th>{escape(role)}" for role in columns)
    return f"<h2>Cases</h2><table><tr><th>case{heads}</tr>{''.join(rows)}</table>"


def _cell(facts: Facts | None, kinds: tuple[str, ...]) -> str:
    if facts is None:
        return "<td class=none>none</td>"
    text = "" if facts.fault is not None else f"{facts.geometry}, {facts.low:.4g} to {facts.high:.4g}"
    if not kinds:
        return f"<td>{escape(text)}</td>"
    return f"<td class=bad>{escape(text)} <b>{escape(', '.join(kinds))}</b></td>"
