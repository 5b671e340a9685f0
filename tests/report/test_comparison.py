"""Winners are marked where they are, the model's losses too."""

from __future__ import annotations

from typing import Any

from medmae.report.comparison import by_subset, compare, headline, overview, summary_lines, text_table


def entry(
    method: str, target: str, given: str, mean: float, *, gain: float | None = None, sure: bool = True
) -> dict[str, Any]:
    found: dict[str, Any] = {"method": method, "target": target, "given": given, "metric": "mae", "mean": mean}
    found |= {"low": mean - 0.01, "high": mean + 0.01, "cases": 4}
    if gain is not None:
        ends = (gain - 0.01, gain + 0.01) if sure else (gain - 1, gain + 1)
        found["gain"] = {"mean": gain, "low": ends[0], "high": ends[1]}
    return found


SUMMARY = [
    entry("model", "t1n", "all", 0.4),
    entry("mean", "t1n", "all", 0.8, gain=-0.4),
    entry("linear", "t1n", "all", 0.5, gain=-0.1, sure=False),
    entry("model", "t2w", "all", 0.6),
    entry("mean", "t2w", "all", 0.8, gain=-0.2),
    entry("linear", "t2w", "all", 0.5, gain=0.1),
    entry("model", "t2w", "t1n", 0.6),
    entry("mean", "t2w", "t1n", 0.8, gain=-0.2),
    entry("linear", "t2w", "t1n", 0.5, gain=0.1),
]


def test_who_beats_whom() -> None:
    """Lower is better for errors, and the tiles tell where the model loses."""
    comparison = compare(SUMMARY, sequences=("t1n", "t2w"))
    assert comparison.beats("mean", metric="mae") == ("t1n", "t2w")
    assert comparison.beats("linear", metric="mae") == ("t1n",)
    tiles = {tile.label: tile for tile in headline(comparison)}
    assert tiles["beats mean intensity"].value == "2 of 2"
    assert tiles["beats mean intensity"].tone == "good"
    assert tiles["beats linear regression"].value == "1 of 2"
    assert "not on t2w" in tiles["beats linear regression"].detail
    lines = " ".join(summary_lines(comparison))
    assert "not better than linear regression on t2w" in lines
    assert "t2w from t1n" in lines


def test_marks_of_the_table() -> None:
    """A star for the best; color only beyond the interval of the difference."""
    table = overview(compare(SUMMARY, sequences=("t1n", "t2w"))).panels["MAE"][0]
    assert table.columns == ("sequence to reconstruct", "model", "mean intensity", "linear regression")
    first, second = (dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows)
    assert first["model"].best
    assert not first["linear regression"].best
    assert first["mean intensity"].tone == "good"
    assert first["linear regression"].tone == "plain"
    assert second["linear regression"].best
    assert second["linear regression"].tone == "bad"


def test_unknown_intervals_and_missing_cells() -> None:
    """One case has no interval; a baseline that could not guess has no cell."""
    alone = entry("model", "t1n", "t2w", 0.4) | {"low": None, "high": None, "cases": 1}
    other = entry("mean", "t1n", "t2w", 0.8) | {
        "low": None,
        "high": None,
        "gain": {"mean": -0.4, "low": None, "high": None},
    }
    comparison = compare([alone, other, *SUMMARY], sequences=("t1n", "t2w"))
    table = by_subset(comparison).panels["MAE"][0]
    row = table.rows[0]
    assert row[1].detail == ""
    assert row[2].tone == "plain"
    assert row[3].text == "-"
    assert "1 case" in row[0].detail


def test_the_table_for_the_terminal() -> None:
    """Aligned columns, one star per line."""
    lines = text_table(compare(SUMMARY, sequences=("t1n", "t2w"))).splitlines()
    assert len(lines) == 3
    assert all(line.count("*") == 1 for line in lines[1:])
    assert "0.400 *" in lines[1]
    assert "0.500 *" in lines[2]
