"""The cases of a data set, by name: what ``--data`` means.

:func:`open_cohort` takes a spec, an nnU-Net folder, a data list, a BIDS root, a CSV or a plain folder, and answers
with one immutable value. It looks at names and tables only, so opening a thousand cases takes a second and no image
library.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from medmae.core.errors import DataError, UsageError
from medmae.data.layouts import (
    Entry,
    Listing,
    Namer,
    fill,
    ignored_note,
    inside,
    list_folder,
    list_pattern,
    printable,
)
from medmae.data.spec import Spec, Split, load_spec
from medmae.data.tables import read_rows

PARTS = ("train", "val", "test")
T = TypeVar("T", bound="Splittable")


@dataclass(frozen=True)
class Case:
    """One examination: files by sequence name, and what is known about it.

    ``split`` is the part a data list assigns it to, if any. ``table`` holds text for classes, numbers for the rest,
    None where the cell is empty.
    """

    key: str
    subject: str
    images: Mapping[str, Path]
    label: Path | None = None
    mask: Path | None = None
    table: Mapping[str, float | str | None] = field(default_factory=dict)
    split: str | None = None

    @property
    def file_stem(self) -> str:
        """A file name for outputs of this case: letters, digits, dots, dashes only, never a path, unique per key."""
        return safe_stem(self.key)


@dataclass(frozen=True)
class Cohort:
    """Cases in the order of their names, the sequences in the spec's order, and remarks on how names were read."""

    spec: Spec
    cases: tuple[Case, ...]
    sequences: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def split(self) -> Mapping[str, tuple[Case, ...]]:
        """``train``, ``val`` and ``test``: by subject, a function of ``split.seed`` and the names alone.

        Parts fixed by a data list stay as they are; shares are then drawn from the rest.
        """
        return split_by(self.cases, self.spec.split)


@runtime_checkable
class Splittable(Protocol):
    """What can be given to a part: something with a name, of a subject, perhaps assigned already."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def subject(self) -> str:
        """Whose it is."""

    @property
    def split(self) -> str | None:
        """The part it is assigned to, None where that is to be drawn."""


def split_by(items: Sequence[T], rule: Split) -> dict[str, tuple[T, ...]]:
    """``train``, ``val`` and ``test`` of cases or samples, as ``rule`` says; see :meth:`Cohort.split`.

    DataError where the items of one subject are assigned to two parts.
    """
    unit = {item.key: item.subject if rule.by == "subject" else item.key for item in items}
    fixed: dict[str, str] = {}
    for item in items:
        if item.split is not None:
            before = fixed.setdefault(unit[item.key], item.split)
            if before != item.split:
                raise DataError(
                    f"subject {printable(unit[item.key])} is in both {before} and {item.split} of the data list; "
                    "one subject's cases belong together (or set split.by: case)."
                )
    free = sorted({name for name in unit.values() if name not in fixed}, key=lambda name: _rank(rule.seed, name))
    total = len(set(unit.values()))
    chosen = dict(fixed)
    for part, share in (("test", rule.test), ("val", rule.val)):
        if part in fixed.values() or share == 0:
            continue
        count = min(max(int(total * share + 0.5), 1), max(len(free) - 1, 0))
        for name in free[:count]:
            chosen[name] = part
        free = free[count:]
    return {part: tuple(c for c in items if chosen.get(unit[c.key], "train") == part) for part in PARTS}


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogatepass")).hexdigest()


def safe_stem(name: str) -> str:
    """``name`` as a harmless file name; a short hash is added wherever something had to be replaced."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._-")[:80]
    if plain == name and plain:
        return plain
    return f"{plain or 'case'}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


@dataclass(frozen=True)
class Found:
    """A cohort together with the faults that :func:`open_cohort` would raise for."""

    cohort: Cohort
    faults: tuple[str, ...]


def open_cohort(source: str | Path, *, require: int | None = None) -> Cohort:
    """The cohort that ``source`` names: a spec, an nnU-Net folder, a data list, a BIDS root, a CSV or a plain folder.

    ``require`` replaces the spec's smallest number of sequences per case. Raises UsageError where the source or spec
    cannot be meant, DataError with every fault of the listing.
    """
    found = find_cohort(source, require=require)
    if found.faults:
        raise DataError(
            f"{printable(str(source))}: {len(found.faults)} fault(s) in the data set:\n  - "
            + "\n  - ".join(found.faults)
        )
    return found.cohort


def find_cohort(source: str | Path, *, require: int | None = None) -> Found:
    """Like :func:`open_cohort`, with the faults returned beside the cases that are usable."""
    return list_cohort(spec_of(source), require=require)


def spec_of(source: str | Path) -> Spec:
    """The spec that ``source`` is or implies; UsageError where it is neither file nor folder."""
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() in (".yaml", ".yml"):
            return load_spec(path)
        if path.suffix.lower() not in (".json", ".csv", ".tsv"):
            raise UsageError(
                f"{path}: not a data source. --data takes a spec (.yaml), data list (.json), .csv/.tsv or a folder."
            )
    elif not path.is_dir():
        raise UsageError(
            f"{path}: no such file or folder. --data takes a spec (.yaml), data list (.json), .csv/.tsv or a folder."
        )
    from medmae.data.initialize import guess_spec

    return guess_spec(path).spec


def list_cohort(spec: Spec, *, require: int | None = None) -> Found:
    """Find the cases that ``spec`` describes."""
    folder = spec.folder
    if not folder.is_dir():
        where = f"{spec.path}: " if spec.path else ""
        return Found(
            Cohort(spec, (), spec.sequences),
            (f"{where}root {folder} is no folder. Correct 'root' or set its variable.",),
        )
    needed = spec.require if require is None else require
    if not 1 <= needed <= len(spec.sequences):
        raise UsageError(
            f"require {needed}: a case has between 1 and {len(spec.sequences)} sequences ({', '.join(spec.sequences)})."
        )
    namer = Namer(spec)
    listing = _list(spec, namer)
    if spec.label is None and listing.label is not None:
        spec = spec.model_copy(update={"label": listing.label})
    faults, notes = list(listing.faults), list(listing.notes)
    notes += _mapping_note(namer) + ignored_note(listing.ignored, spec)
    rows = _read_table(spec, faults)
    cases: list[Case] = []
    lacking = 0
    used_rows: set[str] = set()
    for key in sorted(listing.entries):
        entry = listing.entries[key]
        if spec.cases is not None and not re.search(spec.cases, key):
            continue
        _subject(entry, spec)
        _companions(entry, spec, faults)
        if len(entry.images) < needed:
            lacking += 1
            continue
        name = key if key in rows else entry.subject or key
        if name in rows:
            used_rows.add(name)
        cases.append(
            Case(
                key=key,
                subject=entry.subject or key,
                images={name: entry.images[name] for name in spec.sequences if name in entry.images},
                label=entry.label if spec.label is not None else None,
                mask=entry.mask,
                table=rows.get(name, dict.fromkeys(spec.table.columns) if spec.table else {}),
                split=entry.split,
            )
        )
    if spec.label is None and any(entry.label is not None for entry in listing.entries.values()):
        count = sum(entry.label is not None for entry in listing.entries.values())
        notes.append(f"{count} label file(s) left aside: the spec has no 'label' that says what their values mean")
    notes += _count_notes(spec, cases, lacking, needed, rows, used_rows)
    if not cases and not faults:
        faults.append(f"no usable case in {folder}: {lacking} have fewer than {needed} of {', '.join(spec.sequences)}.")
    return Found(Cohort(spec, tuple(cases), spec.sequences, tuple(notes)), tuple(faults))


def _list(spec: Spec, namer: Namer) -> Listing:
    if spec.layout == "pattern":
        return list_pattern(spec, namer)
    if spec.layout == "folder":
        return list_folder(spec, namer)
    if spec.layout == "bids":
        from medmae.data.layout_bids import list_bids

        return list_bids(spec, namer)
    from medmae.data import layout_lists

    return {"nnunet": layout_lists.list_nnunet, "msd": layout_lists.list_msd, "csv": layout_lists.list_csv}[
        spec.layout
    ](spec, namer)


def _subject(entry: Entry, spec: Spec) -> None:
    if spec.subject is not None:
        match = re.search(spec.subject, entry.key)
        if match is not None:
            entry.subject = match.group(1) if match.groups() and match.group(1) else match.group(0)


def _companions(entry: Entry, spec: Spec, faults: list[str]) -> None:
    """Label and mask files that the spec's templates name."""
    for kind, template in (
        ("label", spec.label.file if spec.label else None),
        ("mask", spec.mask.file if spec.mask else None),
    ):
        if template is None:
            continue
        try:
            path = inside(spec.folder, fill(template, entry))
            setattr(entry, kind, path if path.exists() or path.is_symlink() else None)
        except (ValueError, OSError) as error:
            faults.append(f"case {printable(entry.key)}: {kind} file: {error}.")


def _mapping_note(namer: Namer) -> list[str]:
    pairs = [
        f"{printable(token)} -> {name}"
        for token, name in sorted(namer.used.items(), key=lambda pair: (pair[1], pair[0]))
    ]
    return ["sequence names: " + ", ".join(pairs)] if pairs else []


def _count_notes(
    spec: Spec, cases: list[Case], lacking: int, needed: int, rows: Mapping[str, object], used_rows: set[str]
) -> list[str]:
    notes = []
    complete = sum(len(case.images) == len(spec.sequences) for case in cases)
    counts = ", ".join(f"{name} {sum(name in case.images for case in cases)}" for name in spec.sequences)
    notes.append(
        f"{len(cases)} case(s) of {len({case.subject for case in cases})} subject(s), {complete} complete; {counts}"
    )
    if lacking:
        notes.append(f"{lacking} case(s) left aside: fewer than {needed} of the sequences")
    if spec.subject is not None:
        unmatched = sum(re.search(spec.subject, case.key) is None for case in cases)
        if unmatched:
            notes.append(
                f"{unmatched} case name(s) do not match 'subject'; each of them counts as a subject of its own"
            )
    if spec.label is not None:
        notes.append(f"{sum(case.label is not None for case in cases)} case(s) with a label")
    if spec.mask is not None:
        notes.append(f"{sum(case.mask is not None for case in cases)} case(s) with a foreground mask")
    if spec.table is not None:
        notes.append(f"{len(used_rows)} of {len(rows)} table row(s) belong to a case")
    return notes


def _read_table(spec: Spec, faults: list[str]) -> dict[str, dict[str, float | str | None]]:
    table = spec.table
    if table is None:
        return {}
    try:
        path = inside(spec.folder, table.file)
        names, lines = read_rows(path)
    except (ValueError, OSError) as error:
        faults.append(f"table {printable(table.file)}: {error}.")
        return {}
    missing = [name for name in (table.key, *table.columns) if name not in names]
    if missing:
        faults.append(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(map(printable, names))}. "
            "Correct 'table' in the spec."
        )
        return {}
    rows: dict[str, dict[str, float | str | None]] = {}
    for line, cells in lines:
        key = cells[table.key].strip()
        if not key:
            continue
        if key in rows:
            faults.append(f"{path}:{line}: a second row for {printable(key)}; keep one.")
            continue
        rows[key] = {
            name: _cell(cells[name], kind, f"{path}:{line}: {name}", faults) for name, kind in table.columns.items()
        }
    return rows


def _cell(text: str, kind: str, where: str, faults: list[str]) -> float | str | None:
    text = text.strip()
    if text.lower() in ("", "na", "n/a", "nan", "none", "null", "?"):
        return None
    if kind in ("class", "text"):
        return text
    if kind == "event" and text.lower() in ("true", "yes", "false", "no"):
        return float(text.lower() in ("true", "yes"))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        faults.append(f"{where}: {printable(text)!r} is no number, and the column is a {kind}.")
        return None
    if kind == "event" and value not in (0.0, 1.0):
        faults.append(f"{where}: an event is 0 (censored) or 1 (happened), not {printable(text)}.")
        return None
    if kind == "time" and value < 0:
        faults.append(f"{where}: a time cannot be negative ({printable(text)}).")
        return None
    return value
