"""What the ending of a file says, for whoever gave a folder that holds nothing of any kind."""

from __future__ import annotations

from pathlib import Path

from medmae.data.kinds import count_readable, kind_class
from medmae.data.kinds.listing import COHORT_FILES, VOLUMES, walk
from medmae.data.layouts import looks_like_dicom, printable

_PLURALS = {"image": "images", "video": "videos", "points": "clouds", "audio": "sounds"}


def nothing_in(folder: Path) -> str | None:
    """What to say of a folder in which no file is of any kind that can be read; None where there is one.

    A file counts by its ending, but for series of DICOM files, which often have none and are known by their content.
    """
    files = list(walk(folder))
    names = [name for _, name in files]
    if not names:
        return f"{folder}: an empty folder. Give the folder that holds the data"
    if any(count_readable(names).values()) or any(n.lower().endswith(VOLUMES) or n in COHORT_FILES for n in names):
        return None
    if any(looks_like_dicom(folder / inner) for inner in {inner for inner, _ in files}):
        return None
    known = {"volumes": VOLUMES, **{plural: tuple(kind_class(kind).suffixes) for kind, plural in _PLURALS.items()}}
    return (
        f"{folder}: no images, videos, clouds, sounds or volumes in it or below, but {len(names)} other file(s), such "
        f"as {printable(names[0])}. What a file is, its ending says:"
        + "".join(f"\n  - {plural}: {' '.join(suffixes)}" for plural, suffixes in known.items())
        + "\nGive the folder that holds such files, or a spec in YAML: 'kind: image' (or video, points, audio) with "
        "'root' and 'files'; for volumes 'sequences' with 'root' and 'pattern'"
    )
