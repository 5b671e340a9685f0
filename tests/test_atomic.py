"""Files are whole or not there."""

from __future__ import annotations

import os
import stat

import pytest

from medmae.atomic import replacing, write_bytes, write_link, write_text


def test_it_writes_into_a_new_folder_with_ordinary_permissions(tmp_path):
    path = write_text(tmp_path / "new" / "file", "\u00e9")
    assert path.read_bytes() == b"\xc3\xa9"
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("planted")])
def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path, error):
    path = write_bytes(tmp_path / "file", b"old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_move_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = write_bytes(tmp_path / "file", b"old")

    def fail(source, target):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("medmae.atomic.os.replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_replaces_what_was_there_and_never_writes_through(tmp_path: Path) -> None:
    one, two, link = tmp_path / "one", tmp_path / "two", tmp_path / "new" / "link"
    one.write_text("one")
    two.write_text("two")
    write_link(link, one)
    write_link(link, two)
    assert link.is_symlink()
    assert link.read_text() == "two"
    assert one.read_text() == "one"
    assert [path.name for path in link.parent.iterdir()] == ["link"]


def test_a_copy_stands_in_where_links_are_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.symlink", refuse)
    (tmp_path / "one").write_text("one")
    write_link(tmp_path / "copy", tmp_path / "one")
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").read_text() == "one"
