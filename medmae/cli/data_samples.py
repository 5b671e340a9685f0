"""``medmae data check`` on images, clips, clouds and sound: every file is read, broken ones are named.

What is told of a sample depends on its kind; here it is counted and ranged, and no kind is known by name.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.cli.console import emit_json, flags, main_process, say
from medmae.core.errors import DataError

if TYPE_CHECKING:
    from medmae.data.kinds.listing import Listing
    from medmae.data.kinds.source import Survey

_SHOWN = 5  # values of a fact that are told one by one; more are a range


def check(
    data: str,
    kind: str,
    *,
    workers: int,
    report: Path | None = None,
    identify: bool = False,
    guessed: bool = False,
) -> None:
    """Look at every sample of ``data``, tell what there is and what is broken; ``report`` also as one HTML file.

    Files are named in the report where ``identify`` is set, and numbered otherwise. Where the kind was ``guessed`` and
    the files may as well be of another one, as arrays may, this is said. DataError where a sample is broken.
    """
    from medmae.data.kinds import count_readable, kind_of
    from medmae.data.kinds.listing import list_samples
    from medmae.data.kinds.source import survey
    from medmae.data.layouts import printable

    listing = list_samples(data, kind=kind)
    found = survey(listing.samples, kind_of(kind, {}), workers=workers, quiet=flags().quiet or not main_process())
    told = outcome(listing, found)
    for note in listing.notes:
        say(note)
    if guessed and Path(data).suffix.lower() not in (".yaml", ".yml"):
        counts = count_readable([sample.key for sample in listing.samples])
        if others := [name for name in counts if name != kind and counts[name] == len(listing.samples)]:
            say(f"Taken as {kind}; such files can also hold {' or '.join(others)}: --kind says so.", style="yellow")
    for name, text in told["facts"].items():
        say(f"  {name:<12} {text}")
    for name, count in told["classes"].items():
        say(f"  class        {printable(name)}: {count}")
    say("  split        " + ", ".join(f"{part} {count}" for part, count in told["split"].items()))
    for fault in told["findings"]:
        say(printable(fault["problem"], limit=400), style="red")
    if flags().json:
        emit_json(told)
    if report is not None:
        from medmae.atomic import write_bytes
        from medmae.data.writing import writing

        with writing(report):
            write_bytes(report, html(told, identify=identify).encode(errors="replace"))
        say(f"Report: {report}")
    if found.problems:
        text = f"{len(found.problems)} of {len(listing.samples)} {kind} sample(s) cannot be used"
        if flags().quiet and not flags().json:
            raise DataError(f"{text}:\n  - " + "\n  - ".join(found.problems.values()))
        raise DataError(f"{text}. Every one is named above; correct or remove them, or train with data.on_error=skip")
    say(f"No fault found in {len(listing.samples)} {kind} sample(s).", style="green")


def outcome(listing: Listing, found: Survey) -> dict[str, Any]:
    """What there is and what is broken, as plain values for ``--json``."""
    facts = list(found.facts.values())
    names = dict.fromkeys(name for fact in facts for name in fact)
    counts = Counter(s.label for s in listing.samples if s.label is not None)
    return {
        "ok": not found.problems,
        "name": listing.name,
        "kind": listing.kind,
        "notes": list(listing.notes),
        "classes": {name: counts[name] for name in listing.classes},
        "subjects": len({s.subject for s in listing.samples}),
        "split": {part: len(samples) for part, samples in listing.split().items()},
        "facts": {name: spread([fact[name] for fact in facts if name in fact]) for name in names},
        "cases": [
            {"case": s.key, "subject": s.subject, "label": s.label, "facts": dict(found.facts.get(s.key, {}))}
            for s in listing.samples
        ],
        "findings": [{"case": key, "problem": text, "error": True} for key, text in found.problems.items()],
    }


def spread(values: Sequence[Any]) -> str:
    """Values of one fact over all samples in a line: counts of a few, smallest, median and largest of many numbers."""
    shown = Counter(_text(value) for value in values)
    if len(shown) <= _SHOWN:
        return ", ".join(f"{text} ({count})" if len(shown) > 1 else text for text, count in shown.most_common())
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) == len(values):
        return f"{min(numbers):g} to {max(numbers):g}, median {statistics.median(numbers):g}"
    if all(isinstance(v, list | tuple) and v and all(isinstance(n, int | float) for n in v) for v in values):
        axes = list(zip(*values, strict=False))
        low, high = (" x ".join(f"{pick(axis):g}" for axis in axes) for pick in (min, max))
        return f"{low} to {high}, {len(shown)} different"
    return f"{len(shown)} different, most often {', '.join(text for text, _ in shown.most_common(3))}"


def html(told: Mapping[str, Any], *, identify: bool = False) -> str:
    """The outcome as one page that opens offline; names from data are text here, never markup."""
    number = {case["case"]: f"sample {i + 1}" for i, case in enumerate(told["cases"])}
    rows = [("samples", str(len(told["cases"]))), *told["facts"].items()]
    rows += [(f"class {name}", str(count)) for name, count in told["classes"].items()]
    rows += [(f"split {part}", str(count)) for part, count in told["split"].items()]
    table = "".join(f"<tr><th>{escape(name)}<td>{escape(text)}</tr>" for name, text in rows)
    faults = "".join(
        f"<li>{escape(fault['problem'] if identify else number[fault['case']])}</li>" for fault in told["findings"]
    )
    title = escape(f"Data check: {told['name']}")
    verdict = f"<h2>Cannot be used</h2><ul>{faults}</ul>" if faults else "<p>No fault found.</p>"
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>body{{font:14px/1.45 system-ui,sans-serif;margin:2rem}}"
        "table{border-collapse:collapse}td,th{border:1px solid #d0d7de;padding:.25rem .6rem;text-align:left}</style>"
        f"</head><body><h1>{title}</h1><table>{table}</table>{verdict}</body></html>\n"
    )


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " x ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
