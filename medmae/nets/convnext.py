"""ConvNeXt V2 on visible cells: whole maps times a mask, for images and volumes.

Hidden places hold nothing and contribute nothing, as in a sparse network. A mask after each convolution is not enough
for that: norms and biases fill hidden places again, and the response norm sums over all places, so its input is masked
too. Names and shapes of the parameters are those of timm's ``convnextv2_*`` (the last norm, which belongs to the
classifier there, is left out); where timm has 1x1 convolutions, the same numbers are linear maps here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from medmae.core.grid import Grid
from medmae.core.tokens import TokenLayout, Tokens, take

from .encoded import Pyramid
from .kernels import Linear
from .vit import truncated_normal

Mask = Float[Tensor, "b *size 1"]


class ResponseNorm(nn.Module):
    """Global response normalization: channels compete by their norm over all places of a sample (section 3.2).

    ``x + weight * x * g / (mean of g over channels + eps) + bias`` with ``g`` the Euclidean norm of a channel.

    Args:
        width: channels.
        eps: added to the mean.
    """

    def __init__(self, width: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "b *size c"]) -> Float[Tensor, "b *size c"]:
        """Channels last; whatever does not count must be zero already."""
        g = torch.linalg.vector_norm(x.float(), dim=tuple(range(1, x.ndim - 1)), keepdim=True)
        share = (g / (g.mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        return x + self.weight * (x * share) + self.bias


class ResponseMlp(nn.Module):
    """Linear, exact GELU, response norm, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.grn, self.fc2 = Linear(width, hidden), ResponseNorm(hidden), Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b *size c"], mask: Mask | None = None) -> Float[Tensor, "b *size c"]:
        """Each place on its own but for the response norm, which counts unmasked places."""
        x = F.gelu(self.fc1(x))
        return self.fc2(self.grn(x if mask is None else x * mask.to(x.dtype)))


class ConvNeXtBlock(nn.Module):
    """x += mlp(norm(depth-wise convolution(x))).

    Args:
        width: channels.
        axes: 2 or 3.
        kernel: edge of the convolution, odd.
        eps: of the layer norm.
    """

    def __init__(self, width: int, *, axes: int, kernel: int = 7, eps: float = 1e-6) -> None:
        super().__init__()
        self.conv_dw = _convolution(axes)(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = ResponseMlp(width, 4 * width)

    def forward(self, x: Float[Tensor, "b c *size"], mask: Mask | None = None) -> Float[Tensor, "b c *size"]:
        """One block on maps, channels first; hidden places are zero and stay zero."""
        branch = self.mlp(self.norm(self.conv_dw(x).movedim(1, -1)), mask)
        return x + (branch if mask is None else branch * mask.to(branch.dtype)).movedim(-1, 1)


class PlaceNorm(nn.LayerNorm):
    """A layer norm over the channels of every place of a map, channels first."""

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        """Normalize."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Stage(nn.Module):
    """Halve the resolution (the first stage does not), then blocks.

    Args:
        before: channels that come in, or None in the first stage.
        width: channels.
        depth: blocks.
        axes: 2 or 3.
        kernel: edge of the depth-wise convolutions.
        eps: of the layer norms.
    """

    def __init__(self, before: int | None, width: int, depth: int, *, axes: int, kernel: int, eps: float) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if before is not None:
            halve = _convolution(axes)(before, width, 2, stride=2)
            self.downsample = nn.Sequential(PlaceNorm(before, eps=eps), halve)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, axes=axes, kernel=kernel, eps=eps) for _ in range(depth))

    def forward(self, x: Float[Tensor, "b c ..."], mask: Mask | None = None) -> Float[Tensor, "b d ..."]:
        """Maps of this stage; ``mask`` is at its resolution."""
        x = self.downsample(x)
        x = x if mask is None else x * mask.movedim(-1, 1).to(x.dtype)
        for block in self.blocks:
            x = block(x, mask)
        return x


class ConvNeXtEncoder(nn.Module):
    """ConvNeXt V2 of visible cells.

    A cell is one token of every sequence; it is visible where any sequence shows it. Sequences are stacked as channels.

    Args:
        grid: how each sequence is cut; the patch is a cell, as large as the total stride.
        modalities: number of sequences.
        widths: channels of every stage.
        depths: blocks of every stage.
        stem: edge and stride of the first convolution.
        kernel: edge of the depth-wise convolutions, odd.
        eps: of the layer norms.

    Raises:
        ValueError: images that are neither 2-D nor 3-D, or cells of another size.
    """

    def __init__(
        self,
        *,
        grid: Grid,
        modalities: int,
        widths: Sequence[int],
        depths: Sequence[int],
        stem: int = 4,
        kernel: int = 7,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        axes = len(grid.size)
        total = stem * 2 ** (len(widths) - 1)
        if axes not in (2, 3):
            raise ValueError(f"size {grid.size} has {axes} axes; ConvNeXt works on images (2) and volumes (3)")
        if any(edge != total for edge in grid.patch):
            raise ValueError(f"cells of {grid.patch} are not the total stride {total} of {len(widths)} stages")
        if len(widths) != len(depths) or kernel % 2 == 0:
            raise ValueError(f"widths {widths} and depths {depths} must be as many, and kernel {kernel} odd")
        self.grid, self.modalities, self.first = grid, modalities, stem
        self.widths = tuple(widths)
        channels = grid.channels * modalities
        self.stem = nn.Sequential(
            _convolution(axes)(channels, widths[0], stem, stride=stem), PlaceNorm(widths[0], eps=eps)
        )
        self.stages = nn.ModuleList(
            Stage(before, width, depth, axes=axes, kernel=kernel, eps=eps)
            for before, width, depth in zip((None, *widths[:-1]), widths, depths, strict=True)
        )
        truncated_normal(self)

    def features(
        self, image: Float[Tensor, "b c *size"], shown: Bool[Tensor, "b 1 *cells"] | None = None
    ) -> tuple[Float[Tensor, "b _ ..."], ...]:
        """Maps of every stage, fine to coarse; None shows all cells, and the network is the plain one."""
        x = self.stem(image)
        levels = []
        for i, stage in enumerate(self.stages):
            mask = None if shown is None else self._mask(shown, self.first * 2**i)
            x = stage(x, mask)
            levels.append(x)
        return tuple(levels)

    def forward(self, visible: Tokens, full: TokenLayout, tap: tuple[int, ...] = ()) -> Pyramid:
        """Features of what may be seen.

        Args:
            visible: the tokens that may be seen.
            full: layout of the full set; handed through to the decoder.
            tap: ignored: all stages are returned anyway.
        """
        b, grid, m = len(visible.content), self.grid, self.modalities
        canvas = visible.onto(visible.layout, visible.content.new_zeros(())).content
        image = grid.unpatchify(canvas.reshape(b * m, grid.length, grid.content))
        shown = shown_cells(visible.layout, grid, m)
        return Pyramid(self.features(image.reshape(b, m * grid.channels, *grid.size), shown), full, visible)

    def _mask(self, shown: Bool[Tensor, "b 1 *cells"], stride: int) -> Mask:
        mask = shown
        for axis, edge in enumerate(self.grid.patch):
            mask = mask.repeat_interleave(edge // stride, axis + 2)
        return mask.movedim(1, -1).float()


class ConvNeXtDecoder(nn.Module):
    """One place per cell: project, put a learned vector where nothing was visible, blocks, project to values.

    Args:
        grid: how each sequence is cut; a patch is a cell.
        modalities: number of sequences.
        encoder_width: channels of the coarsest maps.
        width: channels inside.
        depth: blocks; they see all cells.
        kernel: edge of their convolutions.
        eps: of their layer norms.
    """

    def __init__(
        self,
        *,
        grid: Grid,
        modalities: int,
        encoder_width: int,
        width: int,
        depth: int = 1,
        kernel: int = 7,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.grid, self.modalities, axes = grid, modalities, len(grid.size)
        self.embed = Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, axes=axes, kernel=kernel, eps=eps) for _ in range(depth))
        self.head = Linear(width, grid.content * modalities)
        truncated_normal(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, pyramid: Pyramid, queries: TokenLayout) -> Shaped[Tensor, "b t what"]:
        """Content of every query."""
        shown = shown_cells(pyramid.seen.layout, self.grid, self.modalities).movedim(1, -1)
        x = self.embed(pyramid.levels[-1].movedim(1, -1))
        x = torch.where(shown, x, self.mask_token.to(x.dtype)).movedim(-1, 1)
        for block in self.blocks:
            x = block(x)
        cells = self.head(x.movedim(1, -1)).flatten(1, -2).unflatten(-1, (self.modalities, self.grid.content))
        return take(cells.transpose(1, 2).flatten(1, 2), queries.id)


def shown_cells(visible: TokenLayout, grid: Grid, modalities: int) -> Bool[Tensor, "b 1 *cells"]:
    """Where any sequence shows something."""
    b, total = len(visible.id), visible.total
    marks = torch.zeros(b, total + 1, dtype=torch.bool, device=visible.id.device)
    marks = marks.scatter(1, torch.where(visible.exists, visible.id, total), visible.exists)[:, :total]
    return marks.view(b, modalities, grid.length).any(1).view(b, 1, *grid.shape)


def _convolution(axes: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if axes == 2 else nn.Conv3d
