"""Weights fitted to other plans: what is copied, what is made to fit, and that it computes what it should."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_unets import architecture, network, source_of
from torch import Tensor
from torch.nn import functional as F

from medmae.core.errors import UsageError
from medmae.transfer.nnunet.adapt import AdaptReport, adapt
from medmae.transfer.nnunet.weights import Source

STEM = "encoder.stem.convs.0.conv.weight"


def features(net: torch.nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(net.encoder(image))  # type: ignore[operator]


def test_the_same_network_is_copied_whole_but_its_heads() -> None:
    one, other = network(seed=0), network(classes=5, seed=1)
    report = adapt(source_of(one), other, channels=("T1", "T2"), orientation="RAS")
    assert report.share == 1.0
    assert not report.inflated
    assert all(".seg_layers." in name for name in report.random)
    assert all("heads are never copied" in name for name in report.skipped)
    left = other.state_dict()
    for key, value in one.state_dict().items():
        if ".seg_layers." not in key:
            assert torch.equal(left[key], value), key


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(("t1n", "t2w"), ("T2", "T1")), (("t1n",), ("FLAIR", "t1")), (("t1n", "t1c", "t2w"), ("t2w",))],
)
def test_channels_follow_their_names(given: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    from medmae.core.sequences import canonical

    one, other = network(channels=len(given)), network(channels=len(wanted), seed=1)
    report = adapt(source_of(one, given), other, channels=wanted)
    state, new = one.state_dict()[STEM], other.state_dict()
    for j, name in enumerate(wanted):
        at = given.index(canonical(name)) if canonical(name) in given else None
        expected = state.sum(1) / len(wanted) if at is None else state[:, at]
        torch.testing.assert_close(new[STEM][:, j], expected)
    for alias in ("encoder.stem.convs.0.all_modules.0.weight", "decoder.encoder.stem.convs.0.conv.weight"):
        assert new[alias].data_ptr() == new[STEM].data_ptr()
    assert any(name.startswith(STEM) for name in report.inflated)
    assert report.share == 1.0


def test_as_many_unnamed_channels_are_taken_in_their_order_and_that_is_said() -> None:
    one, other = network(channels=2), network(channels=2, seed=1)
    report = adapt(source_of(one, ()), other, channels=("CT", "PET"))
    assert torch.equal(other.state_dict()[STEM], one.state_dict()[STEM])
    assert report.notes == ("the checkpoint does not name its channels: they are taken in their order",)


def test_identical_channels_of_an_unnamed_source_answer_as_one_did() -> None:
    one, other = network(channels=1), network(channels=4, seed=1)
    report = adapt(source_of(one, ()), other, channels=("a1", "b2", "c3", "d4"))
    image = torch.randn(1, 1, 8, 8, 8)
    for got, expected in zip(features(other, image.expand(-1, 4, -1, -1, -1)), features(one, image), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert any("does not name its channels" in note for note in report.notes)


def test_more_channels_than_the_network_needs_become_fewer() -> None:
    one, other = network(channels=4), network(channels=1, seed=1)
    report = adapt(source_of(one, ("t1n", "t1c", "t2w", "t2f")), other, channels=("CT",))
    torch.testing.assert_close(other.state_dict()[STEM][:, 0], one.state_dict()[STEM].sum(1))
    assert any("CT" in note for note in report.notes)


def test_label_channels_of_a_cascade_stay_random() -> None:
    one, other = network(channels=1), network(channels=2, seed=1)
    before = other.state_dict()[STEM].clone()
    adapt(source_of(one, ("ct",)), other, channels=("CT", ""))
    torch.testing.assert_close(other.state_dict()[STEM][:, 1], before[:, 1])
    torch.testing.assert_close(other.state_dict()[STEM][:, 0], one.state_dict()[STEM][:, 0])
    with pytest.raises(UsageError, match="2 input channels, 3 are named"):
        adapt(source_of(one), other, channels=("a", "b", "c"))


@pytest.mark.parametrize("orientation", ["SAR", "PIR", "ASR"])
def test_permuted_weights_on_a_permuted_volume_give_permuted_features(orientation: str) -> None:
    from medmae.transfer.nnunet.plans import axis_order

    described = architecture(kernels=[[3, 3, 1], [3, 3, 3], [3, 1, 3]], strides=[[1] * 3, [2, 2, 1], [2, 1, 2]])
    order = axis_order("RAS", orientation)
    turn = lambda entry: [entry[axis] for axis in order]  # noqa: E731
    kwargs = described.kwargs
    turned = architecture(
        kernels=[turn(k) for k in kwargs["kernel_sizes"]], strides=[turn(s) for s in kwargs["strides"]]
    )
    one, other = network(described), network(turned, seed=1)
    report = adapt(source_of(one), other, channels=("t1n", "t2w"), orientation=orientation)
    assert (report.share, report.inflated) == (1.0, ())
    for left, right in zip(other.decoder.seg_layers, one.decoder.seg_layers, strict=True):
        left.load_state_dict(right.state_dict())
    image = torch.randn(1, 2, 12, 12, 12)
    axes = (0, 1, *(axis + 2 for axis in order))
    for got, expected in zip(features(other, image.permute(axes)), features(one, image), strict=True):
        torch.testing.assert_close(got, expected.permute(axes), atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # the decoder too
        torch.testing.assert_close(other(image.permute(axes))[0], one(image)[0].permute(axes), atol=1e-4, rtol=1e-4)


def test_kernels_that_lose_an_axis_answer_alike_where_nothing_changes_along_it() -> None:
    one = network(architecture(strides=[[1] * 3, [1, 2, 2], [1, 2, 2]]))
    other = network(architecture(strides=[[1] * 3, [1, 2, 2], [1, 2, 2]], kernels=[[1, 3, 3]] * 3), seed=1)
    report = adapt(source_of(one), other, channels=("t1n", "t2w"))
    assert report.share == 1.0
    assert sum("kernel 3x3x3 -> 1x3x3" in line for line in report.inflated) > 10
    image = torch.randn(1, 2, 1, 12, 12).expand(-1, -1, 9, -1, -1)
    inner = slice(4, 5)  # what no padding along the axis reaches
    conv, thin = one.encoder.stem.convs[0].conv, other.encoder.stem.convs[0].conv
    torch.testing.assert_close(thin(image)[:, :, inner], conv(image)[:, :, inner], atol=1e-5, rtol=1e-5)


def test_kernels_that_gain_an_axis_compute_the_same() -> None:
    one = network(architecture(strides=[[1] * 3, [1, 2, 2], [1, 2, 2]], kernels=[[1, 3, 3]] * 3))
    other = network(architecture(strides=[[1] * 3, [1, 2, 2], [1, 2, 2]]), seed=1)
    adapt(source_of(one), other, channels=("t1n", "t2w"))
    image = torch.randn(1, 2, 4, 12, 12)
    for got, expected in zip(features(other, image), features(one, image), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_transposed_convolutions_of_other_strides() -> None:
    key = "decoder.transpconvs.0.weight"
    one = network()
    flat = network(architecture(strides=[[1] * 3, [2] * 3, [1, 2, 2]]), seed=1)
    adapt(source_of(one), flat, channels=("t1n", "t2w"))
    torch.testing.assert_close(flat.state_dict()[key], one.state_dict()[key].mean(2, keepdim=True))
    image = torch.randn(1, 8, 3, 4, 4)  # the mean over the axis of what the old one wrote
    old, new = one.decoder.transpconvs[0], flat.decoder.transpconvs[0]
    torch.testing.assert_close(new(image), F.avg_pool3d(old(image), (2, 1, 1)), atol=1e-5, rtol=1e-5)
    back = network(seed=2)
    adapt(source_of(flat), back, channels=("t1n", "t2w"))
    torch.testing.assert_close(
        back.decoder.transpconvs[0](image), new(image).repeat_interleave(2, 2), atol=1e-5, rtol=1e-5
    )


def test_stages_are_matched_from_the_finest() -> None:
    deep, shallow = network(architecture(5)), network(architecture(3), seed=1)
    report = adapt(source_of(deep), shallow, channels=("t1n", "t2w"))
    assert report.share == 1.0
    big, small = deep.state_dict(), shallow.state_dict()
    assert torch.equal(
        small["encoder.stages.2.blocks.0.conv1.conv.weight"], big["encoder.stages.2.blocks.0.conv1.conv.weight"]
    )
    assert torch.equal(small["decoder.transpconvs.1.weight"], big["decoder.transpconvs.3.weight"])  # to the finest
    assert torch.equal(small["decoder.stages.0.convs.0.conv.weight"], big["decoder.stages.2.convs.0.conv.weight"])
    assert any("no such part" in line for line in report.skipped)

    grown = network(architecture(5), seed=2)
    report = adapt(source_of(shallow), grown, channels=("t1n", "t2w"))
    assert 0 < report.share < 1
    assert any(name.startswith("encoder.stages.4.") for name in report.random)
    assert torch.equal(grown.state_dict()["decoder.transpconvs.3.weight"], small["decoder.transpconvs.1.weight"])


def test_other_features_are_skipped_and_said() -> None:
    one, other = network(), network(architecture(features=[4, 6, 12]), seed=1)
    before = other.state_dict()["encoder.stages.2.blocks.1.conv1.conv.weight"].clone()
    report = adapt(source_of(one), other, channels=("t1n", "t2w"))
    assert torch.equal(other.state_dict()["encoder.stages.2.blocks.1.conv1.conv.weight"], before)
    assert any("8x8x3x3x3 does not fit 12x12x3x3x3" in line for line in report.skipped)
    assert report.share < 0.5


def test_more_and_fewer_blocks() -> None:
    one, more = network(), network(architecture(blocks=[1, 3, 1]), seed=1)
    report = adapt(source_of(one), more, channels=("t1n", "t2w"))
    assert any(name.startswith("encoder.stages.1.blocks.2.") for name in report.random)
    assert any(line.startswith("encoder.stages.2.blocks.1.") for line in report.skipped)
    assert 0.5 < report.share < 1


def test_a_projection_that_moves_is_found() -> None:
    """Where a stage keeps its resolution its skip has no pooling, and the projection is numbered otherwise."""
    one = network()
    other = network(architecture(strides=[[1] * 3, [2] * 3, [1] * 3]), seed=1)
    report = adapt(source_of(one), other, channels=("t1n", "t2w"))
    assert "encoder.stages.2.blocks.0.skip.0.conv.weight" in report.loaded
    assert not [name for name in report.random if ".skip." in name]


def test_stacked_convolutions_too() -> None:
    one, other = network(architecture(plain=True)), network(architecture(plain=True), channels=3, seed=1)
    report = adapt(source_of(one), other, channels=("t1n", "t2w", "t2f"))
    assert report.share == 1.0
    key = "encoder.stages.0.0.convs.0.conv.weight"
    torch.testing.assert_close(other.state_dict()[key][:, 2], one.state_dict()[key].sum(1) / 3)
    torch.testing.assert_close(other.state_dict()[key][:, :2], one.state_dict()[key])


def test_nothing_of_stacked_convolutions_fits_residual_blocks() -> None:
    report = adapt(source_of(network(architecture(plain=True))), network(), channels=("t1n", "t2w"))
    assert report.share < 0.5


def test_one_stem_per_sequence_becomes_one_over_all_channels() -> None:
    one = network(channels=1)
    weights = {k: v for k, v in source_of(one).weights.items() if not k.startswith("encoder.stem.")}
    stems = {name: network(channels=1, seed=7 + i).encoder.stem for i, name in enumerate(("t1n", "t2w"))}
    for name, stem in stems.items():
        weights |= {f"encoder.stems.each.{name}.{k}": v for k, v in stem.state_dict().items() if "all_modules" not in k}
    source = Source(weights, ("t1n", "t2w"), "RAS", "cnn", "x", "0")
    other = network(channels=2, seed=1)
    report = adapt(source, other, channels=("T2", "T1"))
    assert report.share == 1.0
    image = torch.randn(1, 2, 6, 6, 6)
    both = [stems[name].convs[0].conv(image[:, i : i + 1]) for i, name in enumerate(("t2w", "t1n"))]
    torch.testing.assert_close(other.encoder.stem.convs[0].conv(image), sum(both) / 2, atol=1e-5, rtol=1e-5)
    assert any("2 stems stacked" in line for line in report.inflated)


def test_an_encoder_alone_is_measured_over_the_encoder() -> None:
    source = source_of(network())
    encoder = {key: value for key, value in source.weights.items() if key.startswith("encoder.")}
    other = network(seed=1)
    before = other.state_dict()["decoder.transpconvs.0.weight"].clone()
    report = adapt(dataclasses.replace(source, weights=encoder), other, channels=("t1n", "t2w"))
    assert (report.share, report.scope) == (1.0, "encoder")
    assert "decoder.transpconvs.0.weight" in report.random
    assert torch.equal(other.state_dict()["decoder.transpconvs.0.weight"], before)
    assert "of the encoder's parameters" in str(report)


def test_half_precision_is_taken() -> None:
    source = source_of(network())
    half = {key: value.half() for key, value in source.weights.items()}
    other = network(seed=1)
    assert adapt(dataclasses.replace(source, weights=half), other, channels=("t1n", "t2w")).share == 1.0
    assert other.state_dict()[STEM].dtype == torch.float32


def test_a_report_is_plain_and_short() -> None:
    report = AdaptReport(("a",), ("b: kernel",), ("c: why",) * 9, (), share=0.5)
    assert report.to_dict()["skipped"] == ["c: why"] * 9
    assert "50.0% of the network" in str(report)
    assert "and 3 more" in str(report)
