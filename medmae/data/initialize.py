"""A first spec from what lies in a folder: a proposal to read and correct, written so that it works as it stands.

Also what makes ``--data FOLDER`` work without a spec: the proposal is used directly.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medmae.core.errors import DataError, UsageError
from medmae.core.sequences import canonical, in_order, is_known
from medmae.data.layout_bids import bids_files, describe, spelling
from medmae.data.layout_lists import channel_names, label_of, names_in_table, read_json, sections
from medmae.data.layouts import case_name, printable, split_name, stem, volumes_in
from medmae.data.spec import Label, Spec, parse_spec
from medmae.data.tables import read_rows


@dataclass(frozen=True)
class Guess:
    """A proposed spec, as a model and as the plain values that a YAML file would hold, with remarks for the user."""

    spec: Spec
    values: dict[str, Any]
    notes: tuple[str, ...]


def guess_spec(source: str | Path, *, labels: bool = False) -> Guess:
    """Propose a spec for a folder, data list or CSV; ``labels=True`` reads a few label files for their values.

    Raises UsageError where there is nothing to propose, DataError where a list cannot be read.
    """
    path = Path(source).absolute()
    if path.name == "dataset.json" and path.is_file() and _is_nnunet(path.parent):
        path = path.parent
    try:
        if path.is_file():
            values = _from_table(path) if path.suffix.lower() in (".csv", ".tsv") else _from_list(path)
        elif (path / "dataset.json").is_file() and (path / "imagesTr").is_dir():
            values = _from_nnunet(path) if _is_nnunet(path) else _from_list(path / "dataset.json")
        elif (
            (path / "dataset_description.json").is_file()
            or any(path.glob("sub-*/anat"))
            or any(path.glob("sub-*/ses-*/anat"))
        ):
            values = _from_bids(path)
        elif path.is_dir():
            values = _from_folder(path)
        else:
            raise UsageError(f"{path}: no such file or folder.")
    except (ValueError, TypeError, OSError) as error:
        raise DataError(f"{printable(str(error))}.") from error
    notes: list[str] = list(values.pop("notes", []))
    files = values.pop("label_files", [])
    if labels and files:
        values["label"] = {**values.get("label", {}), "classes": _classes(files, notes)}
    elif "label" in values and "classes" not in values["label"]:
        del values["label"]
    base = path if path.is_dir() else path.parent
    images = values.pop("image_files", [])
    if labels and images:
        spacing = _spacing(images)
        if spacing is not None:
            values["preprocess"] = {"spacing": spacing}
            notes.append(
                "voxel sizes differ between files; preprocess.spacing is their median along each axis of the body"
            )
    spec = parse_spec({**values, "root": "."}, base=base, source=str(path))
    return Guess(spec, values, tuple(notes))


def spec_text(guess: Guess, *, root: str) -> str:
    """The proposal as commented YAML, with ``root`` as it shall stand in the file."""
    values = {"medmae": 1, "name": guess.values["name"], "root": root}
    values.update({key: value for key, value in guess.values.items() if key not in values})
    lines = ["# Written by `medmae data init`; read it, correct it, then run `medmae data check`.\n"]
    comments = {
        "pattern": "# {case} names the case, {seq} the sequence",
        "subject": "# first group = the subject; a split never separates one subject's cases",
        "label": "# class names are guesses; the values are those found in the files",
        "require": "# cases with fewer sequences are left aside",
    }
    for key, value in values.items():
        if key in comments:
            lines.append(comments[key] + "\n")
        # None: mappings in block style, their innermost parts and lists on one line.
        lines.append(
            yaml.safe_dump(
                {key: value},
                sort_keys=False,
                allow_unicode=True,
                width=110,
                default_flow_style=None if isinstance(value, dict | list) else False,
            )
        )
    for note in guess.notes:
        lines.append(f"# note: {printable(note, limit=300)}\n")
    return "".join(lines)


def _is_nnunet(path: Path) -> bool:
    """Whether the images are named with channel numbers, as nnU-Net's are and the Decathlon's are not."""
    return any((path / "imagesTr").glob("*_[0-9][0-9][0-9][0-9].*"))


def _from_nnunet(path: Path) -> dict[str, Any]:
    about = read_json(path / "dataset.json")
    if not isinstance(about, dict):
        raise ValueError(f"{path / 'dataset.json'}: not a mapping")
    names = channel_names(about)
    if not names:
        raise ValueError(f"{path / 'dataset.json'}: no channel_names")
    values: dict[str, Any] = {
        "medmae": 1,
        "name": printable(path.name),
        "layout": "nnunet",
        "sequences": list(dict.fromkeys(names)),
    }
    label = label_of(about)
    if label is not None:
        values["label"] = _plain(label)
    return values


def _plain(label: Label) -> dict[str, Any]:
    found: dict[str, Any] = {"classes": dict(label.classes)}
    if label.regions:
        found["regions"] = {name: list(members) for name, members in label.regions.items()}
    return found


def _from_list(path: Path) -> dict[str, Any]:
    about = read_json(path)
    names = channel_names(about) if isinstance(about, dict) else []
    for _, items in sections(about):
        for item in items:
            if isinstance(item, dict):
                names += [key for key in item if is_known(key)]
    if not names:
        raise ValueError(f"{path}: no sequence names; add 'channel_names' or use one key per sequence")
    unique = {canonical(name): name for name in names}
    values: dict[str, Any] = {"medmae": 1, "name": printable(path.parent.name), "layout": "msd", "file": path.name,
                              "sequences": list(unique)}  # fmt: skip
    label = label_of(about) if isinstance(about, dict) else None
    if label is not None:
        values["label"] = _plain(label)
    return values


def _from_table(path: Path) -> dict[str, Any]:

    try:
        names = names_in_table(*read_rows(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not names:
        raise ValueError(f"{path}: no column is named after a sequence such as t1n, t1c, t2w or flair")
    return {"medmae": 1, "name": printable(path.stem), "layout": "csv", "file": path.name,
            "sequences": list(in_order([canonical(name) for name in names]))}  # fmt: skip


def _from_bids(path: Path) -> dict[str, Any]:
    counts = Counter(
        canonical(token)
        for _, _, _, file in bids_files(path)
        if file.parent.name != "dwi" and is_known(token := spelling(stem(file.name) or ""))  # dwi files are 4-D
    )
    if not counts:
        raise UsageError(f"{path}: a BIDS root without anat images of a known suffix (T1w, T2w, FLAIR, ...).")
    return {"medmae": 1, "name": describe(path), "layout": "bids", "sequences": list(in_order(list(counts)))}


def _from_folder(path: Path) -> dict[str, Any]:
    """A pattern where one explains every image, else the plain-folder layout."""
    found: list[tuple[str, Path, str, str, str]] = []
    for place, file, is_folder in volumes_in(path, depth=4):
        base = file.name if is_folder else (stem(file.name) or file.name)
        role, token, prefix = split_name(base, None)
        found.append((place, file, role, token, prefix))
    images = [item for item in found if item[2] == "image"]
    if not images:
        some = ", ".join(printable(item[1].name) for item in found[:4]) or "no volume at all"
        raise UsageError(
            f"{path}: no file is named after a known sequence (found {some}). Write a spec with a pattern and "
            "'aliases', "
            "for example pattern: '{case}/{seq}.nii.gz'."
        )
    names = in_order([canonical(item[3]) for item in images])
    values: dict[str, Any] = {"medmae": 1, "name": printable(path.name) or "data"}
    labels = [item for item in found if item[2] == "label"]
    masks = [item for item in found if item[2] == "mask"]
    pattern = _common([_shape(path, item, "{seq}") for item in images])
    values["pattern" if pattern else "layout"] = pattern or "folder"
    values["sequences"] = list(names)
    keys = sorted({case_name(place, prefix) for place, _, _, _, prefix in images})
    subject = _subject_rule(keys)
    if subject:
        values["subject"] = subject
    values["image_files"] = [item[1] for item in images]
    if labels:
        template = _common([_shape(path, item, item[3]) for item in labels])
        values["label"] = {"file": template} if template and pattern else {}
        values["label_files"] = [item[1] for item in labels]
    if masks:
        template = _common([_shape(path, item, item[3]) for item in masks])
        if template and pattern:
            values["mask"] = {"file": template}
    others = Counter(item[3] for item in found if item[2] == "other")
    values["notes"] = [f"{count} file(s) named {token!r} are no known sequence; list them under sequences to use them"
                       for token, count in others.most_common(5)]  # fmt: skip
    return values


def _shape(root: Path, item: tuple[str, Path, str, str, str], token: str) -> str | None:
    """The template that ``item``'s relative path follows, with {case} for the case; None where no simple one does."""
    place, file, _, written, prefix = item
    folders = [word for word in place.split("/") if word]
    base = file.name if file.is_dir() else (stem(file.name) or file.name)
    ending = file.name[len(base) :]
    joint = base[len(prefix) : len(base) - len(written)] if prefix else ""
    if not folders:
        return f"{{case}}{joint}{token}{ending}" if prefix else None
    if prefix and prefix != folders[-1]:
        return None
    head = "*/" * (len(folders) - 1)
    return f"{head}{{case}}/{'{case}' if prefix else ''}{joint}{token}{ending}"


def _common(shapes: list[str | None]) -> str | None:
    """The one template shared by all; templates with unnamed folders are left to the folder layout."""
    only = set(shapes)
    shape = only.pop() if len(only) == 1 else None
    return shape if shape is not None and "*" not in shape else None


def _subject_rule(keys: list[str]) -> str | None:
    """A subject expression where names end in a time point (BraTS-GLI-00001-000) or a session."""
    for rule in (r"^(.+-\d{4,})-\d{3}$", r"^(.+?)[-_](?:ses|visit|tp|timepoint|scan)[-_]?\w+$"):
        if keys and all(re.search(rule, key, re.IGNORECASE) for key in keys):
            return rule
    return None


def _classes(files: list[Path], notes: list[str]) -> dict[str, int]:
    """Class names for the values found in up to twelve label files."""
    import numpy as np

    from medmae.data.readers import read

    seen: set[int] = {0}
    step = max(1, len(files) // 12)
    for file in files[::step][:12]:
        try:
            values = np.unique(read(file).array)
        except DataError as error:
            notes.append(str(error))
            continue
        whole = values[np.isfinite(values) & (values == np.rint(values)) & (values >= 0)]
        if len(values) > 100 or len(whole) < len(values):
            notes.append(f"{file.name}: label values that are not small whole numbers")
        seen |= {int(value) for value in whole[:100]}
    return {"background" if value == 0 else f"class_{value}": value for value in sorted(seen)}


def _spacing(files: list[Path]) -> list[float] | None:
    """Median voxel size along right-left, back-front, down-up in up to forty files; None where all agree within 5 %."""
    import numpy as np

    from medmae.data.readers import inspect

    found = []
    for file in files[:: max(1, len(files) // 40)]:
        try:
            header = inspect(file, length=False)
        except DataError:
            continue  # `medmae data check` names it
        place = np.abs(header.affine[:3, :3]).argmax(axis=1)
        found.append([header.spacing[axis] for axis in place])
    if not found or np.ptp(found, axis=0).max() <= 0.05 * np.min(found):
        return None
    return [round(float(step), 3) for step in np.median(found, axis=0)]
