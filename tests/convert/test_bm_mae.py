"""The published layout of BM-MAE: every tensor used, the same numbers out, and nothing executed on the way in."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medmae.checkpoint import load_model
from medmae.convert import check_name, names
from medmae.convert.bm_mae import LICENSE, convert, key_table, save
from medmae.core.errors import CheckpointError, UsageError
from medmae.core.tokens import MaskPlan

ORDER = ("t1", "t1ce", "t2", "flair")
OURS = ("t1n", "t1c", "t2w", "t2f")
SMALL: dict[str, Any] = {
    "width": 48,
    "inner": 24,
    "depth": 2,
    "decoder_depth": 1,
    "patch": 4,
    "edge": 3,
    "mlp": 96,
    "decoder_mlp": 96,
}
FULL: dict[str, Any] = {
    "width": 768, "inner": 384, "depth": 12, "decoder_depth": 3, "patch": 16, "edge": 8, "mlp": 1536, "decoder_mlp":
    1536
}  # fmt: skip
HEADS = {"heads": 4, "decoder_heads": 2}


def table_of_positions(edge: int, width: int) -> Tensor:
    """The published position code, written as nested loops would: (second, first, third) axis, sines then cosines."""
    n = width // 6
    omega = [10000 ** (-q / n) for q in range(n)]
    rows = []
    for i in range(edge):
        for j in range(edge):
            for k in range(edge):
                row = []
                for at in (j, i, k):
                    row += [math.sin(at * w) for w in omega] + [math.cos(at * w) for w in omega]
                rows.append(row)
    return torch.tensor(rows, dtype=torch.float64).float()[None]


def fake(
    *, width: int, inner: int, depth: int, decoder_depth: int, patch: int, edge: int, mlp: int, decoder_mlp: int
) -> dict[str, Tensor]:
    """A state dict in the published layout with random values."""
    draw = torch.Generator().manual_seed(7)
    state: dict[str, Tensor] = {}

    def put(key: str, *shape: int, scale: float = 0.1, around: float = 0.0) -> None:
        state[key] = around + scale * torch.randn(*shape, generator=draw)

    def linear(key: str, out: int, into: int) -> None:
        put(f"{key}.weight", out, into, scale=into**-0.5)
        put(f"{key}.bias", out)

    def norm(key: str, size: int) -> None:
        put(f"{key}.weight", size, around=1.0)
        put(f"{key}.bias", size)

    def blocks(stem: str, count: int, size: int, hidden: int) -> None:
        for i in range(count):
            norm(f"{stem}.{i}.norm1", size)
            norm(f"{stem}.{i}.norm2", size)
            linear(f"{stem}.{i}.attn.qkv", 3 * size, size)
            linear(f"{stem}.{i}.attn.out_proj", size, size)
            linear(f"{stem}.{i}.mlp.linear1", hidden, size)
            linear(f"{stem}.{i}.mlp.linear2", size, hidden)

    put("cls_token", 1, 1, width)
    for name in ORDER:
        stem = f"tokenizers.{name}.patch_embedding"
        state[f"{stem}.position_embeddings"] = table_of_positions(edge, width)
        put(f"{stem}.patch_embeddings.weight", width, 1, patch, patch, patch, scale=patch**-1.5)
        put(f"{stem}.patch_embeddings.bias", width)
        put(f"decoder.modality_embeddings.{name}", 1, 1, inner)
    blocks("blocks", depth, width, mlp)
    norm("norm", width)
    put("decoder.mask_tokens", 1, 1, inner)
    state["decoder.position_embeddings"] = table_of_positions(edge, inner)
    linear("decoder.decoder_embed", inner, width)
    norm("decoder.decoder_norm", inner)
    linear("decoder.decoder_pred", patch**3, inner)
    blocks("decoder.decoder_blocks", decoder_depth, inner, decoder_mlp)
    return state


def block(state: dict[str, Tensor], stem: str, x: Tensor, heads: int) -> Tensor:
    """One published block in plain operations."""
    p = {key.removeprefix(f"{stem}."): value for key, value in state.items() if key.startswith(f"{stem}.")}
    b, s, d = x.shape
    h = F.layer_norm(x, (d,), p["norm1.weight"], p["norm1.bias"], 1e-5)
    q, k, v = (h @ p["attn.qkv.weight"].T + p["attn.qkv.bias"]).reshape(b, s, 3, heads, d // heads).unbind(2)
    score = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(d // heads)
    h = torch.einsum("bhij,bjhd->bihd", score.softmax(-1), v).reshape(b, s, d)
    x = x + h @ p["attn.out_proj.weight"].T + p["attn.out_proj.bias"]
    h = (
        F.layer_norm(x, (d,), p["norm2.weight"], p["norm2.bias"], 1e-5) @ p["mlp.linear1.weight"].T
        + p["mlp.linear1.bias"]
    )
    return x + (h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))) @ p["mlp.linear2.weight"].T + p["mlp.linear2.bias"]


def reference(state: dict[str, Tensor], images: dict[str, Tensor], visible: Tensor) -> tuple[Tensor, Tensor]:
    """Guesses for all tokens [b n content] and the loss, as the published model computes them; ``visible`` Bool[b
    n]."""
    tokens, truth = [], []
    patch = state["tokenizers.t1.patch_embedding.patch_embeddings.weight"].shape[-1]
    for name in ORDER:
        stem = f"tokenizers.{name}.patch_embedding"
        x = F.conv3d(
            images[name], state[f"{stem}.patch_embeddings.weight"], state[f"{stem}.patch_embeddings.bias"], stride=patch
        )
        tokens.append(x.flatten(2).transpose(1, 2) + state[f"{stem}.position_embeddings"])
        cut = images[name][:, 0].unfold(1, patch, patch).unfold(2, patch, patch).unfold(3, patch, patch)
        truth.append(cut.reshape(len(x), -1, patch**3))
    x, y = torch.cat(tokens, 1), torch.cat(truth, 1)
    b, n, width = x.shape
    kept = x[visible].reshape(b, -1, width)
    h = torch.cat([state["cls_token"].expand(b, -1, -1), kept], 1)
    depth = sum(key.startswith("blocks.") and key.endswith("norm1.bias") for key in state)
    for i in range(depth):
        h = block(state, f"blocks.{i}", h, HEADS["heads"])
    h = F.layer_norm(h, (width,), state["norm.weight"], state["norm.bias"], 1e-5)
    h = h @ state["decoder.decoder_embed.weight"].T + state["decoder.decoder_embed.bias"]
    full = state["decoder.mask_tokens"].expand(b, n, -1).clone()
    full[visible] = h[:, 1:].reshape(-1, h.shape[-1])
    each = n // len(ORDER)
    where = [state[f"decoder.modality_embeddings.{m}"] + state["decoder.position_embeddings"] for m in ORDER]
    h = torch.cat([h[:, :1], full + torch.cat(where, 1)], 1)
    for i in range(sum("decoder_blocks" in key and key.endswith("norm1.bias") for key in state)):
        h = block(state, f"decoder.decoder_blocks.{i}", h, HEADS["decoder_heads"])
    h = F.layer_norm(h, h.shape[-1:], state["decoder.decoder_norm.weight"], state["decoder.decoder_norm.bias"], 1e-5)
    guess = (h @ state["decoder.decoder_pred.weight"].T + state["decoder.decoder_pred.bias"])[:, 1:]
    error, masked = (guess - y).square().mean(-1), (~visible).float()
    loss = sum(
        (part * mask).sum() / mask.sum() for part, mask in zip(error.split(each, 1), masked.split(each, 1), strict=True)
    )
    return guess, torch.as_tensor(loss)


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    return fake(**SMALL)


def write(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


def test_equals_an_independent_rederivation(small: dict[str, Tensor], tmp_path: Path) -> None:
    converted = convert(write(small, tmp_path / "bmmae.pth"), **HEADS)
    assert (len(converted.report.used), len(converted.report.checked)) == (len(small), 5)
    b, n, edge = 2, 4 * 27, 12
    images = {name: torch.randn(b, 1, edge, edge, edge) for name in ORDER}
    order = torch.stack([torch.randperm(n) for _ in range(b)])
    ids, hidden = order[:, :30].sort(1).values, order[:, 30:].sort(1).values
    visible = torch.zeros(b, n, dtype=torch.bool).scatter(1, ids, True)
    guess, loss = reference(small, images, visible)
    batch = {ours: images[theirs] for ours, theirs in zip(OURS, ORDER, strict=True)} | {"key": torch.arange(b)}
    method, plan = converted.method.eval(), MaskPlan(ids, hidden)
    own = method.guess(method.tokenizer(batch), plan)
    wanted = guess.gather(1, hidden[..., None].expand_as(own))
    assert guess.std() > 0.1
    torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(method(batch, plan)["reconstruction"], loss, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("kind", ["pth", "safetensors", "legacy", "state_dict", "model", "module."])
def test_reads_every_packing(small: dict[str, Tensor], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.bin"
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(small, path)
    elif kind == "legacy":
        torch.save(small, path, _use_new_zipfile_serialization=False)
    elif kind == "module.":
        write({f"module.{key}": value for key, value in small.items()}, path)
    else:
        write(small if kind == "pth" else {kind: small, "epoch": 3}, path)
    converted = convert(path, **HEADS)
    assert converted.report.complete
    assert converted.recipe["sequences"] == list(OURS)
    torch.testing.assert_close(
        converted.method.decoder.mask_token, small["decoder.mask_tokens"].flatten(), rtol=0, atol=0
    )


def test_full_size_layout_has_207_tensors() -> None:
    table = key_table(dict(zip(ORDER, OURS, strict=True)), depth=12, decoder_depth=3)
    assert len(table) == len({entry.theirs for entry in table}) == 207
    assert sum(entry.ours is None for entry in table) == 5


@pytest.mark.slow
def test_full_size_file(tmp_path: Path) -> None:
    state = fake(**FULL)
    assert (len(state), sum(value.numel() for value in state.values())) == (207, 78_280_576)
    converted = convert(write(state, tmp_path / "bmmae.pth"))
    assert len(converted.report.used) == 207
    assert "used 207/207" in str(converted.report)
    assert sum(p.numel() for p in converted.method.parameters()) == 76_511_104
    assert converted.recipe["size"] == [128, 128, 128]


def test_missing_and_unused_tensors_raise_unless_asked(small: dict[str, Tensor], tmp_path: Path) -> None:
    lacking = {key: value for key, value in small.items() if key != "blocks.1.attn.qkv.bias"}
    with pytest.raises(CheckpointError, match=r"missing 1 \(blocks.1.attn.qkv.bias\)"):
        convert(write(lacking, tmp_path / "a.pth"), **HEADS)
    report = convert(tmp_path / "a.pth", **HEADS, strict=False).report
    assert report.missing == ("blocks.1.attn.qkv.bias",)
    assert not report.unused

    extra = small | {"blocks.0.norm_cross_attn.weight": torch.ones(48)}
    with pytest.raises(CheckpointError, match=r"unused 1 \(blocks.0.norm_cross_attn.weight\).*MONAI 1.4"):
        convert(write(extra, tmp_path / "b.pth"), **HEADS)
    assert convert(tmp_path / "b.pth", **HEADS, strict=False).report.unused == ("blocks.0.norm_cross_attn.weight",)

    renamed = {key.replace("tokenizers.flair", "tokenizers.FLAIR2"): value for key, value in small.items()}
    with pytest.raises(CheckpointError, match="modality_embeddings"):
        convert(write(renamed, tmp_path / "c.pth"), **HEADS)


def test_what_is_missing_starts_the_same_every_time(small: dict[str, Tensor], tmp_path: Path) -> None:
    path = write({key: value for key, value in small.items() if not key.startswith("decoder.")}, tmp_path / "a.pth")
    one, two = (convert(path, **HEADS, strict=False).method for _ in range(2))
    for mine, yours in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, yours)


def test_wrong_shapes_positions_and_files_are_refused(small: dict[str, Tensor], tmp_path: Path) -> None:
    wrong = small | {"norm.weight": torch.ones(47)}
    with pytest.raises(CheckpointError, match=r"norm.weight has shape \(47,\), expected \(48,\)"):
        convert(write(wrong, tmp_path / "a.pth"), **HEADS)
    key = "tokenizers.t2.patch_embedding.position_embeddings"
    swapped = small | {key: small[key].reshape(1, 3, 3, 3, 48).transpose(1, 2).reshape(1, 27, 48)}
    with pytest.raises(CheckpointError, match="not the sine-cosine code"):
        convert(write(swapped, tmp_path / "b.pth"), **HEADS)
    with pytest.raises(CheckpointError, match="NaN"):
        convert(write(small | {"norm.bias": torch.full((48,), torch.nan)}, tmp_path / "c.pth"), **HEADS)
    with pytest.raises(CheckpointError, match="not the layout"):
        convert(write({"encoder.weight": torch.ones(3)}, tmp_path / "d.pth"))
    with pytest.raises(CheckpointError, match="is a dict"):
        convert(write({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "e.pth"))
    with pytest.raises(UsageError, match="no such file"):
        convert(tmp_path / "none.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    damaged = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "noise": bytes(range(256)) * 9,
        "page": b"<html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\n",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            convert(tmp_path / name)


class Bomb:
    """What a malicious file would hold: unpickling it runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("plain", [True, False])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, plain: bool) -> None:
    trace, path = tmp_path / "ran", tmp_path / "bmmae.pth"
    if plain:
        path.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({"cls_token": torch.ones(1), "x": Bomb(trace)}, path)
    with pytest.raises(CheckpointError, match=r"refused|not a file of weights") as caught:
        convert(path)
    assert caught.value.exit_code == 5
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))  # the plant itself works
    assert trace.exists()


def test_the_folder_loads_again_and_carries_the_license(small: dict[str, Tensor], tmp_path: Path) -> None:
    converted = convert(write(small, tmp_path / "bmmae.pth"), **HEADS)
    folder = save(converted, tmp_path / "out")
    loaded = load_model(folder)
    for key, value in converted.method.state_dict().items():
        assert torch.equal(loaded.method.state_dict()[key], value)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["license"] == LICENSE
    assert "commercial" in config["license_notice"]
    assert config["data"]["sequences"] == list(OURS)
    assert config["converted"]["used"] == len(small)
    card = (folder / "README.md").read_text("utf-8")
    assert "CC BY-NC 4.0" in card
    assert "commercial" in card
    with pytest.raises(UsageError, match="--overwrite"):
        save(converted, folder)
    save(converted, folder, overwrite=True)


def test_converters_are_found_by_name() -> None:
    assert "bm_mae" in names()
    assert check_name("bm_mae") == "bm_mae"
    with pytest.raises(UsageError, match="bm_mae"):
        check_name("bmmae2")
