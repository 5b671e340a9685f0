"""Model folders on the Hugging Face hub: which three files are fetched, and what is said when they cannot be.

A model folder is data, so nothing but its three known files is ever downloaded, whatever else a repository holds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from medmae.core.errors import CheckpointError, MissingDependency, UsageError

FILES = ("config.json", "model.safetensors", "README.md")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_id(name: str | Path) -> bool:
    """Whether ``name`` can only be ``organization/name`` on the hub: of that form, and no folder here."""
    return isinstance(name, str) and _ID.fullmatch(name) is not None and not Path(name).exists()


def fetch(name: str, *, revision: str | None = None) -> Path:
    """The folder in which the files of a model on the hub lie; what is there already is not fetched again.

    Args:
        name: ``organization/name``.
        revision: branch, tag or commit.

    Raises:
        MissingDependency: huggingface_hub is not installed.
        CheckpointError: there is no such model, it is no model folder, or the hub cannot be reached.
    """
    hub = client(name)
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # its own errors, those of its transport and of the socket share no class
        raise CheckpointError(
            f"{name} is no folder here, and could not be fetched from the Hugging Face hub: {reason(error)}"
        ) from error


def check_push(name: str) -> Any:
    """The package huggingface_hub, where a model could be uploaded under ``name``.

    Raises:
        UsageError: ``name`` is not of the form ``organization/name``, or there is no token.
        MissingDependency: huggingface_hub is not installed.
    """
    if _ID.fullmatch(name) is None:
        raise UsageError(f"{name!r} is no name on the hub: it has the form organization/name")
    hub = client(name)
    if not hub.get_token():
        raise UsageError(
            "no token for the Hugging Face hub was found: run `hf auth login` or set HF_TOKEN, then push again"
        )
    return hub


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload the three files of a model folder, and return its address.

    Raises:
        UsageError, MissingDependency: as :func:`check_push`.
        CheckpointError: the hub refused, or cannot be reached.
    """
    hub = check_push(name)
    try:
        address = hub.HfApi().create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=name, folder_path=str(folder), allow_patterns=list(FILES), commit_message="Upload with medmae"
        )
    except Exception as error:  # as above
        raise CheckpointError(f"{name} could not be uploaded to the Hugging Face hub: {reason(error)}") from error
    return str(address)


def client(name: str) -> Any:
    """The package huggingface_hub.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency(
            f"{name} as a name on the Hugging Face hub needs huggingface_hub, which is not installed: "
            "pip install 'medmae[hub]'; a folder of this name is not here"
        ) from error
    return huggingface_hub


def reason(error: BaseException) -> str:
    """One line on why the hub did not answer as hoped."""
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "GatedRepoError"):
        return "there is no such model, or it is private or gated and your token may not read it"
    if kind == "RevisionNotFoundError":
        return "it has no such revision"
    offline = isinstance(error, OSError) or "Offline" in kind or "LocalEntryNotFound" in kind or "Connect" in kind
    said = next((line for line in str(error).splitlines() if line.strip()), kind)
    if offline:
        return f"the hub cannot be reached and nothing of it is stored here ({kind}: {said}); copy the folder instead"
    return f"{kind}: {said}"
