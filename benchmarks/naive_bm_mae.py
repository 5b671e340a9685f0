"""BM-MAE the straightforward way: what medmae is measured against.

The published description taken literally with the parts that lie at hand: MONAI's ``PatchEmbeddingBlock`` for every
sequence, attention written as two matrix products and a softmax, all patches embedded and most of them thrown away, the
head applied to all tokens. Names of parameters are those of the published checkpoints, so that
``medmae.convert.bm_mae.key_table`` carries weights over and equality can be shown.

Each switch of :class:`NaiveBMMAE` undoes one of these choices, so that the gain of each can be measured alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import PatchEmbeddingBlock
from torch import Tensor, nn

from medmae.convert.bm_mae import key_table
from medmae.core.method import Method

NAMES = ("t1", "t1ce", "t2", "flair")


class Attention(nn.Module):
    """Softmax attention that keeps every weight; ``fused`` hands it to torch instead."""

    def __init__(self, width: int, heads: int, dropout: float, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.fused = heads, dropout, fused
        self.qkv, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop_weights, self.drop_output = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [b s d] attend to all tokens."""
        b, s, d = x.shape
        q, k, v = self.qkv(x).reshape(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        else:
            weights = (q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5
            x = self.drop_weights(weights.softmax(-1)) @ v
        return self.drop_output(self.out_proj(x.transpose(1, 2).reshape(b, s, d)))


class Mlp(nn.Module):
    """Two linear maps with GELU between them."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop1, self.drop2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Each token on its own."""
        return self.drop2(self.linear2(self.drop1(F.gelu(self.linear1(x)))))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, *, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, dropout, fused=fused)
        self.mlp = Mlp(width, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Tokenizer(nn.Module):
    """The patch embedding of one sequence."""

    def __init__(self, size: Sequence[int], patch: Sequence[int], width: int, heads: int) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbeddingBlock(
            1, size, patch, width, heads, proj_type="conv", pos_embed_type="sincos", spatial_dims=3
        )

    def forward(self, image: Tensor) -> Tensor:
        """Image [b 1 x y z] to tokens [b n d]."""
        return self.patch_embedding(image)


class Decoder(nn.Module):
    """The parameters of the joint decoder; :class:`NaiveBMMAE` runs them."""

    def __init__(
        self, size: Sequence[int], patch: Sequence[int], encoder_width: int, width: int, depth: int, heads: int,
        hidden: int, dropout: float, *, fused: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mask_tokens = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        table = PatchEmbeddingBlock(1, size, patch, width, 1, proj_type="perceptron", pos_embed_type="sincos")
        self.position_embeddings = nn.Parameter(table.position_embeddings.detach(), requires_grad=False)
        self.modality_embeddings = nn.ParameterDict({m: nn.Parameter(torch.randn(1, 1, width) * 0.02) for m in NAMES})
        self.decoder_embed = nn.Linear(encoder_width, width)
        self.decoder_blocks = nn.ModuleList(Block(width, heads, hidden, dropout, fused=fused) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width)
        content = patch[0] * patch[1] * patch[2]
        self.decoder_pred = nn.Linear(width, content)


class NaiveBMMAE(nn.Module):
    """The whole model and its loss.

    Args:
        size: voxels per axis.
        patch: voxels per axis of a patch.
        width: features per token of the encoder.
        depth: blocks of the encoder.
        heads: attention heads of the encoder.
        decoder_width: features per token of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        decoder_hidden: hidden width of the decoder's MLPs.
        decoder_dropout: the published training uses 0.1.
        fused: attention by ``scaled_dot_product_attention``.
        needed: embed visible patches only, and apply the head to hidden ones only.
    """

    def __init__(
        self,
        *,
        size: Sequence[int] = (128, 128, 128),
        patch: Sequence[int] = (16, 16, 16),
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        decoder_width: int = 384,
        decoder_depth: int = 3,
        decoder_heads: int = 12,
        decoder_hidden: int = 1536,
        decoder_dropout: float = 0.1,
        fused: bool = False,
        needed: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.patch, self.needed = tuple(size), tuple(patch), needed
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.tokenizers = nn.ModuleDict({m: Tokenizer(self.size, self.patch, width, heads) for m in NAMES})
        self.blocks = nn.ModuleList(Block(width, heads, 2 * width, 0.0, fused=fused) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.decoder = Decoder(
            self.size, self.patch, width, decoder_width, decoder_depth, decoder_heads, decoder_hidden, decoder_dropout,
            fused=fused,
        )  # fmt: skip

    def draw(self, b: int, n: int) -> Tensor:
        """Random masks [b n], 0 visible and 1 hidden: Dirichlet shares of a quarter of all ``n`` patches."""
        keep, each = n // 4, n // len(NAMES)
        share = torch.distributions.Dirichlet(torch.ones(len(NAMES))).sample((b,))
        while (share * keep > each).any():
            share = torch.distributions.Dirichlet(torch.ones(len(NAMES))).sample((b,))
        counts = (share * keep).round().long()
        rank = torch.rand(b, len(NAMES), each).argsort(-1).argsort(-1)
        wanted = (rank < counts[..., None]).flatten(1)
        order = (torch.rand(b, n) + (~wanted).float()).argsort(1)
        return torch.ones(b, n).scatter(1, order[:, :keep], 0.0)

    def patchify(self, image: Tensor) -> Tensor:
        """Image [b 1 x y z] to patches [b n content]."""
        (x, y, z), (p, q, r) = self.size, self.patch
        cut = image.reshape(len(image), x // p, p, y // q, q, z // r, r)
        return cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(image), -1, p * q * r)

    def embed(self, images: Mapping[str, Tensor], order: Tensor, keep: int) -> Tensor:
        """Features of the visible patches [b keep d], visible first in ``order``."""
        if self.needed:
            return self._embed_needed(images, order[:, :keep])
        tokens = torch.cat([self.tokenizers[m](images[m]) for m in NAMES], 1)
        return tokens.gather(1, order[:, :keep, None].expand(-1, -1, tokens.shape[-1]))

    def _embed_needed(self, images: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        rows = []
        for b, wanted in enumerate(ids):
            n = len(self.tokenizers[NAMES[0]].patch_embedding.position_embeddings[0])
            row = self.cls_token.new_empty(len(wanted), self.cls_token.shape[-1])
            for i, m in enumerate(NAMES):
                here = (wanted // n == i).nonzero()[:, 0]
                block = self.tokenizers[m].patch_embedding
                patches = self.patchify(images[m][b : b + 1])[0, wanted[here] % n]
                mapped = F.linear(patches, block.patch_embeddings.weight.flatten(1), block.patch_embeddings.bias)
                row = row.index_copy(0, here, (mapped + block.position_embeddings[0, wanted[here] % n]).to(row.dtype))
            rows.append(row)
        return torch.stack(rows)

    def forward(self, images: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            images: one [b 1 x y z] per sequence.
            mask: [b n], 0 visible and 1 hidden, the same number of each in every row; drawn where left out.
        """
        truth = torch.cat([self.patchify(images[m]) for m in NAMES], 1)
        b, n, _ = truth.shape
        mask = self.draw(b, n) if mask is None else mask
        keep = int((mask[0] == 0).sum())
        order = mask.argsort(dim=1, stable=True)
        x = self.embed(images, order, keep)
        x = torch.cat([self.cls_token.expand(b, -1, -1).to(x.dtype), x], 1)
        for block in self.blocks:
            x = block(x)
        d = self.decoder
        x = d.decoder_embed(self.norm(x))
        full = torch.cat([x[:, 1:], d.mask_tokens.to(x.dtype).expand(b, n - keep, -1)], 1)
        full = full.gather(1, order.argsort(1)[..., None].expand_as(full))  # back in place
        places = torch.cat([d.modality_embeddings[m] + d.position_embeddings for m in NAMES], 1)
        x = torch.cat([x[:, :1], full + places.to(full.dtype)], 1)
        for block in d.decoder_blocks:
            x = block(x)
        if self.needed:
            hidden = order[:, keep:, None]
            x = d.decoder_pred(d.decoder_norm(x[:, 1:].gather(1, hidden.expand(-1, -1, x.shape[-1]))))
            part = (x - truth.gather(1, hidden.expand(-1, -1, truth.shape[-1]))).square().mean(-1)
            error = torch.zeros(b, n, dtype=part.dtype).scatter(1, order[:, keep:], part)
        else:
            error = (d.decoder_pred(d.decoder_norm(x))[:, 1:] - truth).square().mean(-1)
        each = zip(error.chunk(len(NAMES), 1), mask.chunk(len(NAMES), 1), strict=True)
        return torch.stack([(part * hidden).sum() / hidden.sum() for part, hidden in each]).sum()


def copy_weights(source: NaiveBMMAE, target: Method) -> None:
    """Give the published preset of medmae the weights of ``source``."""
    own, theirs = dict(target.named_parameters()), source.state_dict()
    with torch.no_grad():
        for entry in _table(source):
            if entry.ours is not None:
                own[entry.ours].copy_(entry.shape(theirs[entry.theirs]))


def gradients(source: NaiveBMMAE) -> dict[str, Tensor]:
    """Gradients of ``source`` under medmae's names and in its shapes."""
    own = dict(source.named_parameters())
    found = {}
    for entry in _table(source):
        gradient = own[entry.theirs].grad
        if entry.ours is not None and gradient is not None:
            found[entry.ours] = entry.shape(gradient)
    return found


def _table(source: NaiveBMMAE) -> tuple:  # type: ignore[type-arg]
    ours = dict(zip(NAMES, ("t1n", "t1c", "t2w", "t2f"), strict=True))
    return key_table(ours, depth=len(source.blocks), decoder_depth=len(source.decoder.decoder_blocks))
