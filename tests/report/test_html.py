"""The report is one file that loads nothing, obeys nothing in the data, and stays small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from medmae.core.errors import UsageError
from medmae.report import (
    Cell,
    Chart,
    Choice,
    Curve,
    FactList,
    Pane,
    Picture,
    Report,
    Scene,
    Table,
    Tabs,
    Tile,
    Viewer,
    Volume,
    render,
    write_report,
)
from medmae.report.png import gray_png

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><script>alert(3)</script>",
    "' onmouseover='alert(4)",
    "<!--<script>",
    "]]>&lt;b&gt;\u2028\u2029",
    "javascript:alert(5)",
    "<svg/onload=alert(6)>",
    "\U0001f600 \u202e",
)


class Elements(HTMLParser):
    """Every element and attribute of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text += data


def full(word: str) -> Report:
    """A report in which ``word`` stands wherever text can stand."""
    rng = np.random.default_rng(0)
    volumes = {word: Volume(rng.normal(size=(6, 7, 5)), -2, 2), word + "2": Volume(np.zeros((6, 7, 5)), -2, 2)}
    pane = Pane(word, word, minus=word + "2", inside=word + "2", note=word)
    table = Table(word, (word, word), ((word, Cell(word, word, "good", best=True)),), note=word, totals=(0,))
    return Report(
        title=word,
        subtitle=word,
        headline=(Tile(word, word, word, "bad"),),
        summary=(word,),
        tables=(table, Tabs(word, {word: (table,), word + "b": (table,)}, note=word)),
        viewers=(Viewer(word, volumes, (Choice(word, (word,)),), (Scene((word,), (pane,), word),), note=word),),
        curves=(Chart(word, (Curve(word, (1, 2), (3.0, float("nan"))),), x_label=word, y_label=word, note=word),),
        pictures=(Picture(word, gray_png(np.zeros((4, 4), np.uint8)), word),),
        data_card=(table,),
        facts=(FactList(word, {word: word}),),
        notes=(word,),
        footer=word,
    )


@pytest.mark.parametrize("word", HOSTILE)
def test_names_from_data_never_become_markup(word: str) -> None:
    """The page of a hostile word has the elements and attributes of the page of a harmless one."""
    hostile, harmless = Elements(render(full(word))), Elements(render(full("word")))
    assert [tag for tag, _ in hostile.found] == [tag for tag, _ in harmless.found]
    assert [sorted(attributes) for _, attributes in hostile.found] == [
        sorted(attributes) for _, attributes in harmless.found
    ]
    assert not any(name.startswith("on") for _, attributes in hostile.found for name in attributes)
    assert len(hostile.scripts) == 2
    data = json.loads(hostile.scripts[0])
    assert data["scenes"][0]["panes"][0]["title"] == word
    assert word in hostile.text


@pytest.mark.parametrize("word", ["scan\udcff.nii", "nul\x00"])
def test_names_that_are_no_text(word: str, tmp_path: Path) -> None:
    """Undecodable file names do not stop a report."""
    path = write_report(tmp_path / "report.html", full(word))
    assert word[:3] in Elements(path.read_text("utf-8")).text


def test_nothing_is_loaded() -> None:
    """No address but those inside the page, and no style or script from elsewhere."""
    text = render(full("word"))
    for tag, attributes in Elements(text).found:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:image/png;base64,", "#")), (tag, name, address)
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert "style" not in attributes
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest|WebSocket|import\(", text)


def test_policy_names_the_scripts_there_are() -> None:
    """The policy forbids everything by default, and its hashes are those of the style and script in the page."""
    text = render(full("word"))
    policy = next(a["content"] for tag, a in Elements(text).found if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for kind, content in (
        ("script", Elements(text).scripts[-1]),
        ("style", re.search("<style>(.*?)</style>", text, re.DOTALL).group(1)),  # type: ignore[union-attr]
    ):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_the_file_stays_within_its_budget(tmp_path: Path) -> None:
    """Volumes are reduced and pictures left out; the report says so."""
    rng = np.random.default_rng(0)
    noise = Volume(rng.normal(size=(64, 64, 64)), -2, 2)
    viewer = Viewer("v", {"a": noise}, (), (Scene((), (Pane("a", "a"),)),))
    pictures = tuple(Picture("p", gray_png(rng.integers(0, 255, (200, 200)).astype(np.uint8))) for _ in range(6))
    path = write_report(
        tmp_path / "report.html", Report(title="t", viewers=(viewer,), pictures=pictures), budget=200_000
    )
    assert path.stat().st_size < 200_000
    text = path.read_text("utf-8")
    assert "more pictures are left out" in text
    assert json.loads(Elements(text).scripts[0])["volumes"]["a"]["shape"] == [32, 32, 32]
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    """Nothing is written when a report cannot be made."""
    path = write_report(tmp_path / "report.html", Report(title="old"))
    with pytest.raises(UsageError, match="budget"):
        write_report(path, Report(title="new"), budget=10)
    assert "old" in path.read_text("utf-8")


def test_an_empty_report_has_no_empty_sections() -> None:
    """What is not there is left out."""
    found = Elements(render(Report(title="only a title"))).found
    assert not any(tag in ("section", "table", "nav a") for tag, _ in found)


def test_values_that_do_not_fit_are_refused() -> None:
    """Faults are found where the value is made."""
    with pytest.raises(UsageError, match="row 0 has 1 cells for 2 columns"):
        Table("t", ("a", "b"), (("x",),))
    with pytest.raises(UsageError, match="no known volume"):
        Viewer("v", {}, (), (Scene((), (Pane("a", "a"),)),))
    with pytest.raises(UsageError, match="window"):
        Volume(np.zeros((2, 2, 2)), 1, 1)
    with pytest.raises(UsageError, match="not a PNG"):
        Picture("p", b"GIF89a")
