"""``medmae data preprocess`` and ``medmae data cache status | clear``: prepare cases ahead of training, look, tidy
up.

Training prepares what is missing by itself; doing it ahead on a machine with many cores saves the GPU's time. Every
function talks on stderr and returns what it found as JSON values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_Cache = Annotated[Path | None, typer.Option("--cache", help="Folder of prepared cases (default: the user's cache).")]
_Quiet = Annotated[bool, typer.Option("--quiet", hidden=True)]


def _talk(text: str, quiet: bool) -> None:
    if not quiet:
        typer.echo(text, err=True)


def run_preprocess(
    data: Annotated[str, typer.Option("--data", help="Spec, nnU-Net folder, data list, BIDS root, CSV or folder.")],
    cache: _Cache = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that read and prepare.")] = 1,
    tier: Annotated[str, typer.Option("--tier", help="disk, or memory: also write uncompressed twins.")] = "disk",
    quiet: _Quiet = False,
) -> dict[str, Any]:
    """Prepare every case of a cohort; those already prepared are left alone."""
    from medmae.core.errors import UsageError
    from medmae.data.cache import default_folder, ensure
    from medmae.data.cohort import open_cohort
    from medmae.data.crops import make_memory_twins
    from medmae.data.oddities import remarks

    if tier not in ("disk", "memory"):
        raise UsageError(f"--tier {tier!r}: disk or memory can be prepared ahead")
    cohort = open_cohort(data)
    folder = default_folder() if cache is None else cache
    left_out: list[str] = []
    entries = ensure(cohort.cases, cohort.spec, folder=folder, workers=workers, quiet=quiet, on_problem=left_out.append)
    notes = remarks(cohort.cases, entries, cohort.spec)
    ready = {entry.key: entry for entry in entries if entry is not None}
    if tier == "memory":
        for entry in ready.values():
            make_memory_twins(entry)
    size = sum(sum(entry.sizes.values()) for entry in ready.values())
    for line in (*(f"left out: {line}" for line in left_out), *notes):
        _talk(line, quiet)
    _talk(f"{len(ready)} of {len(cohort.cases)} cases ready in {folder} ({size / 1e6:.1f} MB)", quiet)
    return {
        "folder": str(folder),
        "cases": len(cohort.cases),
        "ready": len(ready),
        "left_out": left_out,
        "notes": notes,
        "bytes": size,
    }


def run_cache_status(cache: _Cache = None, quiet: _Quiet = False) -> dict[str, Any]:
    """What the cache holds, and how much room it takes."""
    from medmae.data.cache import default_folder, status

    found = status(default_folder() if cache is None else cache)
    held = ", ".join(f"{name} {count}" for name, count in found["sequences"].items()) or "nothing"
    _talk(
        f"{found['folder']}: {found['entries']} prepared cases ({held}), {found['bytes'] / 1e6:.1f} MB, "
        f"{found['damaged']} damaged",
        quiet,
    )
    return found


def run_cache_clear(
    cache: _Cache = None,
    data: Annotated[
        str | None, typer.Option("--keep", help="Keep the prepared cases of this data source; remove all others.")
    ] = None,
    quiet: _Quiet = False,
) -> dict[str, Any]:
    """Remove prepared cases; they can always be prepared again."""
    from medmae.data.cache import cached_keys, clear, default_folder

    folder = default_folder() if cache is None else cache
    kept: list[str] = []
    if data is not None:
        from medmae.data.cohort import open_cohort

        cohort = open_cohort(data)
        kept = cached_keys(cohort.cases, cohort.spec, folder=folder)
    removed = clear(folder, keep=kept)
    _talk(f"{removed} prepared cases removed from {folder}", quiet)
    return {"folder": str(folder), "removed": removed, "kept": len(kept)}
