"""How far off a guess is, and the one mean that sums it up.

Distances are taken per token, so that weighting, missing tokens and grouping by modality are decided in one place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Distance = Callable[[Shaped[Tensor, "b t *what"], Shaped[Tensor, "b t *that"]], Float[Tensor, "b t"]]


def mse(guess: Float[Tensor, "b t what"], truth: Float[Tensor, "b t what"]) -> Float[Tensor, "b t"]:
    """Mean squared difference over the content of a token."""
    return F.mse_loss(guess, truth, reduction="none").mean(-1)  # keeps no difference for the backward pass


def l1(guess: Float[Tensor, "b t what"], truth: Float[Tensor, "b t what"]) -> Float[Tensor, "b t"]:
    """Mean absolute difference over the content of a token."""
    return (guess - truth).abs().mean(-1)


def smooth_l1(
    guess: Float[Tensor, "b t what"], truth: Float[Tensor, "b t what"], *, beta: float = 1.0
) -> Float[Tensor, "b t"]:
    """Quadratic below ``beta``, linear above."""
    return F.smooth_l1_loss(guess, truth, reduction="none", beta=beta).mean(-1)


def cosine(guess: Float[Tensor, "b t what"], truth: Float[Tensor, "b t what"]) -> Float[Tensor, "b t"]:
    """One minus the cosine similarity, in [0, 2]."""
    return 1 - F.cosine_similarity(guess, truth, dim=-1)


def cross_entropy(guess: Float[Tensor, "b t classes"], truth: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Negative log-likelihood of class ``truth`` under logits ``guess``."""
    return F.cross_entropy(guess.flatten(0, 1), truth.flatten(), reduction="none").view(truth.shape)


def class_map(classes: int) -> Distance:
    """Cross-entropy of the pixels of a token, averaged over those with a label in ``[0, classes)``; void costs nothing.

    A guess holds the logits of the first pixel, then those of the second, and so on; a truth holds one label per pixel.
    """

    def distance(guess: Float[Tensor, "b t what"], truth: Float[Tensor, "b t that"]) -> Float[Tensor, "b t"]:
        label = truth.float().round().long()
        known = (label >= 0) & (label < classes)
        logits = guess.float().reshape(-1, classes)
        error = F.cross_entropy(logits, torch.where(known, label, 0).flatten(), reduction="none").view(label.shape)
        return (error * known).sum(-1) / known.sum(-1).clamp_min(1)

    return distance


def bce(guess: Float[Tensor, "b t what"], truth: Float[Tensor, "b t what"]) -> Float[Tensor, "b t"]:
    """Binary cross-entropy with logits, averaged over the content of a token."""
    return F.binary_cross_entropy_with_logits(guess, truth, reduction="none").mean(-1)


def chamfer(guess: Float[Tensor, "b t i p"], truth: Float[Tensor, "b t j p"]) -> Float[Tensor, "b t"]:
    """Squared Chamfer distance of two small point sets per token: mean nearest distance, both ways, added."""
    apart = (guess[..., :, None, :] - truth[..., None, :, :]).square().sum(-1)
    return apart.amin(-1).mean(-1) + apart.amin(-2).mean(-1)


def masked_mean(
    values: Float[Tensor, "b t"],
    weight: Float[Tensor, "b t"],
    *,
    by: Int[Tensor, "b t"] | None = None,
    groups: int = 0,
    reduce: str = "sum",
) -> Float[Tensor, ""]:
    """Weighted mean over the batch; where nothing counts, zero (never NaN).

    Args:
        values: one distance per token; entries of weight zero may hold anything finite.
        weight: what each counts.
        by: group of each token. The mean is then taken inside each group, and
            ``reduce`` says what becomes of the groups: ``sum`` (BM-MAE, MultiMAE) or ``mean`` of those that count.
        groups: number of groups.
        reduce: ``sum`` or ``mean``.

    Raises:
        ValueError: another ``reduce``, or ``by`` without ``groups``.
    """
    if by is None:
        return _ratio((values * weight).sum(), weight.sum())
    if reduce not in ("sum", "mean") or groups < 1:
        raise ValueError(f"reduce must be 'sum' or 'mean' (got {reduce!r}) and groups positive (got {groups})")
    member = F.one_hot(by, groups).to(values.dtype) * weight[..., None]
    total = member.sum((0, 1))
    means = _ratio((member * values[..., None]).sum((0, 1)), total)
    return means.sum() if reduce == "sum" else _ratio(means.sum(), (total > 0).to(means.dtype).sum())


def sample_mean(values: Float[Tensor, "b t"], weight: Float[Tensor, "b t"]) -> Float[Tensor, ""]:
    """Weighted mean of every sample, then the mean of the samples in which something counts; zero where none does."""
    total = weight.sum(1)
    return _ratio(_ratio((values * weight).sum(1), total).sum(), (total > 0).to(values.dtype).sum())


def spectrum_l1(guess: Float[Tensor, "b c *size"], truth: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c"]:
    """Mean absolute difference of the magnitudes of the Fourier transforms of whole images.

    The transform is unitary, so that the number does not grow with the image. Phases are not compared: an image and
    its circular shift are no difference apart.
    """
    axes = tuple(range(2, guess.ndim))
    first, second = (torch.fft.fftn(image.float(), dim=axes, norm="ortho").abs() for image in (guess, truth))
    return (first - second).abs().mean(axes)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below.where(below > 0, torch.ones_like(below)), above * 0)
