"""Our methods and the pip-installable implementations that ``peers.py`` measures them against, made to do equal work.

A contestant is a module, its loss for a batch drawn anew in every step, and a way to see how much it does: what is
counted is read off the tensors that go through the networks, not off their configurations. Peers get the sizes of our
recipe, so a method's scale is the only place where they are written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

METHODS = ("mae", "videomae", "fcmae")
PEERS = {
    "mae": "transformers `ViTMAEForPreTraining`",
    "videomae": "transformers `VideoMAEForPreTraining`",
    "fcmae": "timm `convnextv2` times the mask, plain dense decoder",
}


@dataclass
class Contestant:
    """A model to be trained, and what it does.

    Attributes:
        module: whose parameters are trained.
        loss: of step number i, forward pass included.
        widths: what to watch: name of an amount of work -> the module whose first input is looked at.
        attention: who computes attention, as the module itself says.
        scored: number of predicted places per sample in step 0.
        seen: filled by :func:`facts`.
    """

    module: nn.Module
    loss: Callable[[int], Tensor]
    widths: Mapping[str, nn.Module]
    attention: str
    scored: Callable[[], int]
    seen: dict[str, Any] = field(default_factory=dict)


def recipe_of(name: str, *, scale: str, **sizes: Any) -> dict[str, Any]:
    """Every number of a method at a scale."""
    from medmae.find import find

    return dict(find(name).recipe(scale=scale, **sizes))


def ours(name: str, recipe: Mapping[str, Any], *, batch: int, device: str = "cpu") -> Contestant:
    """A method of ours."""
    from medmae.find import find

    method: Any = find(name).build(**recipe)
    method.to(device).train()
    entry = method.sequences[0]
    images = pictures(recipe, batch, device=device)

    def given(i: int) -> dict[str, Tensor]:
        return {entry: images, "key": torch.arange(batch, device=device) + i * batch}

    inside = "stages" if name == "fcmae" else "blocks"
    encoder = getattr(method.encoder, inside)
    decoder = method.decoder.blocks
    watched = {
        "encoder": encoder[-1].blocks[0] if name == "fcmae" else encoder,
        "decoder": decoder[0] if name == "fcmae" else decoder,
    }
    return Contestant(
        method,
        lambda i: method(given(i))["reconstruction"],
        watched,
        "none" if name == "fcmae" else "sdpa",
        lambda: int(method.plan(given(0)).target.shape[1]),
    )


def peer(name: str, recipe: Mapping[str, Any], *, batch: int, steps: int, device: str = "cpu") -> Contestant:
    """The other implementation at the sizes of our recipe."""
    from medmae.torchvision_guard import guard

    guard()
    build = {"mae": _vit_mae, "videomae": _video_mae, "fcmae": _fcmae}[name]
    return build(recipe, pictures(recipe, batch, device=device), steps, device)


def pictures(recipe: Mapping[str, Any], batch: int, *, device: str = "cpu") -> Tensor:
    """Noise [batch channels *size], the same for everyone."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(batch, recipe["channels"], *recipe["size"], generator=draw).to(device)


def _vit_mae(recipe: Mapping[str, Any], images: Tensor, steps: int, device: str) -> Contestant:
    import transformers

    (edge, other), (patch, same) = recipe["size"], recipe["patch"]
    if edge != other or patch != same:
        raise ValueError(f"transformers' ViTMAE has square images and patches, not {recipe['size']} {recipe['patch']}")
    config = transformers.ViTMAEConfig(
        hidden_size=recipe["width"], num_hidden_layers=recipe["depth"], num_attention_heads=recipe["heads"],
        intermediate_size=int(recipe["width"] * recipe["mlp_ratio"]), image_size=edge, patch_size=patch,
        num_channels=recipe["channels"], decoder_hidden_size=recipe["decoder_width"],
        decoder_num_hidden_layers=recipe["decoder_depth"], decoder_num_attention_heads=recipe["decoder_heads"],
        decoder_intermediate_size=int(recipe["decoder_width"] * recipe["mlp_ratio"]), layer_norm_eps=recipe["eps"],
        mask_ratio=recipe["mask_ratio"], norm_pix_loss=recipe["normalize_target"], attn_implementation="sdpa",
    )  # fmt: skip
    model: Any = transformers.ViTMAEForPreTraining(config).to(device).train()

    def scored() -> int:
        with torch.no_grad():
            return int(model(pixel_values=images).mask[0].sum())

    return Contestant(
        model,
        lambda i: model(pixel_values=images).loss,
        {"encoder": model.vit.layers[0], "decoder": model.decoder.decoder_layers[0]},
        str(model.config._attn_implementation),
        scored,
    )


def _video_mae(recipe: Mapping[str, Any], images: Tensor, steps: int, device: str) -> Contestant:
    import transformers

    (frames, edge, _), (tubelet, patch, _) = recipe["size"], recipe["patch"]
    config = transformers.VideoMAEConfig(
        image_size=edge, patch_size=patch, num_channels=recipe["channels"], num_frames=frames, tubelet_size=tubelet,
        hidden_size=recipe["width"], num_hidden_layers=recipe["depth"], num_attention_heads=recipe["heads"],
        intermediate_size=int(recipe["width"] * recipe["mlp_ratio"]), decoder_hidden_size=recipe["decoder_width"],
        decoder_num_hidden_layers=recipe["decoder_depth"], decoder_num_attention_heads=recipe["decoder_heads"],
        decoder_intermediate_size=int(recipe["decoder_width"] * recipe["mlp_ratio"]), layer_norm_eps=recipe["eps"],
        use_mean_pooling=False, norm_pix_loss=recipe["normalize_target"], qkv_bias=True, attn_implementation="sdpa",
    )  # fmt: skip
    model: Any = transformers.VideoMAEForPreTraining(config).to(device).train()
    places, times = (edge // patch) ** 2, frames // tubelet
    draw = torch.Generator().manual_seed(2)
    masks = []  # made beforehand: this model is told its masks, which its users draw in the loader
    for _ in range(steps):
        order = torch.rand(len(images), places, generator=draw).argsort(1)
        tube = torch.zeros(len(images), places, dtype=torch.bool)
        tube.scatter_(1, order[:, : int(places * recipe["mask_ratio"])], True)
        masks.append(tube.repeat(1, times).to(device))
    clips = images.transpose(1, 2).contiguous()

    def scored() -> int:
        return int(masks[0][0].sum())

    return Contestant(
        model,
        lambda i: model(pixel_values=clips, bool_masked_pos=masks[i % steps]).loss,
        {"encoder": model.videomae.encoder.layer[0], "decoder": model.decoder.decoder_layers[0]},
        str(model.config._attn_implementation),
        scored,
    )


def _fcmae(recipe: Mapping[str, Any], images: Tensor, steps: int, device: str) -> Contestant:
    model = MaskedDense(recipe).to(device).train()
    widths = {"encoder": model.encoder.stages[-1].blocks[0], "decoder": model.block}
    return Contestant(model, lambda i: model(images), widths, "none", lambda: model.cells - model.kept)


class MaskedDense(nn.Module):
    """timm's ConvNeXt V2 as the encoder of an FCMAE: whole maps times the mask.

    timm has the encoder only. Hidden pixels are multiplied by zero, and so is whatever a sparse network would not
    compute: the input of every stage, the input of every response norm, the output of every block. The decoder is
    that of the paper: a 1x1 convolution, a mask token, one block, a 1x1 convolution to pixels; the target is
    normalized per cell. It is the function of our ``fcmae``; ``tests/benchmarks/test_peers.py`` shows it.

    Args:
        recipe: of ``fcmae``, for square images.
    """

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        super().__init__()
        from timm.models.convnext import ConvNeXt, ConvNeXtBlock

        widths, kernel, channels = recipe["widths"], recipe["kernel"], recipe["channels"]
        self.cell = recipe["stem"] * 2 ** (len(widths) - 1)
        self.side = recipe["size"][0] // self.cell
        self.cells = self.side**2
        self.kept = int(self.cells * (1 - recipe["mask_ratio"]))
        self.encoder: Any = ConvNeXt(
            in_chans=channels, depths=recipe["depths"], dims=widths, kernel_sizes=kernel, patch_size=recipe["stem"],
            use_grn=True, ls_init_value=None, num_classes=0,
        )  # fmt: skip
        self.encoder.head = nn.Identity()  # the classifier's norm
        self.embed = nn.Conv2d(widths[-1], recipe["decoder_width"], 1)
        self.mask_token = nn.Parameter(torch.zeros(1, recipe["decoder_width"], 1, 1))
        options: dict[str, Any] = {"kernel_size": kernel, "use_grn": True, "ls_init_value": None}
        self.block = ConvNeXtBlock(recipe["decoder_width"], **options)
        self.head = nn.Conv2d(recipe["decoder_width"], self.cell**2 * channels, 1)
        self.shown: Tensor | None = None
        for block in self.encoder.modules():
            if isinstance(block, ConvNeXtBlock):
                mlp: Any = block.mlp
                mlp.grn.register_forward_pre_hook(self._hide_last)
                block.register_forward_hook(self._hide_first)

    def forward(self, images: Tensor, shown: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            images: [b c size size].
            shown: 1 where a cell is visible, [b 1 side side], in place of a draw.
        """
        shown = self.draw(len(images), images.device) if shown is None else shown
        self.shown = shown
        x = self.encoder.stem(images * self._mask(images))
        for stage in self.encoder.stages:
            x = stage.downsample(x)
            x = stage.blocks(x * self._mask(x))
        x = self.embed(x)
        x = torch.where(shown > 0, x, self.mask_token.to(x.dtype))
        guess = self.head(self.block(x)).flatten(2).mT
        b, c = images.shape[:2]
        cut = images.reshape(b, c, self.side, self.cell, self.side, self.cell).permute(0, 2, 4, 3, 5, 1)
        truth = cut.reshape(b, self.cells, -1)
        truth = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-6).sqrt()
        hidden = 1 - shown.flatten(1)
        return ((guess - truth).square().mean(-1) * hidden).sum() / hidden.sum()

    def draw(self, b: int, device: Any) -> Tensor:
        """Random masks, the same number of cells in all."""
        order = torch.rand(b, self.cells, device=device).argsort(1)
        shown = torch.zeros(b, self.cells, device=device).scatter(1, order[:, : self.kept], 1.0)
        return shown.view(b, 1, self.side, self.side)

    def _mask(self, x: Tensor) -> Tensor:
        assert self.shown is not None
        by = x.shape[-1] // self.side
        return self.shown.repeat_interleave(by, 2).repeat_interleave(by, 3).to(x.dtype)

    def _hide_last(self, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = given[0]  # channels last
        return (x * self._mask(x.movedim(-1, 1)).movedim(1, -1),)

    def _hide_first(self, _: nn.Module, given: tuple[Tensor, ...], x: Tensor) -> Tensor:
        return x * self._mask(x)


# --- equal work ---------------------------------------------------------------------------------------------------


def facts(contestant: Contestant) -> dict[str, Any]:
    """How much one step does: trained parameters, places in every network (per sample), places predicted.

    Places are read off the tensors of one forward pass.
    """
    found: dict[str, Any] = {}
    hooks = []
    for what, module in contestant.widths.items():

        def look(_: Any, given: tuple[Tensor, ...], kwargs: Any, what: str = what) -> None:
            x = given[0] if given else next(v for v in kwargs.values() if isinstance(v, Tensor))
            found.setdefault(what, int(x.shape[1] if x.ndim == 3 else x.shape[-1] * x.shape[-2]))

        hooks.append(module.register_forward_pre_hook(look, with_kwargs=True))
    with torch.no_grad():
        contestant.loss(0)
    for hook in hooks:
        hook.remove()
    trained = sum(p.numel() for p in contestant.module.parameters() if p.requires_grad)
    return {"parameters": trained, "attention": contestant.attention, "scored": contestant.scored(), **found}


def unequal(mine: Mapping[str, Any], other: Mapping[str, Any], *, within: float = 0.01) -> list[str]:
    """What two contestants do differently, in words; nothing where their work is equal.

    Args:
        mine: facts of ours.
        other: facts of the peer.
        within: share by which the numbers of parameters may differ.
    """
    faults = []
    apart = abs(mine["parameters"] - other["parameters"]) / other["parameters"]
    if apart > within:
        faults.append(f"parameters: {mine['parameters']:,} and {other['parameters']:,} ({apart:.1%} apart)")
    for what in ("attention", "encoder", "decoder", "scored"):
        if mine.get(what) != other.get(what):
            faults.append(f"{what}: {mine.get(what)} and {other.get(what)}")
    return faults
