"""What a data set is, in one YAML file: facts only, no code.

The models refuse unknown keys and impossible values; :func:`load_spec` turns every complaint into ``file:line``,
with the nearest legal word, all of them at once. Needs neither torch nor any image library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from medmae.core.errors import UsageError
from medmae.core.sequences import canonical
from medmae.data.spec_lines import Document, complaint, read_document

Layout = Literal["pattern", "folder", "nnunet", "msd", "bids", "csv"]
ColumnKind = Literal["class", "time", "event", "number", "text"]
RESERVED = frozenset(
    {
        "present",
        "foreground",
        "spacing",
        "key",
        "label",
        "index",
        "mask",
        "case",
        "subject",
        "split",
        "session",
    }
)
_PLACEHOLDERS = frozenset({"case", "subject", "session", "seq"})


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _placeholders(template: str, *, allowed: frozenset[str]) -> str:
    names = re.findall(r"\{([^{}]*)\}", template)
    wrong = sorted(set(names) - allowed)
    if wrong:
        legal = ", ".join(f"{{{name}}}" for name in sorted(allowed))
        raise ValueError(f"{{{wrong[0]}}} is no placeholder here; use {legal}")
    if ".." in template.replace("\\", "/").split("/"):
        raise ValueError("may not climb out of root with '..'; set root to the folder that holds everything")
    return template


class Label(_Part):
    """Segmentation labels: where they are and what their values mean."""

    file: str | None = Field(
        default=None, description="template such as '{case}/{case}-seg.nii.gz'; not needed where the layout knows"
    )
    classes: dict[str, int] = Field(description="class name -> value after remap; 0 is the background")
    remap: dict[int, int] = Field(default_factory=dict, description="value in the file -> value in classes")
    regions: dict[str, tuple[int, ...]] = Field(
        default_factory=dict, description="region name -> class values it unites"
    )

    @field_validator("file")
    @classmethod
    def _file(cls, value: str | None) -> str | None:
        return None if value is None else _placeholders(value, allowed=_PLACEHOLDERS - {"seq"})

    @model_validator(mode="after")
    def _agree(self) -> Label:
        values = list(self.classes.values())
        if len(set(values)) != len(values):
            raise ValueError("two classes have the same value")
        if any(value < 0 for value in values):
            raise ValueError("class values are 0 or larger; bring negative file values there with remap")
        for source, target in self.remap.items():
            if target not in values:
                raise ValueError(f"remap sends {source} to {target}, which is no class ({sorted(values)})")
        for name, members in self.regions.items():
            unknown = sorted(set(members) - set(values))
            if unknown:
                raise ValueError(f"region {name} uses {unknown}, which are no classes ({sorted(values)})")
        return self

    @property
    def file_values(self) -> frozenset[int]:
        """Every value a label file may hold before ``remap``."""
        return frozenset(self.classes.values()) | frozenset(self.remap)


class Mask(_Part):
    """A foreground mask per case (voxels that are not 0 count)."""

    file: str | None = Field(default=None, description="template such as '{case}/mask.nii.gz'")

    @field_validator("file")
    @classmethod
    def _file(cls, value: str | None) -> str | None:
        return None if value is None else _placeholders(value, allowed=_PLACEHOLDERS - {"seq"})


class Table(_Part):
    """A clinical table (CSV or TSV, one row per case or per subject)."""

    file: str = Field(description="CSV or TSV file, relative to root")
    key: str = Field(default="case", description="column that names the case or the subject")
    columns: dict[str, ColumnKind] = Field(description="column -> what it is")


class Geometry(_Part):
    """What to do where the sequences of one case do not share a grid."""

    on_mismatch: Literal["error", "resample", "skip"] = "error"


class Scaling(_Part):
    """A rule of one sequence's own: (value - mean) / std, after cutting to clip."""

    kind: Literal["zscore", "zscore_foreground", "fixed", "minmax", "none"] = "zscore_foreground"
    clip: tuple[float, float] | None = Field(default=None, description="[low, high]; values beyond are cut")
    mean: float = Field(default=0.0, description="of kind fixed: what is subtracted")
    std: float = Field(default=1.0, gt=0, description="of kind fixed: what is divided by")


class Preprocess(_Part):
    """How volumes are brought to the model's grid and scale."""

    orientation: str = Field(default="RAS", description="axis codes of the model's grid")
    spacing: tuple[float, float, float] | None = Field(
        default=None, description="millimeters; null keeps each case's own"
    )
    crop: Literal["foreground", "none"] = "foreground"
    margin: float = Field(default=0.0, ge=0, description="millimeters kept around the foreground when cropping")
    foreground: Literal["auto", "all", "nonzero"] = Field(
        default="auto", description="how to estimate the foreground where no mask is given; nonzero: 0 is background"
    )
    normalize: Literal["zscore_foreground", "zscore", "none"] = "zscore_foreground"
    windows: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="sequence -> [low, high] kept before normalizing, e.g. Hounsfield units of ct",
    )
    rules: dict[str, Scaling] = Field(
        default_factory=dict, description="sequence -> a rule of its own, in place of normalize and windows"
    )

    @field_validator("orientation")
    @classmethod
    def _orientation(cls, value: str) -> str:
        value = value.upper()
        pairs = ("LR", "AP", "IS")
        if len(value) != 3 or any(sum(letter in pair for letter in value) != 1 for pair in pairs):
            raise ValueError(
                f"{value!r} are no axis codes; three letters, one of each of L/R, A/P, I/S, such as RAS or LPS"
            )
        return value

    @field_validator("spacing")
    @classmethod
    def _spacing(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is not None and not all(0.01 <= step <= 100 for step in value):
            raise ValueError(f"{list(value)} millimeters cannot be meant; each step lies between 0.01 and 100")
        return value

    @field_validator("windows")
    @classmethod
    def _windows(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in value.items():
            if not low < high:
                raise ValueError(f"window of {name}: {low} is not below {high}")
        return {canonical(name): window for name, window in value.items()}

    @field_validator("rules")
    @classmethod
    def _rules(cls, value: dict[str, Scaling]) -> dict[str, Scaling]:
        return {canonical(name): rule for name, rule in value.items()}


class Split(_Part):
    """Train, validation and test; never separates the cases of one subject unless told."""

    by: Literal["subject", "case"] = "subject"
    seed: int = 0
    val: float = Field(default=0.1, ge=0, lt=1, description="share of the subjects")
    test: float = Field(default=0.1, ge=0, lt=1, description="share of the subjects")

    @model_validator(mode="after")
    def _leave_some(self) -> Split:
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} + test {self.test} leave nothing to train on")
        return self


_SEQUENCES_SCHEMA = {
    "description": "names such as t1n, t1c, t2w, t2f (or spellings like t1ce), or a mapping name -> spelling in files",
    "anyOf": [
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
    ],
}


class Spec(_Part):
    """A data set: where its files are and what they mean."""

    medmae: Literal[1] = Field(description="version of this format")
    name: str = Field(min_length=1, description="short name of the data set")
    root: str = Field(
        default=".", description="folder of the data, relative to this file; ${VAR:-default} is filled in"
    )
    layout: Layout = Field(default="folder", description="how files are arranged; 'pattern' where a pattern is given")
    pattern: str | None = Field(default=None, description="such as '{case}/{case}-{seq}.nii.gz'")
    file: str | None = Field(default=None, description="data list of the msd and csv layouts, relative to root")
    sequences: Annotated[tuple[str, ...], WithJsonSchema(_SEQUENCES_SCHEMA)]
    aliases: dict[str, str] = Field(default_factory=dict, description="spelling in the files -> sequence name")
    cases: str | None = Field(default=None, description="regular expression; only cases whose name it finds are used")
    subject: str | None = Field(
        default=None, description="regular expression on the case name; its first group is the subject"
    )
    unlabeled: bool = Field(default=False, description="nnunet layout: use imagesTs too, which have no labels")
    require: int = Field(default=1, ge=1, description="smallest number of sequences a case must have")
    label: Label | None = None
    mask: Mask | None = None
    table: Table | None = None
    geometry: Geometry = Geometry()
    preprocess: Preprocess = Preprocess()
    split: Split = Split()
    license: str = ""

    _base: Path = PrivateAttr(default_factory=Path)
    _path: Path | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        """A mapping of sequences becomes a list and aliases; a pattern alone means the pattern layout."""
        if not isinstance(value, Mapping):
            return value
        value = dict(value)
        if isinstance(value.get("sequences"), Mapping):
            written = {str(name): str(spelling) for name, spelling in value["sequences"].items()}
            value["sequences"] = list(written)
            value["aliases"] = {
                **{spelling: name for name, spelling in written.items()},
                **(value.get("aliases") or {}),
            }
        if value.get("pattern") is not None and "layout" not in value:
            value["layout"] = "pattern"
        return value

    @field_validator("sequences")
    @classmethod
    def _sequences(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one sequence, such as [t1n, t1c, t2w, t2f]")
        found: dict[str, str] = {}
        for written in value:
            name = canonical(written)
            if name in found:
                raise ValueError(
                    f"{found[name]} and {written} are both {name}; tell them apart with a mapping name: spelling"
                )
            if name in RESERVED:
                raise ValueError(f"{name} is a reserved word and cannot be a sequence")
            found[name] = written
        return tuple(found)

    @field_validator("aliases")
    @classmethod
    def _aliases(cls, value: dict[str, str]) -> dict[str, str]:
        return {spelling: canonical(name) for spelling, name in value.items()}

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        if value is None:
            return None
        _placeholders(value, allowed=_PLACEHOLDERS)
        if value.startswith("/"):
            raise ValueError("starts at the file system's root; patterns are relative to root")
        for needed in ("{case}", "{seq}"):
            if needed not in value and not (needed == "{case}" and "{subject}" in value):
                raise ValueError(f"has no {needed}; write something like '{{case}}/{{case}}-{{seq}}.nii.gz'")
        return value

    @field_validator("subject", "cases")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _complete(self) -> Spec:
        if self.layout == "pattern" and self.pattern is None:
            raise ValueError("layout pattern needs a pattern such as '{case}/{case}-{seq}.nii.gz'")
        if self.layout != "pattern" and self.pattern is not None:
            raise ValueError(f"a pattern means layout pattern, not {self.layout}; remove one of them")
        if self.layout in ("msd", "csv") and self.file is None:
            raise ValueError(f"layout {self.layout} needs 'file', the data list")
        if self.require > len(self.sequences):
            raise ValueError(f"require {self.require} is more than the {len(self.sequences)} sequences named")
        return self

    @property
    def folder(self) -> Path:
        """The absolute folder of the data: ``root`` with its variables filled in, counted from the spec's folder."""
        return Path(os.path.abspath(self._base / expand(self.root)))

    @property
    def path(self) -> Path | None:
        """The YAML file this came from, if any."""
        return self._path

    def placed(self, base: Path, *, path: Path | None = None) -> Spec:
        """The same spec with relative roots counted from ``base``."""
        copy = self.model_copy()
        copy._base = Path(base)
        copy._path = path
        return copy


def expand(text: str) -> str:
    """``text`` with ``~``, ``${VAR}`` and ``${VAR:-default}`` filled in; UsageError where a variable is unset."""

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = os.environ.get(name, "")
        if found:
            # A relative path in a variable was meant from where the user stands, not from the spec's folder.
            return os.path.abspath(found) if match.start() == 0 else found
        if default is None:
            raise UsageError(
                f"root {text!r}: the variable {name} is not set. Set it, or write ${{{name}:-some/default}}."
            )
        return default

    return os.path.expanduser(re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}", value, text))


def load_spec(path: str | Path, *, document: Document | None = None) -> Spec:
    """Read and validate the YAML spec at ``path``; UsageError lists every complaint with ``file:line``."""
    path = Path(path)
    document = read_document(path) if document is None else document
    if not isinstance(document.value, dict):
        raise UsageError(
            f"{path}:1: a data spec is a mapping that starts with 'medmae: 1'; `medmae data init FOLDER` writes one."
        )
    try:
        spec = Spec.model_validate(document.value)
    except ValidationError as error:
        lines = [complaint(item, document, Spec) for item in error.errors()]
        raise UsageError("\n".join(dict.fromkeys(lines))) from error
    spec = spec.placed(path.resolve().parent, path=path)
    try:
        expand(spec.root)
    except UsageError as error:
        raise UsageError(f"{document.at(('root',))}: {error}") from error
    return spec


def parse_spec(value: Mapping[str, Any], *, base: str | Path = ".", source: str = "spec") -> Spec:
    """Validate a plain mapping as a spec, with :func:`load_spec`'s messages; ``base`` is what root counts from."""
    try:
        return Spec.model_validate(value).placed(Path(base))
    except ValidationError as error:
        document = Document(Path(source), value, {})
        raise UsageError(
            "\n".join(dict.fromkeys(complaint(item, document, Spec) for item in error.errors()))
        ) from error
