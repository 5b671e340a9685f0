"""Dates of a table as numbers, and images that come with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medmae.core.errors import DataError
from medmae.data.kinds.dates import read_stamps
from medmae.data.kinds.image import ImageKind
from medmae.data.kinds.listing import Sample

RECIPE = {"size": [16, 16], "groups": [[0], [1]], "stamps": 3}


def test_dates_count_from_2002_and_numbers_stay() -> None:
    told = read_stamps("2016-05-03T10:20; 2017-11-30;1.5 0, 3", groups=3, count=3)
    assert told.tolist() == [[14, 4, 10], [15, 10, 0], [1.5, 0, 3]]
    assert told.dtype == np.float32
    # As fMoW writes them, whose hours are those of SatMAE.
    assert read_stamps("2015-12-31T23:59:58Z; 2002-01-01T00:00:00Z", groups=2, count=3).tolist() == [
        [13, 11, 23],
        [0, 0, 0],
    ]
    assert read_stamps("2004-02-01; 2005-01-01", groups=2, count=1).tolist() == [[2], [3]]
    assert read_stamps("20040201; 2", groups=2, count=1).tolist() == [[2], [2]]  # a date without dashes is one


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [
        (None, 3, "columns path and time"),
        (" ", 3, "method.stamps out"),
        ("2016-05-03", 3, "2 dates separated by semicolons"),
        ("2016-05-03; May", 3, "'2016-05-03; May'"),
        ("1 2; 3 4", 3, "3 number"),
        ("1 2 nan; 3 4 5", 3, "3 number"),
        ("2016-05-03; 2016-05-04", 4, "wanted are 2 times 4 numbers"),  # no date gives four
        (None, 4, "path and time: 2 times 4 numbers"),
    ],
)
def test_what_is_no_date_is_refused(text: str | None, count: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_stamps(text, groups=2, count=count)


def test_images_come_with_their_dates(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(2, 20, 24)).astype(np.float32))
    sample = Sample("a.npy", tmp_path / "a.npy", None, "a", extra={"time": "2016-05-03T10:20; 2017-11-30"})
    kind = ImageKind.of(RECIPE, {})
    assert kind.facts(sample)["channels"] == 2
    read = kind.read(sample, key=1, training=True)
    batch = {name: torch.from_numpy(value)[None] for name, value in read.items()} | {"key": torch.tensor([1])}
    done = kind.finish(batch, training=True)
    assert {name: tuple(value.shape) for name, value in done.items()} == {"image": (1, 2, 16, 16), "time": (1, 2, 3)}
    assert kind.describe()["stamps"] == [2, 3]
    assert "time" not in ImageKind.of({**RECIPE, "stamps": 0}, {}).read(sample, key=1, training=True)
    with pytest.raises(DataError, match=r"a\.npy: nothing says when"):
        kind.facts(Sample("a.npy", tmp_path / "a.npy", None, "a"))
