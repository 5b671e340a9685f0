"""Methods for images and clips on volumes: what they must be told, and how sequences become what they read.

Grids have any number of axes, so such a method is a volume method once its size has three. Methods that know sequences
by name read volumes as they are, and patients may lack some. The others read one entry with several values per voxel:
the sequences are stacked as its channels, which only complete patients have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medmae.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from medmae.data.loader import VolumeSource
    from medmae.find import Found

KINDS = ("image", "video")


def for_volumes(found: Found, given: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What replaces entries of ``recipe`` so that the method reads volumes; nothing for a method made for them.

    ``given`` is what the user said of the method. ``channels`` None is left to the cohort. UsageError where the method
    has no way to read volumes, or has not been told enough.
    """
    name, kind = found.name, found.card.kind
    if kind == "volume":
        return {}
    if kind not in KINDS or "size" not in recipe or not {"sequences", "channels"} & set(recipe):
        raise UsageError(
            f"{name} is a method for {kind} data, and --data names a 3-D cohort. Give it {kind} files or "
            f"toy-{kind}, or choose a method for volumes (`medmae methods`)."
        )
    axes = {"size": "[96,96,96]", "patch": "[16,16,16]"} if "patch" in recipe else {"size": "[96,96,96]"}
    values = {"size": given.get("size"), "patch": recipe.get("patch")}
    if missing := [key for key in axes if not _three(values[key])]:
        told = " ".join(f"--set 'method.{key}={axes[key]}'" for key in missing)
        raise UsageError(f"{name} is a method for {kind} data. It reads volumes when told three axes, such as: {told}")
    channels = given.get("channels")
    if "sequences" in recipe:
        if not isinstance(recipe.get("channels"), int):
            return {}
        if channels not in (None, 1):
            raise UsageError(f"every sequence has one value per voxel: method.channels must be 1, not {channels!r}.")
        return {"channels": 1}
    return {"channels": channels}


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
        import torch

        done = self.source.finish(batch, device=device, training=training)
        images = [done.pop(name) for name in self.source.sequences]
        done.pop("present", None)
        return {**done, self.entry: torch.cat(images, 1)}

    def describe(self) -> dict[str, Any]:
        """What the source says; ``sequences`` are the channels in their order."""
        return self.source.describe()


def _three(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3
