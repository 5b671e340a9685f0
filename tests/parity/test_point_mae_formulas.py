"""Point-MAE equals its published network put together from torch's own layers, on the same weights, clouds and masks.

Groups come from scipy, the small PointNet is made of convolutions with biases, blocks are torch's
``nn.TransformerEncoderLayer``, and the Chamfer distance is a loop over groups.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from medmae.core.tokens import MaskPlan
from medmae.find import find

GROUPS, SIZE, WIDTH, HEADS = 12, 8, 32, 4
SHAPES = {
    "groups": GROUPS, "group_size": SIZE, "width": WIDTH, "depth": 3, "heads": HEADS, "decoder_depth": 2,
    "decoder_heads": HEADS, "hidden": (16, 32, 64),
}  # fmt: skip


class Published(nn.Module):
    """The network as the paper and its code describe it; all groups are embedded, then the hidden ones are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 1))
        self.second = nn.Sequential(nn.Conv1d(64, 64, 1), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, WIDTH, 1))
        self.place = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, WIDTH))
        self.decoder_place = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, WIDTH))
        self.blocks = nn.ModuleList(self.block() for _ in range(3))
        self.decoder_blocks = nn.ModuleList(self.block() for _ in range(2))
        self.norm, self.decoder_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mask_token = nn.Parameter(torch.zeros(WIDTH))
        self.head = nn.Linear(WIDTH, SIZE * 3)

    @staticmethod
    def block() -> nn.Module:
        return nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def encode(self, groups: Tensor, centers: Tensor, hidden: Tensor) -> Tensor:
        b = len(groups)
        x = self.first(groups.flatten(0, 1).transpose(1, 2))
        x = self.second(torch.cat([x.amax(2, keepdim=True).expand_as(x), x], 1)).amax(2).view(b, GROUPS, WIDTH)
        x = x[~hidden].view(b, -1, WIDTH)
        places = self.place(centers[~hidden].view(b, -1, 3))
        for block in self.blocks:
            x = block(x + places)
        return self.norm(x)

    def forward(self, groups: Tensor, centers: Tensor, hidden: Tensor) -> Tensor:
        b, x = len(groups), self.encode(groups, centers, hidden)
        asked = int(hidden[0].sum())
        x = torch.cat([x, self.mask_token.expand(b, asked, -1)], 1)
        places = torch.cat([centers[~hidden].view(b, -1, 3), centers[hidden].view(b, -1, 3)], 1)
        for block in self.decoder_blocks:
            x = block(x + self.decoder_place(places))
        guess = self.head(self.decoder_norm(x[:, -asked:])).view(-1, SIZE, 3)
        truth = groups[hidden]
        apart = [
            torch.cdist(p, q, compute_mode="donot_use_mm_for_euclid_dist") ** 2
            for p, q in zip(guess, truth, strict=True)
        ]
        return torch.stack([d.amin(0).mean() + d.amin(1).mean() for d in apart]).mean()


def pair() -> tuple[nn.Module, Published]:
    """Both, in evaluation, with the same weights and running statistics."""
    torch.manual_seed(4)
    theirs = Published()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
        for block in (*theirs.blocks, *theirs.decoder_blocks):
            block.self_attn.in_proj_bias.zero_()
        for part in (theirs.first, theirs.second):
            part[1].running_mean.normal_()
            part[1].running_var.uniform_(0.5, 2.0)
    method = find("point_mae").build(**SHAPES)
    state = {"decoder.mask_token": theirs.mask_token}
    for mine, part in (("point", theirs.first), ("group", theirs.second)):
        for name, value in part.state_dict().items():
            value = value.squeeze(-1) if name.endswith("weight") and value.ndim == 3 else value
            if name == "1.running_mean":
                value = value - part[0].bias
            if name != "0.bias":
                state[f"encoder.embed.{mine}.{name}"] = value
    for mine, stack in (("encoder", theirs.blocks), ("decoder", theirs.decoder_blocks)):
        for i, block in enumerate(stack):
            names = {
                "attn.qkv.weight": block.self_attn.in_proj_weight, "attn.proj.weight": block.self_attn.out_proj.weight,
                "attn.proj.bias": block.self_attn.out_proj.bias, "mlp.fc1.weight": block.linear1.weight,
                "mlp.fc1.bias": block.linear1.bias, "mlp.fc2.weight": block.linear2.weight,
                "mlp.fc2.bias": block.linear2.bias, "norm1.weight": block.norm1.weight, "norm1.bias": block.norm1.bias,
                "norm2.weight": block.norm2.weight, "norm2.bias": block.norm2.bias,
            }  # fmt: skip
            state |= {f"{mine}.blocks.{i}.{name}": value for name, value in names.items()}
    for kind in ("weight", "bias"):
        for mine, place in (("encoder", theirs.place), ("decoder", theirs.decoder_place)):
            state[f"{mine}.positions.fc1.{kind}"] = getattr(place[0], kind)
            state[f"{mine}.positions.fc2.{kind}"] = getattr(place[2], kind)
        state[f"encoder.norm.{kind}"] = getattr(theirs.norm, kind)
        state[f"decoder.norm.{kind}"] = getattr(theirs.decoder_norm, kind)
        state[f"decoder.head.{kind}"] = getattr(theirs.head, kind)
    method.load_state_dict(state, strict=True)
    return method.eval(), theirs.eval()


def groups_of(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    taken = [0]
    while len(taken) < GROUPS:
        taken.append(int(cdist(points, points[taken]).min(1).argmax()))
    _, near = cKDTree(points).query(points[taken], SIZE)
    return points[near] - points[taken][:, None], points[taken]


def test_loss_and_gradients_are_those_of_the_published_network() -> None:
    method, theirs = pair()
    batch = {"points": torch.randn(3, 200, 3), "key": torch.arange(3) + 5}
    plan = method.plan(batch)
    hidden = torch.ones(3, GROUPS, dtype=torch.bool).scatter(1, plan.visible, False)
    assert int(hidden[0].sum()) == int(0.6 * GROUPS)
    groups, centers = zip(*(groups_of(cloud.numpy()) for cloud in batch["points"]), strict=True)
    other = theirs(torch.from_numpy(np.stack(groups)), torch.from_numpy(np.stack(centers)), hidden)
    loss = method(batch)["reconstruction"]
    torch.testing.assert_close(loss, other, atol=1e-6, rtol=1e-6)

    loss.backward()
    other.backward()
    for mine, parameter in (
        (method.decoder.head.weight, theirs.head.weight),
        (method.encoder.embed.point[0].weight, theirs.first[0].weight),
        (method.decoder.mask_token, theirs.mask_token),
        (method.decoder.positions.fc1.weight, theirs.decoder_place[0].weight),
        (method.encoder.positions.fc1.weight, theirs.place[0].weight),
        (method.encoder.blocks[0].attn.qkv.weight, theirs.blocks[0].self_attn.in_proj_weight),
    ):
        torch.testing.assert_close(mine.grad, parameter.grad.view_as(mine), atol=1e-5, rtol=1e-3)


def test_the_encoder_is_that_of_the_published_network() -> None:
    method, theirs = pair()
    tokens = method.tokenizer({"points": torch.randn(2, 200, 3)})
    ids = torch.arange(5).expand(2, -1)
    hidden = torch.ones(2, GROUPS, dtype=torch.bool).scatter(1, ids, False)
    plan = MaskPlan(ids, torch.arange(5, GROUPS).expand(2, -1))
    mine = method.encoder(tokens.at(plan.visible), tokens.layout).tokens.content
    torch.testing.assert_close(mine, theirs.encode(tokens.content, tokens.layout.coords, hidden), atol=1e-5, rtol=1e-4)


def test_without_positions_in_every_block_it_would_not_be() -> None:
    method, theirs = pair()
    tokens = method.tokenizer({"points": torch.randn(2, 200, 3)})
    hidden = torch.zeros(2, GROUPS, dtype=torch.bool)
    method.encoder.every_block = False
    mine = method.encoder(tokens, tokens.layout).tokens.content
    other = theirs.encode(tokens.content, tokens.layout.coords, hidden)
    assert float(F.mse_loss(mine, other).detach()) > 1e-3
