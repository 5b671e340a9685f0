"""What a frozen encoder knows of a patient, beside plain measurements of the images.

    python benchmarks/clinical_probes.py --work FOLDER [--quick] [--out FILE]

Synthetic patients at 2 mm, all 66 of them, five folds by subject. Features of the pre-trained encoder, of the same
network with random weights, and statistics as radiomics tables have them: of the intensities of every sequence in the
foreground, and, with the tumor's outline given, of volumes and intensities inside its regions. On each set the same
probes: logistic regression for the IDH class, a Cox model for survival. The encoder saw the images of 40 of these
patients in pre-training, without labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from cohort_stages import cohort, machine, pretrained

from medmae.cli.feature_encoder import open_data, open_encoder, untrained
from medmae.cli.feature_sets import feature_set
from medmae.data.cohort import open_cohort
from medmae.data.geometry import to_model_grid
from medmae.data.inference import load_case
from medmae.data.readers import read
from medmae.transfer.probing import ProbeResult, cox_probe, linear_probe

LEVELS = (1, 10, 25, 50, 75, 90, 99)


def statistics(values: np.ndarray) -> list[float]:
    """Mean, deviation, skewness, kurtosis, percentiles; zeros where there is no voxel."""
    if values.size < 2 or not values.std() > 0:
        return [0.0] * (4 + len(LEVELS))
    z = (values - values.mean()) / values.std()
    return [values.mean(), values.std(), (z**3).mean(), (z**4).mean(), *np.percentile(values, LEVELS)]


def radiomics(spec: Path) -> dict[str, np.ndarray]:
    """Statistics of every case, without and with the outline of the tumor."""
    plain, outlined = [], []
    known = open_cohort(str(spec))
    regions: Mapping[str, tuple[int, ...]] = known.spec.label.regions
    for case in known.cases:
        loaded = load_case(case.images, known.spec, mask=case.mask)
        label, _ = to_model_grid(read(case.label), like=(loaded.shape, loaded.affine), nearest=True)
        images = {name: loaded.images[name] for name in known.sequences}
        whole = [s for image in images.values() for s in statistics(image[loaded.foreground])]
        plain.append([*whole, float(loaded.foreground.sum())])
        parts = []
        for values in regions.values():
            inside = np.isin(label, values)
            parts += [float(inside.sum()), *(s for image in images.values() for s in statistics(image[inside]))]
        outlined.append([*plain[-1], *parts])
    return {
        "intensities": np.array(plain, np.float32),
        "intensities and outlined tumor": np.array(outlined, np.float32),
    }


def main() -> None:
    """Probe, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    spec = cohort(options.work, quick=options.quick)
    run = pretrained(options.work, spec, quick=options.quick)
    known = open_cohort(str(spec))
    sets = radiomics(spec)
    trained = open_encoder(run)
    items = open_data(str(spec), trained)
    for name, encoder in (("pre-trained", trained), ("random weights", untrained(trained, seed=0))):
        sets[f"{name}, mean over the brain"] = feature_set(encoder, items).values
        sets[f"{name}, mean over the outlined tumor"] = feature_set(encoder, items, region="whole_tumor").values
    rows = {name: scores(values, known.cases) for name, values in sets.items()}
    lines = [f"`python benchmarks/clinical_probes.py`, {machine()}.", ""]
    lines += ["| features | numbers | IDH, AUC | survival, C-index |", "|---|---:|---:|---:|"]
    for name, found in rows.items():
        lines.append(f"| {name} | {sets[name].shape[1]} | {found['auc']} | {found['c_index']} |")
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": machine(), "scores": rows}, indent=1) + "\n")


def scores(values: np.ndarray, cases: tuple) -> dict[str, str]:
    """Means and intervals of the two probes."""
    subjects = [case.subject for case in cases]
    idh = linear_probe(values, [str(case.table["idh"]) for case in cases], subjects)
    time, event = ([float(case.table[name]) for case in cases] for name in ("os_days", "os_event"))
    cox = cox_probe(values, time, [bool(e) for e in event], subjects)
    return {"auc": shown(idh, "auc"), "c_index": shown(cox, "c_index")}


def shown(result: ProbeResult, metric: str) -> str:
    """Mean and 95 % bootstrap interval."""
    i = result.scores[metric]
    return f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]"


if __name__ == "__main__":
    main()
