"""Convolutional networks over the visible cubes of a volume: two executions of one network and one set of weights."""

from __future__ import annotations

from .blocks import Blocks
from .cells import Cells
from .execution import Execution, Masked
from .walk import check, decode, encode, walk

__all__ = ["Blocks", "Cells", "Execution", "Masked", "check", "decode", "encode", "walk"]
