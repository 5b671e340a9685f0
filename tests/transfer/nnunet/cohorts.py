"""Small cohorts on disk for the tests of the way into nnU-Net."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

SIZE = (20, 18, 16)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SPEC = """\
medmae: 1
name: toy
root: .
pattern: "{{case}}/{{seq}}.nii.gz"
sequences: [{sequences}]
subject: "^(p\\\\d+)"
label: {{file: "{{case}}/seg.nii.gz", {label}}}
split: {{by: subject, seed: 0, val: {val}, test: {test}}}
{more}
"""
PLAIN = "classes: {background: 0, edema: 1, core: 2}"
REGIONS = (
    "classes: {background: 0, necrosis: 1, edema: 2, enhancing: 4}, "
    "regions: {core: [1, 4], whole: [1, 2, 4], enhancing: [4]}"
)


def put(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def label_of(seed: int = 0, *, values: tuple[int, ...] = (1, 2)) -> np.ndarray:
    label = np.zeros(SIZE, np.uint8)
    for i, value in enumerate(values):
        label[4 + 2 * i : 12, 5:12, 3 + seed % 3 : 10] = value
    return label


def make(
    folder: Path,
    *,
    cases: int = 6,
    sequences: tuple[str, ...] = ("t1n", "t2w"),
    missing: dict[int, tuple[str, ...]] | None = None,
    label: str = PLAIN,
    values: tuple[int, ...] = (1, 2),
    val: float = 0.2,
    test: float = 0.2,
    more: str = "",
) -> Path:
    """A cohort of ``cases`` patients p0, p1, ...; ``missing`` says which sequences a case lacks. Returns the spec."""
    rng = np.random.default_rng(0)
    for i in range(cases):
        for name in sequences:
            if name not in (missing or {}).get(i, ()):
                put(folder / f"p{i}" / f"{name}.nii.gz", rng.normal(100 + 10 * i, 20, SIZE).astype(np.float32))
        put(folder / f"p{i}" / "seg.nii.gz", label_of(i, values=values))
    spec = folder / "spec.yaml"
    spec.write_text(SPEC.format(sequences=", ".join(sequences), label=label, val=val, test=test, more=more))
    return spec
