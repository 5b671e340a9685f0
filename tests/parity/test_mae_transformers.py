"""MAE equals ``transformers.ViTMAEForPreTraining`` on the same weights, images and noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medmae.core.sampling import MaskSampler, ratio
from medmae.core.tokens import take
from medmae.find import find
from medmae.torchvision_guard import guard

guard()
transformers = pytest.importorskip("transformers")

SIZE, PATCH, WIDTH, DECODER = 32, 8, 48, 32


@pytest.fixture(scope="module", params=[False, True], ids=["raw", "normalized"])
def reference(request: pytest.FixtureRequest) -> nn.Module:
    config = transformers.ViTMAEConfig(
        hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, intermediate_size=4 * WIDTH,
        image_size=SIZE, patch_size=PATCH, decoder_hidden_size=DECODER, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4, decoder_intermediate_size=4 * DECODER, layer_norm_eps=1e-6,
        norm_pix_loss=request.param, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.ViTMAEForPreTraining(config).eval()
    for part in (*model.modules(), *model.parameters()):  # some releases mark a new model as initialized too early,
        part.__dict__.pop("_is_hf_initialized", None)  # and leave its position tables at zero
    model.vit.embeddings.initialize_weights()
    model.decoder.initialize_weights((SIZE // PATCH) ** 2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" not in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape) + ("norm" in name and "weight" in name))
    return model


def ours(reference: nn.Module) -> nn.Module:
    """Our method with the weights of the reference."""
    theirs = dict(reference.state_dict())

    def stack(prefix: str, depth: int, to: str) -> dict[str, Tensor]:
        state = {}
        for i in range(depth):
            old, new = f"{prefix}.{i}.", f"{to}.{i}."
            for kind in ("weight", "bias"):
                qkv = [theirs[f"{old}attention.{part}_proj.{kind}"] for part in "qkv"]
                state[f"{new}attn.qkv.{kind}"] = torch.cat(qkv)
                state[f"{new}attn.proj.{kind}"] = theirs[f"{old}attention.o_proj.{kind}"]
                state[f"{new}norm1.{kind}"] = theirs[f"{old}layernorm_before.{kind}"]
                state[f"{new}norm2.{kind}"] = theirs[f"{old}layernorm_after.{kind}"]
                for layer in ("fc1", "fc2"):
                    state[f"{new}mlp.{layer}.{kind}"] = theirs[f"{old}mlp.{layer}.{kind}"]
        return state

    kernel = theirs["vit.embeddings.patch_embeddings.projection.weight"]
    state = {
        "encoder.prefix_tokens": theirs["vit.embeddings.cls_token"],
        "encoder.embed.linear.weight": kernel.permute(0, 2, 3, 1).flatten(1),  # channel last inside a patch
        "encoder.embed.linear.bias": theirs["vit.embeddings.patch_embeddings.projection.bias"],
        "decoder.mask_token": theirs["decoder.mask_token"].flatten(),
        **stack("vit.layers", 3, "encoder.blocks"),
        **stack("decoder.decoder_layers", 2, "decoder.blocks"),
    }
    for kind in ("weight", "bias"):
        state[f"encoder.norm.{kind}"] = theirs[f"vit.layernorm.{kind}"]
        state[f"decoder.embed.{kind}"] = theirs[f"decoder.decoder_embed.{kind}"]
        state[f"decoder.norm.{kind}"] = theirs[f"decoder.decoder_norm.{kind}"]
        state[f"decoder.head.{kind}"] = theirs[f"decoder.decoder_pred.{kind}"]
    method = find("mae").build(
        size=(SIZE, SIZE), patch=(PATCH, PATCH), width=WIDTH, depth=3, heads=4, decoder_width=DECODER,
        decoder_depth=2, decoder_heads=4, normalize_target=reference.config.norm_pix_loss,
    )  # fmt: skip
    method.load_state_dict(state, strict=True)
    return method.eval()


def test_positions_are_those_of_the_reference(reference: nn.Module) -> None:
    method = ours(reference)
    coords = method.tokenizer.grid.indices()[None]
    for positions, table in (
        (method.encoder.positions, reference.vit.embeddings.position_embeddings),
        (method.decoder.positions, reference.decoder.decoder_pos_embed),
    ):
        torch.testing.assert_close(positions(coords), table[:, 1:].detach(), atol=1e-6, rtol=0)
        assert bool((table[:, 0] == 0).all())


def test_loss_logits_and_gradients_are_those_of_the_reference(reference: nn.Module) -> None:
    method = ours(reference)
    image, noise = torch.randn(3, 3, SIZE, SIZE), torch.rand(3, (SIZE // PATCH) ** 2)
    theirs = reference(pixel_values=image, noise=noise)
    method.sampler = MaskSampler(lambda tokens, key: noise, ratio(0.75))
    batch = {"image": image, "key": torch.arange(3)}
    loss = method(batch)["reconstruction"]
    assert abs(float(loss.detach()) - float(theirs.loss.detach())) < 1e-5

    plan = method.plan(batch)
    mask = torch.ones(3, 16).scatter(1, plan.visible, 0.0)
    assert torch.equal(mask, theirs.mask)
    guess = method.guess(method.tokenizer(batch), plan)
    torch.testing.assert_close(guess, take(theirs.logits, plan.target), atol=1e-5, rtol=0)

    loss.backward()
    theirs.loss.backward()
    for mine, other in (
        (method.decoder.head.weight, reference.decoder.decoder_pred.weight),
        (method.decoder.mask_token, reference.decoder.mask_token),
        (method.encoder.prefix_tokens, reference.vit.embeddings.cls_token),
        (method.encoder.norm.weight, reference.vit.layernorm.weight),
    ):
        torch.testing.assert_close(mine.grad, other.grad.view_as(mine), atol=1e-5, rtol=1e-4)
    reference.zero_grad()


def test_noise_of_another_order_gives_the_same_permuted_answer(reference: nn.Module) -> None:
    method = ours(reference)
    image, noise = torch.randn(3, 3, SIZE, SIZE), torch.rand(3, 16)
    order = torch.tensor([2, 0, 1])
    batch = {"image": image, "key": torch.arange(3)}
    losses = []
    for rows in (torch.arange(3), order):
        method.sampler = MaskSampler(lambda tokens, key, rows=rows: noise[rows], ratio(0.75))
        turned = {name: value[rows] for name, value in batch.items()}
        losses.append(method.guess(method.tokenizer(turned), method.plan(turned)))
    torch.testing.assert_close(losses[0][order], losses[1], atol=1e-6, rtol=1e-5)
