"""A data spec's cohort as nnU-Net's raw folder, with nothing of it lost on the way.

What nnU-Net has no place for goes into two files beside its own: ``presence.json`` says which files are placeholders,
``medmae.json`` what every file was made from, so that a second run keeps what did not change. ``dataset.json``, without
which nnU-Net does not look at the folder, is written last: a conversion that was interrupted is never trained on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medmae.atomic import write_text
from medmae.core.errors import DataError, UsageError
from medmae.data.cohort import Case, Cohort
from medmae.data.readers import inspect, split_channel
from medmae.transfer.nnunet.case_files import ENDING, Job, Written, image_name, write_cases, write_constant
from medmae.transfer.nnunet.folders import Folders
from medmae.transfer.nnunet.label_scheme import Kind, LabelScheme
from medmae.transfer.nnunet.presence import Presence

RECORD = "medmae.json"
VERSION = 1  # of what is written: raise it when the same source gives other files
FEW = 5  # below this nnU-Net's own five-fold split fails, and a validation means little
_CT = ("ct", "cta", "ctc")
_PARTS = {"Tr": ("imagesTr", "labelsTr"), "Ts": ("imagesTs", "labelsTs")}


def dataset_name(dataset_id: int, name: str) -> str:
    """``Dataset501_Name``.

    Raises:
        UsageError: a number or name that nnU-Net does not take.
    """
    if not 1 <= dataset_id <= 999:
        raise UsageError(f"--dataset-id {dataset_id}: nnU-Net numbers its data sets from 1 to 999")
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    if not plain:
        raise UsageError(f"--name {name!r}: a data set's name needs letters or digits")
    return f"Dataset{dataset_id:03d}_{plain}"


def channel_name(sequence: str) -> str:
    """What dataset.json calls a sequence: every kind of CT is ``CT``, which is how nnU-Net knows to normalize it so."""
    return "CT" if sequence in _CT else sequence


def labeled_cases(cohort: Cohort) -> tuple[Case, ...]:
    """The cases to train and validate on: those outside the test part that have a label."""
    parts = cohort.split()
    return tuple(case for part in ("train", "val") for case in parts[part] if case.label is not None)


def write_raw(
    cohort: Cohort,
    folders: Folders,
    *,
    dataset_id: int,
    name: str,
    workers: int = 0,
    label: Kind = "classes",
    say: Callable[[str], None] | None = None,
    quiet: bool = True,
) -> str:
    """Write ``DatasetXXX_Name`` into nnU-Net's raw folder and return its name; what did not change is kept.

    Labeled cases of the train and val parts become ``imagesTr`` and ``labelsTr``, the test part ``imagesTs`` and, where
    it has labels, ``labelsTs``. Cases without a label outside the test part are left out. Files are links to the
    originals; copies where the format, the grid, non-finite values or the label values make it necessary. Missing
    sequences become files of one value: 0, or for CT the mean over the labeled voxels of the training cases that have
    it, which is what nnU-Net's plans will hold (their standard deviation comes out smaller than without such cases).

    Args:
        cohort: of :func:`medmae.data.cohort.open_cohort`.
        folders: nnU-Net's folders.
        dataset_id: 1 to 999, not used by another data set.
        name: of the data set.
        workers: processes; 0 is this one.
        label: train on the spec's classes or its regions.
        say: told what the user should know.
        quiet: show no progress bar.

    Raises:
        UsageError: no labels in the spec, the number is taken, or a folder of that name that is not ours.
        DataError: unreadable files, labels or grids that do not fit (all cases at once), fewer than two labeled cases.
    """
    tell = say or (lambda text: None)
    spec = cohort.spec
    if spec.label is None:
        raise UsageError(
            f"{spec.path or spec.name}: the spec has no 'label', and a segmentation is learned from labels: "
            "add label: {file: ..., classes: {background: 0, ...}}"
        )
    scheme = LabelScheme.of(spec.label, kind=label)
    dataset = dataset_name(dataset_id, name)
    train = labeled_cases(cohort)
    parts = cohort.split()
    test = parts["test"]
    left_out = len(cohort.cases) - len(train) - len(test)
    if len(train) < 2:
        raise DataError(
            f"{len(train)} case(s) with a label outside the test part: at least 2 are needed, one to train on and one "
            "to validate. Correct label.file in the spec, or give less to split.test"
        )
    if left_out:
        tell(f"{left_out} case(s) without a label left out of the training data")
    if len(train) < FEW:
        tell(f"only {len(train)} labeled case(s) to train and validate on: expect little of the numbers")
    folder = folders.raw / dataset
    record = _claim(folders.raw, folder)
    jobs = [_job(case, cohort, scheme, folder, "Tr") for case in train]
    jobs += [_job(case, cohort, scheme, folder, "Ts") for case in test]
    marks = {job.name: _mark(job) for job in jobs}
    kept = {
        name: entry
        for name, entry in record.items()
        if entry["mark"] == marks.get(name) and all((folder / file).exists() for file in entry["files"].values())
    }
    todo = [job for job in jobs if job.name not in kept]
    if todo or len(kept) < len(record):
        (folder / "dataset.json").unlink(missing_ok=True)  # so that nnU-Net leaves the folder alone until it is whole
    _forget(folder, record, kept)
    done = write_cases(todo, workers=workers, what="converting", quiet=quiet)
    entries = dict(kept)
    for job, written in zip(todo, done, strict=True):
        if written.skipped:
            tell(f"case {job.name} left out: {written.skipped}")
        else:
            entries[job.name] = _entry(folder, written, marks[job.name], trained=job.image_folder.name == "imagesTr")
    trained = [name for name, entry in entries.items() if entry["trained"]]
    if len(trained) < 2:
        _save(folder, entries)
        raise DataError(f"{len(trained)} labeled case(s) are left on one grid; at least 2 are needed")
    empty = [name for name in trained if entries[name]["empty"]]
    if len(empty) == len(trained):
        _save(folder, entries)
        raise DataError(f"every label is empty: none of {', '.join(spec.label.classes)} but the background occurs")
    if empty:
        tell(f"{len(empty)} training case(s) with an empty label, such as {empty[0]}: background only")
    values = _values(cohort.sequences, [entries[name] for name in trained])
    filled = _close_gaps(folder, entries, cohort.sequences, values)
    _save(folder, entries)
    _sweep(folder, entries)
    presence = Presence(cohort.sequences, {name: tuple(entry["present"]) for name, entry in entries.items()}, filled)
    presence.save(folder)
    about = _dataset(cohort, scheme, entries, trained=len(trained))
    _write_if_new(folder / "dataset.json", about)
    copied = sum(entry["copied"] for entry in entries.values())
    tell(
        f"{dataset}: {len(trained)} case(s) to train on, {len(entries) - len(trained)} to test on; "
        f"{len(kept)} unchanged; {copied} file(s) converted, the others are links"
    )
    from medmae.transfer.nnunet.placeholders import gaps

    if gaps(presence):
        tell(gaps(presence))
    return dataset


def _claim(raw: Path, folder: Path) -> dict[str, Any]:
    """What is known of the folder's files, after making sure that the folder and its number are ours."""
    number = folder.name.split("_")[0]
    others = sorted(path.name for path in raw.glob(f"{number}_*") if path.name != folder.name)
    if others:
        raise UsageError(
            f"{raw} holds {others[0]} already, and nnU-Net knows data sets by number: choose another --dataset-id"
        )
    path = folder / RECORD
    if path.is_file():
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            return dict(value["cases"]) if value["version"] == VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} was not written from a data spec: choose another --dataset-id or --name")
    folder.mkdir(parents=True, exist_ok=True)
    _save(folder, {})
    return {}


def _job(case: Case, cohort: Cohort, scheme: LabelScheme, folder: Path, part: str) -> Job:
    images, labels = _PARTS[part]
    return Job(
        key=case.key,
        name=case.file_stem,
        images={name: case.images[name] for name in cohort.sequences if name in case.images},
        label=case.label,
        channels=cohort.sequences,
        mapping=scheme.mapping,
        on_mismatch=cohort.spec.geometry.on_mismatch,
        image_folder=folder / images,
        label_folder=None if case.label is None else folder / labels,
        average=tuple(name for name in cohort.sequences if name in _CT) if part == "Tr" else (),
    )


def _mark(job: Job) -> str:
    """A hash of everything that the files of a case are made from."""
    sources: dict[str, Any] = {}
    for role, path in (*job.images.items(), ("label", job.label)):
        if path is not None:
            file = split_channel(path)[0]
            try:
                stat = file.stat()
                sources[role] = [str(path), stat.st_size, stat.st_mtime_ns]
            except OSError:
                sources[role] = [str(path)]
    rest = [job.image_folder.name, job.channels, sorted(job.mapping.items()), job.on_mismatch]
    return hashlib.sha256(json.dumps([sources, list(sources), rest]).encode(errors="surrogatepass")).hexdigest()


def _entry(folder: Path, written: Written, mark: str, *, trained: bool) -> dict[str, Any]:
    files = {name: str(path.relative_to(folder)) for name, path in written.images.items()}
    if written.label is not None:
        files["label"] = str(written.label.relative_to(folder))
    return {
        "mark": mark,
        "trained": trained,
        "present": list(written.images),
        "files": files,
        "gaps": {},
        "axes": written.axes,
        "copied": written.copied,
        "means": dict(written.means),
        "empty": written.empty,
    }


def _forget(folder: Path, record: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    """Remove the files of cases that are gone or changed."""
    _save(folder, kept)
    for name, entry in record.items():
        if name not in kept:
            for file in (*entry["files"].values(), *(gap[0] for gap in entry["gaps"].values())):
                if Path(file).parent.name in {part for names in _PARTS.values() for part in names}:
                    (folder / file).unlink(missing_ok=True)


def _sweep(folder: Path, entries: Mapping[str, Any]) -> None:
    """Remove from the training folders what an interrupted run left: nnU-Net would take it for cases."""
    ours = {
        str(folder / file)
        for entry in entries.values()
        for file in (*entry["files"].values(), *(gap[0] for gap in entry["gaps"].values()))
    }
    for part in _PARTS["Tr"]:
        for path in (folder / part).glob(f"*{ENDING}"):
            if str(path) not in ours:
                path.unlink()


def _values(sequences: Sequence[str], trained: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The value of each sequence's placeholders: the mean over cases, each counting alike as in the fingerprint."""
    values = {}
    for name in sequences:
        means = [entry["means"][name] for entry in trained if name in entry["means"]]
        values[name] = sum(means) / len(means) if means else 0.0
    return values


def _close_gaps(
    folder: Path, entries: Mapping[str, dict[str, Any]], sequences: Sequence[str], values: Mapping[str, float]
) -> dict[str, float]:
    """Write the placeholders that are not there yet; which sequences have any, with their value."""
    filled = {}
    for name, entry in entries.items():
        images = "imagesTr" if entry["trained"] else "imagesTs"
        header = None
        for i, sequence in enumerate(sequences):
            if sequence in entry["present"]:
                continue
            filled[sequence] = values[sequence]
            file = f"{images}/{image_name(name, i)}"
            if entry["gaps"].get(sequence) == [file, values[sequence]] and (folder / file).is_file():
                continue
            if header is None:
                header = inspect(folder / entry["files"][entry["present"][0]], length=False)
            write_constant(folder / file, header, values[sequence])
            entry["gaps"][sequence] = [file, values[sequence]]
    return filled


def _dataset(
    cohort: Cohort, scheme: LabelScheme, entries: Mapping[str, Mapping[str, Any]], *, trained: int
) -> dict[str, Any]:
    about: dict[str, Any] = {
        "channel_names": {str(i): channel_name(name) for i, name in enumerate(cohort.sequences)},
        **scheme.dataset(),
        "numTraining": trained,
        "file_ending": ENDING,
        "name": cohort.spec.name,
        "license": cohort.spec.license,
    }
    if len({entry["axes"] for entry in entries.values()}) > 1:
        about["overwrite_image_reader_writer"] = "NibabelIOWithReorient"  # else axes would mean other things per case
    content = {name: [entry["mark"], entry["gaps"]] for name, entry in sorted(entries.items())}
    digest = hashlib.sha256(json.dumps([VERSION, about, content], sort_keys=True).encode()).hexdigest()
    about["medmae"] = {"sequences": list(cohort.sequences), "digest": digest}
    return about


def _save(folder: Path, entries: Mapping[str, Any]) -> None:
    _write_if_new(folder / RECORD, {"version": VERSION, "cases": dict(sorted(entries.items()))})


def _write_if_new(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
