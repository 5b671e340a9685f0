"""Views: pure functions of the key, inside their bounds, blank where there is nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medmae.nets.views import Draws, Views, blurred, resample

SIZE = (12, 10, 8)
PLAIN = {"contrast": 0.0, "brightness": 0.0, "noise": 0.0, "blur": 0.0, "drop": 0.0}


def batch(b: int = 4, m: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    image = torch.randn(b, m, *SIZE)
    inside = torch.zeros(b, 1, *SIZE, dtype=torch.bool)
    inside[..., 2:-2, 2:-2, 2:-2] = True
    return image, torch.ones(b, m, dtype=torch.bool), inside, torch.arange(b) + 5


def test_a_view_is_a_function_of_its_sample_key_and_number() -> None:
    views, (image, present, inside, key) = Views(), batch()
    first = views(image, present, inside, key, view=0)
    torch.manual_seed(99)
    again = views(image, present, inside, key, view=0)
    assert torch.equal(first.image, again.image)
    alone = views(image[2:3], present[2:3], inside[2:3], key[2:3], view=0)
    torch.testing.assert_close(alone.image[0], first.image[2], rtol=0, atol=1e-6)
    assert torch.equal(alone.present[0], first.present[2])
    other = views(image, present, inside, key, view=1)
    assert not torch.equal(first.image, other.image)
    moved = views(image, present, inside, key + 1, view=0)
    assert not torch.equal(first.image, moved.image)


def test_with_everything_off_a_view_is_the_window() -> None:
    image, present, inside, key = batch()
    made = Views(zoom=(1.0, 1.0), flip=0.0, **PLAIN)(image, present, inside, key, view=0)
    torch.testing.assert_close(made.image, image * inside, rtol=0, atol=1e-5)
    assert torch.equal(made.foreground, inside)
    assert bool(made.present.all())


def test_a_box_is_mirrored_and_placed_where_it_was_drawn() -> None:
    image = torch.zeros(1, 1, 8, 8, 8)
    image[0, 0, 1, 2, 6] = 1.0
    none = torch.zeros(1, 1)
    fixed = {"factor": none, "offset": none, "blur": none, "noise": none, "keep": none == 0}
    whole = {"zoom": torch.ones(1), "place": torch.zeros(1, 3)}
    turned = resample(image, Draws(flip=torch.tensor([[True, False, False]]), **whole, **fixed))
    assert turned.argmax() == image.flip(2).argmax()
    # The box of half the edge in the corner (0, 0, 1): a voxel becomes about two.
    corner = {"zoom": torch.full((1,), 0.5), "place": torch.tensor([[-0.5, -0.5, 0.5]])}
    cut = resample(image, Draws(flip=torch.zeros(1, 3, dtype=torch.bool), **corner, **fixed))
    where = (cut[0, 0] == cut.max()).nonzero().float().mean(0)
    torch.testing.assert_close(where, torch.tensor([2.5, 4.5, 4.5]))


def test_boxes_stay_inside_the_window() -> None:
    draws = Views(zoom=(0.4, 0.9)).draw(torch.arange(2000), torch.ones(2000, 2, dtype=torch.bool), axes=3, view=1)
    assert 0.4 <= float(draws.zoom.min()) < 0.41
    assert 0.89 < float(draws.zoom.max()) <= 0.9
    assert bool((draws.place.abs() + draws.zoom[:, None] <= 1 + 1e-6).all())
    assert 0.45 < float(draws.flip.float().mean()) < 0.55


def test_nothing_is_shown_outside_the_foreground_nor_of_missing_sequences() -> None:
    image, present, inside, key = batch()
    present[1, 0] = present[2, 1:] = False
    made = Views(drop=0.5)(image, present, inside, key, view=0)
    assert float(made.image[~made.foreground.expand_as(made.image)].abs().max()) == 0
    gone = ~made.present[:, :, None, None, None].expand_as(made.image)
    assert float(made.image[gone].abs().max()) == 0
    noise = torch.where(present[:, :, None, None, None], image, 1e3 * torch.randn_like(image))
    assert torch.equal(Views(drop=0.5)(noise, present, inside, key, view=0).image, made.image)


def test_sequences_are_dropped_as_often_as_asked_and_never_all() -> None:
    n = 4000
    present = torch.ones(n, 3, dtype=torch.bool)
    present[: n // 2, 0] = False
    kept = present & Views(drop=0.5).draw(torch.arange(n), present, axes=3, view=0).keep
    assert int(kept.sum(1).min()) >= 1
    changed = (kept != present).any(1).float()
    assert abs(float(changed[n // 2 :].mean()) - 0.5 * (1 - 1 / 8)) < 0.03  # all three stay in one of eight
    assert torch.equal(Views(drop=0.0).draw(torch.arange(n), present, axes=3, view=0).keep, torch.ones(n, 3) > 0)


def test_blur_keeps_the_mean_and_zero_width_changes_nothing() -> None:
    image = torch.zeros(2, 1, 9, 9, 9)
    image[:, :, 4, 4, 4] = 1.0
    smooth = blurred(image, torch.tensor([[0.0], [1.0]]))
    assert torch.equal(smooth[0], image[0])
    torch.testing.assert_close(smooth[1].sum(), torch.tensor(1.0))
    line = smooth[1, 0, :, 4, 4] / smooth[1, 0, 4, 4, 4]
    torch.testing.assert_close(line[5], torch.tensor(0.5).neg().exp())


def test_noise_has_the_strength_that_was_drawn() -> None:
    image, present, _, key = batch(b=40, m=1)
    views = Views(zoom=(1.0, 1.0), flip=0.0, **(PLAIN | {"noise": 0.5}))
    made = views(image * 0, present, None, key, view=0).image
    drawn = views.draw(key, present, axes=3, view=0).noise[:, 0]
    spread = made.flatten(1).std(1)
    torch.testing.assert_close(spread, drawn, rtol=0.1, atol=1e-6)
    assert 0.3 < float((drawn == 0).float().mean()) < 0.7


@pytest.mark.parametrize("wrong", [{"zoom": (0.0, 1.0)}, {"zoom": (0.9, 0.5)}, {"flip": 1.5}, {"drop": -1.0},
                                   {"noise": -0.1}])  # fmt: skip
def test_what_cannot_be_meant_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Views(**wrong)
