"""How images are cut and scaled, and which channels end where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medmae.core.errors import DataError, UsageError
from medmae.core.random import mix
from medmae.data.kinds import kind_of
from medmae.data.kinds.image import IMAGENET, ImageKind, resize
from medmae.data.kinds.listing import Sample, list_samples

SQUARE = {"size": [32, 32], "channels": 3}


def sample(path: Path) -> Sample:
    return Sample(path.name, path, None, path.name)


def kind(recipe: dict[str, Any] | None = None, **options: Any) -> ImageKind:
    made = kind_of("image", SQUARE if recipe is None else recipe, options)
    assert isinstance(made, ImageKind)
    return made


def save(path: Path, values: np.ndarray) -> Sample:
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    return sample(path)


def finished(reader: ImageKind, one: Sample, *, key: int = 5, training: bool = False) -> dict[str, torch.Tensor]:
    arrays = reader.read(one, key=key, training=training)
    batch = {name: torch.from_numpy(array)[None] for name, array in arrays.items()}
    return reader.finish({**batch, "key": torch.tensor([key])}, training=training)


def noise(*shape: int, most: int = 255, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, most, shape).astype(dtype)


def test_a_photograph_is_scaled_by_imagenet(tmp_path: Path) -> None:
    values = noise(32, 32, 3)
    image = finished(kind(), save(tmp_path / "a.png", values))["image"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)
    torch.testing.assert_close(image[0] * std + mean, torch.from_numpy(values).permute(2, 0, 1).float())


def test_gray_fills_the_colors(tmp_path: Path) -> None:
    values = noise(32, 32)
    image = finished(kind(), save(tmp_path / "a.png", values))["image"][0]
    colors = finished(kind(), save(tmp_path / "b.png", np.repeat(values[..., None], 3, 2)))["image"][0]
    assert torch.equal(image, colors)


def test_colors_become_gray_by_luminance(tmp_path: Path) -> None:
    values = noise(32, 32, 3)
    arrays = kind({"size": [32, 32], "channels": 1}).read(save(tmp_path / "a.png", values), key=0, training=False)
    np.testing.assert_allclose(arrays["pixels"][0], values @ [0.299, 0.587, 0.114], rtol=1e-5)


def test_an_x_ray_is_standardized_over_the_whole_image(tmp_path: Path) -> None:
    values = noise(64, 96, most=4000, dtype=np.uint16)
    one = save(tmp_path / "a.png", values)
    for channels in (1, 3):
        arrays = kind({"size": [32, 32], "channels": channels}).read(one, key=1, training=True)
        np.testing.assert_allclose(arrays["scale"], [[values.mean(), values.std()]] * channels, rtol=1e-5)
    forced = kind(SQUARE, normalize="image").read(save(tmp_path / "b.png", noise(40, 40, 3)), key=1, training=True)
    assert not np.allclose(forced["scale"][:, 0], IMAGENET[0])


def test_a_constant_image_is_zero_and_not_nan(tmp_path: Path) -> None:
    image = finished(
        kind({"size": [8, 8], "channels": 1}), save(tmp_path / "a.png", np.full((9, 9), 7, np.uint8))
    )  # fmt: skip
    assert torch.equal(image["image"], torch.zeros(1, 1, 8, 8))


def test_validation_takes_the_largest_central_crop(tmp_path: Path) -> None:
    values = np.zeros((32, 64), np.uint8)
    values[:, 16:48] = 200
    arrays = kind({"size": [16, 16], "channels": 1}).read(save(tmp_path / "a.png", values), key=9, training=False)
    assert (arrays["pixels"] == 200).all()


def test_training_crops_are_functions_of_the_key(tmp_path: Path) -> None:
    reader, one = kind(), save(tmp_path / "a.png", noise(50, 70, 3))
    for n in range(20):
        first, again = (reader.read(one, key=mix(n), training=True)["pixels"] for _ in range(2))
        other = reader.read(one, key=mix(n, 1), training=True)["pixels"]
        assert first.shape == (3, 32, 32)
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


def test_boxes_have_the_shares_and_ratios_that_were_asked_for() -> None:
    reader = kind(SQUARE, area=[0.3, 0.6])
    boxes = np.array([reader._box(100, 120, key=mix(k), training=True) for k in range(400)])
    top, left, height, width = boxes.T
    share = height * width / 12000
    assert share.min() >= 0.29
    assert share.max() <= 0.61
    assert 0.74 <= (width / height).min() < 0.8
    assert 1.25 < (width / height).max() <= 1.36
    assert (top + height <= 100).all()
    assert (left + width <= 120).all()
    assert top.min() == 0
    assert left.max() > 50
    assert reader._box(10, 1000, key=1, training=True) == (0, 495, 10, 10)  # none fits: the central one


def test_half_of_the_training_images_are_mirrored_and_no_other(tmp_path: Path) -> None:
    reader = kind({"size": [4, 4], "channels": 1})
    pixels = torch.arange(16.0).view(1, 1, 4, 4).repeat(200, 1, 1, 1)
    batch = {"pixels": pixels, "scale": torch.tensor([[[0.0, 1.0]]]).repeat(200, 1, 1), "key": torch.arange(200)}
    done = reader.finish(batch, training=True)["image"]
    mirrored = (done == pixels.flip(-1)).flatten(1).all(1)
    assert 70 < int(mirrored.sum()) < 130
    assert torch.equal(done[~mirrored], pixels[~mirrored])
    assert torch.equal(reader.finish(batch, training=False)["image"], pixels)
    assert torch.equal(done[5:6], reader.finish({k: v[5:6] for k, v in batch.items()}, training=True)["image"])


def test_resizing_stays_in_range_and_averages() -> None:
    pixels = torch.zeros(1, 64, 64)
    pixels[:, :, 1::4] = 255
    small = resize(pixels, (16, 16))
    assert (small - 255 / 4).abs().max() < 15  # without antialiasing it would be 143
    edge = torch.zeros(1, 8, 8)
    edge[:, :, 4:] = 1
    assert resize(edge, (32, 32)).min() == 0
    assert resize(edge, (32, 32)).max() == 1


def test_sequences_take_the_channels_of_a_file_in_order(tmp_path: Path) -> None:
    values = np.stack([np.full((16, 16), c, np.float32) + noise(16, 16) for c in (0, 1000, 2000)])
    reader = kind({"size": [16, 16], "sequences": ["dna", "er", "rna"]})
    assert reader.entries == ("dna", "er", "rna")
    done = finished(reader, save(tmp_path / "a.npy", values))
    for name, plane in zip(reader.entries, values, strict=True):
        assert done[name].shape == (1, 1, 16, 16)
        assert abs(float(done[name].mean())) < 1e-4
        wanted = torch.from_numpy((plane - plane.mean()) / plane.std())
        torch.testing.assert_close(done[name][0, 0], wanted, rtol=1e-3, atol=1e-3)


def test_maps_of_labels_are_neither_blended_nor_scaled(tmp_path: Path) -> None:
    recipe = {"size": [32, 32], "sequences": ["rgb", "semseg"], "channels": [["rgb", 3]], "classes": [["semseg", 9]],
              "coarser": [["semseg", 4]]}  # fmt: skip
    labels = (np.indices((50, 50)).sum(0) % 9).astype(np.uint8)
    one = save(tmp_path / "a.npy", np.concatenate([noise(3, 50, 50), labels[None]]))
    done = finished(kind(recipe), one, training=True)
    assert done["rgb"].shape == (1, 3, 32, 32)
    assert done["semseg"].shape == (1, 1, 8, 8)
    assert set(done["semseg"].unique().tolist()) <= set(range(9))


def test_bands_of_groups_are_one_image() -> None:
    reader = kind({"size": [16, 16], "groups": [[0, 1], [2, 4]], "stamps": 0})
    assert (reader.entries, reader.count) == (("image",), 5)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"groups": [[0, 1], [2, 4]], "stamps": 0}, "bands 0 to 4 of method.groups"),
        ({"channels": 5}, "--set method.channels=4"),
        ({"channels": 5, "sequences": ["image"]}, "--set method.channels=4"),
        ({"channels": [["rgb", 3]], "sequences": ["rgb"]}, "--set 'method.channels=[[rgb,4]]'"),
        ({"sequences": ["dna"]}, "--set 'method.sequences=[...]'"),
    ],
)
def test_wrong_channels_name_the_setting_that_the_method_has(
    tmp_path: Path, recipe: dict[str, Any], words: str
) -> None:
    """And no other one."""
    one = save(tmp_path / "a.npy", noise(4, 40, 40))
    with pytest.raises(DataError) as caught:
        kind({"size": [16, 16], **recipe}).read(one, key=1, training=False)
    assert words in str(caught.value)
    assert str(caught.value).count("method.") == 1


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ({"size": [16, 16, 16]}, {}, "images have two axes"),
        ({"size": None}, {}, "images have two axes"),
        ({"size": [16, 16], "channels": 0}, {}, "method.channels = 0"),
        ({"size": [16, 16], "foreground_loss": True}, {}, "foreground"),
        (SQUARE, {"flop": 1}, "has no flop; of images it takes area, ratio, flip"),
        (SQUARE, {"flip": 2}, "data.reading.flip = 2 is not a probability"),
        (SQUARE, {"area": [0.5, 2]}, "data.reading.area"),
        (SQUARE, {"area": 0.5}, "two shares"),
        (SQUARE, {"normalize": "none"}, "auto or image"),
    ],
)
def test_refusals(recipe: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        kind_of("image", recipe, options)


def test_channels_that_do_not_fit_name_both_files(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a.npy", noise(5, 40, 40)), save(tmp_path / "b.npy", noise(3, 40, 40))
    reader = kind()
    facts = [(s, reader.facts(s)) for s in (one, two)]
    said = reader.disagreements(facts)
    assert list(said) == ["a.npy"]
    assert f"{one.path}: it has 5 channel(s), where {two.path} has 3, and the method reads 3" in said["a.npy"]
    with pytest.raises(DataError, match=r"a.npy: it has 5 channel\(s\), and the method reads 3"):
        reader.read(one, key=0, training=False)
    without = kind({})
    third = save(tmp_path / "c.npy", noise(5, 40, 40))
    said = without.disagreements([*facts, (third, without.facts(third))])
    assert list(said) == ["b.npy"]
    assert "where" in said["b.npy"]
    assert without.disagreements([]) == {}


def test_toys_are_images() -> None:
    listing = list_samples("toy-image:8", kind="image")
    reader = kind()
    facts = reader.facts(listing.samples[0])
    assert facts["channels"] == 3
    assert finished(reader, listing.samples[3], training=True)["image"].shape == (1, 3, 32, 32)


def test_what_a_model_remembers_is_json() -> None:
    import json

    told = kind(SQUARE, flip=0).describe()
    assert json.loads(json.dumps(told))["flip"] == 0
    assert told["entries"] == [{"name": "image", "channels": 3, "coarser": 1, "labels": False}]
