"""Methods for images and clips on volumes: their window, and how sequences become what they read.

Grids have any number of axes, so such a method is a volume method once its size has three; where nobody says which,
it gets the window of the volume methods, so that both see the same. Methods that know sequences by name read volumes as
they are, and patients may lack some. The others read one entry with several values per voxel: the sequences are stacked
as its channels, which only complete patients have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medmae.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from medmae.data.loader import VolumeSource
    from medmae.find import Found

KINDS = ("image", "video")
WINDOW, EDGE = 128, 16  # voxels along every axis of a window and of a token, where nobody says: those of bm_mae


def for_volumes(found: Found, given: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What replaces entries of ``recipe`` so that the method reads volumes; nothing for a method made for them.

    ``given`` is what the user said of the method, which is never replaced. ``channels`` None is left to the cohort.
    UsageError where the method has no way to read volumes, or was told of other axes than three.
    """
    name, kind = found.name, found.card.kind
    if kind == "volume":
        return {}
    if kind not in KINDS or "size" not in recipe or not {"sequences", "channels"} & set(recipe):
        raise UsageError(
            f"{name} is a method for {kind} data, and --data names a 3-D cohort. Give it {kind} files or "
            f"toy-{kind}, or choose a method for volumes (`medmae methods`)."
        )
    cut = _window(found, given, recipe)
    channels = given.get("channels")
    if "sequences" in recipe:
        if not isinstance(recipe.get("channels"), int):
            return cut
        if channels not in (None, 1):
            raise UsageError(f"every sequence has one value per voxel: method.channels must be 1, not {channels!r}.")
        return {**cut, "channels": 1}
    return {**cut, "channels": channels}


def _window(found: Found, given: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """``patch`` and ``size`` as far as nobody said them of volumes, in voxels of three axes.

    A cube is a token, also to methods for clips, whose flat tokens suit frames and not slices a millimeter apart. A
    square that a scale or preset names becomes a cube; three axes that it names are meant.
    """
    named = {**found.presets.get(given.get("preset") or "", {}), **found.scales.get(given.get("scale") or "", {})}
    made: dict[str, Any] = {}
    for key in ("patch", "size"):
        if key not in recipe:
            continue
        if given.get(key) is not None:
            if not _three(given[key]):
                raise UsageError(
                    f"{found.name} is a method for {found.card.kind} data. It reads volumes when told three axes, or "
                    f"nothing; {_settings(recipe)} would do, not method.{key}={given[key]!r}"
                )
        elif key in named:
            if not _three(named[key]):
                made[key] = [*named[key], named[key][-1]]
        elif key == "patch":
            made[key] = [EDGE] * 3
        else:
            patch = made.get("patch") or recipe.get("patch") or [EDGE] * 3
            made[key] = [n * max(1, WINDOW // n) if isinstance(n, int) and n > 0 else WINDOW for n in patch]
    return made


def window_note(found: Found, given: Mapping[str, Any], recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """What to say where the user left the window of :func:`for_volumes` open: which it is, and how to set another."""
    left = [key for key in ("size", "patch") if key in recipe and given.get(key) is None]
    if found.card.kind == "volume" or not left:
        return ()
    told = " and ".join(f"method.{key}={recipe[key]}".replace(" ", "") for key in left)
    time = ", the first axis of a volume is its time" if found.card.kind == "video" else ""
    return (
        f"{found.name} is a method for {found.card.kind} data{time}. It reads volumes with {told}; set others with "
        f"{_settings(left)}",
    )


def _settings(keys: Collection[str]) -> str:
    """Words of the command line that set these of a window, as an example."""
    known = {"size": "[96,96,96]", "patch": "[16,16,16]"}
    return " ".join(f"--set 'method.{key}={value}'" for key, value in known.items() if key in keys)


def stacks(found: Found, recipe: Mapping[str, Any]) -> bool:
    """Whether the method reads all sequences as the channels of one entry."""
    return found.card.kind != "volume" and "sequences" not in recipe


def count_channels(recipe: Mapping[str, Any], sequences: Sequence[str]) -> int:
    """The number of channels that stacked sequences have; UsageError where the recipe says another one."""
    said = recipe.get("channels")
    if said not in (None, len(sequences)):
        raise UsageError(
            f"method.channels = {said!r}, and the cohort has {len(sequences)} sequences ({', '.join(sequences)}), "
            "which are the channels. Leave method.channels out, or name fewer under 'sequences' of the data spec."
        )
    return len(sequences)


def stack(batch: Mapping[str, Tensor], sequences: Sequence[str], *, entry: str) -> dict[str, Tensor]:
    """A batch whose ``sequences`` are the channels of one entry, in their order. A blank one stays a blank channel: who
    reads sequences as channels is never told that one is missing."""
    import torch

    rest = {name: value for name, value in batch.items() if name not in (*sequences, "present")}
    return {**rest, entry: torch.cat([batch[name] for name in sequences], 1)}


class Stacked:
    """A source whose sequences are the channels of one entry, which every sample has.

    Args:
        source: of complete cases.
        entry: name of the entry, such as ``image``.
    """

    def __init__(self, source: VolumeSource, *, entry: str) -> None:
        self.source, self.entry, self.size = source, entry, source.size
        self.sequences: tuple[str, ...] = (entry,)

    def train(self, *, start: int, batch: int, rank: int, world: int, seed: int) -> Iterator[Mapping[str, Tensor]]:
        """The training stream of the source."""
        return self.source.train(start=start, batch=batch, rank=rank, world=world, seed=seed)

    def validation(self, *, batch: int, rank: int, world: int, seed: int) -> Iterator[Mapping[str, Tensor]]:
        """The validation samples of the source."""
        return self.source.validation(batch=batch, rank=rank, world=world, seed=seed)

    def finish(self, batch: Mapping[str, Tensor], *, device: Any, training: bool) -> dict[str, Tensor]:
        """What the source makes of a batch, stacked."""
        done = self.source.finish(batch, device=device, training=training)
        return stack(done, self.source.sequences, entry=self.entry)

    def describe(self) -> dict[str, Any]:
        """What the source says; ``sequences`` are the channels in their order."""
        return self.source.describe()


def _three(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3
