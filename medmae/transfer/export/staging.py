"""Folders that are whole or not there.

An export is written to a neighbor of its place, tried there, and moved when it has passed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medmae.core.errors import MissingDependency, UsageError


def check_free(out: str | Path, *, overwrite: bool) -> Path:
    """``out`` as a path that may be written.

    Raises:
        UsageError: something is there, and ``overwrite`` is not set; or a folder and a file would replace one another.
    """
    out = Path(out)
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UsageError(f"{out} exists and is not empty; give another --out, or --overwrite to replace what is in it")
    if out.is_file() and not overwrite:
        raise UsageError(f"{out} exists; give another --out, or --overwrite to replace it")
    return out


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """An empty folder whose files move to ``out`` when the block ends without an error; others in ``out`` stay."""
    if out.is_file():
        raise UsageError(f"{out} is a file; --out must be a folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".medmae-", suffix=".part", dir=out.parent))
    try:
        yield stage
        for source in sorted(path for path in stage.rglob("*") if path.is_file()):
            target = out / source.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def missing(package: str, *, extra: str, what: str) -> MissingDependency:
    """The error for a package that is not installed, with the line that installs it."""
    return MissingDependency(f"{what} needs {package}, which is not installed: pip install 'medmae[{extra}]'")
