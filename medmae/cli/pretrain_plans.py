"""``medmae pretrain --plans``: pre-train what nnU-Net will fine-tune.

nnU-Net's plans say which network will be trained on which window, at which spacing, and how values are scaled. Weights
fit without being cut only where pre-training agreed with all of that, so this turns plans into ordinary settings of the
run: they end in its config.yaml, where they can be read, and a resumed run needs no plans.

An array of nnU-Net has the axes of the file, last one first, then permuted by ``transpose_forward``; nothing is
reoriented. Here axes are known by their direction, so the directions of the files become the model's orientation:
those of the data set that was planned, because window and spacing are told in the order of its axes.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmae.cli.console import say
from medmae.cli.pretrain_run import features_command
from medmae.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from medmae.core.method import Method
    from medmae.data.cohort import Cohort
    from medmae.data.spec import Spec

DEFAULT_METHOD = "resenc_mae"


def plan_layer(
    plans: str,
    *,
    data: str,
    configuration: str = "3d_fullres",
    root: Path | None = None,
    method: str = DEFAULT_METHOD,
) -> dict[str, Any]:
    """Settings for ``make_plan`` that follow nnU-Net's plans, and lines on the console that say what they are.

    ``plans`` is a name such as nnUNetResEncUNetLPlans or a file, ``data`` a path or a data set of nnU-Net, ``root``
    the folder that holds nnUNet_raw and nnUNet_preprocessed (default: nnU-Net's own variables, else ./nnunet).
    UsageError and DataError say what does not fit.
    """
    from medmae.data.cohort import list_cohort, spec_of
    from medmae.transfer.nnunet.plans import configuration as chosen
    from medmae.transfer.nnunet.plans import read_dataset, read_plans

    source = find_data(data, root=root)
    file = _find_plans(plans, source, root)
    told = read_plans(file)
    planned = chosen(told, configuration)
    if len(planned["patch_size"]) != 3:
        raise UsageError(f"{file}: {configuration} is two-dimensional; choose --configuration 3d_fullres")
    spec = spec_of(source)
    native = spec.layout == "nnunet"
    about = spec.folder / "dataset.json" if native else file.with_name("dataset.json")
    channels = channel_sequences(read_dataset(about), about)
    _same_dataset(told, spec, file, by_name=file != Path(plans), native=native)
    found = list_cohort(spec.model_copy(update={"unlabeled": True}) if native else spec)
    layer: dict[str, Any] = {
        "method": method_arguments(told, configuration, method=method),
        "data": {
            "path": str(source),
            "plans": os.path.abspath(file),
            "configuration": configuration,
            "preprocess": {
                "orientation": _orientation(told, found.cohort, source if native else None, file=file, root=root),
                "spacing": [float(step) for step in planned["spacing"]],
                "crop": "foreground",
                "margin": 0.0,
                "foreground": "nonzero",
                "rules": rules_of(planned, told, channels, file),
            },
        },
    }
    if native:
        layer["data"] |= {"unlabeled": True, "split": {"test": 0.0}}
    if strange := [name for name in spec.sequences if name not in channels]:
        raise UsageError(
            f"{file} says nothing of {', '.join(strange)}: its channels are {', '.join(channels)}. Name only these "
            "under 'sequences' of the data spec, or plan for all of them."
        )
    _tell(planned, layer, file, configuration, channels)
    return layer


def from_plans(
    plans: str,
    layers: Sequence[tuple[str, Mapping[str, Any]]],
    given: Mapping[str, Any],
    *,
    configuration: str,
    root: Path | None,
) -> dict[str, Any]:
    """:func:`plan_layer` for the data and the method that the other layers, or the command line, name.

    Takes from ``given`` what it has made definite: the data's path.
    """
    data, method = given["data"].pop("path"), given["method"].get("name")
    for _, layer in layers:
        section, chosen = layer.get("data") or {}, layer.get("method") or {}
        data = data or (section if isinstance(section, str) else section.get("path"))
        method = method or (chosen if isinstance(chosen, str) else chosen.get("name"))
    if not data:
        raise UsageError(
            "--plans needs --data: a data set of nnU-Net (folder, number, name), or any cohort with the same sequences"
        )
    method = method or DEFAULT_METHOD
    if given["method"].get("scale") is not None and _is_unet(method):
        raise UsageError(f"--scale and --plans both say how large the network of {method} is; choose one")
    return plan_layer(plans, data=data, configuration=configuration, root=root, method=method)


def _tell(planned: Mapping[str, Any], layer: Mapping[str, Any], file: Path, name: str, channels: Sequence[str]) -> None:
    data, window = layer["data"]["preprocess"], " x ".join(map(str, planned["patch_size"]))
    say(f"Plans {file.stem}, {name} ({file})")
    steps = " x ".join(f"{step:.4g}" for step in data["spacing"])
    say(f"  window    {window} at {steps} mm, axes {data['orientation']}")
    for channel in channels:
        rule = data["rules"][channel]
        extra = f", {rule['clip'][0]:.4g} to {rule['clip'][1]:.4g}" if rule.get("clip") else ""
        extra += f", mean {rule['mean']:.4g}, std {rule['std']:.4g}" if rule["kind"] == "fixed" else ""
        say(f"  {channel:<9} {rule['kind']}{extra}")
    if layer["data"].get("unlabeled"):
        say("  imagesTr and imagesTs are used, labels are not (--set data.unlabeled=false leaves imagesTs out)")


# ---------------------------------------------------------------- finding


def find_data(data: str, *, root: Path | None = None) -> Path:
    """The path that ``data`` is, or the raw folder of the nnU-Net data set that it names (901 or Dataset901_Liver)."""
    from medmae.transfer.nnunet.folders import Folders

    path = Path(data).expanduser()
    if path.exists():
        return Path(os.path.abspath(path))
    if not names_dataset(data):
        raise UsageError(
            f"--data {data}: no such file or folder, nor a data set of nnU-Net such as 901 or Dataset901_Name"
        )
    folders = Folders.choose(root)
    found = folders.raw / folders.dataset(data)
    if not found.is_dir():
        raise UsageError(f"--data {data}: {found.name} is not in {folders.raw}; pre-training reads the images there")
    return found


def names_dataset(data: str) -> bool:
    """Whether ``data`` is written as nnU-Net writes its data sets, by number or name."""
    return data.isdecimal() or data.startswith("Dataset")


def _find_plans(plans: str, source: Path, root: Path | None) -> Path:
    """The plans file: ``plans`` itself, or a file of that name with the data or in nnUNet_preprocessed."""
    from medmae.transfer.nnunet.folders import Folders
    from medmae.transfer.nnunet.target import find_plans

    folder = source if source.is_dir() else source.parent
    beside = folder.parent.parent / "nnUNet_preprocessed"
    places = [folder, *(base / folder.name for base in (Folders.choose(root).preprocessed, beside))]
    return find_plans(plans, list(dict.fromkeys(places)), folder)


def _orientation(told: Mapping[str, Any], cohort: Cohort, raw: Path | None, *, file: Path, root: Path | None) -> str:
    """Axis codes of the arrays that were planned for: of the planned data set's images, else of the cohort's."""
    from medmae.transfer.nnunet.folders import Folders
    from medmae.transfer.nnunet.plans import array_orientation
    from medmae.transfer.nnunet.target import common_orientation, find_orientation

    planned_for = str(told.get("dataset_name") or "")
    bases = (Folders.choose(root).raw, file.parent.parent.parent / "nnUNet_raw")
    places = [base / planned_for for base in bases] if planned_for else []
    places = [raw, *places] if raw is not None and raw.name == planned_for else [*places, *([raw] if raw else [])]
    there = [place for place in places if (place / "imagesTr").is_dir()]
    codes, notes = find_orientation(told, there) if there else ("", ())
    if not codes:
        codes, notes = common_orientation(told, [next(iter(case.images.values())) for case in cohort.cases])
    for note in notes:
        say(f"Warning: {note}")
    return codes or array_orientation(told)


def _same_dataset(told: Mapping[str, Any], spec: Spec, file: Path, *, by_name: bool, native: bool) -> None:
    """Plans found by name must be those of the data; whoever names a file may mean the plans of another data set."""
    planned_for = str(told.get("dataset_name", ""))
    if not native or not planned_for or planned_for == spec.folder.name:
        return
    text = f"{file} was made for {planned_for}, and the data are {spec.folder.name}"
    if by_name:
        raise UsageError(f"{text}. Plan this data set, or name the file in --plans if these plans are meant.")
    say(f"Warning: {text}; intensities and spacing are those of {planned_for}.")


# ---------------------------------------------------------------- translating


def channel_sequences(about: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """The sequences of dataset.json in the order of the channels, as they are called everywhere else."""
    from medmae.core.sequences import canonical
    from medmae.data.layout_lists import channel_names

    names = channel_names(about)
    if not names:
        raise DataError(f"{file}: no channel_names. nnU-Net writes them as {json.dumps({'0': 'T1', '1': 'FLAIR'})}")
    try:
        return tuple(canonical(name) for name in names)
    except ValueError as error:
        raise DataError(f"{file}: channel_names: {error}") from error


def rules_of(
    planned: Mapping[str, Any], told: Mapping[str, Any], channels: Sequence[str], file: Path
) -> dict[str, dict[str, Any]]:
    """What the plans do to the values of every channel, as ``medmae.data.rules`` says it."""
    schemes, masks = planned["normalization_schemes"], planned["use_mask_for_norm"]
    if not len(schemes) == len(masks) == len(channels):
        raise UsageError(
            f"{file} has {len(schemes)} channel(s), and the data {len(channels)} ({', '.join(channels)}): these are "
            "plans of another data set"
        )
    properties = told.get("foreground_intensity_properties_per_channel") or {}
    rules: dict[str, dict[str, Any]] = {}
    for index, (name, scheme, masked) in enumerate(zip(channels, schemes, masks, strict=True)):
        if scheme == "ZScoreNormalization":
            rules[name] = {"kind": "zscore_foreground" if masked else "zscore"}
        elif scheme == "CTNormalization":
            try:
                known = {key: float(value) for key, value in properties[str(index)].items()}
                clip = [known["percentile_00_5"], known["percentile_99_5"]]
                rules[name] = {"kind": "fixed", "clip": clip, "mean": known["mean"], "std": max(known["std"], 1e-8)}
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{file}: no intensity statistics of channel {index} ({name}); plan again") from error
        elif scheme == "RescaleTo01Normalization":
            rules[name] = {"kind": "minmax"}
        elif scheme == "RGBTo01Normalization":
            rules[name] = {"kind": "fixed", "mean": 0.0, "std": 255.0}
        elif scheme == "NoNormalization":
            rules[name] = {"kind": "none"}
        else:
            raise UsageError(f"{file}: {scheme} of channel {index} ({name}) is not nnU-Net's own and not known here")
    return rules


def method_arguments(told: Mapping[str, Any], configuration: str, *, method: str) -> dict[str, Any]:
    """Name and arguments of the method: the whole network for a U-Net method, the window alone for any other."""
    from medmae.find import find
    from medmae.transfer.nnunet.plans import configuration as chosen
    from medmae.transfer.nnunet.plans import recipe

    known = find(method).recipe()
    if _is_unet(method):
        return {"name": method, **{key: value for key, value in recipe(told, configuration).items() if key in known}}
    size = [int(n) for n in chosen(told, configuration)["patch_size"]]
    return {"name": method, **({"size": size} if "size" in known else {})}


def _is_unet(method: str) -> bool:
    from medmae.find import find

    return {"features", "strides"} <= set(find(method).recipe())


# ---------------------------------------------------------------- using


def opened(data: Mapping[str, Any]) -> Cohort:
    """The cohort of the "data" section, with what that section says in place of the spec's own words."""
    from pydantic import ValidationError

    from medmae.data.cohort import list_cohort, spec_of
    from medmae.data.spec import Preprocess, Split

    spec = spec_of(data["path"])
    changed: dict[str, Any] = {}
    for key, kind in (("preprocess", Preprocess), ("split", Split)):
        if data.get(key):
            try:
                changed[key] = kind.model_validate({**getattr(spec, key).model_dump(), **data[key]})
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, (key, *first["loc"])))
                raise UsageError(f"data.{place}: {first['msg']}") from error
    if data.get("unlabeled") is not None:
        changed["unlabeled"] = data["unlabeled"]
    found = list_cohort(spec.model_copy(update=changed) if changed else spec, require=data["require"])
    if found.faults:
        listed = "\n  - ".join(found.faults)
        raise DataError(f"{data['path']}: {len(found.faults)} fault(s) in the data set:\n  - {listed}")
    return found.cohort


def next_command(method: Method, folder: Path, data: Mapping[str, Any]) -> str:
    """The command that most will want next."""
    from medmae.core.autoencoder import Autoencoder
    from medmae.core.target import Content
    from medmae.nets.resenc import CnnEncoder

    if any(isinstance(module, CnnEncoder) for module in method.modules()):
        if not data.get("plans"):
            return f"medmae nnunet export {shlex.quote(str(folder))} --dataset DATASET --plans PLANS --out weights.pth"
        plans, raw = Path(data["plans"]), Path(data["path"])
        dataset = raw if (raw / "dataset.json").is_file() else plans.parent  # a spec is no data set of nnU-Net
        words = [folder, "--dataset", dataset, "--plans", plans, "--out", folder.with_name("nnunet.pth")]
        if data.get("configuration") not in (None, "3d_fullres"):
            words += ["--configuration", data["configuration"]]
        return f"medmae nnunet export {shlex.join(map(str, words))}"
    if isinstance(method, Autoencoder) and len(method.sequences) > 1 and isinstance(method.target, Content):
        return f"medmae reconstruct --checkpoint {shlex.quote(str(folder))} ..."
    return features_command(folder, data["path"], labeled=False)
