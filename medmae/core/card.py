"""What a method says of itself.

The card is the only place where a method states its source, its relatives and every known difference from the
reference, so that tables, model folders and citations are generated and never drift from the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["faithful", "adapted", "idea"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """The facts about one method.

    Attributes:
        title: title of the paper.
        paper: where to read it, for example ``arXiv:2111.06377``.
        year: year of the first publication.
        reference: code the method is faithful to (repository @ commit), or ``""`` where there is none.
        license: license of that reference code and of its weights, not of this implementation (Apache-2.0).
        kind: what it eats: ``volume``, ``image``, ``video``, ``points``, ``audio``.
        parent: name of the method it differs from, or None.
        changed: what differs from the parent, one phrase per changed part.
        status: ``faithful`` (a parity or exactness test proves it), ``adapted`` or ``idea``.
        departures: every known difference from the reference, one sentence each.
        exempt: conformance checks that do not apply, each with the reason.
        citation: BibTeX key fields in one line, for model cards.
    """

    title: str
    paper: str
    year: int
    reference: str
    license: str
    kind: str
    parent: str | None = None
    changed: tuple[str, ...] = ()
    status: Status = "adapted"
    departures: tuple[str, ...] = ()
    exempt: Mapping[str, str] = field(default_factory=dict)
    citation: str = ""
