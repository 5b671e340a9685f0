"""A pre-trained encoder as a MONAI bundle that turns cases into feature vectors.

A bundle is a configuration that MONAI executes: strings in it that begin with a sign are Python. A model folder may
come from anybody, so what is taken from it into the configuration must be plain values. Weights are safetensors, not
MONAI's customary pickle.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from medmae import __version__
from medmae.atomic import write_text
from medmae.checkpoint import load_model, model_folder, write_weights
from medmae.core.errors import CheckpointError
from medmae.find import find
from medmae.transfer.backbone import Backbone

from .bundle_run import load_weights
from .hugging_face import body
from .network import FeatureNetwork, PooledFeatures
from .staging import check_free, staged

WEIGHTS, METADATA, INFERENCE = "models/model.safetensors", "configs/metadata.json", "configs/inference.json"
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
REQUIRED = ("version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task", "description",
            "authors", "copyright", "network_data_format")  # fmt: skip
"""Entries that every metadata.json must have."""


def export_bundle(checkpoint: str | Path, out: str | Path, *, overwrite: bool = False) -> float:
    """Write the bundle after MONAI has read it and its network answered as the model does.

    Args:
        checkpoint: model or run folder of a pre-trained model.
        out: folder to write.
        overwrite: replace the files of an existing one.

    Returns:
        The largest difference between the bundle's network and the model, on random windows.

    Raises:
        UsageError: ``out`` is not empty.
        CheckpointError: the model has no features to give, or is not what a bundle may hold.
    """
    out = check_free(out, overwrite=overwrite)
    loaded = load_model(checkpoint)
    config = loaded.config
    data = config.get("data") or {}
    recipe, preprocess = config["recipe"], data.get("preprocess")
    if not preprocess:
        raise CheckpointError(
            f"{checkpoint} does not say how its images were preprocessed, and a bundle must prepare images in the same "
            "way; export a model that medmae pretrain wrote"
        )
    for what, values in (("recipe", recipe), ("preprocessing", preprocess)):
        check_plain(values, what)
    network = PooledFeatures(config["method"], recipe)
    reference = FeatureNetwork(Backbone(loaded.method)).eval()
    network.network.load_state_dict(reference.state_dict())
    terms = str(config.get("license") or data.get("license") or "not stated")
    card = model_folder(checkpoint) / "README.md"
    with staged(out) as stage:
        for folder in ("configs", "models", "docs"):
            (stage / folder).mkdir()
        write_weights(stage / "models", network)
        _write(stage / METADATA, metadata(config, reference, terms=terms))
        _write(stage / INFERENCE, inference(config, preprocess))
        write_text(stage / "docs" / "README.md", _readme(config, card))
        write_text(stage / "LICENSE", _license(config, terms))
        difference = verify_bundle(stage, reference)
    return difference


def metadata(config: Mapping[str, Any], network: FeatureNetwork, *, terms: str) -> dict[str, Any]:
    """The bundle's metadata.json."""
    import monai
    import numpy

    found = find(config["method"])
    width = network.backbone.width
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": len(network.sequences),
        "spatial_shape": list(network.size),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(i): name for i, name in enumerate(network.sequences)},
    }
    vector = {
        "type": "feature",
        "format": "vector",
        "num_channels": width,
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {},
    }
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported with medmae {__version__}"},
        "monai_version": monai.__version__.partition("+")[0],
        "pytorch_version": str(torch.__version__).partition("+")[0],
        "numpy_version": numpy.__version__,
        "required_packages_version": {"medmae": __version__},
        "name": f"{config['method']} features",
        "task": "Feature extraction from any subset of sequences",
        "description": f"Encoder pre-trained with {found.card.title} ({found.card.paper}, {found.card.year}).",
        "authors": "see the model card in docs/README.md",
        "copyright": terms,
        "intended_use": "Research. Not validated for diagnosis or treatment.",
        "references": list(config.get("citation") or ()),
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": vector}},
    }


def inference(config: Mapping[str, Any], preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """The bundle's inference.json: ``cases`` in, ``features.csv`` in ``output_dir`` out."""
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "cases": [],
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "medmae.transfer.export.network.PooledFeatures",
            "method": config["method"],
            "recipe": dict(config["recipe"]),
        },
        "network": "$@network_def.to(@device)",
        "extractor": {
            "_target_": "medmae.transfer.export.bundle_run.Extractor",
            "network": "@network",
            "weights": f"$@bundle_root + '/{WEIGHTS}'",
            "preprocess": dict(preprocess),
        },
        "run": ["$@extractor.run(@cases, @output_dir)"],
    }


def check_plain(values: Any, what: str) -> None:
    """Refuse values that MONAI's configuration language would act upon.

    Raises:
        CheckpointError: a text with one of its signs, or a key that it reserves.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            check_plain(str(key), what)
            check_plain(value, what)
    elif isinstance(values, list | tuple):
        for value in values:
            check_plain(value, what)
    elif isinstance(values, str) and (values.startswith(("$", "%", "_")) or "@" in values or "::" in values):
        raise CheckpointError(
            f"the {what} of this model holds {values!r}, which MONAI would take for a command: it cannot be a bundle"
        )


@torch.no_grad()
def verify_bundle(folder: str | Path, reference: FeatureNetwork | None = None) -> float:
    """Let MONAI read a bundle, build its network and run it; then compare with the model it came from.

    Returns:
        The largest difference; 0 without a ``reference``.

    Raises:
        CheckpointError: something is missing, or the network does not do what the metadata says or the model does.
    """
    from monai.bundle import ConfigParser, verify_net_in_out

    folder = Path(folder)
    meta, config = str(folder / METADATA), str(folder / INFERENCE)
    parser = ConfigParser()
    parser.read_config(config)
    parser.read_meta(meta)
    lacking = [key for key in REQUIRED if not parser.get(f"_meta_::{key}")]
    if lacking:
        raise CheckpointError(f"{meta} lacks {', '.join(lacking)}")
    with _quietly():
        try:
            verify_net_in_out(net_id="network_def", meta_file=meta, config_file=config, device="cpu")
        except (ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: its network does not do what {METADATA} says: {error}") from error
        network = parser.get_parsed_content("network_def")
    load_weights(network, folder / WEIGHTS)
    if reference is None:
        return 0.0
    image, present = reference.example(2)
    apart = float((network.eval()(image, present) - reference.outputs(image, present)["pooled"]).abs().max())
    if not apart <= 1e-5:
        raise CheckpointError(f"the bundle's network differs from the model by {apart:.2g}: nothing was written")
    return apart


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without MONAI's lines on standard output and in the log."""
    was = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(was)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def _readme(config: Mapping[str, Any], card: Path) -> str:
    names = config["recipe"].get("sequences") or ["image"]
    case = ", ".join(f'"{name}": "{name}.nii.gz"' for name in names[:2])
    text = f"""# {config["method"]} features, a MONAI bundle

One vector per case, from whatever sequences the case has ({", ".join(names)}). Needs `pip install medmae`.

```python
from monai.bundle import run

run(config_file="configs/inference.json", meta_file="configs/metadata.json", bundle_root=".",
    cases=[{{{case}}}], output_dir="eval")
```

writes `eval/features.csv`. Images are prepared as those of the pre-training were.
"""
    return text + ("\n" + body(card.read_text("utf-8")) if card.is_file() else "")


def _license(config: Mapping[str, Any], terms: str) -> str:
    notice = f"{config['license_notice']}\n" if config.get("license_notice") else ""
    return (
        f"Weights and the data they were trained on: {terms}\n{notice}"
        f"Reference of the method: {config.get('method_license') or 'not stated'}\n"
        "medmae: Apache-2.0\n"
    )
