"""Every check of leaks and plans is shown to fail on a planted fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from faults import around, fails, first_twice, replan
from torch import Tensor

from medmae.core.method import Method
from medmae.core.tokens import MaskPlan, Tokens


def test_leak_through_the_mean_of_all_patches_is_found() -> None:
    def leak(method: Method) -> None:
        around(method, "guess", lambda guess, tokens, plan: guess(tokens, plan) + 1e-4 * tokens.content.mean())

    fails("hidden_content_never_leaks", leak, match="depends on hidden voxels")


def test_leak_in_training_only_is_found() -> None:
    def leak(method: Method) -> None:
        def guess(original: Callable, tokens: Tokens, plan: MaskPlan) -> Tensor:
            return original(tokens, plan) + 1e-4 * tokens.content.mean() * method.training

        around(method, "guess", guess)

    fails("hidden_content_never_leaks", leak, match="depends on hidden voxels")


def test_leak_without_a_gradient_is_found() -> None:
    def leak(method: Method) -> None:
        around(method, "guess", lambda guess, tokens, plan: guess(tokens, plan) + tokens.content.detach().max() * 1e-3)

    fails("hidden_content_never_leaks", leak, match="replacing what is hidden")


def test_leak_through_the_detail_path_is_found() -> None:
    def leak(method: Method) -> None:
        def guess(original: Callable, tokens: Tokens, plan: MaskPlan) -> Tensor:
            around_encoder = method.encoder.forward
            method.encoder.forward = lambda visible, full: replace(around_encoder(visible, full), seen=tokens)
            try:
                return original(tokens, plan)
            finally:
                method.encoder.forward = around_encoder

        around(method, "guess", guess)

    fails("hidden_content_never_leaks", leak, match="depends on hidden voxels")


def test_guess_that_sees_nothing_is_found() -> None:
    def blind(method: Method) -> None:
        around(method, "guess", lambda guess, tokens, plan: guess(tokens, plan) * 0 + tokens.content.sum() * 0)

    fails("hidden_content_never_leaks", blind, match="visible either")


def test_samples_that_see_each_other_are_found() -> None:
    def mix(method: Method) -> None:
        def guess(original: Callable, tokens: Tokens, plan: MaskPlan) -> Tensor:
            out = original(tokens, plan)
            return out + 1e-3 * out.mean(0, keepdim=True)

        around(method, "guess", guess)

    fails("samples_do_not_see_each_other", mix, match="depend on other samples")


def test_attended_padding_is_found() -> None:
    def attend(method: Method) -> None:
        def encode(original: Callable, visible: Tokens, full: object) -> object:
            return original(Tokens(replace(visible.layout, ragged=False), visible.content), full)

        around(method, "encoder.forward", encode)

    fails("padding_is_inert", attend, match="other guesses")


def test_padding_in_the_denominator_is_found() -> None:
    def count_padding(method: Method) -> None:
        original = method.forward

        def forward(batch: dict, plan: MaskPlan | None = None) -> dict[str, Tensor]:
            plan = method.plan(batch) if plan is None else plan
            share = (plan.target >= 0).float().mean()
            return {name: value * share for name, value in original(batch, plan).items()}

        method.forward = forward

    fails("padding_is_inert", count_padding, match="padding the plan changes the loss")


def test_plan_that_depends_on_the_batch_is_found() -> None:
    def depend(method: Method) -> None:
        around(method, "sampler.forward", lambda sample, tokens, key: sample(tokens, key + 17 * len(key)))

    fails("padding_is_inert", depend, match="another plan")


def test_asking_for_a_missing_sequence_is_found() -> None:
    def ignore(method: Method) -> None:
        def tokenize(original: Callable, batch: dict[str, Tensor]) -> Tokens:
            return original({name: value for name, value in batch.items() if name != "present"})

        around(method, "tokenizer.forward", tokenize)

    fails("missing_modality_does_not_matter", ignore, match="patient lacks")


def test_voxels_of_a_missing_sequence_in_the_loss_are_found() -> None:
    def count(method: Method) -> None:
        def forward(original: Callable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            everything = sum(batch[entry].abs().mean() for entry in method.sequences)
            return {name: value + everything for name, value in original(batch).items()}

        around(method, "forward", forward)

    fails("missing_modality_does_not_matter", count, match="change the loss")


def test_repeated_ids_are_found() -> None:
    fails("plan_is_sound", replan(visible=lambda plan: first_twice(plan.visible)), match="repeat", name="mae")


def test_ids_out_of_range_are_found() -> None:
    fails("plan_is_sound", replan(target=lambda plan: plan.target + 10), match="out of range", name="mae")


def test_one_token_too_few_is_found() -> None:
    fails("plan_is_sound", replan(visible=lambda plan: plan.visible[:, 1:]), match="budget", name="mae")


def test_asking_for_less_than_the_budget_is_found() -> None:
    fails("plan_is_sound", replan(target=lambda plan: plan.target[:, 1:]), match="budget", name="mae")


def test_hidden_padding_is_found() -> None:
    cut = replan(target=lambda plan: torch.cat([plan.target[:, 1:], torch.full_like(plan.target[:, :1], -1)], 1))
    fails("plan_is_sound", cut, match="not ragged", name="mae")


def test_planning_missing_tokens_is_found() -> None:
    def complete(method: Method) -> None:
        def sample(original: Callable, tokens: Tokens, key: Tensor) -> MaskPlan:
            n = torch.arange(tokens.layout.total).expand(len(key), -1)
            return original(Tokens(replace(tokens.layout, id=n, ragged=False), tokens.content), key)

        around(method, "sampler.forward", sample)

    fails("plan_is_sound", complete, match="lacks tokens")


def test_asking_for_what_is_visible_is_found() -> None:
    fails("asked_is_hidden", replan(target=lambda plan: plan.visible), match="visible tokens are asked for", name="mae")
