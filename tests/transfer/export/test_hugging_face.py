"""Folders for the Hugging Face hub, and models from it; the hub itself is played."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from medmae import hub
from medmae.checkpoint import from_pretrained
from medmae.cli import main
from medmae.core.errors import CheckpointError, MissingDependency

sys.path.insert(0, str(Path(__file__).parent))
from exported_models import save


class PlayedHub:
    """What is used of huggingface_hub: one repository that is a folder."""

    def __init__(self, folder: Path | None = None, *, token: str | None = "token", fails: Exception | None = None):
        self.folder, self.token, self.fails, self.asked = folder, token, fails, []

    def get_token(self):
        return self.token

    def snapshot_download(self, name, *, revision, allow_patterns):
        self.asked.append((name, revision, sorted(allow_patterns)))
        if self.fails:
            raise self.fails
        return str(self.folder)

    def HfApi(self):
        return SimpleNamespace(create_repo=lambda name, private, exist_ok: f"https://hub/{name}")

    def upload_folder(self, **given):
        self.asked.append(given)
        if self.fails:
            raise self.fails


def play(monkeypatch: pytest.MonkeyPatch, **options: object) -> PlayedHub:
    played = PlayedHub(**options)
    monkeypatch.setitem(sys.modules, "huggingface_hub", played)
    return played


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


def test_the_folder_loads_and_its_card_has_front_matter(model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["export", "hf", str(model), "--out", str(out)]) == 0
    assert "subjects" in capsys.readouterr().err  # what its readers learn of the training data is said
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    state, want = from_pretrained(out).state_dict(), from_pretrained(model).state_dict()
    assert all(torch.equal(state[key], want[key]) for key in want)
    head, _, text = (out / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    facts = yaml.safe_load(head)
    assert facts["license"] == "cc-by-4.0"
    assert facts["library_name"] == "medmae"
    assert {"bm_mae", "t1c", "medical-imaging"} <= set(facts["tags"])
    assert text.strip().startswith("# bm_mae")
    again = tmp_path / "again"  # a card gets no second front matter
    assert main(["export", "hf", str(out), "--out", str(again)]) == 0
    assert (again / "README.md").read_text() == (out / "README.md").read_text()


def test_a_license_the_hub_does_not_know_keeps_its_words(tmp_path: Path) -> None:
    model = save(tmp_path / "model", about={"license": "ask Jane: first"})
    assert main(["export", "hf", str(model), "--out", str(tmp_path / "out")]) == 0
    facts = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert facts["license"] == "other"
    assert facts["license_name"] == "ask Jane: first"


def test_refusals_leave_nothing_behind(model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    broken = save(tmp_path / "broken")
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "model.safetensors").write_bytes(weights)
    assert main(["export", "hf", str(broken), "--out", str(out)]) == 5
    assert main(["export", "hf", str(tmp_path / "none"), "--out", str(out)]) == 5
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert main(["export", "hf", str(model), "--out", str(out)]) == 2
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    assert main(["export", "hf", str(model), "--out", str(out), "--overwrite"]) == 0
    assert (out / "mine.txt").read_text() == "keep"
    assert not list(tmp_path.glob(".medmae-*"))


def test_push(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    line = ["export", "hf", str(model), "--out", str(tmp_path / "out"), "--push"]
    play(monkeypatch, token=None)
    assert main([*line, "org/name"]) == 2
    assert "HF_TOKEN" in capsys.readouterr().err
    assert main([*line, "name"]) == 2
    assert "organization/name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main([*line, "org/name"]) == 4
    assert "pip install 'medmae[hub]'" in capsys.readouterr().err
    played = play(monkeypatch)
    assert main([*line, "org/name", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["address"] == "https://hub/org/name"
    assert sorted(played.asked[0]["allow_patterns"]) == ["README.md", "config.json", "model.safetensors"]
    play(monkeypatch, fails=ConnectionError("no route"))
    assert main([*line, "org/name", "--overwrite"]) == 5
    assert "could not be uploaded" in capsys.readouterr().err


def test_a_model_from_the_hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = play(monkeypatch, folder=model)
    method = from_pretrained("org/name", revision="v1")
    assert method.sequences == ("t1n", "t1c", "t2w", "t2f")
    assert played.asked == [("org/name", "v1", ["README.md", "config.json", "model.safetensors"])]


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    play(monkeypatch, fails=ConnectionError("no route to host"))
    with pytest.raises(CheckpointError, match="cannot be reached"):
        from_pretrained("org/name")
    play(monkeypatch, fails=type("RepositoryNotFoundError", (Exception,), {})("404"))
    with pytest.raises(CheckpointError, match="there is no such model"):
        from_pretrained("org/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match=r"pip install 'medmae\[hub\]'"):
        from_pretrained("org/name")
    with pytest.raises(CheckpointError, match="does not exist"):
        from_pretrained("runs/brats/model")  # no name on the hub: no question to it


def test_the_real_package_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="could not be fetched from the Hugging Face hub: the hub cannot be"):
        from_pretrained("org/name")


def test_folders_come_before_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_id("org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not hub.is_id("org/name")
    for other in ("name", "a/b/c", "/org/name", "./name", "../name", Path("org/other")):
        assert not hub.is_id(other)


def test_the_real_package_has_what_is_used() -> None:
    import inspect

    package = pytest.importorskip("huggingface_hub")
    assert {"revision", "allow_patterns"} <= set(inspect.signature(package.snapshot_download).parameters)
    wanted = {"repo_id", "folder_path", "allow_patterns", "commit_message"}
    assert wanted <= set(inspect.signature(package.upload_folder).parameters)
    assert {"private", "exist_ok"} <= set(inspect.signature(package.HfApi.create_repo).parameters)
    assert callable(package.get_token)
