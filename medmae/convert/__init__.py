"""Published checkpoints become model folders of this project, and (``to_nnssl``) the reverse.

One file per published layout, each with one key table. A converter is strict: every tensor of the file is used and
every tensor of the model is filled, or it raises and says which were not, because a checkpoint that loads by halves
trains and predicts as if nothing had happened. Nothing is unpickled.

A file of this folder that defines ``convert`` is a converter, under the file's own name.
"""

from __future__ import annotations

from pathlib import Path

from medmae.core.errors import UsageError


def names() -> tuple[str, ...]:
    """Layouts that can be converted, without importing any of them."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple(path.stem for path in files if "\ndef convert(" in path.read_text("utf-8"))


def check_name(name: str) -> str:
    """``name`` itself where there is such a converter.

    Raises:
        UsageError: there is none; all names are listed.
    """
    if name not in names():
        raise UsageError(f"there is no converter {name!r}; there are: {', '.join(names())}")
    return name
