"""The law of the samplers: exact totals, the published statistics, whole sequences hidden when asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmae.core.grid import Grid, ModalityGrid
from medmae.core.sampling import (
    MaskSampler,
    block,
    keep_count,
    random,
    ratio,
    ratio_of_tubes,
    ratio_per_modality,
    running_cells,
    shares,
    tube,
)
from medmae.core.tokens import MaskPlan, TokenLayout, Tokens


def layout_of(b: int, m: int, length: int, present: torch.Tensor | None = None) -> Tokens:
    """Tokens without content: ``m`` modalities of ``length`` tokens on a line."""
    ids = torch.arange(m * length).expand(b, -1)
    if present is not None:
        ids = torch.where(present.repeat_interleave(length, 1), ids, -1)
    layout = TokenLayout(
        id=ids,
        coords=torch.arange(length).float().repeat(m)[None, :, None].expand(b, -1, -1),
        modality=torch.arange(m).repeat_interleave(length).expand(b, -1),
        weight=None,
        total=m * length,
        ragged=present is not None,
    )
    return Tokens(layout, torch.zeros(b, m * length, 0))


def seen_per_modality(plan: MaskPlan, m: int, length: int) -> torch.Tensor:
    ids = plan.visible
    group = torch.where(ids < 0, m, ids // length)
    return torch.zeros(len(ids), m + 1, dtype=torch.long).scatter_add(1, group, torch.ones_like(group))[:, :m]


def plan_of(tokens: Tokens, budget, keys: torch.Tensor | None = None) -> MaskPlan:
    return MaskSampler(random(), budget)(tokens, torch.arange(len(tokens.layout.id)) if keys is None else keys)


# --- the statistics of BM-MAE -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> torch.Tensor:
    """Visible tokens per modality of 3000 plans: 4 modalities of 512 tokens, 512 visible."""
    plan = plan_of(layout_of(3000, 4, 512), shares(0.75, modalities=4))
    assert plan.visible.shape == (3000, 512)
    assert plan.target.shape == (3000, 1536)
    assert not plan.ragged
    return seen_per_modality(plan, 4, 512)


def test_total_is_exact(published: torch.Tensor) -> None:
    assert bool((published.sum(1) == 512).all())


def test_moments_are_those_of_the_dirichlet_law(published: torch.Tensor) -> None:
    seen = published.double()
    assert float((seen.mean(0) - 128).abs().max()) < 8
    assert float((seen.std(0) - 99.1).abs().max()) < 5
    assert abs(float(seen.amax(1).mean()) / 512 - 0.52) < 0.01


def test_whole_sequences_are_hardly_ever_hidden(published: torch.Tensor) -> None:
    assert abs(float((published == 0).any(1).double().mean()) - 0.012) < 0.008
    assert abs(float((published <= 0.05 * 512).any(1).double().mean()) - 0.49) < 0.04


@pytest.mark.parametrize(
    ("alpha", "hidden", "near"), [(2.0, 0.0, 0.003), (0.5, 0.15, 0.03), (0.25, 0.52, 0.04), (0.1, 0.89, 0.03)]
)
def test_other_concentrations(alpha: float, hidden: float, near: float) -> None:
    plan = plan_of(layout_of(1500, 4, 512), shares(0.75, modalities=4, alpha=alpha))
    seen = seen_per_modality(plan, 4, 512)
    assert bool((seen.sum(1) == 512).all())
    assert abs(float((seen == 0).any(1).double().mean()) - hidden) < near


@pytest.mark.parametrize(
    ("m", "value", "b"), [(8, 0.75, 500), (4, 0.5, 500), (8, 0.75, 1), (4, 0.5, 1), (2, 0.25, 300)]
)
def test_no_modality_is_asked_for_more_than_it_has(m: int, value: float, b: int) -> None:
    """Also for sample 0 and for batches of one, which the reference never redraws."""
    length = 64
    budget = shares(value, modalities=m)
    batches = 1 if b > 1 else 200
    exhausted = 0
    for i in range(batches):
        tokens = layout_of(b, m, length)
        keys = torch.arange(b) + i * b
        counts = budget(tokens.layout, keys)
        assert bool((counts.per <= length).all())
        seen = seen_per_modality(plan_of(tokens, budget, keys), m, length)
        assert bool((seen <= length).all())
        assert bool((seen.sum(1) == keep_count(m * length, value)).all())
        exhausted += int((seen == length).any(1).sum())
    if value == 0.5:  # without redraws half of the samples would have a modality that is wholly visible
        assert exhausted / (b * batches) < 0.06


def test_redrawn_shares_keep_their_law() -> None:
    """4 modalities at ratio 0.5: the law is the Dirichlet one under the condition that no share exceeds a half."""
    seen = seen_per_modality(plan_of(layout_of(4000, 4, 64), shares(0.5, modalities=4)), 4, 64).double() / 128
    draws = torch.distributions.Dirichlet(torch.ones(4)).sample((60_000,))
    draws = draws[(draws <= 0.5).all(1)]
    assert float((seen.mean(0) - 0.25).abs().max()) < 0.01
    assert abs(float(seen.amax(1).mean() - draws.amax(1).mean())) < 0.01


# --- incomplete patients, whole sequences -------------------------------------------------------------------------


@st.composite
def cohorts(draw) -> tuple[Tokens, torch.Tensor, int, int]:
    m, length, b = draw(st.integers(1, 6)), draw(st.integers(1, 20)), draw(st.integers(1, 5))
    rows = draw(st.lists(st.integers(1, 2**m - 1), min_size=b, max_size=b))
    present = torch.tensor([[bool(row >> i & 1) for i in range(m)] for row in rows])
    return layout_of(b, m, length, present), present, m, length


probability = st.sampled_from([0.0, 0.3, 1.0])


@given(cohorts(), st.floats(0, 0.99), st.sampled_from([0.1, 1.0, 4.0]), probability, probability, st.integers(0, 2**40))
@settings(max_examples=150, deadline=None)
def test_shares_are_sound_for_any_cohort(cohort, value, alpha, drop, complete, seed) -> None:
    tokens, present, m, length = cohort
    budget = shares(value, modalities=m, alpha=alpha, drop=drop, complete=complete)
    keys = torch.arange(len(present)) + seed
    plan = MaskSampler(random(), budget)(tokens, keys)
    total = budget(tokens.layout, keys).total
    existing = present.sum(1) * length
    most = torch.where(present.sum(1) > 1, (present.sum(1) - 1) * length, 0) if complete else 0
    wanted = torch.tensor([keep_count(int(n), value) for n in existing])
    assert bool((total <= torch.maximum(wanted, torch.as_tensor(most))).all())
    if drop + complete == 0:
        assert torch.equal(total, wanted)
    for row in range(len(present)):
        seen, asked = (ids[row][ids[row] >= 0] for ids in (plan.visible, plan.target))
        both = torch.cat([seen, asked])
        assert torch.equal(both.sort().values, torch.nonzero(tokens.layout.exists[row])[:, 0])
        assert len(seen) == total[row]
        single = MaskSampler(random(), budget)(layout_of(1, m, length, present[row : row + 1]), keys[row : row + 1])
        assert torch.equal(single.visible[0], seen)
        assert torch.equal(single.target[0], asked)


@pytest.mark.parametrize("value", [0.75, 0.5, 0.3])
@pytest.mark.parametrize("incomplete", [False, True])
def test_dropped_sequences_are_hidden_whole(value: float, incomplete: bool) -> None:
    """A subset is hidden to the last token: rounding is repaired among the others."""
    b, m, length = 2000, 4, 27
    present = torch.ones(b, m, dtype=torch.bool)
    if incomplete:
        present[torch.arange(b), torch.arange(b) % m] = False
    tokens = layout_of(b, m, length, present)
    seen = seen_per_modality(plan_of(tokens, shares(value, modalities=m, alpha=4.0, drop=1.0)), m, length)
    hidden = ((seen == 0) & present).any(1)
    assert float(hidden.double().mean()) > 0.999
    assert bool((seen.sum(1) <= keep_count((m - incomplete) * length, value)).all())
    assert bool((seen.sum(1) > 0).all())


def test_dropped_subsets_are_uniform() -> None:
    b, m, length = 7000, 3, 30
    seen = seen_per_modality(
        plan_of(layout_of(b, m, length), shares(0.75, modalities=m, alpha=50.0, drop=1.0)), m, length
    )
    code = ((seen > 0).long() * torch.tensor([1, 2, 4])).sum(1)
    counts = torch.bincount(code, minlength=8)
    assert counts[0] == 0
    assert counts[7] == 0
    assert float((counts[1:7] / b - 1 / 6).abs().max()) < 0.02


def test_complete_plans_show_all_of_the_rest() -> None:
    b, m, length = 500, 4, 27
    seen = seen_per_modality(plan_of(layout_of(b, m, length), shares(0.75, modalities=m, complete=1.0)), m, length)
    assert bool(((seen == 0) | (seen == length)).all())
    whole = (seen == length).sum(1)
    assert bool(((whole > 0) & (whole < m)).all())


def test_patients_with_one_sequence_are_masked_as_usual() -> None:
    """There is nothing to hide whole; showing everything would leave nothing to learn from."""
    present = torch.eye(4, dtype=torch.bool)
    plan = plan_of(layout_of(4, 4, 64, present), shares(0.75, modalities=4, drop=0.5, complete=0.5))
    assert plan.visible.shape == (4, 16)
    assert plan.target.shape == (4, 48)
    assert int(plan.target.min()) >= 0


def test_drop_and_complete_have_their_probabilities() -> None:
    b, m, length = 6000, 4, 64
    budget = shares(0.75, modalities=m, alpha=50.0, drop=0.2, complete=0.3)
    seen = seen_per_modality(plan_of(layout_of(b, m, length), budget), m, length)
    complete = ((seen == 0) | (seen == length)).all(1) & (seen == 0).any(1)
    dropped = (seen == 0).any(1)
    assert abs(float(dropped.double().mean()) - 0.5) < 0.03
    assert float(complete.double().mean()) > 0.27


@pytest.mark.parametrize(
    "bad", [{"value": 1.0}, {"value": -0.1}, {"value": 0.5, "drop": 1.5}, {"value": 0.5, "complete": -1.0}]
)
def test_shares_refuse_impossible_numbers(bad: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        shares(bad.pop("value"), modalities=4, **bad)


# --- the other budgets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "value", "kept"), [(196, 0.75, 49), (196, 0.985, 2), (1568, 0.9, 156), (10, 0.0, 10)])
def test_keep_counts_truncate(n: int, value: float, kept: int) -> None:
    assert keep_count(n, value) == kept
    plan = plan_of(layout_of(2, 1, n), ratio(value))
    assert plan.visible.shape == (2, kept)
    assert plan.target.shape == (2, n - kept)
    ragged = plan_of(layout_of(2, 1, n, torch.ones(2, 1, dtype=torch.bool)), ratio(value))
    assert torch.equal(ragged.visible, plan.visible)
    assert torch.equal(ragged.target, plan.target)
    assert ragged.ragged


def test_every_token_is_visible_equally_often() -> None:
    plan = plan_of(layout_of(8000, 1, 20), ratio(0.75))
    often = torch.bincount(plan.visible.flatten(), minlength=20) / 8000
    assert float((often - 0.25).abs().max()) < 0.025


def test_ratio_per_modality_is_the_same_in_each() -> None:
    present = torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()
    complete = plan_of(layout_of(5, 3, 10), ratio_per_modality(0.75, modalities=3))
    assert bool((seen_per_modality(complete, 3, 10) == 2).all())
    assert not complete.ragged
    lacking = plan_of(layout_of(2, 3, 10, present), ratio_per_modality(0.75, modalities=3))
    assert seen_per_modality(lacking, 3, 10).tolist() == [[2, 2, 2], [2, 0, 2]]


def test_tube_hides_the_same_places_in_every_modality() -> None:
    sampler = MaskSampler(tube(50), ratio_per_modality(0.8, modalities=4))
    plan = sampler(layout_of(6, 4, 50), torch.arange(6))
    for row in plan.visible:
        places = [set((row[row // 50 == m] % 50).tolist()) for m in range(4)]
        assert len(places[0]) == 9 or len(places[0]) == 10
        assert all(place == places[0] for place in places)
    with pytest.raises(ValueError, match="not a multiple"):
        sampler.priority(layout_of(2, 1, 49), torch.arange(2))


def test_block_hides_neighbors_together() -> None:
    tokenizer = ModalityGrid(("a",), Grid((32, 32), (2, 2)))
    tokens = tokenizer({"a": torch.zeros(20, 1, 32, 32)})
    keys = torch.arange(20)

    def together(priority) -> float:
        plan = MaskSampler(priority, ratio(0.75))(tokens, keys)
        seen = torch.zeros(20, 256).scatter(1, plan.visible, 1.0).view(20, 16, 16)
        return float((seen[:, 1:] == seen[:, :-1]).double().mean())

    assert together(block(4.0)) > together(random()) + 0.15
    with pytest.raises(ValueError, match="positive"):
        block(0.0)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("ask", [0.1, 0.33, 0.5, 1.0])
def test_ask_takes_a_share_of_the_hidden(ragged: bool, ask: float) -> None:
    present = torch.ones(3, 2, dtype=torch.bool) if ragged else None
    tokens = layout_of(3, 2, 20, present)
    plan = MaskSampler(random(), ratio(0.75), ask=ask)(tokens, torch.arange(3))
    assert plan.target.shape == (3, -int(-30 * ask // 1))
    assert not bool((plan.visible[:, :, None] == plan.target[:, None]).any())


def test_ask_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="ask"):
        MaskSampler(random(), ratio(0.5), ask=0.0)


def test_weights_come_from_the_layout_only_when_wanted() -> None:
    tokenizer = ModalityGrid(("a", "b"), Grid((8, 8), (2, 2)))
    foreground = torch.rand(2, 1, 8, 8)
    tokens = tokenizer({"a": torch.zeros(2, 1, 8, 8), "b": torch.zeros(2, 1, 8, 8), "foreground": foreground})
    keys = torch.arange(2)
    assert MaskSampler(random(), ratio(0.5))(tokens, keys).weight is None
    plan = MaskSampler(random(), ratio(0.5), weigh=True)(tokens, keys)
    share = tokenizer.grid.share(foreground)
    assert torch.equal(plan.weight, share.gather(1, plan.target % 16))


def test_block_gives_every_place_the_same_chance() -> None:
    """The first cell is smaller than the others where the lattice is shifted far; it must not come later for that."""
    tokenizer = ModalityGrid(("a",), Grid((32, 32), (2, 2)))
    tokens = tokenizer({"a": torch.zeros(4000, 1, 32, 32)})
    plan = MaskSampler(block(4.0), ratio(0.75))(tokens, torch.arange(4000))
    often = torch.zeros(4000, 256).scatter(1, plan.visible, 1.0).mean(0)
    assert float((often - 0.25).abs().max()) < 0.05


@pytest.mark.parametrize("present", [[1, 1, 1, 1], [1, 1, 0, 0]])
def test_tiny_concentrations_show_one_sequence(present: list[int]) -> None:
    """Their shares are too small for floating point, and must not be taken for equal ones."""
    b, length = 1500, 64
    tokens = layout_of(b, 4, length, torch.tensor([present] * b).bool())
    seen = seen_per_modality(plan_of(tokens, shares(0.75, modalities=4, alpha=0.01)), 4, length).double()
    largest = float((seen.amax(1) / seen.sum(1)).mean())
    n = sum(present)
    draws = torch.distributions.Dirichlet(torch.full((n,), 0.01, dtype=torch.float64)).sample((20_000,))
    assert abs(largest - float(draws.amax(1).mean())) < 0.006


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_shares_refuse_impossible_concentrations(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be positive"):
        shares(0.75, modalities=4, alpha=alpha)


@pytest.mark.parametrize("value", [0.0, 0.5, 0.75, 0.9, 0.95])
def test_tubes_cut_the_hidden_places_and_not_the_visible_ones(value: float) -> None:
    kept = 4 * (49 - int(49 * value))
    budget = ratio_of_tubes(value, positions=49)
    complete = plan_of(layout_of(3, 1, 4 * 49), budget)
    assert complete.visible.shape == (3, kept)
    assert not complete.ragged
    present = torch.tensor([[1], [0], [1]]).bool()
    lacking = plan_of(layout_of(3, 1, 4 * 49, present), budget)
    assert (lacking.visible >= 0).sum(1).tolist() == [kept, 0, kept]


def test_places_of_a_tube_never_tie() -> None:
    """Two places with the same random number would share the last tube between them."""
    sampler = MaskSampler(tube(20), ratio_of_tubes(0.5, positions=20))
    order = sampler.priority(layout_of(50, 1, 60), torch.arange(50))
    assert all(len(row.unique()) == 20 for row in order)


def clip(b: int, steps: int, rows: int, columns: int, present: torch.Tensor | None = None) -> Tokens:
    tokenizer = ModalityGrid(("v",), Grid((steps, 2 * rows, 2 * columns), (1, 2, 2)))
    batch = {"v": torch.zeros(b, 1, steps, 2 * rows, 2 * columns)}
    return tokenizer(batch if present is None else batch | {"present": present})


def test_running_cells_have_two_of_four_at_every_time_and_every_place_twice_in_four() -> None:
    order = running_cells()(clip(40, 9, 6, 8), torch.arange(40))
    asked = (order < 2).view(40, 9, 6, 8)
    assert bool((asked.view(40, 9, 3, 2, 4, 2).sum((3, 5)) == 2).all())
    for t in range(6):
        assert bool((asked[:, t : t + 4].sum(1) == 2).all())
    assert torch.equal(asked[..., :2, :2].repeat(1, 1, 3, 4), asked)  # all cells together
    assert torch.equal(asked[:, 4:8], asked[:, :4])
    starts = {tuple(row.flatten().tolist()) for row in asked[:, 0, :2, :2]}
    assert len(starts) == 4
    assert starts == {(True, True, False, False), (True, False, False, True), (False, False, True, True),
                      (False, True, True, False)}  # fmt: skip


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("ask", [0.25, 0.5, 1.0])
def test_a_second_mask_chooses_among_the_hidden(ragged: bool, ask: float) -> None:
    present = torch.tensor([[1], [0], [1]]).bool() if ragged else None
    tokens, key = clip(3, 4, 4, 4, present), torch.arange(3)
    budget = ratio_of_tubes(0.75, positions=16)
    plan = MaskSampler(tube(16), budget, ask=ask, ask_by=running_cells())(tokens, key)
    assert plan.target.shape == (3, int(48 * ask))
    order = running_cells()(tokens, key)
    for row in (0, 2):
        asked, seen = set(plan.target[row].tolist()), set(plan.visible[row].tolist())
        assert len(asked) == int(48 * ask)
        assert not asked & seen
        assert asked == {i for i in range(64) if order[row, i] < 4 * ask} - seen
    assert bool((plan.target[1] == -1).all()) == ragged


def test_a_second_mask_may_ask_for_what_is_visible_at_no_weight() -> None:
    tokens = clip(3, 4, 4, 4)
    options = {"ask": 0.5, "ask_by": running_cells(), "ask_visible": True}
    plan = MaskSampler(tube(16), ratio_of_tubes(0.75, positions=16), **options)(tokens, torch.arange(3))
    assert plan.target.shape == (3, 32)
    both = (plan.target[:, :, None] == plan.visible[:, None]).any(-1)
    assert both.sum(1).tolist() == [8, 8, 8]
    assert torch.equal(plan.weights(), (~both).float())
    with pytest.raises(ValueError, match="ask_visible needs ask_by"):
        MaskSampler(random(), ratio(0.5), ask_visible=True)
