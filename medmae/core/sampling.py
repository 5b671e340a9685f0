"""Who is visible and who is asked for.

A sampler is put together from a *priority* (who comes first) and a *budget* (how many, of what). Both are functions of
the layout and of the sample's key, so a plan is reproducible from the key alone, and a sample gets the same plan in
whatever batch it is. Keep counts truncate, ``int(n * (1 - ratio))``, as the field's reference code does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .random import dirichlet, mix, uniform
from .tokens import MaskPlan, TokenLayout, Tokens, take

Key = Int[Tensor, " b"]
Priority = Callable[[Tokens, Key], Float[Tensor, "b n"]]
"""Lower comes first. Missing tokens may get any value: the sampler puts them last."""

PRIORITY, TIE, SHARES, DROP, SUBSET, SHIFT, RATIO, START, ASK = range(11, 20)  # streams of randomness, one per purpose


@dataclass(frozen=True)
class Counts:
    """How many tokens are to be visible.

    Attributes:
        per: wanted per sample and group (modality); one group where the budget does not tell them apart.
        total: exact number per sample; where it differs from the sum of ``per``, tokens are added or dropped at random.
        fixed: the same number for all samples, where it is known without looking at the data.
        spare: groups from which tokens may be added at random; None for all of them.
    """

    per: Int[Tensor, "b g"]
    total: Int[Tensor, " b"]
    fixed: int | None
    spare: Bool[Tensor, "b g"] | None = None


Budget = Callable[[TokenLayout, Key], Counts]


def keep_count(n: int, ratio: float) -> int:
    """Number of visible tokens among ``n`` at a mask ratio, truncated."""
    return int(n * (1 - ratio))


def _existing(layout: TokenLayout, groups: int) -> Int[Tensor, "b g"]:
    """Number of existing tokens per sample and modality."""
    one = layout.exists.long()
    return torch.zeros(len(one), groups, dtype=torch.long, device=one.device).scatter_add(1, layout.modality, one)


def _keep(existing: Int[Tensor, b * g], ratio: float) -> Int[Tensor, b * g]:
    return (existing.double() * (1 - ratio)).long()


def _check_ratio(value: float, name: str = "ratio") -> None:
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), not {value!r}")


# --- budgets ------------------------------------------------------------------------------------------------------


def ratio(value: float, *, cut_hidden: bool = False) -> Budget:
    """Hide this share of all existing tokens of a sample.

    Args:
        value: mask ratio.
        cut_hidden: truncate the number of hidden tokens (Point-MAE) in place of that of visible ones (MAE): of 64
            tokens at 0.6, 38 are hidden and not 39.
    """
    _check_ratio(value)

    def budget(layout: TokenLayout, key: Key) -> Counts:
        existing = layout.exists.sum(1)
        total = existing - (existing.double() * value).long() if cut_hidden else _keep(existing, value)
        fixed = layout.total - int(layout.total * value) if cut_hidden else keep_count(layout.total, value)
        return Counts(total[:, None], total, None if layout.ragged else fixed)

    return budget


def ratio_of_tubes(value: float, *, positions: int) -> Budget:
    """Hide ``int(positions * value)`` positions in every frame (VideoMAE): the hidden are cut, not the visible.

    This shows more than :func:`ratio` does: of 8 frames of 196 tokens at 0.9 it is 8 * 20, not ``keep_count(1568)``.

    Args:
        value: mask ratio.
        positions: tokens per frame; what exists of a sample are whole frames.
    """
    _check_ratio(value)
    kept = positions - int(positions * value)

    def budget(layout: TokenLayout, key: Key) -> Counts:
        total = layout.exists.sum(1) // positions * kept
        return Counts(total[:, None], total, None if layout.ragged else layout.total // positions * kept)

    return budget


def ratio_per_modality(value: float | tuple[float, float], *, modalities: int, complete: float = 0.0) -> Budget:
    """Hide this share of the existing tokens of every modality.

    Args:
        value: mask ratio, or the range from which every sample draws its own, uniformly.
        modalities: number of modalities.
        complete: probability that a subset of the modalities of a sample, uniform over the proper non-empty ones, is
            hidden whole and the rest shown whole instead: the situation in which a missing one is reconstructed.
    """
    if isinstance(value, tuple) and len(value) != 2:
        raise ValueError(f"a range of mask ratios has two ends, not {len(value)}: {value}")
    low, high = value if isinstance(value, tuple) else (value, value)
    _check_ratio(low)
    _check_ratio(high)
    if low > high:
        raise ValueError(f"a range of mask ratios goes from low to high, not from {low} to {high}")
    if not 0 <= complete <= 1:
        raise ValueError(f"complete must be a probability, not {complete}")
    always_alike = low == high and complete == 0

    def budget(layout: TokenLayout, key: Key) -> Counts:
        existing = _existing(layout, modalities)
        share = low + (high - low) * uniform(key, 1, stream=RATIO).double() if low < high else low
        per = (existing.double() * (1 - share)).long()
        if complete > 0:
            kept = _proper_subset(existing > 0, key)
            here = (uniform(key, 1, stream=DROP) < complete) & (kept != (existing > 0)).any(1, keepdim=True)
            per = torch.where(here, existing * kept, per)
        static = always_alike and not layout.ragged
        return Counts(per, per.sum(1), modalities * keep_count(layout.total // modalities, low) if static else None)

    return budget


def shares(value: float, *, modalities: int, alpha: float = 1.0, drop: float = 0.0, complete: float = 0.0) -> Budget:
    """Dirichlet shares of one exact total over the modalities a sample has (MultiMAE; BM-MAE).

    The total is ``keep_count(existing tokens, value)``. Shares are redrawn, up to seven times, while one asks for more
    than a modality has (which the reference attempts but does not achieve), and then cut to that; what cutting and
    rounding leave over is filled or dropped at random. At low mask ratios most draws are cut.

    Args:
        value: mask ratio over all existing tokens.
        modalities: number of modalities.
        alpha: concentration; lower is more unequal. At 1, one of four modalities is wholly hidden in 1.2 % of draws.
        drop: probability that a subset of the modalities of a sample, uniform over the proper non-empty ones, is
            hidden whole, so that the model is trained for missing sequences.
        complete: probability that, in addition, all of the remaining modalities is visible, which is
            the situation in which a missing sequence is reconstructed.
    """
    _check_ratio(value)
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, not {alpha}")
    for name, p in (("drop", drop), ("complete", complete)):
        if not 0 <= p <= 1:
            raise ValueError(f"{name} must be a probability, not {p}")
    rounds = 8

    def budget(layout: TokenLayout, key: Key) -> Counts:
        existing = _existing(layout, modalities)
        total = _keep(existing.sum(1), value)
        chance = uniform(key, 1, stream=DROP)[:, 0]
        if drop + complete > 0:
            kept = _proper_subset(existing > 0, key)
            kept = torch.where((chance < drop + complete)[:, None], kept, existing > 0)
            subset = (kept != (existing > 0)).any(1)  # a patient with one sequence has none to hide whole
            existing = existing * kept
            if complete > 0:
                total = torch.where((chance < complete) & subset, existing.sum(1), total)
            total = torch.minimum(total, existing.sum(1))
        keys = (key[:, None] + torch.arange(rounds, device=key.device) * _SALT).flatten()
        among = (existing > 0).repeat_interleave(rounds, 0)
        draws = dirichlet(keys, modalities, alpha=alpha, stream=SHARES, among=among)
        wanted = draws.view(len(key), rounds, modalities) * total[:, None, None]
        fits = (wanted <= existing[:, None]).all(-1)
        first = fits.int().argmax(1)[:, None, None].expand(-1, 1, modalities)
        per = torch.minimum(wanted.gather(1, first)[:, 0].round().long(), existing)
        static = not layout.ragged and drop + complete == 0
        return Counts(per, total, keep_count(layout.total, value) if static else None, existing > 0)

    return budget


_SALT = mix(0x53414C54) >> 1  # separates the rounds of one key


def _proper_subset(has: Tensor, key: Key) -> Tensor:
    """A uniform draw among the non-empty proper subsets of what each sample has (all of it where it has one only)."""
    tries, m = 16, has.shape[1]
    coins = (uniform(key, tries * m, stream=SUBSET).view(len(key), tries, m) < 0.5) & has[:, None]
    count = coins.sum(-1)
    good = (count > 0) & (count < has.sum(1)[:, None])
    chosen = coins.gather(1, good.int().argmax(1)[:, None, None].expand(-1, 1, m))[:, 0]
    return torch.where(good.any(1)[:, None], chosen, has)


# --- priorities ---------------------------------------------------------------------------------------------------


def random() -> Priority:
    """Uniform order over all tokens."""

    def priority(tokens: Tokens, key: Key) -> Float[Tensor, "b n"]:
        return uniform(key, tokens.layout.id.shape[1], stream=PRIORITY)

    return priority


def tube(positions: int) -> Priority:
    """The same order of positions in every modality (or frame): hidden here, hidden everywhere.

    Args:
        positions: number of positions; token ``i`` stands at position ``i % positions``.
    """

    def priority(tokens: Tokens, key: Key) -> Float[Tensor, "b n"]:
        n = tokens.layout.id.shape[1]
        if n % positions:
            raise ValueError(f"{n} tokens are not a multiple of {positions} positions")
        rank = uniform(key, positions, stream=PRIORITY).argsort(dim=1, stable=True).argsort(1)  # no two places tie
        return rank.float().repeat(1, n // positions)

    return priority


def block(edge: float) -> Priority:
    """Tokens in blocks of ``edge`` coordinate units: all tokens of one cell of a shifted lattice come together."""
    if edge <= 0:
        raise ValueError(f"the edge of a block must be positive, not {edge}")

    def priority(tokens: Tokens, key: Key) -> Float[Tensor, "b n"]:
        coords = tokens.layout.coords
        shift = uniform(key, coords.shape[-1], stream=SHIFT)[:, None] * edge
        cell = torch.div(coords + shift, edge, rounding_mode="floor").long()
        code = key[:, None] * 0 + tokens.layout.modality
        for axis in range(cell.shape[-1]):
            code = code * 8191 + cell[..., axis]
        return uniform((key[:, None] ^ (code * _SALT)).reshape(-1), 1, stream=PRIORITY).view(cell.shape[:2])

    return priority


def running_cells() -> Priority:
    """A pattern of 2 x 2 cells that moves on by one place in every frame (VideoMAE V2, section 3.2).

    The first half by this order has two tokens of every cell at every time, and every place twice in any four frames.
    The four places of a cell are counted row by row, all cells move together, and every sample starts where its key
    says. Inside one place and time the order is uniform.

    The first axis of the coordinates is time, the last two are row and column, as grid indices.
    """

    def priority(tokens: Tokens, key: Key) -> Float[Tensor, "b n"]:
        time, row, column = (tokens.layout.coords[..., axis].round().long() for axis in (0, -2, -1))
        start = (4 * uniform(key, 1, stream=START)).long()
        place = (2 * (row % 2) + column % 2 + time + start) % 4
        return place + uniform(key, place.shape[1], stream=ASK)

    return priority


# --- the sampler --------------------------------------------------------------------------------------------------


class MaskSampler(nn.Module):
    """Draws a plan: the first tokens by priority, as many as the budget says, are visible; the rest is asked for.

    Args:
        priority: who comes first.
        budget: how many are visible.
        weigh: weigh each target by the share of it that counts (``TokenLayout.weight``).
        ask: share of the masked tokens that is asked for, in (0, 1]: those last in priority where the budget has one
            group; tokens of groups that are hidden whole, then any, where it has several.
        ask_by: priority among the masked tokens for being asked, in place of that rule (a second mask).
        ask_visible: the second mask knows nothing of the first: visible tokens are asked for as well, with a weight of
            zero, and ``ask`` is a share of all tokens. References that decode a second mask do this.
    """

    def __init__(
        self,
        priority: Priority,
        budget: Budget,
        *,
        weigh: bool = False,
        ask: float = 1.0,
        ask_by: Priority | None = None,
        ask_visible: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < ask <= 1:
            raise ValueError(f"ask must be in (0, 1], not {ask}")
        if ask_visible and ask_by is None:
            raise ValueError("ask_visible needs ask_by: without it, who is asked follows from who is visible")
        self.priority, self.budget, self.weigh, self.ask = priority, budget, weigh, ask
        self.ask_by, self.ask_visible = ask_by, ask_visible

    @torch.compiler.disable  # a plan is integers, some of them of sizes that depend on the data: nothing to compile
    def forward(self, tokens: Tokens, key: Int[Tensor, " b"]) -> MaskPlan:
        """The plan of every sample.

        Args:
            tokens: the full set.
            key: randomness of each sample in this step.
        """
        layout = tokens.layout
        counts = self.budget(layout, key)
        order = self._order(tokens, key, counts)
        existing, n = layout.exists.sum(1), layout.id.shape[1]
        hidden = None if self.ask_by is None else order.argsort(dim=1) >= counts.total[:, None]
        queue = order if hidden is None else self._queue(tokens, key, hidden)
        free = existing if self.ask_visible else existing - counts.total
        asked = free if self.ask == 1 else (free.double() * self.ask).ceil().long()
        if counts.fixed is not None:
            most = n if self.ask_visible else n - counts.fixed
            t = most if self.ask == 1 else -int(-most * self.ask // 1)
            visible, target = order[:, : counts.fixed], queue[:, n - t :]
        else:
            visible = _window(order, torch.zeros_like(existing), counts.total)
            target = _window(queue, existing - asked, asked)
        weight = take(layout.weight, target) if self.weigh and layout.weight is not None else None
        if hidden is not None and self.ask_visible:
            scored = take(hidden, target).float()
            weight = scored if weight is None else weight * scored
        return MaskPlan(visible, target, weight, ragged=counts.fixed is None)

    def _queue(self, tokens: Tokens, key: Int[Tensor, " b"], hidden: Bool[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """Columns in the order in which they are *not* asked for; the missing ones come last."""
        assert self.ask_by is not None
        late = -self.ask_by(tokens, key)
        if not self.ask_visible:
            late = late.masked_fill(~hidden, -torch.inf)
        return late.masked_fill(~tokens.layout.exists, torch.inf).argsort(dim=1, stable=True)

    def _order(self, tokens: Tokens, key: Int[Tensor, " b"], counts: Counts) -> Int[Tensor, "b n"]:
        """Columns from first to last: wanted tokens, then the other existing ones, then the missing ones."""
        layout = tokens.layout
        priority = self.priority(tokens, key)
        late = priority.masked_fill(~layout.exists, torch.inf)
        order = late.argsort(dim=1, stable=True)
        if counts.per.shape[1] == 1:
            return order
        # Rank inside the modality: sort by modality, keep the order of priority, subtract where the modality starts.
        modality = layout.modality.gather(1, order)
        grouped = order.gather(1, modality.argsort(dim=1, stable=True))
        sizes = torch.zeros_like(counts.per).scatter_add(1, layout.modality, torch.ones_like(layout.modality))
        start = sizes.cumsum(1) - sizes
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.zeros_like(order).scatter(1, grouped, place) - start.gather(1, layout.modality)
        wanted = rank < counts.per.gather(1, layout.modality)
        late = (~wanted).float()
        if counts.spare is not None:  # hidden whole is hidden to the last token, whatever rounding leaves over
            late = late + (~counts.spare.gather(1, layout.modality)).float()
        tie = uniform(key, order.shape[1], stream=TIE)
        return (tie + late).masked_fill(~layout.exists, torch.inf).argsort(dim=1, stable=True)


def _window(order: Int[Tensor, "b n"], start: Int[Tensor, " b"], count: Int[Tensor, " b"]) -> Int[Tensor, "b k"]:
    """``count`` columns from ``start`` on, padded with -1 to the longest row."""
    place = torch.arange(int(count.max()), device=order.device)
    ids = order.gather(1, (start[:, None] + place).clamp_max(order.shape[1] - 1))
    return torch.where(place < count[:, None], ids, -1)
