"""Position codes equal MONAI's fixed tables, on non-cubic grids too."""

from __future__ import annotations

import pytest
import torch

from medmae.core.grid import Grid
from medmae.nets.positions import sincos
from medmae.torchvision_guard import guard

guard()
tables = pytest.importorskip("monai.networks.blocks.pos_embed_utils")


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize(
    ("shape", "width"), [((8, 8, 8), 384), ((2, 3, 4), 48), ((5, 1, 3), 54), ((14, 14), 192), ((3, 5), 32)]
)
def test_codes_are_the_tables_of_monai(shape: tuple[int, ...], width: int) -> None:
    table = tables.build_sincos_position_embedding(list(shape), width, len(shape))
    torch.testing.assert_close(
        sincos(Grid(shape, (1,) * len(shape)).indices(), width)[None], table.data, atol=2e-6, rtol=0
    )
