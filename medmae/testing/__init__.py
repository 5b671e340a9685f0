"""The conformance suite: what every method must hold, as plain functions that anyone can run.

    from medmae.find import find
    from medmae.testing import check_method
    check_method(find("bm_mae"))

A check takes a :class:`medmae.find.Found` and raises AssertionError. One that cannot apply to a method is named on the
method's card (``exempt``), with the reason. From a shell: ``python -m medmae.testing bm_mae``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from medmae.find import Found

from .batches import example_batch, mixed_batch
from .golden import compare_golden, golden
from .identity import arguments_are_explained, checkpoint_round_trip, name_is_file_is_card, recipe_is_complete
from .leaks import (
    hidden_content_never_leaks,
    missing_modality_does_not_matter,
    padding_is_inert,
    samples_do_not_see_each_other,
)
from .networks import everything_visible_is_the_plain_network, no_graph_breaks
from .plans import asked_is_hidden, order_of_entries_does_not_matter, plan_is_sound, same_key_same_loss
from .training import (
    finite_in_bfloat16,
    finite_named_losses,
    gradients_reach_every_parameter,
    overfits_one_batch,
    perfect_prediction_costs_nothing,
    teacher_follows_or_stays,
)

Check = Callable[[Found], None]

CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        name_is_file_is_card,
        recipe_is_complete,
        arguments_are_explained,
        finite_named_losses,
        gradients_reach_every_parameter,
        hidden_content_never_leaks,
        samples_do_not_see_each_other,
        padding_is_inert,
        missing_modality_does_not_matter,
        plan_is_sound,
        asked_is_hidden,
        same_key_same_loss,
        order_of_entries_does_not_matter,
        perfect_prediction_costs_nothing,
        overfits_one_batch,
        teacher_follows_or_stays,
        everything_visible_is_the_plain_network,
        checkpoint_round_trip,
        finite_in_bfloat16,
        no_graph_breaks,
    )
}
"""Name of every check and the check, cheap ones first."""
CHECKS["name_is_file_is_card"] = partial(name_is_file_is_card, known_checks=tuple(CHECKS))

ALWAYS = ("name_is_file_is_card",)
"""Checks from which no card can be exempt."""


def exemption(found: Found, check: str) -> str | None:
    """Why ``check`` does not apply to a method, or None where it does."""
    return None if check in ALWAYS else found.card.exempt.get(check)


def check_method(found: Found) -> dict[str, str]:
    """Run every check that applies to a method.

    Returns:
        ``passed`` or ``exempt: <reason>`` for every check.

    Raises:
        AssertionError: at least one check failed; the message tells of all of them.
    """
    outcome, failed = {}, []
    for name, check in CHECKS.items():
        reason = exemption(found, name)
        if reason is not None:
            outcome[name] = f"exempt: {reason}"
            continue
        try:
            check(found)
            outcome[name] = "passed"
        except AssertionError as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise AssertionError(f"{found.name} fails {len(failed)} of {len(CHECKS)} checks:\n" + "\n".join(failed))
    return outcome


__all__ = [
    "CHECKS",
    "Check",
    "check_method",
    "compare_golden",
    "example_batch",
    "exemption",
    "golden",
    "mixed_batch",
    *CHECKS,
]
