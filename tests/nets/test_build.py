"""Networks are named as nnU-Net's plans name them, and what cannot be built is said."""

from __future__ import annotations

import pytest

from medmae.core.errors import MissingDependency, UsageError
from medmae.nets.build import Architecture, resenc

SMALL = {
    "features": (4, 6),
    "blocks": (1, 2),
    "kernels": ((1, 3, 3), (3, 3, 3)),
    "strides": ((1, 1, 1), (1, 2, 2)),
    "decoder_convs": (1,),
}


def test_resenc_is_the_stock_network() -> None:
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    network = resenc(**SMALL).build(input_channels=2, num_classes=3)
    assert isinstance(network, ResidualEncoderUNet)
    assert network.encoder.stem.convs[0].conv.weight.shape == (4, 2, 1, 3, 3)
    assert network.decoder.seg_layers[-1].weight.shape[0] == 3
    assert [list(s) for s in network.encoder.strides] == [[1, 1, 1], [1, 2, 2]]


def test_plain_is_the_stock_plain_network_in_two_dimensions() -> None:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    arguments = {**SMALL, "kernels": ((3, 3), (3, 3)), "strides": ((1, 1), (2, 2))}
    network = resenc(**arguments, plain=True).build(input_channels=1, num_classes=2)
    assert isinstance(network, PlainConvUNet)
    assert network.encoder.stages[0][0].convs[0].conv.weight.ndim == 4


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"blocks": (1,)}, "blocks"),
        ({"decoder_convs": (1, 1)}, "decoder_convs"),
        ({"kernels": ((3, 3), (3, 3, 3))}, "axes"),
        ({"strides": ((2, 2, 2), (2, 2, 2))}, "full resolution"),
        ({"features": (4,), "blocks": (1,), "kernels": ((3, 3, 3),), "strides": ((1, 1, 1),)}, "at least 2"),
        ({"kernels": ((1, 3, 3), (2, 3, 3))}, "odd edges"),
        ({"strides": ((1, 1, 1), (0, 2, 2))}, "strides has whole numbers"),
        ({"features": (4, 0)}, "features has whole numbers"),
        ({"decoder_convs": (0,)}, "decoder_convs has whole numbers"),
    ],
)
def test_numbers_that_do_not_fit_are_named(change: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        resenc(**{**SMALL, **change})  # type: ignore[arg-type]


def test_a_package_that_is_not_there_names_the_pip_line() -> None:
    with pytest.raises(MissingDependency, match="pip install 'medmae\\[nnunet\\]'"):
        Architecture("no_such_package_anywhere.Net", {}).build(input_channels=1, num_classes=1)


def test_an_unknown_class_and_a_wrong_argument_are_named() -> None:
    with pytest.raises(UsageError, match="NoSuchNet"):
        Architecture("dynamic_network_architectures.architectures.unet.NoSuchNet", {}).build(
            input_channels=1, num_classes=1
        )
    good = resenc(**SMALL)
    with pytest.raises(UsageError, match="wings"):
        Architecture(good.class_name, {**good.kwargs, "wings": 2}, good.requires_import).build(
            input_channels=1, num_classes=1
        )
