"""What the outputs of a segmentation mean, and how they become one label map with the values of the spec.

Classes exclude one another, so the likeliest is written. Regions overlap, so they are painted over one another, from
large to small, each with the value that only it holds: the enhancing part over the core over the whole tumor. What
comes out has the classes of the spec again, whichever the model was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medmae.core.errors import CheckpointError, UsageError
from medmae.data.spec import Label

IGNORE = "ignore"
Kind = Literal["classes", "regions"]


@dataclass(frozen=True)
class LabelMap:
    """The names that a model has an output for.

    Attributes:
        kind: classes exclude one another, regions may overlap.
        names: in the order of the outputs, without the background; regions stand from large to small.
        values: for each name, the class values that it unites.
        paint: for each name, the value it is written as.
        classes: the spec's: class -> value.
        ignore: class value whose voxels count for nothing.
        threshold: probability from which a voxel belongs to a region.
    """

    kind: Kind
    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    paint: tuple[int, ...]
    classes: Mapping[str, int]
    ignore: int | None = None
    threshold: float | int = 0.5

    @classmethod
    def of(cls, label: Label, *, kind: Kind = "classes") -> LabelMap:
        """From the label section of a spec; a class called ``ignore`` is out of every loss.

        Raises:
            UsageError: no class but the background, or regions where the spec has none that fit.
        """
        ignore = label.classes.get(IGNORE) or None
        classes = {name: value for name, value in label.classes.items() if value != 0 and name != IGNORE}
        if not classes:
            raise UsageError("the spec's label.classes has the background only: name what is to be segmented")
        if kind == "classes":
            pairs = sorted(classes.items(), key=lambda pair: pair[1])
            members: Sequence[tuple[int, ...]] = [(value,) for _, value in pairs]
            return cls(kind, tuple(n for n, _ in pairs), tuple(members), tuple(v for _, v in pairs), classes, ignore)
        if not label.regions:
            raise UsageError(
                "the spec has no label.regions to train on: name some, such as whole_tumor: [1, 2, 3], "
                "or train on the classes (--label classes)"
            )
        if bad := [name for name, held in label.regions.items() if not held or {0, ignore} & set(held)]:
            raise UsageError(f"label.regions {', '.join(bad)}: a region unites classes other than the background")
        regions = sorted(label.regions.items(), key=lambda pair: -len(set(pair[1])))
        held = tuple(tuple(sorted(set(found))) for _, found in regions)
        paint = []
        for i, mine in enumerate(held):
            later = {value for other in held[i + 1 :] for value in other}
            paint.append(next((value for value in mine if value not in later), mine[0]))
        return cls(kind, tuple(name for name, _ in regions), held, tuple(paint), classes, ignore)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> LabelMap:
        """The inverse of :meth:`describe`.

        Raises:
            CheckpointError: something is missing or of another form.
        """
        try:
            values = tuple(tuple(int(v) for v in held) for held in entry["values"])
            found = cls(
                entry["kind"],
                tuple(entry["names"]),
                values,
                tuple(int(v) for v in entry["paint"]),
                {str(name): int(value) for name, value in entry["classes"].items()},
                entry.get("ignore"),
                float(entry.get("threshold", 0.5)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the model does not say what its outputs mean ({error!r})") from error
        if not found.names or not len(found.names) == len(found.values) == len(found.paint):
            raise CheckpointError("the model does not say what its outputs mean: names and values do not match")
        return found

    @property
    def exclusive(self) -> bool:
        """Whether the names exclude one another."""
        return self.kind == "classes"

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kind": self.kind,
            "names": list(self.names),
            "values": [list(held) for held in self.values],
            "paint": list(self.paint),
            "classes": dict(self.classes),
            "ignore": self.ignore,
            "threshold": self.threshold,
        }

    def labels(self) -> dict[str, tuple[int, ...]]:
        """Name -> values that are written for it: of every name, and of every class that can be told from the map."""
        found: dict[str, tuple[int, ...]] = {}
        for i, (held, value) in enumerate(zip(self.values, self.paint, strict=True)):
            later = {v for other in self.values[i + 1 :] for v in other}
            alone = set(held) - later == {value}
            found |= {name: (v,) for name, v in self.classes.items() if alone and v == value}
        for name, held in zip(self.names, self.values, strict=True):
            taken = name in self.classes and set(held) != {self.classes[name]}  # a class and a region may share a name
            found[f"{name} (region)" if taken else name] = held
        return found

    def painted(self, probability: Float[Tensor, "names x y z"]) -> Int[Tensor, "x y z"]:
        """Probabilities of the names as one map of class values; 0 where it is none of them."""
        if self.exclusive:
            best, which = probability.max(0)
            found = torch.tensor(self.paint, device=probability.device)[which]
            return found.masked_fill(best <= 1 - probability.sum(0), 0)  # the background has the rest
        found = torch.zeros(probability.shape[1:], dtype=torch.int64, device=probability.device)
        for part, value in zip(probability, self.paint, strict=True):
            found[part >= self.threshold] = value
        return found
