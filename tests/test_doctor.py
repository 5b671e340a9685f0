"""The doctor finds what is broken, says how to mend it, and never falls ill itself."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from medmae import doctor
from medmae.cli import main


def test_facts_of_this_machine(tmp_path: Path) -> None:
    diagnosis = doctor.examine(folder=tmp_path, imports=False)
    facts = json.loads(json.dumps(diagnosis.describe()))
    assert facts["healthy"], facts["problems"]
    assert facts["packages"]["torch"]
    assert facts["packages"]["nibabel"]
    assert facts["torchvision"]["state"] in {"native", "guarded", "absent"}
    assert facts["machine"]["cores"] >= 1
    assert 0 < facts["machine"]["ram_free_gib"] <= facts["machine"]["ram_gib"]
    assert {"demo", "nnunet", "log", "dicom"} <= set(facts["extras"])
    assert not {"all", "dev"} & set(facts["extras"])
    assert "nilearn" in facts["extras"]["demo"]
    step = facts["training_step"][0]
    assert step["device"] == "cpu"
    assert step["after"] != step["before"]


def test_a_training_step_leaves_the_random_state_alone() -> None:
    import torch

    before = torch.get_rng_state()
    first, second = doctor.training_step("cpu"), doctor.training_step("cpu")
    assert torch.equal(before, torch.get_rng_state())
    assert first["before"] == second["before"]


def test_a_failing_training_step_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> dict[str, object]:
        raise RuntimeError(f"no kernel on {device}")

    monkeypatch.setattr(doctor, "training_step", broken)
    diagnosis = doctor.examine(imports=False)
    assert not diagnosis.healthy
    assert [problem.needed for problem in diagnosis.problems if "no kernel on cpu" in problem.what] == [True]


def test_missing_and_outdated_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def other(name: str) -> str:
        if name in ("blosc2", "nilearn"):
            raise importlib.metadata.PackageNotFoundError(name)
        return {"nibabel": "3.0", "av": "1.0"}.get(name) or version(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", other)
    core, extras, problems = doctor.packages()
    found = {problem.what: problem for problem in problems}
    assert core["blosc2"] is None
    assert found["blosc2 is missing"].needed
    assert found["blosc2 is missing"].remedy.startswith("pip install 'blosc2>=")
    old = next(problem for what, problem in found.items() if what.startswith("nibabel 3.0 does not satisfy"))
    assert old.needed
    assert extras["demo"]["nilearn"] is None
    assert not any("nilearn" in what for what in found)  # an absent extra is no fault
    extra = next(problem for what, problem in found.items() if what.startswith("av 1.0"))
    assert not extra.needed
    assert extra.remedy == "pip install 'medmae[video]'"


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", absent)
    _, _, problems = doctor.packages()
    assert [problem.needed for problem in problems] == [True]


def test_broken_imports_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that raises, one that kills the interpreter, and one after it that is fine."""
    (tmp_path / "raises_it.py").write_text("raise OSError('libfoo.so.1: cannot open')\n")
    (tmp_path / "kills_it.py").write_text("import os\nos._exit(11)\n")
    (tmp_path / "chatty.py").write_text("print('{not json')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    problems = doctor.import_problems(["raises_it", "kills_it", "chatty", "json"], needed=True)
    assert ["libfoo.so.1" in problems[0].what, "kills_it" in problems[1].what, len(problems)] == [True, True, 2]
    assert all(problem.needed for problem in problems)


def test_little_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = SimpleNamespace(total=64 * 2**20, free=2**20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: small)
    monkeypatch.setattr(doctor, "_memory_limit", lambda: 2 * doctor.GIB)
    facts, problems = doctor._machine(tmp_path)
    assert facts["ram_gib"] == 2.0
    assert len(problems) >= 2
    assert not any(problem.needed for problem in problems)
    assert all(problem.remedy for problem in problems)


def test_driver_without_cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    facts, problems = doctor._torch()
    assert facts is not None
    assert facts["gpus"] == []
    assert ["NVIDIA driver" in problem.what and not problem.needed for problem in problems] == [True]


def test_broken_torch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    diagnosis = doctor.examine(imports=False, step=False)
    assert diagnosis.facts["torch"] is None
    assert not diagnosis.healthy


def test_command_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["healthy"]
    assert "training_step" not in facts


def test_command_says_it_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick"]) == 0
    text = capsys.readouterr().err
    for word in ("torch", "torchvision", "GPU", "RAM", "disk", "extra demo", "everything needed works"):
        assert word in text


def test_command_ends_with_4_when_something_needed_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = doctor.Problem("import monai [fails]", "pip install monai", True)
    monkeypatch.setattr(doctor, "_machine", lambda folder: (real(folder)[0], [broken]))
    assert main(["doctor", "--quick"]) == 4
    text = capsys.readouterr().err
    assert "import monai [fails]" in text
    assert "pip install monai" in text


real = doctor._machine


@pytest.mark.slow
def test_everything_needed_imports() -> None:
    diagnosis = doctor.examine(step=False)
    assert diagnosis.healthy, diagnosis.problems
