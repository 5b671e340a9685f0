"""A check that cannot fail proves nothing: for each one a fault is planted that it has to find."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults import around, fails, faulty, reloss, with_teacher
from torch import Tensor, nn

from medmae.core.errors import CheckpointError
from medmae.core.method import Method
from medmae.core.tokens import MaskPlan, Tokens
from medmae.find import Found, find
from medmae.testing import CHECKS, check_method, compare_golden, exemption
from medmae.testing import __main__ as command
from medmae.testing.golden import UPDATE


def test_randomness_outside_of_the_key_is_found() -> None:
    def roll(method: Method) -> None:
        around(method, "sampler.forward", lambda sample, tokens, key: sample(tokens, key + torch.randint(9999, (1,))))

    fails("same_key_same_loss", roll, match="something other than the key")


def test_a_plan_that_never_changes_is_found() -> None:
    def fix(method: Method) -> None:
        around(method, "sampler.forward", lambda sample, tokens, key: sample(tokens, torch.zeros_like(key)))

    fails("same_key_same_loss", fix, match="changes nothing")


def test_order_of_entries_is_found() -> None:
    def by_order(method: Method) -> None:
        def tokenize(original: Callable, batch: dict[str, Tensor]) -> Tokens:
            images = [value for name, value in batch.items() if name in method.sequences]
            return original(dict(batch) | dict(zip(method.sequences, images, strict=True)))

        around(method, "tokenizer.forward", tokenize)

    fails("order_of_entries_does_not_matter", by_order, match="order of the entries")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda value: value * float("nan"), "nan"),
        (lambda value: value[None], "no scalar"),
        (lambda value: value.detach(), "no gradient"),
    ],
)
def test_unusable_losses_are_found(change: Callable[[Tensor], Tensor], match: str) -> None:
    fails("finite_named_losses", reloss(change), match=match, name="mae")


def test_no_loss_at_all_is_found() -> None:
    fails("finite_named_losses", lambda m: around(m, "forward", lambda f, batch: {}), match="no loss", name="mae")


def test_unused_parameter_is_found() -> None:
    fails(
        "gradients_reach_every_parameter",
        lambda method: method.register_parameter("idle", nn.Parameter(torch.ones(3))),
        match="idle gets no gradient",
        name="mae",
    )


def test_gradient_that_is_always_zero_is_found() -> None:
    def useless(method: Method) -> None:
        method.register_parameter("idle", nn.Parameter(torch.ones(())))
        around(method, "guess", lambda guess, tokens, plan: guess(tokens, plan) + method.idle * 0)

    fails("gradients_reach_every_parameter", useless, match="always zero", name="mae")


@pytest.mark.parametrize("change", [lambda value: value + 0.1, lambda value: value * 0])
def test_a_loss_that_does_not_compare_is_found(change: Callable[[Tensor], Tensor]) -> None:
    fails("perfect_prediction_costs_nothing", reloss(change), match="cost", name="mae")


def test_a_network_that_does_not_learn_is_found() -> None:
    def stuck(method: Method) -> None:
        def guess(original: Callable, tokens: Tokens, plan: MaskPlan) -> Tensor:
            out = original(tokens, plan)
            return out * 0

        around(method, "guess", guess)

    fails("overfits_one_batch", stuck, match="after 150 steps", name="mae")


def test_a_good_teacher_passes() -> None:
    found = faulty(with_teacher(), "mae")
    for check in ("teacher_follows_or_stays", "gradients_reach_every_parameter", "hidden_content_never_leaks"):
        CHECKS[check](found)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("trained", "would train"),
        ("training", "training mode"),
        ("flees", "not towards"),
        ("forgotten", "does not follow"),
    ],
)
def test_bad_teachers_are_found(fault: str, match: str) -> None:
    fails("teacher_follows_or_stays", with_teacher(**{fault: True}), match=match, name="mae")


def test_overflow_in_bfloat16_is_found() -> None:
    def overflow(method: Method) -> None:
        def guess(original: Callable, tokens: Tokens, plan: MaskPlan) -> Tensor:
            out = original(tokens, plan)
            return out * float("inf") if out.dtype == torch.bfloat16 else out

        around(method, "guess", guess)

    fails("finite_in_bfloat16", overflow, match="in bfloat16", name="mae")


def test_lost_precision_is_found() -> None:
    def lose(method: Method) -> None:
        around(
            method,
            "guess",
            lambda guess, tokens, plan: guess(tokens, plan) + (1.0 if torch.is_autocast_enabled("cpu") else 0.0),
        )

    fails("finite_in_bfloat16", lose, match="in float32", name="mae")


def test_an_encoder_that_counts_rows_is_found() -> None:
    def count(method: Method) -> None:
        def embed(original: Callable, tokens: Tokens) -> Tensor:
            x = original(tokens)
            return x + torch.outer(torch.linspace(0, 1, x.shape[1]), torch.linspace(-1, 1, x.shape[2]))

        around(method, "encoder.embed.forward", embed)

    fails("everything_visible_is_the_plain_network", count, match="differs from the plain network", name="mae")


def test_a_graph_break_is_found() -> None:
    script = """
import functools
from dataclasses import replace
from medmae.find import find
from medmae.testing import CHECKS
found = find("mae")
@functools.wraps(found.builder)
def builder(**recipe):
    method = found.builder(**recipe)
    guess = method.guess
    def branch(tokens, plan):
        out = guess(tokens, plan)
        return out if float(out.sum()) > 0 else out * 1
    method.guess = branch
    return method
CHECKS["no_graph_breaks"](replace(found, builder=builder))
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert child.returncode != 0
    assert "AssertionError: the step breaks the graph" in child.stderr, child.stderr


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"title": " "}, "no title"),
        ({"status": "perfect"}, "status"),
        ({"reference": ""}, "faithful, but not to which code"),
        ({"parent": "nothing"}, "is no method"),
        ({"parent": "bm_mae", "changed": ()}, "does not say what changed"),
        ({"exempt": {"no_such_check": "there is a reason"}}, "which is no check"),
        ({"exempt": {"plan_is_sound": "because"}}, "gives no reason"),
        ({"year": 25}, "year"),
    ],
)
def test_a_bad_card_is_found(change: dict, match: str) -> None:
    card = copy.copy(find("mae").card)
    for entry, value in change.items():
        object.__setattr__(card, entry, value)  # past the type checks of the test session
    with pytest.raises(AssertionError, match=match):
        CHECKS["name_is_file_is_card"](replace(find("mae"), card=card))


def test_another_name_is_found() -> None:
    with pytest.raises(AssertionError, match="is built by"):
        CHECKS["name_is_file_is_card"](replace(find("mae"), name="masked"))


def test_positional_arguments_are_found() -> None:
    def builder(size: tuple[int, ...] = (8, 8)) -> Method:
        return find("mae").builder(size=size)

    with pytest.raises(AssertionError, match="not by keyword only"):
        CHECKS["recipe_is_complete"](replace(find("mae"), builder=builder))


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["size: pixels of a screen."], "'groups' is explained neither"),
        (["groups: bands.", "grooups: bands."], "'grooups', which is no argument"),
        (["groups: bands.", "size: Pixels per axis, of what one", "    forward pass sees."], "of 'size' only what"),
    ],
)
def test_badly_explained_arguments_are_found(lines: list[str], match: str) -> None:
    def builder(*, size: tuple[int, ...] = (8, 8), groups: int = 2) -> Method:
        return find("mae").builder(size=size)

    builder.__doc__ = "Build it.\n\n    Args:\n" + "".join(f"        {line}\n" for line in lines) + "    "
    with pytest.raises(AssertionError, match=match):
        CHECKS["arguments_are_explained"](replace(find("mae"), builder=builder))


def test_missing_test_scale_is_found() -> None:
    with pytest.raises(AssertionError, match="no scale"):
        CHECKS["recipe_is_complete"](replace(find("mae"), scales={}))


def test_state_outside_of_the_checkpoint_is_found() -> None:
    def hidden_state(method: Method) -> None:
        around(method, "guess", lambda guess, tokens, plan: guess(tokens, plan) * 1.5)

    fails("checkpoint_round_trip", hidden_state, match="loaded")


def test_a_checkpoint_of_another_network_is_found() -> None:
    def grow(method: Method) -> None:
        method.register_parameter("extra", nn.Parameter(torch.ones(1)))

    with pytest.raises(CheckpointError, match="extra"):
        CHECKS["checkpoint_round_trip"](faulty(grow))


def test_changed_keys_and_recipes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UPDATE, "0")
    with pytest.raises(AssertionError, match="no golden file"):
        compare_golden(find("mae"), tmp_path)
    monkeypatch.setenv(UPDATE, "1")
    compare_golden(find("mae"), tmp_path)
    monkeypatch.setenv(UPDATE, "0")
    compare_golden(find("mae"), tmp_path)

    def rename(method: Method) -> None:
        method.encoder.final = method.encoder.norm
        del method.encoder.norm

    with pytest.raises(AssertionError, match=r"encoder changed.*final.weight"):
        compare_golden(faulty(rename, "mae"), tmp_path)
    text = (tmp_path / "mae.json").read_text().replace('"mask_ratio": 0.75', '"mask_ratio": 0.6')
    (tmp_path / "mae.json").write_text(text)
    with pytest.raises(AssertionError, match=r"recipe changed.*mask_ratio: 0.6 -> 0.75"):
        compare_golden(find("mae"), tmp_path)


def test_check_method_tells_of_every_failure() -> None:
    def two_faults(method: Method) -> None:
        around(method, "sampler.forward", lambda sample, tokens, key: sample(tokens, torch.zeros_like(key)))
        reloss(lambda value: value + 1)(method)

    skip = dict.fromkeys(("no_graph_breaks", "overfits_one_batch", "checkpoint_round_trip"), "not what is tested here")
    found = faulty(two_faults, "mae")
    with pytest.raises(AssertionError, match=r"(?s)same_key_same_loss.*perfect_prediction_costs_nothing"):
        check_method(replace(found, card=replace(found.card, exempt=skip)))


def test_exemptions_are_honored_and_reported() -> None:
    found = find("mae")
    slow = ("no_graph_breaks", "overfits_one_batch")
    found = replace(found, card=replace(found.card, exempt=dict.fromkeys(slow, "this takes too long")))
    outcome = check_method(found)
    assert list(outcome) == list(CHECKS)
    assert {name for name, what in outcome.items() if what == "exempt: this takes too long"} == set(slow)
    assert exemption(replace(found, card=replace(found.card, exempt={"name_is_file_is_card": "no no no"})),
                     "name_is_file_is_card") is None  # fmt: skip


def test_every_check_has_a_planted_fault() -> None:
    folder = Path(__file__).parent
    source = Path(__file__).read_text("utf-8").partition("test_every_check_has")[0]
    source += (folder / "test_leaks_and_plans_can_fail.py").read_text("utf-8")
    assert [name for name in CHECKS if f'"{name}"' not in source] == []
    assert all(getattr(check, "func", check).__doc__ for check in CHECKS.values())


def test_the_command_counts_failures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(found: Found) -> None:
        raise AssertionError(f"planted in {found.name}")

    monkeypatch.setitem(CHECKS, "plan_is_sound", fail)
    wanted = ["--check", "plan_is_sound", "--check", "name_is_file_is_card"]
    monkeypatch.setattr(sys, "argv", ["medmae.testing", "mae", *wanted])
    assert command.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAILED: planted in mae" in lines[0]
    assert lines[1].endswith("passed")
    monkeypatch.setattr(sys, "argv", ["medmae.testing", "no_such_method"])
    with pytest.raises(SystemExit):
        command.main()
