"""What the convolutional methods of this folder share: the sizes of nnU-Net's residual encoder U-Net."""

from __future__ import annotations

from typing import Any

STRIDES: tuple[tuple[int, ...], ...] = ((1, 1, 1), *((2, 2, 2),) * 5)
KERNELS: tuple[tuple[int, ...], ...] = ((3, 3, 3),) * 6

RESENC_SCALES: dict[str, dict[str, Any]] = {
    "test": {"size": (16, 16, 16), "block": (4, 4, 4), "features": (6, 8, 10), "blocks": (1, 1, 1),
             "kernels": ((3, 3, 3),) * 3, "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)), "decoder_convs": (1, 1)},
    "tiny": {"size": (64, 64, 64), "features": (16, 32, 64, 128), "blocks": (1, 2, 2, 2),
             "kernels": ((3, 3, 3),) * 4, "strides": ((1, 1, 1), *((2, 2, 2),) * 3), "decoder_convs": (1, 1, 1)},
    "small": {"size": (96, 96, 96), "features": (16, 32, 64, 128, 160, 160)},
    "m": {"size": (128, 128, 128)},
    "l": {"size": (160, 160, 160)},
    "xl": {"size": (192, 192, 192)},
}  # fmt: skip
"""``m``, ``l`` and ``xl`` are one network, as nnU-Net's ResEncM, L and XL presets: they differ in the window that fits
their memory. A smaller window or more stages come with a plan."""

ENCODER_SCALES: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in scale.items() if key not in ("block", "decoder_convs")}
    for name, scale in RESENC_SCALES.items()
}
"""The same for methods that train the encoder alone."""
