"""Names of sequences."""

from __future__ import annotations

import pytest

from medmae.core.sequences import ALIASES, CANONICAL, canonical, in_order, is_known, nearest


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("t1ce", "t1c"),
        ("T1Gd", "t1c"),
        ("ce-gadolinium_T1w", "t1c"),
        ("T1w", "t1n"),
        ("t1", "t1n"),
        ("FLAIR", "t2f"),
        ("T2-FLAIR", "t2f"),
        ("t2", "t2w"),
        ("T2*", "t2s"),
        ("T2starw", "t2s"),
        ("PDw", "pd"),
        ("CT", "ct"),
        ("MT 0", "mt_0"),
        ("mt0", "mt0"),
    ],
)
def test_spellings(spelling, name):
    assert canonical(spelling) == name
    assert canonical(canonical(spelling)) == name


def test_every_alias_leads_to_a_canonical_name():
    assert set(ALIASES.values()) == set(CANONICAL)
    assert all(is_known(name) for name in CANONICAL)
    assert not is_known("mt0")


def test_nearest_and_order():
    assert nearest("flairr")[0] == "t2f"
    assert nearest("t1ceq")[0] == "t1c"
    assert in_order(["mt0", "t2f", "t1n", "t2f"]) == ("t1n", "t2f", "mt0")


def test_no_name_is_left():
    with pytest.raises(ValueError, match="not a sequence name"):
        canonical("../..")
