"""Files are whole or not there."""

from __future__ import annotations

import os
import stat

import pytest

from medmae.atomic import replacing, write_bytes, write_text


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
