"""The data set, plans and configuration that weights are exported for, found and checked against one another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmae.core.errors import DataError, UsageError
from medmae.core.sequences import canonical, is_known
from medmae.data.readers import inspect

from .folders import Folders
from .plans import (
    array_orientation,
    axis_codes,
    channels,
    configuration,
    heads,
    inputs,
    plan_names,
    read_dataset,
    read_plans,
)


@dataclass(frozen=True)
class Target:
    """What a network will be trained on.

    Attributes:
        plans: the plans.
        dataset: dataset.json.
        name: of the configuration.
        file: the plans file.
        channels: names of the network's input channels; "" for one that is no image.
        heads: number of its output channels.
        orientation: axis codes of its arrays, empty where the images have none (PNG, TIFF).
        notes: what was assumed.
    """

    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    name: str
    file: Path
    channels: tuple[str, ...]
    heads: int
    orientation: str
    notes: tuple[str, ...] = ()


def find_target(
    dataset: str | Path,
    *,
    plans: str,
    name: str = "3d_fullres",
    root: str | Path | None = None,
    rename: Sequence[str] | None = None,
) -> Target:
    """Find and read plans and dataset.json.

    Args:
        dataset: a folder (raw or preprocessed data, or a trained model), or the number or name of a data set in
            nnU-Net's folders.
        plans: a name such as ``nnUNetResEncUNetLPlans``, or a file.
        name: configuration.
        root: folder that holds nnU-Net's three.
        rename: what the channels are, in order, where dataset.json calls them something else.

    Raises:
        UsageError: something is not there (what is there is listed), or plans and data do not belong together.
    """
    folders = Folders.choose(root)
    path = Path(dataset).expanduser()
    given = path.is_dir()
    called = path.absolute().name if given else folders.dataset(str(dataset))
    places = [path] if given else []
    if re.match(r"Dataset\d{3}", called):
        beside = [path.absolute().parent.parent / f"nnUNet_{kind}" for kind in ("preprocessed", "raw")] if given else []
        places += [base / called for base in (folders.preprocessed, folders.raw, *beside)]
    file = find_plans(plans, places, dataset)
    about = next((place for place in (*places, file.parent) if (place / "dataset.json").is_file()), None)
    if about is None:
        raise UsageError(f"{dataset}: no dataset.json in {', '.join(map(str, places))}")
    told, described = read_plans(file), read_dataset(about)
    _check_same(told, described, file=file, place=about, called=called, name=name)
    names, notes = list(inputs(told, described, name)), []
    if rename is not None:
        images = len(channels(described))
        if len(rename) != images:
            raise UsageError(f"--channels names {len(rename)} channels, {about / 'dataset.json'} has {images}")
        try:
            names[:images] = [canonical(entry) for entry in rename]
        except ValueError as error:
            raise UsageError(f"--channels: {error}") from error
    elif strange := [n for n in names if n and not is_known(n)]:
        notes.append(
            f"dataset.json calls channels {', '.join(strange)}, which are no known sequences; say what they are, in "
            "order, with --channels t1n,t1c,..."
        )
    orientation, assumed = find_orientation(told, [*places, folders.raw / str(told.get("dataset_name") or called)])
    return Target(told, described, name, file, tuple(names), heads(described), orientation, (*notes, *assumed))


def find_plans(plans: str, places: Sequence[Path], dataset: str | Path) -> Path:
    """The plans file: ``plans`` itself, or the one of that name in ``places``; messages call these ``dataset``.

    Raises:
        UsageError: there is none; those that are there are listed.
    """
    file = Path(plans).expanduser()
    if file.is_file():
        return file
    if file.suffix == ".json" or len(file.parts) > 1:
        raise UsageError(f"--plans {plans}: no such file")
    for place in places:
        for candidate in (place / f"{plans}.json", place / "plans.json"):
            if candidate.is_file() and (candidate.stem == plans or _says(candidate, plans)):
                return candidate
    there = plan_names(*places)
    looked = ", ".join(str(place) for place in places if place.is_dir()) or str(dataset)
    hint = f"there are: {', '.join(there)}" if there else "there are none; `medmae nnunet plan` makes them"
    raise UsageError(f"no plans {plans!r} in {looked}; {hint}")


def _says(file: Path, plans: str) -> bool:
    """Whether the plans that a trained model keeps as ``plans.json`` are those asked for."""
    return read_plans(file).get("plans_name") == plans


def _check_same(
    told: Mapping[str, Any], dataset: Mapping[str, Any], *, file: Path, place: Path, called: str, name: str
) -> None:
    """Plans of another data set have its channels, spacing and intensities: they fit by accident only."""
    planned = str(told.get("dataset_name") or "")
    if re.match(r"Dataset\d{3}_", called) and planned and planned != called:
        raise UsageError(
            f"{file} was made for {planned}, not for {called}; plan this data set, or take these plans over with "
            "nnUNetv2_move_plans_between_datasets"
        )
    schemes, images = configuration(told, name).get("normalization_schemes"), channels(dataset)
    if schemes is not None and len(schemes) != len(images):
        raise UsageError(
            f"{file} was made for {len(schemes)} channel(s), and {place / 'dataset.json'} has {len(images)} "
            f"({', '.join(images)}): these are plans of another data set"
        )


def find_orientation(plans: Mapping[str, Any], places: Sequence[Path]) -> tuple[str, tuple[str, ...]]:
    """Axis codes of nnU-Net's arrays, from the images that can be read, and what was assumed.

    Args:
        plans: the plans.
        places: folders of the data set that may hold ``imagesTr``; the first that does counts.

    Returns:
        The codes, "" for images without an orientation (PNG, TIFF); and notes.
    """
    reader = str(plans.get("image_reader_writer", ""))
    if "NaturalImage" in reader or "Tiff" in reader:
        return "", (f"images read by {reader} have no orientation: axes are left as they are",)
    for place in places:
        images = sorted((place / "imagesTr").glob("*"))
        codes, notes = common_orientation(plans, [i for i in images if "_0000." in i.name] or images)
        if codes:
            return codes, notes
    return array_orientation(plans), ("no image was found to read its orientation from: RAS is assumed",)


def common_orientation(plans: Mapping[str, Any], images: Iterable[Path]) -> tuple[str, tuple[str, ...]]:
    """Axis codes of most of ``images`` as arrays in nnU-Net, "" where none can be read; a note where they differ."""
    counts: Counter[str] = Counter()
    for image in images:
        try:
            counts[array_orientation(plans, axis_codes(inspect(image, length=False).affine))] += 1
        except DataError:
            continue  # whoever reads the images names it
    if not counts:
        return "", ()
    chosen = counts.most_common(1)[0][0]
    if len(counts) == 1:
        return chosen, ()
    listed = ", ".join(f"{count} {codes}" for codes, count in counts.most_common())
    return chosen, (
        f"files are stored in different orientations (arrays {listed}), and nnU-Net does not turn them; {chosen} "
        "is taken for all",
    )
