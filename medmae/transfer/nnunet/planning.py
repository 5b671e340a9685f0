"""Fingerprint, plan and preprocess a dataset with nnU-Net's own functions, in this process.

Two things are done around them. Every file is read and judged first, because nnU-Net's readers fill truncated files
with zeros and its workers die without naming a case. And the fingerprint does not draw more voxels than help: nnU-Net
draws 1e8 in all, with replacement, however few cases there are.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmae.atomic import write_text
from medmae.core.errors import DataError, UsageError

from .folders import Folders, number_of, require
from .plans import configuration as configuration_of
from .plans import read_dataset, read_plans
from .pools import workers as use_workers
from .presence import Presence

PLANNERS = {
    "default": "ExperimentPlanner",
    "ResEncM": "nnUNetPlannerResEncM",
    "ResEncL": "nnUNetPlannerResEncL",
    "ResEncXL": "nnUNetPlannerResEncXL",
}
VOXELS_PER_CASE = 1_000_000
"""What nnU-Net draws per case of a hundred; fewer cases do not make more of them useful."""
FOLDS = 5
SPLITS = "splits_final.json"


@dataclass(frozen=True)
class Planned:
    """A planned and preprocessed dataset.

    Attributes:
        dataset: its full name.
        name: of the plans, what ``--plans`` takes.
        path: of the plans file.
        cases: number of training cases.
        summary: patch, batch and spacing of every configuration that was preprocessed.
    """

    dataset: str
    name: str
    path: Path
    cases: int
    summary: dict[str, Any]


def plan(
    dataset: str | int,
    *,
    folders: Folders,
    planner: str = "ResEncM",
    configurations: tuple[str, ...] = ("3d_fullres",),
    name: str | None = None,
    gpu_memory: float | None = None,
    workers: int = 0,
    check: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Planned:
    """Plan a raw dataset and preprocess it; plans that exist are kept, with whatever was changed in them by hand.

    Args:
        dataset: name or number of a dataset in ``folders.raw``.
        folders: where nnU-Net's data lies.
        planner: ``default``, ``ResEncM``, ``ResEncL``, ``ResEncXL``, or the class name of any planner of nnU-Net.
        configurations: what to preprocess.
        name: of the plans; default: the planner's own.
        gpu_memory: gigabytes to plan for; default: the planner's own.
        workers: processes; 0 works in this one. With more, a script that calls this needs a ``__main__`` guard.
        check: read every file first and name all faults.
        overwrite: plan anew where plans of this name exist.
        say: told what happens.

    Raises:
        MissingDependency: no nnU-Net.
        UsageError: unknown dataset, planner or configuration.
        DataError: a case cannot be used; all faults are listed.
    """
    require()
    full = folders.dataset(dataset)
    raw = folders.raw / full
    if not raw.is_dir():
        raise UsageError(
            f"{full} is not in {folders.raw}: planning needs the raw data (imagesTr, labelsTr, dataset.json)"
        )
    read_dataset(raw)
    planner_class = _planner(planner)
    if check:
        say(f"Reading every file of {raw}")
        check_raw(raw, workers=workers)
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    class Fingerprint(DatasetFingerprintExtractor):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            usual: float = self.num_foreground_voxels_for_intensitystats  # type: ignore[has-type]
            self.num_foreground_voxels_for_intensitystats = min(usual, VOXELS_PER_CASE * max(1, len(self.dataset)))

    number, processes = number_of(full), max(1, workers)
    home = folders.preprocessed / full
    with use_workers(workers, augment=processes), _blaming_data(full, checked=check):
        identifier = name or _usual_name(planner_class)
        path = home / f"{identifier}.json"
        if path.is_file() and not overwrite:
            say(f"Keeping {path} as it is; --overwrite plans anew")
        else:
            say(f"Taking the fingerprint of {full}")
            api.extract_fingerprint_dataset(number, Fingerprint, processes, verbose=False, show_progress_bar=False)
            api.plan_experiment_dataset(number, planner_class, gpu_memory, overwrite_plans_name=identifier)
        plans = read_plans(path)
        for wanted in configurations:
            configuration_of(plans, wanted)
        say(f"Preprocessing {', '.join(configurations)} as {identifier} says")
        api.preprocess_dataset(
            number, identifier, configurations, (processes,) * len(configurations), show_progress_bar=False
        )
    first = configurations[0]
    cases = prepared_cases(home / configuration_of(plans, first)["data_identifier"], full, identifier, first)
    if len(cases) > 1 and (done := ensure_splits(home, cases)) is not None:
        say(done)
    return Planned(
        dataset=full,
        name=identifier,
        path=path,
        cases=len(cases),
        summary={wanted: describe(plans, wanted) for wanted in configurations},
    )


@contextmanager
def _blaming_data(dataset: str, *, checked: bool) -> Iterator[None]:
    """Where nobody looked at the files, what nnU-Net stumbles over is most likely one of them."""
    try:
        yield
    except (IndexError, RuntimeError, AssertionError, ValueError) as error:
        if checked:
            raise
        raise DataError(
            f"nnU-Net could not prepare {dataset}, whose files were not checked ({type(error).__name__}: {error}). "
            f"`medmae nnunet plan {dataset}` without --no-check says which files are at fault"
        ) from error


def describe(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """Patch, batch size, spacing, stages and normalization of a configuration, for people to read."""
    values = configuration_of(plans, name)
    network = values.get("architecture") or {}
    return {
        "network": str(network.get("network_class_name", "")).rpartition(".")[2],
        "patch": list(values["patch_size"]),
        "batch": values["batch_size"],
        "spacing": [round(float(step), 3) for step in values["spacing"]],
        "stages": (network.get("arch_kwargs") or {}).get("n_stages"),
        "normalization": list(values["normalization_schemes"]),
    }


def check_raw(raw: Path, *, workers: int = 0) -> None:
    """Read every file of a raw dataset.

    Raises:
        DataError: with every fault of every case: unreadable, truncated, another grid, NaN, unknown labels, and
            sequences or labels that are not there.
    """
    from medmae.data.check import check_cohort
    from medmae.data.cohort import find_cohort

    checked = check_cohort(find_cohort(str(raw)), workers=workers)
    faults = [*checked.listing, *(finding.text() for finding in checked.findings if finding.error)]
    presence = Presence.load(raw)
    filled = {} if presence is None else presence.cases
    for case in checked.cohort.cases:
        lacking = [name for name in checked.cohort.sequences if name not in case.images and case.key not in filled]
        if lacking:
            faults.append(
                f"{case.key}: no {', '.join(lacking)}; nnU-Net wants a file for every channel. "
                "`medmae finetune segment --backend nnunet` writes a dataset with placeholders for what is missing"
            )
        if case.label is None:
            faults.append(f"{case.key}: no label in labelsTr")
    if faults:
        raise DataError(
            f"{raw}: nnU-Net cannot use {len(faults)} thing(s) as they are. Correct or remove them, and plan again "
            "(--no-check plans in spite of them):\n  - " + "\n  - ".join(faults)
        )


def prepared_cases(folder: Path, dataset: str, plans: str, configuration: str) -> tuple[str, ...]:
    """Names of the cases that were preprocessed for a configuration.

    Raises:
        DataError: there are none.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    found: tuple[str, ...] = ()
    if folder.is_dir() and any(folder.iterdir()):
        found = tuple(map(str, infer_dataset_class(str(folder)).get_identifiers(str(folder))))
    if not found:
        raise DataError(
            f"{folder} holds no preprocessed case: run `medmae nnunet plan {dataset} --configuration {configuration}` "
            f"(or nnUNetv2_preprocess -d {dataset} -plans_name {plans} -c {configuration})"
        )
    return found


def ensure_splits(preprocessed: Path, cases: tuple[str, ...]) -> str | None:
    """Write leave-one-out splits where nnU-Net would fail to make its five.

    Args:
        preprocessed: the dataset's preprocessed folder.
        cases: names of its training cases.

    Returns:
        What was done, in words; None where nothing was needed.

    Raises:
        DataError: one case only, which cannot be split.
    """
    path = preprocessed / SPLITS
    if path.is_file() or len(cases) >= FOLDS:
        return None
    if len(cases) < 2:
        raise DataError(
            f"{preprocessed.name} has {len(cases)} training case(s), which cannot be split into training and "
            "validation: add cases, or train on all with --fold all"
        )
    ordered = sorted(cases)
    splits = [{"train": [other for other in ordered if other != case], "val": [case]} for case in ordered]
    write_text(path, json.dumps(splits, indent=1) + "\n")
    return f"{len(cases)} cases are too few for five folds: wrote {len(splits)} leave-one-out folds to {path}"


def check_fold(preprocessed: Path, fold: int | str) -> None:
    """Refuse a fold that there is none of; nnU-Net would train on a random part of the cases in its place.

    Raises:
        UsageError: it is not in the splits, or beyond the five that nnU-Net makes where there are none.
        DataError: the splits cannot be read.
    """
    path, count = preprocessed / SPLITS, FOLDS
    if path.is_file():
        try:
            count = len(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: these splits cannot be read ({error}); take the file away or mend it") from error
    if fold != "all" and int(fold) >= count:
        raise UsageError(f"there is no fold {fold} of {preprocessed.name}; it has {count}, from 0 to {count - 1}")


def _usual_name(planner: Any) -> str:
    """What a planner calls its plans."""
    return str(inspect.signature(planner.__init__).parameters["plans_name"].default)


def _planner(name: str) -> Any:
    """A planner class of nnU-Net by short or class name."""
    from pathlib import PurePath

    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    short = {key.lower(): value for key, value in PLANNERS.items()}
    wanted = short.get(name.lower(), name)
    folder = str(PurePath(nnunetv2.__path__[0], "experiment_planning"))
    found = recursive_find_python_class(folder, wanted, "nnunetv2.experiment_planning")
    if found is None:
        raise UsageError(f"nnU-Net has no planner {name!r}; there is {', '.join(PLANNERS)}, or a planner's class name")
    return found
