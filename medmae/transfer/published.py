"""The segmentation head that BM-MAE was published with, for comparison: MONAI's UNETR decoder.

Hidden layers are averaged over the sequences for the decoder, and the stacked images enter at full resolution as
channels. So the network is tied to one subset of the sequences, which is what the other head avoids. There is no [CLS]
token, as in the publication.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medmae.core.errors import UsageError
from medmae.core.tokens import Batch

from .backbone import Backbone
from .pooling import Features

KIND = "published"
PATCH = (16, 16, 16)


class PublishedHead(nn.Module):
    """The decoder half of MONAI's UNETR; parameters have the names they have there.

    Args:
        backbone: with tokens of patches of 16^3 voxels; its [CLS] token is taken away, and it is told which of its
            hidden layers to hand on (of twelve blocks: the third, sixth and ninth, counted from 0).
        outputs: channels that go out.
        sequences: the subset that the network is tied to, in the order of the channels.
        features: channels at full resolution.

    Raises:
        UsageError: a backbone without such tokens, or sequences it does not know.
    """

    def __init__(self, backbone: Backbone, outputs: int, *, sequences: Sequence[str], features: int = 16) -> None:
        from monai.networks.blocks.dynunet_block import UnetOutBlock
        from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock

        super().__init__()
        encoder: Any = backbone.encoder
        self.grid, self.names = backbone.tokenizer.grid, tuple(sequences)
        if not hasattr(encoder, "prefix_tokens") or tuple(self.grid.patch) != PATCH:
            raise UsageError(
                f"the published head needs a transformer with patches of {PATCH} voxels, not of {self.grid.patch}"
            )
        if not self.names or (strange := [name for name in self.names if name not in backbone.sequences]):
            raise UsageError(
                f"the model knows {', '.join(backbone.sequences)}, not {strange if self.names else 'none'}"
            )
        encoder.prefix_tokens = None
        width = encoder.width
        self.taps = tuple(backbone.levels * k // 4 for k in (1, 2, 3))
        backbone.taps = self.taps
        more: dict[str, Any] = {"kernel_size": 3, "norm_name": "instance", "res_block": True}
        self.encoder1 = UnetrBasicBlock(3, len(self.names), features, stride=1, **more)
        rise: dict[str, Any] = {**more, "stride": 1, "upsample_kernel_size": 2, "conv_block": True}
        self.encoder2 = UnetrPrUpBlock(3, width, features * 2, num_layer=2, **rise)
        self.encoder3 = UnetrPrUpBlock(3, width, features * 4, num_layer=1, **rise)
        self.encoder4 = UnetrPrUpBlock(3, width, features * 8, num_layer=0, **rise)
        up: dict[str, Any] = {**more, "upsample_kernel_size": 2}
        self.decoder5 = UnetrUpBlock(3, width, features * 8, **up)
        self.decoder4 = UnetrUpBlock(3, features * 8, features * 4, **up)
        self.decoder3 = UnetrUpBlock(3, features * 4, features * 2, **up)
        self.decoder2 = UnetrUpBlock(3, features * 2, features, **up)
        self.out = UnetOutBlock(3, features, outputs)

    def forward(self, features: Features, batch: Batch) -> Float[Tensor, "b outputs x y z"]:
        """The raw numbers of every voxel."""
        from medmae.nets.unetr import token_map

        encoded: Any = features.encoded
        tokens = encoded.tokens
        layers = [type(tokens)(tokens.layout, encoded.taps[i]) for i in self.taps]
        maps = [token_map(layer, encoded.full, self.grid.shape) for layer in [*layers, tokens]]
        return self.decode(torch.cat([batch[name] for name in self.names], 1), maps)

    def decode(
        self, images: Float[Tensor, "b m x y z"], maps: Sequence[Float[Tensor, "b d i j k"]]
    ) -> Float[Tensor, "b outputs x y z"]:
        """From the stacked images and four maps of hidden layers, shallow to deep."""
        shallow, middle, deep, last = maps
        x = self.decoder5(last, self.encoder4(deep))
        x = self.decoder4(x, self.encoder3(middle))
        x = self.decoder3(x, self.encoder2(shallow))
        found: Tensor = self.out(self.decoder2(x, self.encoder1(images)))
        return found

    def start(self, values: Float[Tensor, " outputs"]) -> None:
        """The publication starts from scores around zero, whatever ``values`` say."""
