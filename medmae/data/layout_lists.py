"""Cohorts that come with a list: nnU-Net raw folders, Decathlon and MONAI data lists (JSON), CSV tables.

A list names paths, and lists travel between machines, so every path is held inside root before it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medmae.core.sequences import canonical, squash
from medmae.data.layouts import Entry, Listing, Namer, inside, printable, scan, stem
from medmae.data.spec import Label, Spec
from medmae.data.tables import read_rows

_PARTS = {
    "training": "train", "train": "train", "validation": "val", "val": "val", "valid": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def read_json(path: Path) -> Any:
    """The JSON document at ``path``; ValueError says in one line why it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def channel_names(about: Mapping[str, Any]) -> list[str]:
    """Sequence names of a dataset.json in channel order (``channel_names`` of nnU-Net, ``modality`` of Decathlon).

    nnU-Net lets two channels have one name, as it knows them by number; here the number then joins the name.
    """
    named = about.get("channel_names", about.get("modality"))
    if isinstance(named, Mapping):
        names = [str(named[key]) for key in sorted(named, key=lambda key: (len(str(key)), str(key)))]
    else:
        names = [str(name) for name in named] if isinstance(named, list) else []
    meant = [canonical(name) if squash(name) else name for name in names]
    return [f"{n}_{i}" if meant.count(m) > 1 else n for i, (n, m) in enumerate(zip(names, meant, strict=True))]


def label_of(about: Mapping[str, Any]) -> Label | None:
    """Classes and regions of a dataset.json: nnU-Net's name -> value (or list of values), Decathlon's value -> name."""
    labels = about.get("labels")
    if not isinstance(labels, Mapping) or not labels:
        return None
    classes: dict[str, int] = {}
    regions: dict[str, tuple[int, ...]] = {}
    for key, value in labels.items():
        if isinstance(value, list):
            regions[str(key)] = tuple(int(item) for item in value)
        elif isinstance(value, int):
            classes[str(key)] = value
        else:
            classes[str(value)] = int(key)
    for value in sorted({item for members in regions.values() for item in members} - set(classes.values())):
        classes[f"class_{value}"] = value
    return Label(classes=classes, regions=regions)


def list_nnunet(spec: Spec, namer: Namer) -> Listing:
    """``imagesTr/case_0000.nii.gz`` and ``labelsTr/case.nii.gz``, with the channels that dataset.json names.

    With ``spec.unlabeled`` the cases of ``imagesTs`` too.
    """
    listing = Listing()
    folder = spec.folder
    try:
        about = read_json(folder / "dataset.json")
        if not isinstance(about, dict):
            raise ValueError(f"{folder / 'dataset.json'}: not a mapping")
        listing.label = label_of(about)
    except (ValueError, TypeError) as error:
        listing.faults.append(f"{error}. An nnU-Net folder needs a dataset.json with channel_names and labels.")
        return listing
    channels = channel_names(about)
    try:
        gaps = _placeholders(folder)
    except ValueError as error:
        listing.faults.append(f"{error}. Remove it, or convert the data again.")
        return listing
    ending = str(about.get("file_ending", ".nii.gz"))
    if stem(f"case{ending}") != "case":
        listing.faults.append(
            f"{folder / 'dataset.json'}: file_ending {printable(ending)!r} is no volume format that can be read."
        )
        return listing
    expression = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})" + re.escape(ending), re.DOTALL)
    labeled: set[str] = set()
    for images in ("imagesTr", *(("imagesTs",) if spec.unlabeled else ())):
        for item in scan(folder / images):
            match = expression.fullmatch(item.name)
            if match is None:
                listing.ignored[stem(item.name) or item.name] += 1
                continue
            number = match["channel"]
            if int(number) in gaps.get(match["case"], ()):
                continue
            spelling = channels[int(number)] if int(number) < len(channels) else number
            name = namer.resolve(number) if number in spec.aliases else namer.resolve(spelling)
            if name is None:
                listing.ignored[spelling] += 1
                continue
            key = f"{images}_{match['case']}" if match["case"] in labeled else match["case"]
            listing.add(key, name, spelling, Path(item.path))
        labeled = labeled or set(listing.entries)
    for key in labeled:
        label = folder / "labelsTr" / f"{key}{ending}"
        listing.entries[key].label = label if label.exists() else None
    unused = 0 if spec.unlabeled else len(scan(folder / "imagesTs"))
    if unused:
        listing.notes.append(
            f"imagesTs: {unused} file(s) left aside, so that a challenge's test cases are never trained on"
        )
    if not listing.entries:
        listing.faults.append(
            f"{folder / 'imagesTr'}: no file like case_0000{ending} whose channel "
            f"({', '.join(map(printable, channels))}) is one of {', '.join(spec.sequences)}. Map them in 'aliases'."
        )
    return listing


def _placeholders(folder: Path) -> dict[str, set[int]]:
    """Case -> channel numbers whose files are no images but close a gap, where a presence.json says so."""
    path = folder / "presence.json"
    if not path.is_file():
        return {}
    try:
        record = read_json(path)
        names = list(record["sequences"])
        return {str(case): {i for i, n in enumerate(names) if n not in has} for case, has in record["cases"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no record of present sequences ({error})") from error


def sections(about: Any) -> Iterator[tuple[str | None, list[Any]]]:
    """(part, items) of a data list: a bare list, or a mapping with training, validation and testing."""
    if isinstance(about, list):
        yield None, about
    elif isinstance(about, Mapping):
        held_out = any(_PARTS.get(str(key)) in ("val",) for key in about)
        for key, items in about.items():
            part = _PARTS.get(str(key).lower())
            if part is not None and isinstance(items, list):
                yield (part if held_out or part == "test" else None), items


def list_msd(spec: Spec, namer: Namer) -> Listing:
    """A Decathlon dataset.json or MONAI data list: ``image`` (a 4-D file or a list), or one key per sequence."""
    listing = Listing()
    try:
        path = inside(spec.folder, spec.file or "")
        about = read_json(path)
        listing.label = label_of(about) if isinstance(about, Mapping) else None
    except (ValueError, TypeError) as error:
        listing.faults.append(f"{error}.")
        return listing
    channels = channel_names(about) if isinstance(about, Mapping) else []
    for part, items in sections(about):
        for number, item in enumerate(items):
            row = {"image": item} if isinstance(item, str | list) else item
            where = f"{path.name}: item {number} of {part or 'the list'}"
            if not isinstance(row, Mapping):
                listing.faults.append(f"{where}: neither a path nor a mapping.")
                continue
            try:
                _add_item(spec, namer, listing, row, channels, path.parent, part)
            except ValueError as error:
                listing.faults.append(f"{where}: {error}.")
    if not listing.entries and not listing.faults:
        listing.faults.append(f"{path}: no item with one of {', '.join(spec.sequences)}. Map their names in 'aliases'.")
    return listing


def _add_item(
    spec: Spec,
    namer: Namer,
    listing: Listing,
    row: Mapping[str, Any],
    channels: list[str],
    base: Path,
    part: str | None,
) -> None:
    files: dict[str, str] = {}
    image = row.get("image")
    if isinstance(image, str) and len(channels) > 1:
        files = {name: f"{image}#{index}" for index, name in enumerate(channels)}
    elif image is not None:
        several = [str(name) for name in image] if isinstance(image, list) else [str(image)]
        names = channels or list(spec.sequences)
        if len(several) > len(names):
            raise ValueError(
                f"{len(several)} images but names for {len(names)}; name them in 'channel_names' or 'sequences'"
            )
        files = dict(zip(names, several, strict=False))
    for key, value in row.items():
        if key not in ("image", "label", "mask", "case", "id", "subject", "fold") and isinstance(value, str):
            files[key] = value
    key = str(row.get("case", row.get("id", ""))) or _key_of(list(files.values()))
    if key in listing.entries:
        raise ValueError(f"a second case named {printable(key)}; give each item a 'case'")
    found = Entry(key, subject=str(row["subject"]) if row.get("subject") else None, split=part)
    for spelling, file in files.items():
        name = namer.resolve(spelling)
        if name is None:
            listing.ignored[spelling] += 1
            continue
        found.images[name] = _held(spec, base, file)
        found.tokens[name] = spelling
    for kind in ("label", "mask"):
        if isinstance(row.get(kind), str):
            setattr(found, kind, _held(spec, base, str(row[kind])))
    if found.images:
        listing.entries[key] = found


def _held(spec: Spec, base: Path, file: str) -> Path:
    """``file`` relative to the list's folder, as long as it stays in root."""
    return inside(spec.folder, base / file)


def _key_of(files: list[str]) -> str:
    """A case name from its files: their common folder's name where each has its own, else the first file's stem."""
    if not files:
        raise ValueError("no image")
    first = Path(files[0].split("#")[0])
    if len(files) > 1 and len({Path(name.split("#")[0]) for name in files}) > 1:
        return first.parent.name or (stem(first.name) or first.name)
    return stem(first.name) or first.name


def list_csv(spec: Spec, namer: Namer) -> Listing:
    """A table with a ``case`` column and either one column per sequence or the columns ``sequence`` and ``path``."""

    listing = Listing()
    try:
        path = inside(spec.folder, spec.file or "")
        names, rows = read_rows(path)
    except (ValueError, OSError) as error:
        listing.faults.append(f"{printable(spec.file or '')}: {error}.")
        return listing
    plain = {name.lower(): name for name in names}
    case = next((plain[word] for word in ("case", "id", "case_id", "key", "subject") if word in plain), None)
    if case is None:
        listing.faults.append(f"{path}: no column 'case'; it has {', '.join(map(printable, names))}.")
        return listing
    long_form = "sequence" in plain and ("path" in plain or "file" in plain)
    columns = {name: name for name in names if namer.resolve(name) is not None} if not long_form else {}
    if not long_form and not columns:
        listing.faults.append(
            f"{path}: no column is one of {', '.join(spec.sequences)}; it has {', '.join(map(printable, names))}."
        )
    for line, cells in rows:
        key = cells[case].strip()
        if not key:
            listing.faults.append(f"{path}:{line}: no case name.")
            continue
        if not long_form and key in listing.entries:
            listing.faults.append(f"{path}:{line}: a second row for {printable(key)}; keep one.")
            continue
        entry = listing.entry(key)
        pairs = [(cells[plain["sequence"]], cells[plain.get("path", plain.get("file", ""))])] if long_form else [
            (column, cells[column]) for column in columns
        ]  # fmt: skip
        try:
            for spelling, file in pairs:
                name = namer.resolve(spelling.strip())
                if name is None:
                    listing.ignored[spelling] += 1
                elif file.strip():
                    listing.add(key, name, spelling, _held(spec, path.parent, file.strip()))
            for kind in ("label", "mask"):
                if kind in plain and cells[plain[kind]].strip():
                    setattr(entry, kind, _held(spec, path.parent, cells[plain[kind]].strip()))
        except ValueError as error:
            listing.faults.append(f"{path}:{line}: {error}.")
        if "subject" in plain and cells[plain["subject"]].strip():
            entry.subject = cells[plain["subject"]].strip()
        if "split" in plain and cells[plain["split"]].strip():
            part = _PARTS.get(cells[plain["split"]].strip().lower())
            if part is None:
                listing.faults.append(
                    f"{path}:{line}: split {printable(cells[plain['split']])!r}; it is train, val or test."
                )
            entry.split = part
    return listing


def names_in_table(names: list[str], rows: list[tuple[int, dict[str, str]]]) -> list[str]:
    """Sequence names that a CSV seems to hold: known column names, or what its ``sequence`` column says."""
    from medmae.core.sequences import is_known

    plain = {name.lower(): name for name in names}
    if "sequence" in plain:
        return list(
            dict.fromkeys(canonical(cells[plain["sequence"]]) for _, cells in rows if cells[plain["sequence"]].strip())
        )
    return [name for name in names if is_known(name)]
