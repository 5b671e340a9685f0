"""Where the files of a cohort are: pattern and plain-folder layouts, and what all layouts share.

A layout turns a spec and a folder into a :class:`Listing`: cases by name, the spelling used for each sequence, and
every fault found on the way. Listing looks at names only; no image is opened. Names from data are never trusted as
paths: everything that comes from a template or a list passes :func:`inside`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medmae.core.sequences import SPELLINGS, canonical, is_known, nearest
from medmae.data.spec import Label, Spec

SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
"""File name endings of volumes that the readers know."""

LABEL_WORDS = ("seg", "label", "labels", "segmentation", "gt", "truth", "ground_truth", "dseg", "seglabel")
MASK_WORDS = ("mask", "brainmask", "brain_mask", "foreground", "bet_mask", "brain")


@dataclass
class Entry:
    """One case while it is being found."""

    key: str
    subject: str | None = None
    session: str = ""
    images: dict[str, Path] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    label: Path | None = None
    mask: Path | None = None
    split: str | None = None


@dataclass
class Listing:
    """What a layout found: entries by case name, remarks for the user, faults that forbid use."""

    entries: dict[str, Entry] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    label: Label | None = None
    ignored: Counter[str] = field(default_factory=Counter)

    def entry(self, key: str) -> Entry:
        """The entry named ``key``, made on first use."""
        return self.entries.setdefault(key, Entry(key))

    def add(self, key: str, name: str, token: str, path: Path) -> None:
        """Give case ``key`` the file ``path`` as sequence ``name``; two files for one sequence are a fault."""
        entry = self.entry(key)
        if name in entry.images and entry.images[name] != path:
            kept, other = entry.images[name], path
            if token == name and entry.tokens[name] != name:
                kept, other = path, entry.images[name]
                entry.images[name], entry.tokens[name] = path, token
            self.faults.append(
                f"case {printable(key)}: two files for {name}: {printable(kept.name)} and {printable(other.name)}. "
                "Remove one, or tell them apart in 'aliases'."
            )
            return
        entry.images[name] = path
        entry.tokens[name] = token


class Namer:
    """Which sequence of the spec a spelling means; remembers the spellings that were used."""

    def __init__(self, spec: Spec) -> None:
        self._wanted = spec.sequences
        self._explicit = dict(spec.aliases)
        self._folded = {spelling.lower(): name for spelling, name in spec.aliases.items()}
        self.used: dict[str, str] = {}

    def resolve(self, token: str) -> str | None:
        """The sequence that ``token`` spells, or None where it is none of the spec's."""
        name = self._explicit.get(token) or self._folded.get(token.lower())
        if name is None and token.lower() in self._wanted:
            name = token.lower()
        if name is None:
            try:
                name = canonical(token)
            except ValueError:
                return None
        if name not in self._wanted:
            return None
        self.used[token] = name
        return name

    def expression(self) -> str:
        """A regular expression of every spelling of the spec's sequences, in any case of letters."""
        words = {re.escape(word) for word in (*self._wanted, *self._explicit)}
        for name in self._wanted:
            for spelling in (name, *SPELLINGS.get(name, "").split()):
                words.add("[-_ .]?".join(re.escape(part) for part in spelling.split("_")))
        return "(?i:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


def printable(text: str, *, limit: int = 120) -> str:
    """``text`` on one line: control characters become ``?``, very long names are cut. For terminals and messages."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def inside(folder: Path, name: str | Path) -> Path:
    """``folder / name`` as long as it stays in ``folder``; ValueError where it would not."""
    text = os.fspath(name)
    if "\0" in text or not text.strip():
        raise ValueError(f"{printable(text)!r} is no file name")
    base = os.path.abspath(folder)
    full = os.path.abspath(os.path.join(base, text))
    if full != base and not full.startswith(base.rstrip(os.sep) + os.sep):
        raise ValueError(f"{printable(text)!r} leads outside root ({base}); set root to a folder that holds it")
    return Path(full)


def fill(template: str, entry: Entry) -> str:
    """``template`` with the case's names in place of {case}, {subject} and {session}."""
    values = {"case": entry.key, "subject": entry.subject or entry.key, "session": entry.session}
    text = re.sub(r"\{(case|subject|session)\}", lambda match: values[match.group(1)], template)
    return re.sub(r"/+", "/", text)


def stem(name: str) -> str | None:
    """``name`` without its volume ending; None where it has none."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return None


def list_pattern(spec: Spec, namer: Namer) -> Listing:
    """Cases whose files are named by ``spec.pattern``, in ``spec.folder``."""
    assert spec.pattern is not None
    listing = Listing()
    parts = spec.pattern.strip("/").split("/")
    exact = _levels(parts, namer.expression(), lazy=True)
    loose = _levels(parts, "[^/]+", lazy=False)
    unmatched = 0
    other: Counter[str] = Counter()
    for relative, path in _candidates(spec.folder, loose):
        match = exact[-1].fullmatch(relative)
        if match is None:
            general = loose[-1].fullmatch(relative)
            if general is None:
                unmatched += 1
                if (ending := _other_ending(relative, spec, exact[-1])) is not None:
                    other[ending] += 1
            else:
                listing.ignored[general.group("seq")] += 1
            continue
        groups = match.groupdict()
        token = groups["seq"]
        name = namer.resolve(token)
        if name is None:
            listing.ignored[token] += 1
            continue
        subject, session = groups.get("subject"), groups.get("session") or ""
        key = groups.get("case") or "_".join(word for word in (subject, session) if word)
        listing.add(key, name, token, path)
        entry = listing.entry(key)
        entry.subject, entry.session = subject or entry.subject, session or entry.session
    for ending, count in sorted(other.items()):
        listing.notes.append(
            f"left aside: {count} file(s) that would match {spec.pattern!r} but end in {ending}. Bring all files "
            "to one ending, or their sequences count as missing"
        )
    if not listing.entries:
        listing.faults.append(
            f"no file below {spec.folder} matches {spec.pattern!r} ({sum(listing.ignored.values())} matched but "
            f"for the sequence name, {unmatched} others). Check root and pattern; "
            "`medmae data init FOLDER` proposes them."
        )
    return listing


def _other_ending(relative: str, spec: Spec, exact: re.Pattern[str]) -> str | None:
    """The ending of a file that lacks only the pattern's own to be matched, and that stands in for none that is."""
    own = next((suffix for suffix in SUFFIXES if (spec.pattern or "").endswith(suffix)), None)
    name = stem(relative)
    if own is None or name is None or exact.fullmatch(name + own) is None or (spec.folder / (name + own)).exists():
        return None
    return relative[len(name) :]


def _levels(parts: list[str], seq: str, *, lazy: bool) -> list[re.Pattern[str]]:
    """One expression per depth of the pattern, each for the whole relative path so far."""
    expressions: list[re.Pattern[str]] = []
    for depth in range(1, len(parts) + 1):
        seen: set[str] = set()

        def piece(match: re.Match[str], seen: set[str] = seen) -> str:
            word = match.group(0)
            if word == "*":
                return "[^/]*"
            if word == "?":
                return "[^/]"
            name = word[1:-1]
            if name in seen:
                return f"(?P={name})"
            seen.add(name)
            body = seq if name == "seq" else ("[^/]+?" if lazy else "[^/]+")
            return f"(?P<{name}>{body})"

        tokens = re.split(r"(\{\w+\}|\*|\?)", "/".join(parts[:depth]))
        text = "".join(
            re.sub(r"\{\w+\}|\*|\?", piece, token) if index % 2 else re.escape(token)
            for index, token in enumerate(tokens)
        )
        expressions.append(re.compile(text, re.DOTALL))
    return expressions


def _candidates(folder: Path, levels: list[re.Pattern[str]]) -> Iterator[tuple[str, Path]]:
    """(relative path, path) of everything at the pattern's depth whose folders fit, in the order of names."""

    def descend(here: Path, prefix: str, depth: int) -> Iterator[tuple[str, Path]]:
        for item in scan(here):
            relative = f"{prefix}{item.name}"
            if depth == len(levels) - 1:
                yield relative, Path(item.path)
            elif item.is_dir() and levels[depth].fullmatch(relative):
                yield from descend(Path(item.path), relative + "/", depth + 1)

    yield from descend(folder, "", 0)


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in ``folder``, by name, without hidden files; empty where it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                (item for item in found if not item.name.startswith(".") and item.name != "__MACOSX"),
                key=lambda item: item.name,
            )
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def list_folder(spec: Spec, namer: Namer) -> Listing:
    """Cases of a plain folder: ``case/t1.nii.gz``, ``case/case_t1.nii.gz``, ``case_t1.nii.gz``, ``case/t1/``."""
    listing = Listing()
    for place, path, is_folder in volumes_in(spec.folder, depth=4):
        base = path.name if is_folder else (stem(path.name) or path.name)
        role, token, prefix = split_name(base, namer)
        key = case_name(place, prefix)
        if role == "image":
            name = namer.resolve(token)
            if name is not None:
                listing.add(key, name, token, path)
        elif role == "label" and not is_folder:
            listing.entry(key).label = path
        elif role == "mask" and not is_folder:
            listing.entry(key).mask = path
        else:
            listing.ignored[token] += 1
    for key in [key for key, entry in listing.entries.items() if not entry.images]:
        del listing.entries[key]
    if not listing.entries:
        listing.faults.append(
            f"no volume below {spec.folder} is named after one of {', '.join(spec.sequences)}. Name the files "
            "case/t1n.nii.gz or write a pattern in the spec."
        )
    return listing


def case_name(place: str, prefix: str) -> str:
    """Name of the case of a file in folder ``place`` whose own name starts with ``prefix`` before the sequence."""
    last = place.rsplit("/", 1)[-1]
    if prefix and (not place or prefix == last or not last or last in prefix):
        return prefix
    words = [word for word in place.split("/") if word]
    if prefix:
        words.append(prefix)
    return "_".join(words) or "case"


def split_name(base: str, namer: Namer | None) -> tuple[str, str, str]:
    """(role, token, prefix) of a file's stem; role is image, label, mask or other. The longest known ending wins."""
    starts = [0, *(match.end() for match in re.finditer(r"[-_. ]+", base))]
    for start in starts:
        token, prefix = base[start:], base[:start].rstrip("-_. ")
        if not token:
            continue
        if (namer.resolve(token) is not None) if namer is not None else is_known(token):
            return "image", token, prefix
        plain = token.lower().replace("-", "_")
        if plain in LABEL_WORDS:
            return "label", token, prefix
        if plain in MASK_WORDS:
            return "mask", token, prefix
    return "other", base[starts[-1] :] or base, base[: starts[-1]].rstrip("-_. ")


def volumes_in(folder: Path, *, depth: int, place: str = "") -> Iterator[tuple[str, Path, bool]]:
    """(folder relative to root, path, whether it is a DICOM folder) of every volume, in the order of names."""
    for item in scan(folder):
        if item.is_dir():
            inner = Path(item.path)
            if looks_like_dicom(inner):
                yield place, inner, True
            elif depth > 0:
                yield from volumes_in(inner, depth=depth - 1, place=f"{place}/{item.name}" if place else item.name)
        elif stem(item.name) is not None:
            yield place, Path(item.path), False


def looks_like_dicom(folder: Path) -> bool:
    """Whether the first plain file of ``folder`` carries the DICOM mark (``DICM`` at byte 128)."""
    for item in scan(folder):
        if item.is_file():
            try:
                with open(item.path, "rb") as file:
                    return file.read(132)[128:] == b"DICM"
            except OSError:
                return False
    return False


def ignored_note(ignored: Counter[str], spec: Spec) -> list[str]:
    """One remark about the spellings that were left aside, with the sequence they may have meant."""
    notes = []
    for token, count in sorted(ignored.items(), key=lambda item: (-item[1], item[0]))[:8]:
        plain = token.lower().replace("-", "_")
        if plain in LABEL_WORDS or plain in MASK_WORDS:
            continue
        close = nearest(token, among=spec.sequences, count=1)
        hint = f" (did you mean {close[0]}? then write it in 'aliases')" if close else ""
        notes.append(f"left aside: {count} file(s) named {printable(token)!r}, none of the spec's sequences{hint}")
    return notes
