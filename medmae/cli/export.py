"""``medmae export``: a trained model in the forms that other software takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Write a model for the Hugging Face hub, ONNX runtimes or MONAI."
)

Checkpoint = Annotated[Path, typer.Argument(help="Model folder or run folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


@app.command("hf")
def hugging_face(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    push: Annotated[str | None, typer.Option("--push", help="Also upload it, as ORGANIZATION/NAME.")] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository on the hub is private.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a folder that the Hugging Face hub takes, and from_pretrained reads."""
    from medmae import hub
    from medmae.checkpoint import read_config
    from medmae.cli.console import emit_json, flags, say
    from medmae.transfer.export.hugging_face import export_hugging_face, facts_to_share

    if push is not None:
        hub.check_push(push)  # before anything is written
    folder = export_hugging_face(checkpoint, out, overwrite=overwrite)
    say(f"Wrote {folder}. Next: medmae.checkpoint.from_pretrained({str(folder)!r})")
    if facts := facts_to_share(read_config(folder)):
        say(f"Note: its config.json tells of the training data: {', '.join(facts)}. Look at it before you share it.")
    address = None
    if push is not None:
        address = hub.push(folder, push, private=private)
        say(f"Uploaded to {address}")
    if flags().json:
        emit_json({"out": str(folder), "address": address})


@app.command("onnx")
def onnx(
    checkpoint: Annotated[Path, typer.Argument(help="Model or run folder; or a trained model folder of nnU-Net.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, such as encoder.onnx.")],
    fold: Annotated[str, typer.Option("--fold", help="nnU-Net only: from 0, or all.")] = "0",
    overwrite: Overwrite = False,
) -> None:
    """Write the encoder (of nnU-Net: the network) as ONNX, compared with onnxruntime first."""
    from medmae.cli.console import emit_json, flags, say
    from medmae.transfer.export.onnx_file import export_encoder
    from medmae.transfer.export.segmenter import export_segmenter, is_nnunet_folder

    if is_nnunet_folder(checkpoint):
        report = export_segmenter(checkpoint, out, fold=fold, overwrite=overwrite)
    else:
        report = export_encoder(checkpoint, out, overwrite=overwrite)
    say(str(report))
    say(f"Wrote {report.path}")
    if flags().json:
        emit_json(report.to_dict())


@app.command("monai-bundle")
def monai_bundle(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a MONAI bundle that turns cases into feature vectors, and let MONAI verify it."""
    from medmae.cli.console import emit_json, flags, say
    from medmae.transfer.export.bundle import export_bundle

    difference = export_bundle(checkpoint, out, overwrite=overwrite)
    say(f"MONAI reads it and runs its network, which differs from the model by {difference:.2g} at most")
    say(f"Wrote {out}. Next: see {out / 'docs' / 'README.md'}")
    if flags().json:
        emit_json({"out": str(out), "largest_difference": difference})
