"""Vision transformers of images as encoders of volumes: what comes out is what the image network gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medmae.checkpoint import from_pretrained, read_config
from medmae.cli import main
from medmae.convert import names
from medmae.convert.inflate import convert
from medmae.convert.vit_names import inflate
from medmae.core.errors import CheckpointError, UsageError
from medmae.torchvision_guard import guard

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
SHARED = {"method": "bm_mae", "scale": "test", "sequence": "t1n"}


def timm_vit(**options: object) -> nn.Module:
    guard()
    pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return stirred(VisionTransformer(**{**SIZES, "num_classes": 3, **options}))


def stirred(network: nn.Module) -> nn.Module:
    """Every parameter at random: what is zero or one by default hides what is not copied."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return network.eval()


def write(path: Path, network: nn.Module | dict, *, pickled: bool = False) -> Path:
    state = network if isinstance(network, dict) else network.state_dict()
    state = {key: value.contiguous() for key, value in state.items()}
    torch.save({"model": state, "epoch": 3}, path) if pickled else save_file(state, path)
    return path


@torch.no_grad()
def on_slices(method: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """[CLS] and tokens of the encoder for a volume whose every axial slice is ``image`` [1 1 rows columns], without
    codes of place and sequence."""
    encoder = method.encoder
    encoder.positions = None
    for tag in encoder.embed.tag.values():
        tag.zero_()
    volume = image.transpose(2, 3)[..., None].expand(-1, -1, -1, -1, 32)
    tokens = method.tokenizer({"t1n": volume.contiguous()})
    low = tokens.layout.coords[0, :, 2] == 0  # one layer of patches, as in the image
    chosen = torch.arange(len(low))[low][None]
    visible = tokens.at(chosen)
    found = encoder(visible, tokens.layout)
    columns, rows = visible.layout.coords[0, :, 0], visible.layout.coords[0, :, 1]
    order = (rows * 4 + columns).argsort()
    return found.prefix[:, 0], found.tokens.content[:, order]


@pytest.mark.parametrize("pickled", [False, True])
@torch.no_grad()
def test_timm_gives_the_same_features(pickled: bool, tmp_path: Path) -> None:
    network = timm_vit()
    converted = convert(write(tmp_path / "vit", network, pickled=pickled), **SHARED)
    image = torch.randn(1, 1, 32, 32)
    network.pos_embed[:, 1:] = 0  # places are coded in another way here; the row of [CLS] is kept
    want = network.forward_features(image.expand(-1, 3, -1, -1))
    cls, found = on_slices(converted.method.eval(), image)
    torch.testing.assert_close(cls, want[:, 0], rtol=0, atol=2e-5)
    torch.testing.assert_close(found, want[:, 1:], rtol=0, atol=2e-5)
    assert set(converted.report.unused) == {"head.weight", "head.bias"}
    assert all(name.startswith(("decoder.", "encoder.embed.tag")) for name in converted.report.missing)


@torch.no_grad()
def test_layer_scale_is_multiplied_in(tmp_path: Path) -> None:
    network = timm_vit(init_values=0.3)
    converted = convert(write(tmp_path / "vit", network), **SHARED)
    image = torch.randn(1, 1, 32, 32)
    network.pos_embed[:, 1:] = 0
    want = network.forward_features(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(on_slices(converted.method.eval(), image)[1], want[:, 1:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["ViTMAEForPreTraining", "ViTModel"])
@torch.no_grad()
def test_transformers_gives_the_same_features(kind: str, tmp_path: Path) -> None:
    guard()
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192,
             "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}  # fmt: skip
    if kind == "ViTModel":
        network = stirred(transformers.ViTModel(transformers.ViTConfig(**sizes)))
        body = network
    else:
        small = {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
                 "decoder_intermediate_size": 48, "mask_ratio": 0.0}  # fmt: skip
        network = stirred(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes, **small)))
        body = network.vit
    converted = convert(write(tmp_path / "vit", network), **SHARED)
    assert all(name.startswith(("decoder.", "pooler.")) for name in converted.report.unused)
    image = torch.randn(1, 1, 32, 32)
    body.embeddings.position_embeddings[:, 1:] = 0
    noise = {} if kind == "ViTModel" else {"noise": torch.arange(16.0)[None]}  # keeps the order of the patches
    want = body(pixel_values=image.expand(-1, 3, -1, -1), **noise).last_hidden_state
    cls, found = on_slices(converted.method.eval(), image)
    torch.testing.assert_close(found, want[:, 1:], rtol=0, atol=2e-5)
    torch.testing.assert_close(cls, want[:, 0], rtol=0, atol=2e-5)


def multimae() -> dict[str, Tensor]:
    """A state under MultiMAE's names: two inputs, outputs of their own, no last norm."""
    state = timm_vit().state_dict()
    ours = {name.replace("blocks.", "encoder."): v for name, v in state.items() if name.startswith("blocks.")}
    for adapter, channels in (("depth", 1), ("rgb", 3)):
        ours[f"input_adapters.{adapter}.proj.weight"] = torch.randn(48, channels, 8, 8)
        ours[f"input_adapters.{adapter}.proj.bias"] = torch.randn(48)
        ours[f"input_adapters.{adapter}.pos_emb"] = torch.randn(1, 48, 4, 4)
    ours["output_adapters.rgb.mask_token"] = torch.zeros(1, 1, 8)
    ours["global_tokens"] = state["cls_token"]
    return ours


def test_multimae(tmp_path: Path) -> None:
    stored = multimae()
    converted = convert(write(tmp_path / "multimae", stored), **SHARED)
    own = converted.method.state_dict()
    want = inflate(stored["input_adapters.rgb.proj.weight"], 8).flatten(1)
    assert torch.equal(own["encoder.embed.linear.t1n.weight"], want)
    assert torch.equal(own["encoder.blocks.1.attn.qkv.weight"], stored["encoder.1.attn.qkv.weight"])
    assert torch.equal(own["encoder.prefix_tokens"], stored["global_tokens"])
    assert "input_adapters.depth.proj.weight" in converted.report.unused
    assert "encoder.norm.weight" in converted.report.missing


def test_eva(tmp_path: Path) -> None:
    guard()
    pytest.importorskip("timm")
    from timm.models.eva import Eva

    options = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "use_rot_pos_emb": True, "mlp_ratio": 8 / 3}
    network = stirred(Eva(**{**SIZES, "num_classes": 3}, **options, init_values=0.2))
    path = write(tmp_path / "eva", network)
    with pytest.raises(CheckpointError, match=r"attn\.norm"):  # a scale with inner norms, which the file lacks
        convert(write(tmp_path / "odd", {**network.state_dict(), "blocks.0.attn.norm.weight": torch.ones(48)}),
                method="eva_mae", scale="test")  # fmt: skip
    converted = convert(path, method="eva_mae", scale="test", sequence="t1n,t1c", heads=4)
    own, theirs = converted.method.state_dict(), network.state_dict()
    want = inflate(theirs["patch_embed.proj.weight"], 8).flatten(1) / 2
    assert torch.equal(own["encoder.embed.linear.t1c.weight"], want)
    for mine, other in (("attn.q.bias", "attn.q_proj.bias"), ("mlp.gate.weight", "mlp.fc1_g.weight"),
                        ("mlp.norm.weight", "mlp.norm.weight"), ("scale2.gamma", "gamma_2")):  # fmt: skip
        assert torch.equal(own[f"encoder.blocks.1.{mine}"], theirs[f"blocks.1.{other}"])
    assert not [name for name in converted.report.missing if name.startswith("encoder.")]
    with pytest.raises(CheckpointError, match="plain MLPs"):
        convert(path, method="bm_mae", scale="test")
    with pytest.raises(CheckpointError, match="gated MLPs"):
        convert(write(tmp_path / "vit", timm_vit()), method="eva_mae", scale="test")


def test_the_rule() -> None:
    kernel = torch.randn(5, 3, 2, 4)  # two rows, four columns
    for depth in (1, 3, 4):
        for how in ("average", "center"):
            found = inflate(kernel, depth, how=how)
            assert found.shape == (5, 4, 2, depth)
            torch.testing.assert_close(found.sum(-1), kernel.sum(1).transpose(1, 2))
    assert inflate(kernel, 3, how="center")[..., [0, 2]].abs().max() == 0
    assert inflate(kernel, 4, how="center")[..., [0, 3]].abs().max() == 0
    assert torch.equal(inflate(kernel, 4)[..., 0], inflate(kernel, 4)[..., 3])


def test_sizes_are_read_off_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "vit", timm_vit())
    with pytest.raises(UsageError, match="--heads"):
        convert(path)
    recipe = convert(path, heads=4, sequence="t1n").recipe
    assert (recipe["width"], recipe["depth"], recipe["heads"], recipe["patch"]) == (48, 2, 4, [8, 8, 16])
    assert recipe["mlp_ratio"] == 4


@pytest.mark.parametrize(("option", "why"), [
    ({"depth": 3}, "depth 3, not 2"), ({"embed_dim": 64}, "width 64, not 48"), ({"patch_size": 16}, "patch"),
    ({"mlp_ratio": 2.0}, "hidden width 96, not 192"),
])  # fmt: skip
def test_sizes_that_do_not_fit(option: dict, why: str, tmp_path: Path, capsys) -> None:
    path, out = write(tmp_path / "vit", timm_vit(**option)), tmp_path / "out"
    assert main(["convert", "inflate", str(path), "--method", "bm_mae", "--scale", "test", "--out", str(out)]) == 5
    assert why in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_what_is_not_known_or_missing(tmp_path: Path) -> None:
    state = timm_vit().state_dict()
    with pytest.raises(CheckpointError, match="q_norm"):
        convert(write(tmp_path / "a", {**state, "blocks.0.attn.q_norm.weight": torch.ones(12)}), **SHARED)
    lacking = {key: value for key, value in state.items() if key != "blocks.1.mlp.fc2.bias"}
    with pytest.raises(CheckpointError, match=r"nothing in the file fills encoder.blocks.1.mlp.fc2.bias"):
        convert(write(tmp_path / "b", lacking), **SHARED)
    with pytest.raises(CheckpointError, match="not a vision transformer"):
        convert(write(tmp_path / "c", {"conv.weight": torch.ones(3, 3, 3, 3)}), **SHARED)
    with pytest.raises(UsageError, match="--inflation"):
        convert(write(tmp_path / "d", state), **SHARED, inflation="edges")


def test_the_command(tmp_path: Path, capsys) -> None:
    path, out = write(tmp_path / "vit.safetensors", timm_vit()), tmp_path / "out"
    line = ["convert", "inflate", str(path), "--method", "bm_mae", "--scale", "test", "--out", str(out)]
    assert main([*line, "--sequence", "t1n,flair2", "--inflation", "center", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["used"] == 30
    assert "inflated" in said.err
    assert "fresh here: decoder" in said.err
    config = read_config(out)
    rows = {row["ours"]: row for row in config["converted"]["table"]}
    assert rows["encoder.embed.linear.t1n.weight"]["rule"] == "inflated"
    assert rows["encoder.blocks.0.attn.qkv.weight"]["theirs"] == ["blocks.0.attn.qkv.weight"]
    assert config["converted"]["file"] == "vit.safetensors"
    assert "inflated" in (out / "README.md").read_text()
    assert from_pretrained(out).sequences == ("t1n", "flair2")
    assert main(line) == 2
    assert main([*line, "--overwrite", "--heads", "5"]) == 5
    assert main(["convert", "bm_mae", str(path), "--out", str(out), "--heads", "3"]) == 2
    assert "inflate" in names()
    assert "vit_names" not in names()
