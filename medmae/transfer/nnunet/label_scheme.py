"""A spec's classes and regions as nnU-Net wants them: background 0, the rest 1, 2, 3 without gaps.

For regions nnU-Net trains one sigmoid output per region and writes the outputs over one another, in the order of its
``regions_class_order``. So regions stand from large to small, and each is written as the class that only it holds:
the map that comes out has the spec's classes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medmae.core.errors import UsageError
from medmae.data.spec import Label

IGNORE = "ignore"
Kind = Literal["classes", "regions"]


@dataclass(frozen=True)
class LabelScheme:
    """What stands in dataset.json, and how to get there.

    Attributes:
        labels: nnU-Net's ``labels``: name -> value, or name -> values for regions.
        order: nnU-Net's ``regions_class_order``; None without regions.
        mapping: value in a label file -> value for nnU-Net; a value that is not in it is unknown.
        place: class value -> value for nnU-Net; a class that is not in it is background there.
    """

    labels: Mapping[str, int | list[int]]
    order: tuple[int, ...] | None
    mapping: Mapping[int, int]
    place: Mapping[int, int]

    @classmethod
    def of(cls, label: Label, *, kind: Kind = "classes") -> LabelScheme:
        """The scheme of a spec's label section; a class called ``ignore`` is nnU-Net's: not in the loss.

        Raises:
            UsageError: no class but the background, or ``kind="regions"`` and the spec has none that fit.
        """
        values = {name: value for name, value in label.classes.items() if value != 0 and name != IGNORE}
        if kind == "regions":
            if not label.regions:
                raise UsageError(
                    "the spec has no label.regions to train on: name some, such as whole_tumor: [1, 2, 3], "
                    "or train on the classes (--label classes)"
                )
            bad = [name for name, members in label.regions.items() if 0 in members or not members]
            if bad:
                raise UsageError(f"label.regions {', '.join(bad)}: a region unites classes other than the background")
            used = {value for members in label.regions.values() for value in members}
            values = {name: value for name, value in values.items() if value in used}
        if not values:
            raise UsageError("the spec's label.classes has the background only: name what is to be segmented")
        place = {value: i for i, value in enumerate(sorted(values.values()), start=1)}
        ignored = label.classes.get(IGNORE) or None
        if ignored is not None:
            place[ignored] = len(place) + 1
        mapping = {value: place.get(label.remap.get(value, value), 0) for value in label.file_values | {0}}
        labels: dict[str, int | list[int]] = {"background": 0}
        order: tuple[int, ...] | None = None
        if kind == "regions" and any(len(set(members)) > 1 for members in label.regions.values()):
            regions = {name: sorted({place[v] for v in members}) for name, members in label.regions.items()}
            regions = dict(sorted(regions.items(), key=lambda pair: -len(pair[1])))
            labels |= regions
            order = _order(list(regions.values()))
        elif kind == "regions":
            labels |= {name: place[members[0]] for name, members in label.regions.items()}
        else:
            labels |= {name: place[value] for name, value in sorted(values.items(), key=lambda pair: pair[1])}
        if ignored is not None:
            labels[IGNORE] = place[ignored]
        return cls(labels, order, mapping, place)

    def dataset(self) -> dict[str, Any]:
        """The entries of dataset.json."""
        return {"labels": dict(self.labels)} | ({} if self.order is None else {"regions_class_order": list(self.order)})


def _order(regions: list[list[int]]) -> tuple[int, ...]:
    """For each region, from large to small, the value it is written as."""
    found = []
    for i, members in enumerate(regions):
        later = {value for other in regions[i + 1 :] for value in other}
        found.append(next((value for value in members if value not in later), members[0]))
    return tuple(found)
