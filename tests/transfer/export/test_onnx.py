"""ONNX files answer as the networks they came from.

The exporter traces the network, which the shape checks of the test session forbid; so it runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from medmae.checkpoint import from_pretrained
from medmae.cli import main
from medmae.core.errors import CheckpointError
from medmae.find import find
from medmae.transfer.backbone import Backbone
from medmae.transfer.export.network import FeatureNetwork
from medmae.transfer.export.onnx_file import write_onnx

sys.path.insert(0, str(Path(__file__).parent))
from exported_models import save

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def export(*line: object, code: int = 0) -> dict:
    command = [sys.executable, "-m", "medmae", "export", "onnx", *map(str, line), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else {"error": done.stderr}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bm_mae", "resenc_mae", "eva_mae"])
@torch.no_grad()
def test_the_file_answers_as_the_encoder(name: str, tmp_path: Path) -> None:
    model, out = save(tmp_path / "model", name), tmp_path / "encoder.onnx"
    report = export(model, "--out", out)
    assert report["largest_difference"] <= 1e-4
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["encoder.onnx"]
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["medmae.sequences"]) == ["t1n", "t1c", "t2w", "t2f"]
    assert about["medmae.license"] == "CC BY 4.0"
    network = FeatureNetwork(Backbone(from_pretrained(model))).eval()
    draw = torch.Generator().manual_seed(5)
    image = torch.randn(4, 4, *network.size, generator=draw)
    present = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 1]]).bool()
    names = [output.name for output in session.get_outputs()]
    assert names == list(network.names)
    found = dict(zip(names, session.run(None, {"image": image.numpy(), "present": present.numpy()}), strict=True))
    for key, want in network.outputs(image, present).items():
        torch.testing.assert_close(torch.from_numpy(found[key]), want, rtol=0, atol=1e-4)
    image[~present] = 1e3  # what a missing sequence holds does not matter
    again = session.run(["pooled"], {"image": image.numpy(), "present": present.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(again), torch.from_numpy(found["pooled"]), rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_the_network_of_a_trained_nnunet_model(tmp_path: Path) -> None:
    from medmae.nets.build import resenc

    network = resenc(features=(4, 6), blocks=(1, 1), kernels=[[3, 3, 3]] * 2, strides=[[1, 1, 1], [2, 2, 2]],
                     decoder_convs=(1,))  # fmt: skip
    named = {
        "network_class_name": network.class_name,
        "arch_kwargs": network.kwargs,
        "_kw_requires_import": network.requires_import,
    }
    values = {"patch_size": [8, 12, 8], "architecture": named, "spacing": [1, 1, 1]}
    folder = tmp_path / "MedMAETrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps({"configurations": {"3d_fullres": values}}))
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": labels}))
    torch.manual_seed(3)
    trained = network.build(input_channels=2, num_classes=2).eval()
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save({"network_weights": trained.state_dict(), "init_args": {"configuration": "3d_fullres"}}, path)
    out = tmp_path / "segmenter.onnx"
    report = export(folder, "--out", out)
    assert report["outputs"] == {"logits": ["batch", 2, 8, 12, 8]}
    assert report["largest_difference"] <= 1e-4
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["medmae.outputs"]) == ["whole", "core"]
    assert about["medmae.activation"] == "sigmoid"
    image = torch.randn(2, 2, 8, 12, 8)
    found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    torch.testing.assert_close(found, trained(image), rtol=0, atol=1e-4)
    assert main(["export", "onnx", str(folder), "--out", str(tmp_path / "x.onnx"), "--fold", "3"]) == 2
    torch.save({"network_weights": network.build(input_channels=3, num_classes=2).state_dict()}, path)
    assert main(["export", "onnx", str(folder), "--out", str(tmp_path / "x.onnx")]) == 5


def test_a_file_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self, *_: object, **__: object) -> None: ...

        def run(self, _: object, given: dict) -> list:
            return [given["x"] + 2e-4]

    from types import SimpleNamespace

    program = SimpleNamespace(
        model=SimpleNamespace(metadata_props={}), save=lambda path, external_data: Path(path).write_bytes(b"x")
    )
    where = "medmae.transfer.export.onnx_file"
    monkeypatch.setattr(f"{where}._runtime", lambda: SimpleNamespace(InferenceSession=Session))
    monkeypatch.setattr(f"{where}._traced", lambda *_, **__: program)

    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (x,)

    ask = {"example": lambda n: (torch.zeros(n, 2),), "inputs": ("x",), "outputs": ("y",), "about": {}}
    with pytest.raises(CheckpointError, match=r"y by 0\.0002"):
        write_onnx(Same(), tmp_path / "x.onnx", **ask)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Session, "run", lambda self, _, given: [given["x"] * float("nan")])
    with pytest.raises(CheckpointError, match="nan"):
        write_onnx(Same(), tmp_path / "x.onnx", **ask)
    monkeypatch.setattr(Session, "run", lambda self, _, given: [given["x"] + 1e-5])
    assert write_onnx(Same(), tmp_path / "x.onnx", **ask).largest == pytest.approx(1e-5, rel=1e-3)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    out = tmp_path / "encoder.onnx"
    assert main(["export", "onnx", str(tmp_path / "none"), "--out", str(out)]) == 5
    model = save(tmp_path / "model", coords="mm")
    assert main(["export", "onnx", str(model), "--out", str(out)]) == 5
    assert "millimeters" in capsys.readouterr().err
    model = save(tmp_path / "other")
    out.write_text("mine")
    assert main(["export", "onnx", str(model), "--out", str(out)]) == 2
    assert main(["export", "onnx", str(model), "--out", str(tmp_path), "--overwrite"]) == 2
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", "onnx", str(model), "--out", str(out), "--overwrite"]) == 4
    assert "pip install 'medmae[export]'" in capsys.readouterr().err
    assert out.read_text() == "mine"


@pytest.mark.parametrize("name", ["mae", "multimae", "satmae", "point_mae"])
def test_inputs_of_several_channels_or_none_are_refused(name: str) -> None:
    """A network takes one channel per sequence; what a method of colors, labels or points reads is another input."""
    with pytest.raises(CheckpointError, match=r"one channel per sequence.*export hf"):
        FeatureNetwork(Backbone(find(name).build(scale="test")))
