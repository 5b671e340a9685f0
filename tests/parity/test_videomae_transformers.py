"""VideoMAE equals ``transformers.VideoMAEForPreTraining`` on the same weights, clips and masks; VideoMAE V2 equals the
same parts put together as its second mask asks for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medmae.core.sampling import running_cells
from medmae.core.tokens import MaskPlan, take
from medmae.find import find
from medmae.torchvision_guard import guard

guard()
transformers = pytest.importorskip("transformers")

FRAMES, SIZE, TUBELET, PATCH, WIDTH, DECODER = 8, 32, 2, 8, 48, 32
STEPS, PLACES = FRAMES // TUBELET, (SIZE // PATCH) ** 2
TOKENS = STEPS * PLACES
SHAPES = {
    "size": (FRAMES, SIZE, SIZE), "patch": (TUBELET, PATCH, PATCH), "width": WIDTH, "depth": 3, "heads": 4,
    "decoder_width": DECODER, "decoder_depth": 2, "decoder_heads": 4, "mask_ratio": 0.75,
}  # fmt: skip


@pytest.fixture(scope="module", params=[3, 1], ids=["three channels", "one channel"])
def reference(request: pytest.FixtureRequest) -> nn.Module:
    config = transformers.VideoMAEConfig(
        image_size=SIZE, patch_size=PATCH, num_channels=request.param, num_frames=FRAMES, tubelet_size=TUBELET,
        hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, intermediate_size=4 * WIDTH,
        decoder_hidden_size=DECODER, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
        decoder_intermediate_size=4 * DECODER, layer_norm_eps=1e-6, use_mean_pooling=False, norm_pix_loss=True,
        qkv_bias=True, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.VideoMAEForPreTraining(config).eval()
    model.decoder.norm.eps = 1e-6  # as in the reference code; this one does not follow the configuration
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape) + ("norm" in name and "weight" in name))
    return model


def ours(reference: nn.Module, name: str = "videomae", **options: object) -> nn.Module:
    """Our method with the weights of the reference; ``name`` is ``videomae`` or ``videomae_v2``."""
    theirs = dict(reference.state_dict())

    def stack(prefix: str, depth: int, to: str) -> dict[str, Tensor]:
        state = {}
        for i in range(depth):
            old, new = f"{prefix}.{i}.", f"{to}.{i}."
            qkv = [theirs[f"{old}attention.attention.{part}.weight"] for part in ("query", "key", "value")]
            q, v = (theirs[f"{old}attention.attention.{part}.bias"] for part in ("query", "value"))
            state[f"{new}attn.qkv.weight"] = torch.cat(qkv)
            state[f"{new}attn.qkv.bias"] = torch.cat([q, torch.linspace(-1, 1, len(q)), v])  # the bias of keys cancels
            for kind in ("weight", "bias"):
                state[f"{new}attn.proj.{kind}"] = theirs[f"{old}attention.output.dense.{kind}"]
                state[f"{new}norm1.{kind}"] = theirs[f"{old}layernorm_before.{kind}"]
                state[f"{new}norm2.{kind}"] = theirs[f"{old}layernorm_after.{kind}"]
                state[f"{new}mlp.fc1.{kind}"] = theirs[f"{old}intermediate.dense.{kind}"]
                state[f"{new}mlp.fc2.{kind}"] = theirs[f"{old}output.dense.{kind}"]
        return state

    kernel = theirs["videomae.embeddings.patch_embeddings.projection.weight"]
    state = {
        "encoder.embed.linear.weight": kernel.permute(0, 2, 3, 4, 1).flatten(1),  # channel last inside a tubelet
        "encoder.embed.linear.bias": theirs["videomae.embeddings.patch_embeddings.projection.bias"],
        "decoder.embed.weight": theirs["encoder_to_decoder.weight"],
        "decoder.mask_token": theirs["mask_token"].flatten(),
        **stack("videomae.encoder.layer", 3, "encoder.blocks"),
        **stack("decoder.decoder_layers", 2, "decoder.blocks"),
    }
    for kind in ("weight", "bias"):
        state[f"encoder.norm.{kind}"] = theirs[f"videomae.layernorm.{kind}"]
        state[f"decoder.norm.{kind}"] = theirs[f"decoder.norm.{kind}"]
        state[f"decoder.head.{kind}"] = theirs[f"decoder.head.{kind}"]
    built = find("videomae") if name == "videomae" else find("videomae_v2")
    method = built.build(channels=reference.config.num_channels, **SHAPES, **options)
    method.load_state_dict(state, strict=True)
    return method.eval()


def clips(reference: nn.Module, samples: int = 3) -> dict[str, Tensor]:
    return {
        "video": torch.randn(samples, reference.config.num_channels, FRAMES, SIZE, SIZE),
        "key": torch.arange(samples) + 5,
    }


def in_order(plan: MaskPlan) -> MaskPlan:
    """The same plan with ids in ascending order, which is the order of a boolean mask."""
    weight = None if plan.weight is None else take(plan.weight, plan.target.argsort(1))
    return MaskPlan(plan.visible.sort(1).values, plan.target.sort(1).values, weight)


def hidden(plan: MaskPlan) -> Tensor:
    return torch.ones(len(plan.visible), TOKENS, dtype=torch.bool).scatter(1, plan.visible, False)


def test_positions_are_those_of_the_reference(reference: nn.Module) -> None:
    method = ours(reference)
    coords = method.tokenizer.grid.indices()[None]
    for positions, table in (
        (method.encoder.positions, reference.videomae.embeddings.position_embeddings),
        (method.decoder.positions, reference.position_embeddings),
    ):
        torch.testing.assert_close(positions(coords), table, atol=1e-6, rtol=0)


def test_loss_logits_and_gradients_are_those_of_the_reference(reference: nn.Module) -> None:
    method, batch = ours(reference), clips(reference)
    plan = in_order(method.plan(batch))
    theirs = reference(pixel_values=batch["video"].transpose(1, 2), bool_masked_pos=hidden(plan))
    loss = method(batch)["reconstruction"]
    assert abs(float(loss.detach()) - float(theirs.loss.detach())) < 1e-5
    guess = method.guess(method.tokenizer(batch), plan)
    torch.testing.assert_close(guess, theirs.logits, atol=5e-6, rtol=0)
    if reference.config.num_channels == 3:  # what is left is the epsilon, which the reference adds in other units
        method.target.eps = 1e-6 / torch.tensor([0.229, 0.224, 0.225])
        loss = method(batch)["reconstruction"]
    assert abs(float(loss.detach()) - float(theirs.loss.detach())) < 1e-6

    loss.backward()
    theirs.loss.backward()
    for mine, other in (
        (method.decoder.head.weight, reference.decoder.head.weight),
        (method.decoder.mask_token, reference.mask_token),
        (method.decoder.embed.weight, reference.encoder_to_decoder.weight),
        (method.encoder.norm.weight, reference.videomae.layernorm.weight),
    ):
        torch.testing.assert_close(mine.grad, other.grad.view_as(mine), atol=1e-5, rtol=1e-4)
    reference.zero_grad()


def test_v2_asked_for_everything_is_videomae(reference: nn.Module) -> None:
    batch = clips(reference)
    one, two = ours(reference), ours(reference, "videomae_v2", decode=1.0)
    plans = [in_order(method.plan(batch)) for method in (one, two)]
    assert torch.equal(plans[0].visible, plans[1].visible)
    assert torch.equal(plans[0].target, plans[1].target)
    with torch.no_grad():
        guesses = [method.guess(method.tokenizer(batch), plan) for method, plan in zip((one, two), plans, strict=True)]
        losses = [method(batch)["reconstruction"] for method in (one, two)]
    assert torch.equal(guesses[0], guesses[1])
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("decode_visible", [False, True])
def test_v2_is_the_reference_decoder_on_running_cells(reference: nn.Module, decode_visible: bool) -> None:
    """The second mask by its formula; encoder, decoder and labels by transformers."""
    method, batch = ours(reference, "videomae_v2", decode_visible=decode_visible), clips(reference)
    plan = in_order(method.plan(batch))
    mask = hidden(plan)
    tokens = method.tokenizer(batch)
    cells = running_cells()(tokens, batch["key"]) < 2
    asked = cells if decode_visible else cells & mask
    assert torch.equal(torch.zeros_like(mask).scatter(1, plan.target, True), asked)

    b = len(mask)
    with torch.no_grad():
        pixels = batch["video"].transpose(1, 2)
        seen = reference.encoder_to_decoder(reference.videomae(pixels, bool_masked_pos=mask).last_hidden_state)
        table = reference.position_embeddings.expand(b, -1, -1)
        blank = reference.mask_token + table[asked].view(b, -1, DECODER)
        sequence = torch.cat([seen + table[~mask].view(b, -1, DECODER), blank], 1)
        logits = reference.decoder(sequence, blank.shape[1]).logits
        torch.testing.assert_close(method.guess(tokens, plan), logits, atol=1e-5, rtol=0)
        labels = method.target(tokens)[asked].view_as(logits)
        scored = mask[asked].view(b, -1)
        loss = ((logits - labels).square().mean(-1) * scored).sum() / scored.sum()
        assert abs(float(method(batch)["reconstruction"] - loss)) < 1e-5


def test_the_base_model_has_the_parameters_of_the_reference() -> None:
    """All but the biases of the keys."""
    with torch.device("meta"):
        mine = find("videomae").build(scale="base")
        config = transformers.VideoMAEConfig(use_mean_pooling=False)
        theirs = transformers.VideoMAEForPreTraining(config)
    keys = 12 * 768 + 4 * 384
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (mine, theirs)]
    assert counts[0] == counts[1] + keys
