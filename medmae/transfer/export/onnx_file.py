"""Networks as ONNX files, compared with onnxruntime before they take their place.

The exporter runs whatever shapes it sees into the graph, and a graph that is wrong runs as fast as one that is right.
So every graph is asked about samples with and without missing sequences, in batches of another length than it was
traced with, and its answers must be those of the network.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmae.atomic import replacing
from medmae.checkpoint import load_model
from medmae.core.errors import CheckpointError, UsageError

from .network import FeatureNetwork
from .staging import check_free, missing

TOLERANCE = 1e-4
"""Largest difference of any value, as a share of the largest value of its output where that exceeds 1."""

LARGEST = (1 << 31) - (1 << 20)
"""Bytes that fit in one file of this format."""


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    Attributes:
        path: the file.
        inputs: name -> shape; ``batch`` is free.
        outputs: name -> shape.
        difference: output -> largest difference between the file and the network, over all samples compared.
        samples: batches that were compared, by their length.
    """

    path: Path
    inputs: Mapping[str, tuple[Any, ...]]
    outputs: Mapping[str, tuple[Any, ...]]
    difference: Mapping[str, float]
    samples: tuple[int, ...]

    @property
    def largest(self) -> float:
        """The largest difference of all."""
        return max(self.difference.values())

    def __str__(self) -> str:
        lines = [f"  in   {name} {_shape(shape)}" for name, shape in self.inputs.items()]
        for name, shape in self.outputs.items():
            lines.append(f"  out  {name} {_shape(shape)}: largest difference {self.difference[name]:.2g}")
        compared = ", ".join(map(str, self.samples))
        return "\n".join([*lines, f"Compared with onnxruntime (batches of {compared}): {self.largest:.2g} at most"])

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "out": str(self.path),
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "outputs": {name: list(shape) for name, shape in self.outputs.items()},
            "difference": dict(self.difference),
            "largest_difference": self.largest,
        }


def export_encoder(checkpoint: str | Path, out: str | Path, *, overwrite: bool = False) -> OnnxReport:
    """Write the encoder of a pre-trained model, everything visible, for any subset of its sequences.

    Inputs are ``image`` Float[b m *size] (normalized, one channel per sequence) and ``present`` Bool[b m]; outputs
    are those of :class:`medmae.transfer.export.network.FeatureNetwork`.

    Args:
        checkpoint: model or run folder.
        out: file to write.
        overwrite: replace an existing one.

    Raises:
        UsageError: ``out`` exists or is no file name.
        CheckpointError: the model cannot be expressed in ONNX, or the file answers otherwise than the network.
        MissingDependency: onnx, onnxscript or onnxruntime is not installed.
    """
    from medmae.transfer.backbone import Backbone

    out = check_free(out, overwrite=overwrite)
    loaded = load_model(checkpoint)
    network = FeatureNetwork(Backbone(loaded.method)).eval()
    config = loaded.config
    data = config.get("data") or {}
    about = {
        "method": config["method"],
        "sequences": list(network.sequences),
        "size": list(network.size),
        "preprocess": data.get("preprocess", {}),
        "license": config.get("license") or data.get("license") or "not stated",
        "citation": config.get("citation", []),
        "weights_sha256": config.get("weights_sha256", ""),
        "medmae": config["medmae"],
    }
    return write_onnx(network, out, example=network.example, inputs=("image", "present"), outputs=network.names,
                      about=about)  # fmt: skip


def write_onnx(
    network: nn.Module,
    out: Path,
    *,
    example: Callable[[int], tuple[Tensor, ...]],
    inputs: Sequence[str],
    outputs: Sequence[str],
    about: Mapping[str, Any],
) -> OnnxReport:
    """Write a network in evaluation mode, after comparing the file with it.

    Args:
        network: takes tensors, gives a tuple of tensors.
        out: file to write.
        example: number of samples -> inputs.
        inputs: their names.
        outputs: names of what comes out.
        about: facts to keep in the file, JSON values.
    """
    if out.is_dir():
        raise UsageError(f"{out} is a folder; --out must be a file, such as encoder.onnx")
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    if size > LARGEST:
        raise CheckpointError(f"the network has {size / 2**30:.1f} GiB of weights; one ONNX file holds 2 GiB at most")
    runtime = _runtime()
    program = _traced(network.eval(), example(2), inputs=inputs, outputs=outputs)
    program.model.metadata_props.update(
        {f"medmae.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    )
    with replacing(out) as temporary:
        program.save(str(temporary), external_data=False)
        session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        samples = (1, 3)
        shapes, difference = _compare(session, network, [example(n) for n in samples], inputs, outputs)
        wrong = [f"{name} by {value:.2g}" for name, value in difference.items() if not value <= TOLERANCE]
        if wrong:
            raise CheckpointError(
                f"the ONNX file answers otherwise than the network ({', '.join(wrong)}; allowed is {TOLERANCE:g}): "
                "nothing was written"
            )
    given = {name: ("batch", *value.shape[1:]) for name, value in zip(inputs, example(1), strict=True)}
    return OnnxReport(out, given, shapes, difference, samples)


def _runtime() -> Any:
    """onnxruntime, after making sure that the exporter's packages are there too."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing(error.name or "onnx", extra="export", what="writing ONNX") from error
    return onnxruntime


def _traced(
    network: nn.Module, example: tuple[Tensor, ...], *, inputs: Sequence[str], outputs: Sequence[str]
) -> torch.onnx.ONNXProgram:
    """The network as an ONNX program with a free batch axis."""
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    silence = contextlib.redirect_stdout(io.StringIO())
    try:
        with torch.no_grad(), silence, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Strict tracing reads lengths as symbols; the other kind would fix the batch to that of the example.
            exported = torch.export.export(network, example, dynamic_shapes=tuple({0: batch} for _ in example),
                                           strict=True)  # fmt: skip
            program = torch.onnx.export(
                exported, dynamo=True, input_names=list(inputs), output_names=list(outputs), verbose=False
            )
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(f"this network cannot be written as ONNX: {first}") from error
    assert program is not None
    return program


@torch.no_grad()
def _compare(
    session: Any,
    network: nn.Module,
    examples: Sequence[tuple[Tensor, ...]],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> tuple[dict[str, tuple[Any, ...]], dict[str, float]]:
    """Shapes of the outputs, and the largest difference of each over some inputs."""
    shapes: dict[str, tuple[Any, ...]] = {}
    difference = dict.fromkeys(outputs, 0.0)
    for example in examples:
        found = session.run(list(outputs), {n: value.numpy() for n, value in zip(inputs, example, strict=True)})
        for name, ours, theirs in zip(outputs, network(*example), found, strict=True):
            if tuple(ours.shape) != tuple(theirs.shape):
                raise CheckpointError(
                    f"the ONNX file gives {name} of shape {tuple(theirs.shape)}, the network {tuple(ours.shape)}"
                )
            apart = float((ours - torch.from_numpy(theirs)).abs().max() / ours.abs().max().clamp_min(1))
            difference[name] = apart if apart != apart else max(difference[name], apart)  # NaN stays NaN
            shapes[name] = ("batch", *ours.shape[1:])
    return shapes, difference


def _shape(shape: Sequence[Any]) -> str:
    return "[" + " ".join(map(str, shape)) + "]"
