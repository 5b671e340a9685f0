"""Which samples there are: what ``--data`` means for images, clips, clouds and sound.

Five ways to say it, and one answer. A folder is searched for files of the kind; folders of classes, with or without
folders of parts above them, label what is in them; a CSV names files and what is known of each; a YAML spec holds the
same settings in writing; ``toy-image`` and its siblings need no files at all. Names and tables are read, never the
files, so that a hundred thousand samples are listed in seconds.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medmae.core.errors import DataError, UsageError
from medmae.data.cohort import split_by
from medmae.data.fingerprint import Fingerprints, case_hash
from medmae.data.kinds import KINDS, count_readable, kind_class, toys
from medmae.data.layouts import printable
from medmae.data.spec import Split, expand
from medmae.data.spec_lines import complaint, read_document
from medmae.data.tables import read_rows

ON_ERROR = ("fail", "skip")
_PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_COLUMNS = ("path", "label", "subject", "split")
_NAMED = 20  # faults of a table told in one message
VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")  # what makes a folder a 3-D cohort
COHORT_FILES = ("dataset.json", "dataset_description.json")


@dataclass(frozen=True)
class Sample:
    """One file, or one folder of frames.

    Attributes:
        key: its name in the listing: the path from the root, with slashes.
        path: where it is.
        label: its class, None where unknown.
        subject: who or what it shows; samples of one subject are never split.
        split: part it is assigned to (``train``, ``val``, ``test``), None where that is to be drawn.
        extra: what else a table says, as text; ``toy`` is the index of a sample that is made.
    """

    key: str
    path: Path
    label: str | None
    subject: str
    split: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """Samples in the order of their keys (of a table: of its rows), and what is known of them together.

    Attributes:
        name: of the data set, for folders and titles.
        kind: of its data, one of ``medmae.data.kinds.KINDS``.
        classes: the labels that occur, sorted; of a toy, in its own order.
        license: what the spec says.
        rule: how parts are drawn.
        on_error: what is done with samples that cannot be read: "fail" or "skip".
        notes: remarks on how names were read.
    """

    name: str
    kind: str
    samples: tuple[Sample, ...]
    classes: tuple[str, ...] = ()
    license: str = ""
    rule: Split = field(default_factory=Split)
    on_error: str = "fail"
    notes: tuple[str, ...] = ()

    def split(self) -> Mapping[str, tuple[Sample, ...]]:
        """``train``, ``val`` and ``test``: by subject, a function of ``rule.seed`` and the names alone.

        Parts that folders or a table assign stay as they are; shares are then drawn from the rest.
        """
        return split_by(self.samples, self.rule)


class SampleSpec(BaseModel):
    """A data set of samples in a YAML file: where its files are and what they mean."""

    model_config = ConfigDict(extra="forbid")

    medmae: Literal[1] = 1
    kind: Literal["image", "video", "points", "audio"]
    name: str | None = Field(default=None, min_length=1)
    root: str = Field(default=".", description="folder that files are counted from; ${VAR:-default} is filled in")
    files: str | list[str] | None = Field(default=None, description="patterns of paths from root, such as 'a/*.png'")
    table: str | None = Field(default=None, description="CSV with a column path, and label, subject, split if known")
    labels: Literal["folder", "none"] = Field(default="folder", description="whether folders are classes")
    subject: str | None = Field(default=None, description="expression whose first group in a path is the subject")
    split: Split = Field(default_factory=Split)
    on_error: Literal["fail", "skip"] = Field(default="fail", description="what is done with unreadable samples")
    license: str = ""


def list_samples(
    text: str | Path, *, kind: str, split: Mapping[str, Any] | None = None, on_error: str | None = None
) -> Listing:
    """The samples that ``text`` names: a folder, a CSV, a spec or a toy, such as ``toy-image:1200``.

    Args:
        text: what ``--data`` was given.
        kind: of data that is wanted.
        split: what replaces the spec's own words under ``split`` (by, seed, val, test).
        on_error: the same of ``on_error``: "fail" or "skip".

    Raises:
        UsageError: no such data, another kind, or a spec that cannot be meant.
        DataError: there are no samples, or a table names what is not there; with file and line.
    """
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is no kind of data; there are {', '.join(KINDS)}")
    if on_error not in (None, *ON_ERROR):
        raise UsageError(f"data.on_error is {' or '.join(ON_ERROR)}, not {on_error!r}")
    path = _path(text)
    base = path.absolute()
    if str(text).startswith("toy-") and not path.exists():
        listing = _toy(str(text), kind)
    elif path.is_dir():
        listing = _listed(SampleSpec.model_construct(kind=kind), base, name=base.name or kind)
    elif path.suffix.lower() in (".csv", ".tsv") and path.is_file():
        spec = SampleSpec.model_construct(kind=kind, table=path.name)
        listing = _listed(spec, base.parent, name=base.stem)
    elif path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        spec = load_sample_spec(path)
        if spec.kind != kind:
            raise UsageError(f"{path} describes {spec.kind} data, and {kind} data is wanted")
        root = Path(os.path.abspath(base.parent / expand(spec.root)))
        listing = _listed(spec, root, name=spec.name or base.stem, origin=str(path))
    else:
        raise UsageError(
            f"{path}: {'not a data source' if path.exists() else 'no such file or folder'}. For {kind} data, --data "
            f"takes a folder, a .csv with a column 'path', a spec (.yaml) with 'kind: {kind}', or toy-{kind}"
        )
    changes: dict[str, Any] = {"rule": _rule(listing.rule, split or {})}
    if on_error is not None:
        changes["on_error"] = on_error
    return Listing(**{**listing.__dict__, **changes})


def load_sample_spec(path: Path) -> SampleSpec:
    """Read and validate a spec of samples; UsageError lists every complaint with ``file:line``."""
    document = read_document(path)
    if not isinstance(document.value, dict):
        raise UsageError(f"{path}:1: a data spec is a mapping, with 'kind: image' or another kind")
    try:
        spec = SampleSpec.model_validate(document.value)
        if spec.subject is not None:
            re.compile(spec.subject)
    except ValidationError as error:
        lines = [complaint(item, document, SampleSpec) for item in error.errors()]
        raise UsageError("\n".join(dict.fromkeys(lines))) from error
    except re.error as error:
        raise UsageError(f"{document.at(('subject',))}: subject is not a regular expression: {error}") from error
    if spec.table is not None and spec.files is not None:
        raise UsageError(f"{document.at(('files',))}: the table names the files; leave out 'files' or 'table'")
    return spec


def names_samples(text: str | Path, *, kind: str) -> bool:
    """Whether data for a method of ``kind`` is a list of samples; otherwise it is meant as a 3-D cohort.

    A folder with volumes in it is a cohort to methods for images and clips, which can read them; to the others, which
    cannot, it is a list of files like any other.
    """
    path = _path(text)
    if kind not in KINDS:
        return False
    if path.is_dir():
        volumes = (*VOLUMES, ".dcm") if kind == "video" else VOLUMES
        return kind not in ("image", "video") or not any(
            name.lower().endswith(volumes) or (not folder and name in COHORT_FILES)
            for folder, name in walk(path, limit=2000)
        )
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        value = read_document(path).value
        return isinstance(value, dict) and value.get("kind") in KINDS
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        try:
            return "path" in read_rows(path)[0]
        except (ValueError, OSError):
            return True
    return not path.exists()  # which a toy does not, nor what is misspelled


def guess_kind(text: str | Path) -> str | None:
    """The kind of samples that ``text`` holds when no method says which is wanted; None where it is a 3-D cohort.

    A toy and a spec say so; of a folder or table it is the kind that reads most of the files.
    """
    path = _path(text)
    if not path.exists():
        return toys.kind_of(toys.parse(str(text))[0]) if str(text).startswith("toy-") else None
    if not names_samples(text, kind="image"):
        return None
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        return str(read_document(path).value["kind"])
    try:
        names = [n for _, n in walk(path)] if path.is_dir() else [row["path"] for _, row in read_rows(path)[1]]
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {error}") from error
    counts = count_readable(names)
    best = max(counts, key=lambda kind: counts[kind])
    return best if counts[best] else None


def sample_hash(sample: Sample, prints: Fingerprints | None = None) -> str:
    """A short name of a sample that is made of its content; ``prints`` remembers those of unchanged files."""
    if "toy" in sample.extra:
        return case_hash({"sample": f"{sample.key}:{toys.SEED}"})
    return case_hash({"sample": (prints or Fingerprints(None)).of(sample.path)})


def _path(text: str | Path) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~name" where nobody is called so: then it is a name like any other
        return Path(text)


def _rule(rule: Split, given: Mapping[str, Any]) -> Split:
    try:
        return Split.model_validate({**rule.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"data.{'.'.join(map(str, ('split', *first['loc'])))}: {first['msg']}") from error


def _toy(text: str, kind: str) -> Listing:
    name, count = toys.parse(text)
    if toys.kind_of(name) != kind:
        raise UsageError(f"{name} makes {toys.kind_of(name)} data, and {kind} data is wanted: toy-{kind}")
    samples = []
    for index in range(count):
        path = toys.pseudo_path(name, index)
        samples.append(Sample(path.as_posix(), path, toys.label_of(name, index), path.as_posix(), None, {"toy": index}))
    return Listing(name, kind, tuple(samples), tuple(toys.classes(name)), "made while it is read, no rights reserved")


def _listed(spec: SampleSpec, root: Path, *, name: str, origin: str = "") -> Listing:
    """The listing of a spec whose root is ``root``; ``origin`` is the file of the spec."""
    if not root.is_dir():
        raise DataError(f"{origin}: root {root} is no folder. Correct 'root' or set its variable.")
    samples = _from_table(spec, root) if spec.table is not None else _from_folder(spec, root)
    classes = tuple(sorted({s.label for s in samples if s.label is not None}))
    unlabeled = sum(s.label is None for s in samples)
    notes = [f"{len(samples)} {spec.kind} sample(s) of {len({s.subject for s in samples})} subject(s)"]
    if classes:
        shown = ", ".join(map(printable, classes[:8])) + (" ..." if len(classes) > 8 else "")
        notes[0] += f", {len(classes)} class(es): {shown}" + (f"; {unlabeled} without a label" if unlabeled else "")
    return Listing(
        name=name, kind=spec.kind, samples=tuple(samples), classes=classes, license=spec.license, rule=spec.split,
        on_error=spec.on_error, notes=tuple(notes),
    )  # fmt: skip


def _from_folder(spec: SampleSpec, root: Path) -> list[Sample]:
    keys = list(_keys(spec, root))
    if not keys:
        wanted = " or ".join(map(repr, _patterns(spec))) if spec.files else ", ".join(kind_class(spec.kind).suffixes)
        raise DataError(
            f"{root}: no {spec.kind} files in it or below ({wanted}). {_instead(root)}Give the folder that holds them"
        )
    parted = all(key.partition("/")[0].lower() in _PARTS and "/" in key for key in keys)
    rest = {key: key.partition("/")[2] if parted else key for key in keys}
    # One folder is a place to keep files; two or more, with nothing beside them, are classes.
    folders = {inner.partition("/")[0] for inner in rest.values() if "/" in inner}
    labeled = spec.labels == "folder" and len(folders) > 1 and all("/" in inner for inner in rest.values())
    return [
        Sample(
            key=key,
            path=root / key,
            label=rest[key].partition("/")[0] if labeled else None,
            subject=_subject(spec, key),
            split=_PARTS[key.partition("/")[0].lower()] if parted else None,
        )
        for key in sorted(keys)
    ]


def _instead(root: Path) -> str:
    """A sentence on what a folder holds in place of what was wanted; "" where no kind reads any of it."""
    counts = count_readable([name for _, name in walk(root, limit=100_000)])
    most = max(counts, key=lambda kind: counts[kind])
    told = f"It holds {counts[most]} {most} file(s); `medmae methods` lists what reads them. "
    return told if counts[most] else ""


def _keys(spec: SampleSpec, root: Path) -> Iterator[str]:
    """Paths from ``root`` of the samples in it: files of the kind, and folders of what its folders consist of."""
    kind = kind_class(spec.kind)
    suffixes, frames = tuple(kind.suffixes), tuple(getattr(kind, "folder_suffixes", ()))
    known: set[str] = set()
    for folder, name in walk(root):
        key = f"{folder}/{name}" if folder else name
        if not name.lower().endswith(suffixes):
            if not frames or not folder or not name.lower().endswith(frames):
                continue
            key = folder
        if key not in known and (spec.files is None or any(fnmatch.fnmatchcase(key, p) for p in _patterns(spec))):
            known.add(key)
            yield key


def walk(root: Path, *, limit: int | None = None) -> Iterator[tuple[str, str]]:
    """(folder from ``root``, name) of every visible file; of ``limit`` files at most. Links are followed once.

    Raises DataError where a folder cannot be opened: what is in it would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be opened ({error.strerror}); give yourself access, or move it away")

    seen: set[str] = set()
    count = 0
    for folder, inner, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        inner[:] = [] if real in seen else sorted(name for name in inner if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        here = Path(os.path.relpath(folder, root)).as_posix()
        for name in sorted(names):
            if not name.startswith("."):
                yield "" if here == "." else here, name
                count += 1
                if limit is not None and count >= limit:
                    return


def _patterns(spec: SampleSpec) -> list[str]:
    return [spec.files] if isinstance(spec.files, str) else list(spec.files or ())


def _subject(spec: SampleSpec, key: str) -> str:
    match = re.search(spec.subject, key) if spec.subject else None
    if match is None:
        return key
    return match.group(1) if match.groups() and match.group(1) else match.group(0)


def _from_table(spec: SampleSpec, root: Path) -> list[Sample]:
    table = root / str(spec.table)
    try:
        names, rows = read_rows(table)
    except (ValueError, OSError) as error:
        raise DataError(f"{table}: {error}") from error
    if "path" not in names:
        raise DataError(f"{table}:1: no column 'path'; it has {', '.join(map(printable, names))}")
    faults: list[str] = []
    samples: dict[Path, Sample] = {}
    for line, cells in rows:
        values = {name: cells[name].strip() for name in names}
        sample = _row(spec, table, values)
        said = values.get("split", "").lower()
        if not values["path"]:
            faults.append(f"{table}:{line}: the path is empty")
        elif said and said not in _PARTS:
            faults.append(f"{table}:{line}: split is {printable(said)!r}, not train, val or test")
        elif sample.path in samples:
            faults.append(f"{table}:{line}: a second row for {printable(sample.key)}; keep one")
        elif not sample.path.exists():
            faults.append(f"{table}:{line}: {printable(str(sample.path))}: no such file")
        else:
            samples[sample.path] = sample
    if faults:
        more = [f"and {len(faults) - _NAMED} more"] if len(faults) > _NAMED else []
        raise DataError(_bulleted(f"{len(faults)} fault(s) in {table}:", [*faults[:_NAMED], *more]))
    if not samples:
        raise DataError(f"{table}: no rows below the header; it names one file per row")
    return list(samples.values())


def _row(spec: SampleSpec, table: Path, values: Mapping[str, str]) -> Sample:
    key = Path(values["path"]).as_posix()
    return Sample(
        key=key,
        path=Path(os.path.abspath(table.parent / _path(values["path"]))),
        label=values.get("label") or None,
        subject=values.get("subject") or _subject(spec, key),
        split=_PARTS.get(values.get("split", "").lower()),
        extra={name: value for name, value in values.items() if name not in _COLUMNS},
    )


def _bulleted(title: str, lines: Sequence[str]) -> str:
    return title + "".join(f"\n  - {line}" for line in lines)
