"""Primus: a plain vision transformer over small cubes of all channels, and the decoder of its masked autoencoder.

One token per cube: what the visible sequences show there goes through one linear map together, each sequence by its own
columns of it, which is a strided convolution over stacked channels. Sequences that are hidden or missing add nothing.
The arithmetic is that of ``Primus`` in dynamic-network-architectures and of nnssl's masked autoencoder around it, so
that their weights can be taken over (``nets/primus_keys.py``); what is ours is that positions come from coordinates,
that only asked cubes are raised to voxels, and that channels are known by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from medmae.core.tokens import TokenLayout, Tokens, take

from .encoded import Encoded, attention_mask
from .rotary import RotaryStack, angles
from .strides import raising


class PositionTable(nn.Module):
    """Learned codes on a grid; between its points, and on grids of another size, they are interpolated.

    Args:
        shape: points per axis, two or three axes.
        width: length of a code.
    """

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(f"a table of positions has two or three axes of at least one point, not {tuple(shape)}")
        self.shape = tuple(shape)
        self.weight = nn.Parameter(torch.empty(*shape, width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, coords: Float[Tensor, "b s p"], extent: Float[Tensor, " p"]) -> Float[Tensor, "b s d"]:
        """The codes at ``coords`` of a grid of ``extent`` points, which the table is stretched to cover."""
        b, s, p = coords.shape
        if p != len(self.shape):
            raise ValueError(f"the table of positions has {len(self.shape)} axes, the tokens have {p}")
        place = (2 * (coords.float() + 0.5) / extent - 1).flip(-1).reshape(1, *(1,) * (p - 1), b * s, p)
        table = self.weight.float().movedim(-1, 0)[None]
        codes = F.grid_sample(table, place, mode="bilinear", padding_mode="border", align_corners=False)
        return codes.reshape(codes.shape[1], b, s).permute(1, 2, 0)


class StackedEmbed(nn.Module):
    """One linear map of all sequences of a cube, kept by their names.

    Args:
        names: sequences in the order of the modality index.
        content: values per token.
        width: features per cube.
    """

    def __init__(self, names: Sequence[str], content: int, width: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.linear = nn.ModuleDict({name: nn.Linear(content, width, bias=False) for name in self.names})
        self.bias = nn.Parameter(torch.zeros(width))
        for linear in self.linear.values():  # He's rule over the values of all sequences
            nn.init.normal_(linear.weight, std=(2 / 1.0001 / (content * len(self.names))) ** 0.5)  # type: ignore[arg-type]

    def forward(self, content: Float[Tensor, "b k what"]) -> Float[Tensor, "b k d"]:
        """Features of cubes; ``what`` holds the values of all sequences, one after the other."""
        weight = torch.cat([self.linear[name].weight for name in self.names], 1)  # type: ignore[misc]
        return F.linear(content, weight, self.bias)


def stack(visible: Tokens, full: TokenLayout, modalities: int) -> tuple[Tokens, TokenLayout]:
    """Tokens per (sequence, cube) joined to tokens per cube, and the full layout of the cubes.

    A cube is visible where any sequence of it is; a sequence that is not visible there is zero.

    Args:
        visible: content [b v what].
        full: layout of the full set, sequence by sequence on one grid.
        modalities: number of sequences m.

    Returns:
        Content [b k m*what], cubes in ascending order of their ids (for one sequence in the order they came in), and
        the layout of all cubes.
    """
    n, layout = full.total // modalities, visible.layout
    b, v = layout.id.shape
    ids = torch.arange(n, device=layout.id.device).expand(b, -1)
    weight = None if full.weight is None else full.weight[:, :n]
    cubes = TokenLayout(ids, full.coords[:, :n], torch.zeros_like(ids), weight, n)
    if modalities == 1:
        return Tokens(cubes.at(layout.id, ragged=layout.ragged), visible.content), cubes
    exists, cube = layout.exists, layout.id.remainder(n)
    spare = torch.where(exists, cube, n)
    marks = torch.zeros(b, n + 1, dtype=torch.long, device=cube.device).scatter(1, spare, 1)[:, :n]
    if torch.compiler.is_compiling():  # the exact number would break the graph: the rest is padding
        k, ragged = min(v, n), True
    else:
        count = marks.sum(1)
        k = int(count.max()) if b else 0
        ragged = bool((count < k).any())
    rank = marks.cumsum(1) - 1  # of a visible cube among the visible ones; a sort would not translate to ONNX
    spot = torch.where(marks > 0, rank, k)
    shown = torch.full((b, k + 1), -1, dtype=ids.dtype, device=ids.device).scatter(1, spot, ids)[:, :k]
    slot = rank.gather(1, cube)
    column = torch.where(exists, layout.modality * k + slot, modalities * k)
    what = visible.content.shape[-1]
    canvas = visible.content.new_zeros(b, modalities * k + 1, what)
    canvas = canvas.scatter(1, column[..., None].expand(-1, -1, what), visible.content)[:, :-1]
    content = canvas.view(b, modalities, k, what).transpose(1, 2).flatten(2)
    return Tokens(cubes.at(shown, ragged=ragged), content), cubes


def _extent(cubes: TokenLayout) -> Float[Tensor, " p"]:
    """Cubes per axis, read from the coordinates: nothing has to be told to the network, and nothing synchronized."""
    return cubes.coords.amax((0, 1)) + 1


class PrimusEncoder(nn.Module):
    """Embed cubes, add a learned position, attend with rotary positions.

    Args:
        names: sequences in the order of the modality index.
        content: values per token.
        width: features per cube.
        depth: blocks.
        heads: attention heads; a head has a multiple of 6 features.
        table: points per axis of the learned positions; empty for none.
        axes: order in which the axes of space are coded. Weights that were trained with the first two axes exchanged,
            as nnssl's ``EvaMAE`` flattens its cubes, need (1, 0, 2).
        registers: tokens that stand for no place.
        options: further arguments of :class:`medmae.nets.rotary.RotaryStack`.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        content: int,
        width: int,
        depth: int,
        heads: int,
        table: Sequence[int] = (),
        axes: Sequence[int] = (0, 1, 2),
        registers: int = 0,
        eps: float = 1e-5,
        **options: object,
    ) -> None:
        super().__init__()
        self.width, self.head, self.axes = width, width // heads, _order(axes)
        self.embed = StackedEmbed(names, content, width)
        self.table = PositionTable(table, width) if table else None
        self.prefix_tokens = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        if self.prefix_tokens is not None:
            nn.init.normal_(self.prefix_tokens, std=1e-6)
        self.blocks = RotaryStack(depth, width, heads, eps=eps, **options)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, visible: Tokens, full: TokenLayout, tap: tuple[int, ...] = ()) -> Encoded:
        """Features of the visible cubes; ``tokens`` and ``full`` of the result are about cubes, not sequences.

        Args:
            visible: what may be seen.
            full: layout of the full set.
            tap: blocks whose output is wanted too, from 0.
        """
        tokens, cubes = stack(visible, full, len(self.embed.names))
        place = tokens.layout.coords[..., self.axes]
        x = self.embed(tokens.content)
        if self.table is not None:
            x = x + self.table(place, _extent(cubes)[self.axes])  # float32, and so is the sum, under autocast too
        k = 0
        if self.prefix_tokens is not None:
            k = self.prefix_tokens.shape[1]
            x = torch.cat([self.prefix_tokens.expand(len(x), -1, -1).to(x.dtype), x], 1)
        x, taps = self.blocks(x, angles(place, self.head), attention_mask(tokens.layout, k), tap=tap)
        x = self.norm(x)
        taps = {i: t[:, k:] for i, t in taps.items()}
        return Encoded(Tokens(tokens.layout, x[:, k:]), x[:, :k], cubes, visible, taps)


class PrimusDecoder(nn.Module):
    """A mask token where nothing was visible, a few blocks over all cubes, transposed convolutions to voxels.

    Every transposed convolution has a stride equal to its kernel, so a cube is raised to its voxels on its own, and
    only those that are asked for are.

    Args:
        names: sequences in the order of the modality index.
        patch: voxels per axis of a cube, three axes.
        width: features per cube.
        depth: blocks.
        heads: attention heads.
        table: points per axis of the learned positions; empty for none.
        axes: order in which the axes of space are coded.
        options: further arguments of :class:`medmae.nets.rotary.RotaryStack`.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        patch: Sequence[int],
        width: int,
        depth: int,
        heads: int,
        table: Sequence[int] = (),
        axes: Sequence[int] = (0, 1, 2),
        eps: float = 1e-5,
        **options: object,
    ) -> None:
        super().__init__()
        if len(patch) != 3 or max(patch) < 2:
            raise ValueError(f"cubes of three axes and more than one voxel are raised to voxels, not {tuple(patch)}")
        self.names, self.head_width, self.axes = tuple(names), width // heads, _order(axes)
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.mask_token, std=1e-6)
        self.table = PositionTable(table, width) if table else None
        self.blocks = RotaryStack(depth, width, heads, eps=eps, **options)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(width, eps=eps)
        factors: list[tuple[int, int, int]] = [(x, y, z) for x, y, z in raising(patch)]
        # The width falls by one ratio per stage, as if there were one output, so that sequences can come and go.
        ratio = (width / 2) ** (1 / len(factors))
        widths = [width, *(_to_eight(width / ratio ** (i + 1)) for i in range(len(factors) - 1))]
        steps = zip(widths, widths[1:], factors, strict=False)
        self.up = nn.ModuleList(nn.ConvTranspose3d(a, z, factor, factor) for a, z, factor in steps)
        self.up_norm = nn.ModuleList(nn.LayerNorm(z, eps=1e-6) for z in widths[1:])
        self.head = nn.ModuleDict(
            {name: nn.ConvTranspose3d(widths[-1], 1, factors[-1], factors[-1]) for name in self.names}
        )

    def forward(self, encoded: Encoded, queries: TokenLayout) -> Shaped[Tensor, "b t what"]:
        """Voxels of every query (a sequence at a cube); rows of missing queries hold anything finite."""
        cubes = encoded.full
        x = encoded.tokens.onto(cubes, self.mask_token).content
        place = cubes.coords[..., self.axes]
        if self.table is not None:
            x = x + self.table(place, _extent(cubes)[self.axes])  # float32, and so is the sum, under autocast too
        x, _ = self.blocks(x, angles(place, self.head_width), attention_mask(cubes, 0))
        x = self.norm(x)
        asked = queries.id.clamp_min(0).remainder(cubes.total)
        if asked.shape[1] <= cubes.total:
            voxels = self._raise(take(x, asked))
        else:  # several sequences of one cube are asked for: raise it once
            voxels = take(self._raise(x), asked)
        own = queries.modality[..., None, None].expand(-1, -1, 1, voxels.shape[-1])
        return voxels.gather(2, own)[:, :, 0]

    def _raise(self, x: Float[Tensor, "b k d"]) -> Float[Tensor, "b k m what"]:
        """The voxels of every cube in every sequence."""
        b, k, d = x.shape
        x = x.reshape(b * k, d, 1, 1, 1)
        for up, norm in zip(self.up, self.up_norm, strict=True):
            x = F.gelu(norm(up(x).movedim(1, -1)).movedim(-1, 1))
        heads = [self.head[name] for name in self.names]
        weight = torch.cat([head.weight for head in heads], 1)  # type: ignore[misc]
        bias = torch.cat([head.bias for head in heads])  # type: ignore[misc]
        x = F.conv_transpose3d(x, weight, bias, stride=heads[0].stride)  # type: ignore[arg-type]
        return x.reshape(b, k, len(heads), -1)


def _order(axes: Sequence[int]) -> list[int]:
    if sorted(axes) != list(range(len(axes))):
        raise ValueError(f"axes {tuple(axes)} is not an order of {len(axes)} axes")
    return list(axes)


def _to_eight(width: float) -> int:
    """The nearest multiple of eight, at least eight; halves go up."""
    return max(8, round((width + 1e-6) / 8) * 8)
