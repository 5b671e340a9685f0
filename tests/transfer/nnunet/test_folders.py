"""Where nnU-Net's data lies, and which dataset is meant."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from medmae.core.errors import MissingDependency, UsageError
from medmae.transfer.nnunet import folders as module
from medmae.transfer.nnunet.folders import KINDS, Folders, number_of, require, shim, variable


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for kind in KINDS:
        monkeypatch.setenv(variable(kind), "to be restored")
        monkeypatch.delenv(variable(kind))
    monkeypatch.chdir(tmp_path)


def test_the_root_wins_over_the_environment(tmp_path: Path) -> None:
    given = {variable("raw"): "/elsewhere/raw"}
    assert Folders.choose(tmp_path / "mine", environment=given).raw == tmp_path / "mine" / "nnUNet_raw"
    inside = Folders.choose(tmp_path / "mine" / "nnUNet_raw")
    assert inside.results == tmp_path / "mine" / "nnUNet_results"


def test_variables_that_are_set_are_kept(tmp_path: Path) -> None:
    found = Folders.choose(environment={variable("raw"): "/elsewhere/raw"})
    assert found.raw == Path("/elsewhere/raw")
    assert found.results == tmp_path / "nnunet" / "nnUNet_results"


def test_use_tells_this_process_and_modules_that_copied_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old: Any = ModuleType("nnunetv2.older")
    old.nnUNet_raw, old.nnUNet_results = "/before", object()
    kept = old.nnUNet_results
    monkeypatch.setitem(sys.modules, "nnunetv2.older", old)
    found = Folders.use(tmp_path, results=tmp_path / "apart")
    assert os.environ["nnUNet_raw"] == str(tmp_path / "nnUNet_raw") == old.nnUNet_raw  # noqa: SIM112
    assert os.environ["nnUNet_results"] == str(tmp_path / "apart") == str(found.results)  # noqa: SIM112
    assert old.nnUNet_results is kept  # newer releases look the variable up themselves


@pytest.mark.parametrize("name", [5, "5", "005", "Dataset005_Heart", "Heart", "some/where/Dataset005_Heart"])
def test_a_dataset_by_any_of_its_names(tmp_path: Path, name: str | int) -> None:
    (tmp_path / "nnUNet_preprocessed" / "Dataset005_Heart").mkdir(parents=True)
    (tmp_path / "nnUNet_raw" / "Dataset015_Liver").mkdir(parents=True)
    assert Folders.choose(tmp_path).dataset(name) == "Dataset005_Heart"


def test_an_unknown_dataset_lists_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "nnUNet_raw" / "Dataset005_Heart").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no nnU-Net dataset '6'.*there is Dataset005_Heart"):
        Folders.choose(tmp_path).dataset(6)
    (tmp_path / "nnUNet_results" / "Dataset005_Other").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"Dataset005_Heart or Dataset005_Other"):
        Folders.choose(tmp_path).dataset(5)
    with pytest.raises(UsageError, match="there is none"):
        Folders.choose(tmp_path / "empty").dataset(5)


def test_the_number_of_a_dataset() -> None:
    assert number_of("Dataset005_Heart") == 5
    with pytest.raises(UsageError, match="Dataset001_Name"):
        number_of("Heart")


def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        Folders.choose(tmp_path / "file")


def test_without_nnunet_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "nnunetv2" else real(name, *a))
    with pytest.raises(MissingDependency, match=r"pip install 'medmae\[nnunet\]'"):
        require()


def test_an_old_nnunet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: object())
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "2.6.4")
    with pytest.raises(MissingDependency, match=r"nnU-Net 2.6.4 is installed, 2.8 or newer"):
        require()


def test_the_shim_folder_holds_one_file() -> None:
    assert [path.name for path in shim().iterdir() if path.name != "__pycache__"] == ["medmae_trainer.py"]
