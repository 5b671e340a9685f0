"""Where nnU-Net's data lies, without environment variables to set.

nnU-Net finds its three folders (raw, preprocessed, results) through environment variables of the process. A user of
medmae names one root instead, or nothing: the variables are then set for this process only, before nnU-Net is
imported, and for the worker processes it starts. A user who has the variables already keeps them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from medmae.core.errors import MissingDependency, UsageError
from medmae.torchvision_guard import guard

KINDS = ("raw", "preprocessed", "results")
DEFAULT_ROOT = "nnunet"
OLDEST = (2, 8)
PIP = "pip install 'medmae[nnunet]'"
_NAME = re.compile(r"Dataset(\d{3,})_\S+")


def variable(kind: str) -> str:
    """nnU-Net's environment variable of one of its folders."""
    return f"nnUNet_{kind}"


def require() -> None:
    """Make ``import nnunetv2`` possible, or say how to get there.

    Raises:
        MissingDependency: nnU-Net is absent or too old, or a part that it imports is.
    """
    if importlib.util.find_spec("nnunetv2") is None:
        raise MissingDependency(f"nnU-Net is not installed, and this command runs it. Install it with: {PIP}")
    found = importlib.metadata.version("nnunetv2")
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MissingDependency(f"nnU-Net {found} is installed, {oldest} or newer is needed: {PIP} --upgrade")
    if sys.version_info >= (3, 12):  # nnU-Net copies labels with distutils, which Python dropped and setuptools brings
        if importlib.util.find_spec("setuptools") is None:
            raise MissingDependency("nnU-Net needs setuptools on this Python: pip install setuptools")
        importlib.import_module("setuptools")
    guard()


def shim() -> Path:
    """The folder that ``nnUNet_extTrainer`` takes, so that nnU-Net's own commands know the medmae trainer."""
    return Path(__file__).parent / "shim"


@dataclass(frozen=True)
class Folders:
    """nnU-Net's three folders, in use by this process.

    Attributes:
        raw: ``DatasetXXX_Name`` folders with images, labels and dataset.json.
        preprocessed: plans, splits and prepared cases by dataset.
        results: trained models by dataset.
    """

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def use(cls, root: str | Path | None = None, *, results: str | Path | None = None) -> Folders:
        """Choose the folders for this process and make nnU-Net see them.

        Args:
            root: folder that holds (or will hold) ``nnUNet_raw``, ``nnUNet_preprocessed`` and ``nnUNet_results``.
                Without it the environment variables of these names count, and where one is not set, ``./nnunet``.
            results: another folder for trained models, so that trainings with the same plans do not meet.
        """
        folders = cls.choose(root)
        if results is not None:
            folders = replace(folders, results=Path(results).expanduser().absolute())
        for kind in KINDS:
            folder = getattr(folders, kind)
            os.environ[variable(kind)] = str(folder)
            _tell_imported(variable(kind), str(folder))
        return folders

    @classmethod
    def choose(cls, root: str | Path | None = None, *, environment: Mapping[str, str] | None = None) -> Folders:
        """The folders that :meth:`use` would choose, changing nothing.

        Raises:
            UsageError: ``root`` is a file.
        """
        given = (os.environ if environment is None else environment) if root is None else {}
        home = Path(DEFAULT_ROOT if root is None else root).expanduser().absolute()
        if home.is_file():
            raise UsageError(f"{home} is a file; --nnunet-root takes the folder that holds nnUNet_raw")
        if root is not None and home.name in map(variable, KINDS):
            home = home.parent
        return cls(*(Path(given.get(variable(kind)) or home / variable(kind)).absolute() for kind in KINDS))

    def __str__(self) -> str:
        return f"raw {self.raw}, preprocessed {self.preprocessed}, results {self.results}"

    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets that any of the three folders knows."""
        found = set()
        for kind in KINDS:
            folder: Path = getattr(self, kind)
            if folder.is_dir():
                found |= {item.name for item in folder.iterdir() if item.is_dir() and _NAME.fullmatch(item.name)}
        return tuple(sorted(found))

    def dataset(self, name: str | int) -> str:
        """The full name of a dataset, from its name, its number, or what follows the number.

        Raises:
            UsageError: no dataset is called so, or several are; the message lists what there is.
        """
        wanted, known = str(name), self.datasets()
        path = Path(wanted).name
        if wanted in known or path in known:
            return wanted if wanted in known else path
        matches = [item for item in known if _matches(item, wanted)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UsageError(f"dataset {wanted!r} could be {' or '.join(matches)}: give the full name")
        there = ", ".join(known) or "none"
        raise UsageError(
            f"no nnU-Net dataset {wanted!r} in {self.raw.parent}: there is {there}. Give --nnunet-root, "
            "or put the dataset in nnUNet_raw/Dataset001_Name (imagesTr, labelsTr, dataset.json)"
        )


def number_of(dataset: str) -> int:
    """The number of a dataset from its full name."""
    match = _NAME.fullmatch(dataset)
    if match is None:
        raise UsageError(f"{dataset!r} is no nnU-Net dataset name; they look like Dataset001_Name")
    return int(match[1])


def _matches(dataset: str, wanted: str) -> bool:
    number, _, rest = dataset.removeprefix("Dataset").partition("_")
    return rest == wanted or (wanted.isdecimal() and int(wanted) == int(number))


def _tell_imported(name: str, folder: str) -> None:
    """Reach modules that copied a folder when they were imported; newer nnU-Nets look the variable up each time."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "nnunetv2" and isinstance(vars(module).get(name), str):
            setattr(module, name, folder)
