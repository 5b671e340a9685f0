"""The ``medmae`` command.

Verbs are listed by name and imported when they are called, so that ``medmae --help`` does not wait for torch or MONAI.
Whatever goes wrong ends in one of a few exit codes and a message that says what, where, why, and what to do.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from medmae import __version__
from medmae.core.errors import MedmaeError, OutOfMemory

from .console import Flags, console, set_flags

VERBS = {
    "pretrain": "Pre-train a method on a cohort; patients may lack sequences.",
    "reconstruct": "Write missing sequences of a patient as NIfTI.",
    "evaluate": "Measure a model, subset by subset, next to baselines.",
    "compare": "Compare two evaluations of the same cases.",
    "finetune": "Fine-tune a pre-trained model to a task.",
    "probe": "Ask what the frozen features of a checkpoint know.",
    "embed": "Write the features of a checkpoint as a table.",
    "predict": "Predict with a fine-tuned model, from any subset of sequences.",
    "nnunet": "Plug weights into nnU-Net: export, plan, train, predict.",
    "data": "Write, check, preprocess, cache and synthesize data.",
    "export": "Write a model for the Hugging Face hub, ONNX runtimes or MONAI.",
    "convert": "Import published weights.",
    "methods": "List the methods.",
    "show": "Show everything a method is made of.",
    "info": "Show what a model folder holds.",
    "report": "Rebuild the HTML report of a run.",
    "doctor": "Check this machine and installation.",
    "demo": "See the main job work on a synthetic cohort.",
}
# typer carries its own copy of click in some releases, so its classes are reached through typer.
_BadUsage: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
_GLOBAL = {"--quiet": "quiet", "-q": "quiet", "--verbose": "verbose", "-v": "verbose", "--json": "json",
           "--debug": "debug"}  # fmt: skip


class _Verbs(TyperGroup):
    """A group whose commands are imported when they are run, and only named when they are listed."""

    listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in VERBS:
            return None
        if self.listing:
            return TyperCommand(name, help=VERBS[name])
        module = import_module(f"medmae.cli.{name}")
        if hasattr(module, "app"):
            group = typer.main.get_group(module.app)
            group.name, group.help = name, group.help or VERBS[name]
            return group
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        single.command(name, help=module.run.__doc__)(module.run)
        return typer.main.get_command(single)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.listing = True
        super().format_help(ctx, formatter)


_app = typer.Typer(
    cls=_Verbs, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"medmae {__version__}")
        raise typer.Exit()


@_app.callback(
    help="Masked-autoencoder pre-training for 3-D medical images with missing modalities.",
    epilog="--quiet, --verbose, --json and --debug may stand anywhere on the line.",
)
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Errors and results only."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Say more."),
    json: bool = typer.Option(False, "--json", help="Results as JSON on standard output."),
    debug: bool = typer.Option(False, "--debug", help="Full tracebacks."),
) -> None:
    return None


def _split(arguments: Sequence[str]) -> tuple[list[str], Flags]:
    """Take the global flags out of the line, wherever they stand before ``--``."""
    rest: list[str] = []
    found: dict[str, bool] = {}
    for i, argument in enumerate(arguments):
        if argument == "--":
            rest += arguments[i:]
            break
        if argument in _GLOBAL:
            found[_GLOBAL[argument]] = True
        else:
            rest.append(argument)
    return rest, Flags(**found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    rest, given = _split(sys.argv[1:] if arguments is None else arguments)
    set_flags(given)
    console.cache_clear()
    try:
        result = typer.main.get_command(_app).main(args=rest, prog_name="medmae", standalone_mode=False)
        if result == 130:  # typer answers an interrupt with this code and no word
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except _BadUsage as error:
        error.show()
        return 2
    except MedmaeError as error:
        return _fail(error, given, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defense
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return _fail(error, given, OutOfMemory.exit_code)
        if isinstance(error, OSError):
            from medmae.data.writing import explained

            if (known := explained(error)) is not None:
                known.__cause__ = error
                return _fail(known, given, known.exit_code)
        return _bug(error, given)


def _complain(text: str) -> None:
    print(f"medmae: {text}", file=sys.stderr)


def _fail(error: BaseException, given: Flags, code: int) -> int:
    if given.debug:
        traceback.print_exception(error)
    _complain(f"error: {error}")
    return code


def _bug(error: Exception, given: Flags) -> int:
    """Something nobody foresaw: keep the traceback in a file and say where it is."""
    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile("w", prefix="medmae-traceback-", suffix=".txt", delete=False) as file:
        file.write(f"medmae {__version__}\n{text}")
    if given.debug:
        print(text, file=sys.stderr)
    _complain(f"unexpected {type(error).__name__}: {error}\nThis is a bug in medmae. The traceback is in {file.name}.")
    return 1


def script() -> Any:
    """Entry point of the console script."""
    sys.exit(main())
