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

PRIORITY, TIE, SHARES, DROP, SUBSET, SHIFT, RATIO = range(11, 18)  # streams of randomness, one per purpose


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
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), not {value}")


# --- budgets ------------------------------------------------------------------------------------------------------


def ratio(value: float) -> Budget:
    """Hide this share of all existing tokens of a sample."""
    _check_ratio(value)

    def budget(layout: TokenLayout, key: Key) -> Counts:
        total = _keep(layout.exists.sum(1), value)
        return Counts(total[:, None], total, None if layout.ragged else keep_count(layout.total, value))

    return budget


def ratio_per_modality(value: float | tuple[float, float], *, modalities: int) -> Budget:
    """Hide this share of the existing tokens of every modality.

    Args:
        value: mask ratio, or the range from which every sample draws its own, uniformly.
        modalities: number of modalities.
    """
    if isinstance(value, tuple):
        low, high = value
        _check_ratio(low)
        _check_ratio(high)
        if low > high:
            raise ValueError(f"a range of mask ratios goes from low to high, not from {low} to {high}")

        def drawn(layout: TokenLayout, key: Key) -> Counts:
            share = low + (high - low) * uniform(key, 1, stream=RATIO).double()
            per = (_existing(layout, modalities).double() * (1 - share)).long()
            return Counts(per, per.sum(1), None)

        return drawn
    _check_ratio(value)

    def budget(layout: TokenLayout, key: Key) -> Counts:
        per = _keep(_existing(layout, modalities), value)
        fixed = None if layout.ragged else modalities * keep_count(layout.total // modalities, value)
        return Counts(per, per.sum(1), fixed)

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
        return uniform(key, positions, stream=PRIORITY).repeat(1, n // positions)

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


# --- the sampler --------------------------------------------------------------------------------------------------


class MaskSampler(nn.Module):
    """Draws a plan: the first tokens by priority, as many as the budget says, are visible; the rest is asked for.

    Args:
        priority: who comes first.
        budget: how many are visible.
        weigh: weigh each target by the share of it that counts (``TokenLayout.weight``).
        ask: share of the masked tokens that is asked for, in (0, 1]: those last in priority where the budget has one
            group; tokens of groups that are hidden whole, then any, where it has several.
    """

    def __init__(self, priority: Priority, budget: Budget, *, weigh: bool = False, ask: float = 1.0) -> None:
        super().__init__()
        if not 0 < ask <= 1:
            raise ValueError(f"ask must be in (0, 1], not {ask}")
        self.priority, self.budget, self.weigh, self.ask = priority, budget, weigh, ask

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
        existing = layout.exists.sum(1)
        hidden = existing - counts.total
        asked = hidden if self.ask == 1 else (hidden.double() * self.ask).ceil().long()
        n = layout.id.shape[1]
        if counts.fixed is not None:
            t = n - counts.fixed if self.ask == 1 else -int(-(n - counts.fixed) * self.ask // 1)
            visible, target = order[:, : counts.fixed], order[:, n - t :]
        else:
            visible = _window(order, torch.zeros_like(existing), counts.total)
            target = _window(order, existing - asked, asked)
        weight = take(layout.weight, target) if self.weigh and layout.weight is not None else None
        return MaskPlan(visible, target, weight, ragged=counts.fixed is None)

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
