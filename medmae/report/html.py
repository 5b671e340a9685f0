"""One self-contained HTML file: it opens offline, loads nothing, and runs no script but its own.

Every text goes through :func:`html.escape`, data for the script through :func:`medmae.report.viewer.json_for_script`,
and a Content-Security-Policy forbids the network and any script other than the one whose hash it names. So a patient
folder called ``<img onerror=...>`` is shown and not obeyed.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from pathlib import Path

from medmae.atomic import write_text
from medmae.core.errors import UsageError
from medmae.report.chart import chart_svg, legend
from medmae.report.png import data_uri
from medmae.report.values import Cell, Chart, FactList, Picture, Report, Table, Tabs, Tile
from medmae.report.viewer import viewer_html

BUDGET = 14_000_000  # bytes of one report; viewers share what the pictures leave


def write_report(path: str | Path, report: Report, *, budget: int = BUDGET) -> Path:
    """Write ``report`` to ``path`` (atomically) and return the path; see :func:`render` for ``budget``."""
    return write_text(Path(path), render(report, budget=budget))


def render(report: Report, *, budget: int = BUDGET) -> str:
    """The report as HTML.

    Args:
        report: what to show.
        budget: bytes the file may take. Pictures that would take more than half of it are left out, the last first
            (the report says so); volumes of the viewers are reduced until they fit.

    Raises:
        UsageError: the budget is too small for a report.
    """
    if budget < 100_000:
        raise UsageError(f"a report needs a budget of at least 100,000 bytes, not {budget}")
    pictures, dropped = _affordable(report.pictures, budget // 2)
    room = budget - 60_000 - sum(len(p.png) * 4 // 3 for p in pictures)
    viewers = [
        viewer_html(viewer, number=i, budget=room // len(report.viewers)) for i, viewer in enumerate(report.viewers)
    ]
    sections = {
        "Results": "".join(_tabs(x, i) if isinstance(x, Tabs) else _table_card(x) for i, x in enumerate(report.tables)),
        "Look": "".join(viewers),
        "Training": _grid(_chart(chart) for chart in report.curves),
        "Pictures": "".join(_picture(picture) for picture in pictures)
        + (f'<p class="note">{dropped} more pictures are left out to keep this file small.</p>' if dropped else ""),
        "Data": _grid(_table_card(table) for table in report.data_card),
        "Settings": _grid(_facts(facts) for facts in report.facts),
        "Notes": _notes(report.notes),
    }
    sections = {name: body for name, body in sections.items() if body}
    body = "".join(
        f'<section class="part" id="{name.lower()}"><h2>{name}</h2>{content}</section>'
        for name, content in sections.items()
    )
    nav = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    # File names that are no valid text come as lone surrogates, which no file can hold.
    return _page(report, nav=nav, body=body).encode("utf-8", "replace").decode("utf-8")


def _page(report: Report, *, nav: str, body: str) -> str:
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    tiles = f'<div class="tiles">{"".join(map(_tile, report.headline))}</div>' if report.headline else ""
    summary = "".join(f"<p>{escape(line)}</p>" for line in report.summary)
    subtitle = f'<p class="subtitle">{escape(report.subtitle)}</p>' if report.subtitle else ""
    footer = f"<footer>{escape(report.footer)}</footer>" if report.footer else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(report.title)}</title><style>{style}</style></head><body>"
        f'<header><div class="bar"><h1>{escape(report.title)}</h1>'
        '<button type="button" id="theme" aria-label="switch between light and dark">◐</button></div>'
        f'{subtitle}<nav aria-label="sections">{nav}</nav></header>'
        f'<main>{tiles}<div class="summary">{summary}</div>{body}</main>{footer}'
        f"<script>{script}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return files("medmae.report").joinpath("assets", name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _affordable(pictures: tuple[Picture, ...], budget: int) -> tuple[list[Picture], int]:
    kept, used = [], 0
    for picture in pictures:
        used += len(picture.png) * 4 // 3
        if used > budget:
            break
        kept.append(picture)
    return kept, len(pictures) - len(kept)


def _grid(cards: object) -> str:
    joined = "".join(cards)  # type: ignore[arg-type]
    return f'<div class="grid">{joined}</div>' if joined else ""


def _tile(tile: Tile) -> str:
    detail = f'<div class="detail">{escape(tile.detail)}</div>' if tile.detail else ""
    return (
        f'<div class="tile {tile.tone}"><div class="label">{escape(tile.label)}</div>'
        f'<div class="value">{escape(tile.value)}</div>{detail}</div>'
    )


def _table_card(table: Table) -> str:
    return f'<div class="card">{_table(table)}</div>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = []
    for number, row in enumerate(table.rows):
        first, *rest = (cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in row)
        kind = ' class="total"' if number in table.totals else ""
        cells = f'<th scope="row">{_cell(first)}</th>' + "".join(_td(cell) for cell in rest)
        rows.append(f"<tr{kind}>{cells}</tr>")
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    return (
        f'{title}<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _td(cell: Cell) -> str:
    classes = " ".join(filter(None, (cell.tone if cell.tone != "plain" else "", "best" if cell.best else "")))
    mark = '<span class="star" title="best in this row">★</span>' if cell.best else ""
    return f"<td{f' class={chr(34)}{classes}{chr(34)}' if classes else ''}>{mark}{_cell(cell)}</td>"


def _cell(cell: Cell) -> str:
    detail = f'<span class="small">{escape(cell.detail)}</span>' if cell.detail else ""
    return escape(cell.text) + detail


def _tabs(tabs: Tabs, number: int) -> str:
    """Radio buttons; the script shows the panel of the one that is chosen, the first is shown without it."""
    buttons, panels = [], []
    for i, (label, tables) in enumerate(tabs.panels.items()):
        name = f"tab-{number}-{i}"
        checked = " checked" if i == 0 else ""
        hidden = "" if i == 0 else " hidden"
        radio = f'<input type="radio" name="tab-{number}" value="{name}"{checked}>'
        buttons.append(f"<label>{radio}<span>{escape(label)}</span></label>")
        panels.append(
            f'<div class="panel" id="{name}"{hidden}><div class="grid">{"".join(map(_table_card, tables))}</div></div>'
        )
    note = f'<p class="note">{escape(tabs.note)}</p>' if tabs.note else ""
    return (
        f'<div class="tabs"><div class="tabhead"><h3>{escape(tabs.title)}</h3><div class="switch" role="group" '
        f'aria-label="{escape(tabs.title, quote=True)}">{"".join(buttons)}</div></div>{note}{"".join(panels)}</div>'
    )


def _chart(chart: Chart) -> str:
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    return f'<div class="card"><h3>{escape(chart.title)}</h3>{legend(chart)}{chart_svg(chart)}{note}</div>'


def _picture(picture: Picture) -> str:
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    title = escape(picture.title, quote=True)
    return (
        f'<div class="card"><h3>{escape(picture.title)}</h3><figure><img alt="{title}" src="{data_uri(picture.png)}">'
        f"{caption}</figure></div>"
    )


def _facts(facts: FactList) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.facts.items())
    return f'<div class="card"><h3>{escape(facts.title)}</h3><dl>{rows}</dl></div>'


def _notes(notes: tuple[str, ...]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="card"><ul class="notes">{items}</ul></div>' if notes else ""
