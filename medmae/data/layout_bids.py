"""BIDS roots: ``sub-01/ses-02/anat/sub-01_ses-02_ce-gadolinium_T1w.nii.gz``.

A sequence is a suffix together with the ``ce-`` entity; of several runs or acquisitions the first by name is taken,
and the user is told. Derivatives are only read where the spec's label or mask template names them.
"""

from __future__ import annotations

import re
from pathlib import Path

from medmae.data.layouts import Listing, Namer, printable, scan, stem
from medmae.data.spec import Spec

_KINDS = ("anat", "dwi", "swi", "pet", "ct", "perf")
_NOT_VOLUMES = ("bold", "sbref", "epi", "phasediff", "magnitude1", "magnitude2")


def spelling(name: str) -> str:
    """The part of a BIDS file's stem that says which sequence it is: suffix, with ``ce-...`` before it."""
    words = name.split("_")
    contrast = next((word for word in words if word.startswith("ce-")), None)
    if contrast is not None and contrast.lower() not in ("ce-none", "ce-no"):
        return f"ce-gadolinium_{words[-1]}"
    return words[-1]


def list_bids(spec: Spec, namer: Namer) -> Listing:
    """Cases of a BIDS root: one per subject and session, images of one value per voxel only."""
    listing = Listing()
    several = 0
    for key, subject, session, path in bids_files(spec.folder):
        words = (stem(path.name) or "").split("_")
        token = spelling("_".join(words))
        if words[-1] in _NOT_VOLUMES:
            continue
        name = namer.resolve(token)
        if name is None:
            listing.ignored[token] += 1
            continue
        entry = listing.entry(key)
        entry.subject, entry.session = subject, session
        if name in entry.images:
            several += 1
            continue
        entry.images[name], entry.tokens[name] = path, token
    if several:
        listing.notes.append(f"{several} further run(s) or acquisition(s) left aside; the first by name is used")
    if not listing.entries:
        listing.faults.append(
            f"{spec.folder}: no sub-*/[ses-*/]anat/ image that is one of "
            f"{', '.join(spec.sequences)}. Map suffixes in 'aliases'."
        )
    return listing


def bids_files(folder: Path) -> list[tuple[str, str, str, Path]]:
    """(case, subject, session, path) of every raw volume below ``folder``, in the order of names."""
    found = []
    for person in scan(folder):
        if not (re.fullmatch(r"sub-[^/]+", person.name, re.DOTALL) and person.is_dir()):
            continue
        visits = [item for item in scan(Path(person.path)) if item.name.startswith("ses-") and item.is_dir()]
        places = [(visit.name, Path(visit.path)) for visit in visits] or [("", Path(person.path))]
        for session, place in places:
            key = f"{person.name}_{session}" if session else person.name
            for kind in _KINDS:
                for item in scan(place / kind):
                    if item.is_file() and stem(item.name) is not None:
                        found.append((key, person.name, session, Path(item.path)))
    return found


def describe(folder: Path) -> str:
    """The name in dataset_description.json, or the folder's."""
    from medmae.data.layout_lists import read_json

    try:
        about = read_json(folder / "dataset_description.json")
    except ValueError:
        about = {}
    name = about.get("Name") if isinstance(about, dict) else None
    return printable(str(name)) if name else folder.name
