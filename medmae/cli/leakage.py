"""Was the model trained on what it is to be measured on? Names change from one cohort to the next; content does not.

A model folder holds hashes of its training cases: of their files, and of the values and places of their images, by
which one saved in another format is known again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from medmae.core.errors import DataError

from .console import flags, say


@dataclass(frozen=True)
class Prints:
    """Hashes of one case.

    Attributes:
        files: SHA-256 of every file, by sequence (and ``mask``, ``label``).
        voxels: hashes of the values and places of its images.
        code: one short hash of the whole case.
    """

    files: Mapping[str, str]
    voxels: frozenset[str]
    code: str

    @property
    def all(self) -> frozenset[str]:
        """Hashes of its images, as files and as values."""
        return self.voxels.union(image_hashes(self.files))


def prints_of(cases: Sequence[Any], sequences: Sequence[str]) -> list[Prints]:
    """Hashes of cases of a cohort, with regard to ``sequences``."""
    from medmae.data.fingerprint import Fingerprints, case_files, case_hash
    from medmae.data.workers import progress

    prints, found = Fingerprints(None), []
    with progress("comparing with the training cases", len(cases), quiet=flags().quiet) as advance:
        for case in cases:
            files = case_files(case, prints)
            found.append(Prints(files, voxel_hashes(case, sequences), case_hash(files)))
            advance()
    return found


def refuse_training_cases(
    prints: Sequence[Prints], data: Mapping[str, Any], *, allow: bool, who: str = "this model"
) -> int:
    """How many cases the model whose config has ``data`` was trained on.

    Raises DataError where there are any and ``allow`` is not set; otherwise it says so.
    """
    leaked = [found.code for found in prints if leaks(found, data)]
    if leaked and not allow:
        names = ", ".join(leaked[:5]) + (" ..." if len(leaked) > 5 else "")
        raise DataError(
            f"{len(leaked)} of {len(prints)} case(s) were training cases of {who} ({names}): "
            "what it gets on them says nothing. Choose other cases (--split test), "
            "or add --allow-leakage to measure all the same"
        )
    if leaked:
        say(
            f"{len(leaked)} of {len(prints)} case(s) were training cases of {who}: the numbers flatter it",
            style="yellow",
        )
    return len(leaked)


def leaks(prints: Prints, data: Mapping[str, Any]) -> bool:
    """Whether the model was trained on this case, or on one of its images, in whatever format."""
    subjects = data.get("subjects") or ()
    trained = set(subjects.get("train", ()) if isinstance(subjects, Mapping) else subjects)
    seen = set(data.get("files") or ())
    return (
        prints.code in trained
        or any(digest[:16] in seen for digest in image_hashes(prints.files))
        or not prints.voxels.isdisjoint(data.get("voxels") or ())
    )


def image_hashes(files: Mapping[str, str]) -> list[str]:
    """Those of images among the hashes of a case's files."""
    return [digest for name, digest in files.items() if name not in ("mask", "label")]


def voxel_hashes(case: Any, sequences: Sequence[str]) -> frozenset[str]:
    """Hashes of the values and places of a case's images.

    Empty for what cannot be read, which is told when it is measured, and without constant images: many share one.
    """
    from medmae.data.oddities import CONSTANT, oddity, voxel_hash
    from medmae.data.readers import read

    found = set()
    for name, path in case.images.items():
        if name in sequences:
            with suppress(DataError):
                volume = read(path)
                if oddity(volume.array) != CONSTANT:
                    found.add(voxel_hash(volume))
    return frozenset(found)
