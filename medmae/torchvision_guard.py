"""Make ``import torchvision`` work beside a torch it was not compiled for.

torchvision arrives only as a dependency of a dependency (nnU-Net -> timm). Its published Linux wheel holds CUDA code
and cannot load its compiled operators beside a CPU build of torch; ``import torchvision`` then dies with ``operator
torchvision::nms does not exist``, and so do timm, torchmetrics and nnU-Net's search for trainers. None of them needs
the operators: declaring the two schemas that torchvision attaches Python code to is enough to let it import.

The decision is made without importing torchvision, because a failed import leaves some of its submodules behind in
``sys.modules``: loading the compiled library is what makes the operators exist, so that is what is tried.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

NATIVE, GUARDED, ABSENT = "native", "guarded", "absent"

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# torch forgets schemas when the Library object that defined them is collected: it has to live as long as the process.
_kept_alive: list[Any] = []


def guard() -> str:
    """Make ``import torchvision`` possible, and say how it stands: ``native``, ``guarded`` or ``absent``.

    Call it before the first import of torchvision or of anything that imports it. It may be called any number of times.
    Where torchvision is absent or works by itself, nothing is changed.
    """
    if _kept_alive:
        return GUARDED
    if "torchvision" in sys.modules:  # a failed import takes the package itself out again, so this one succeeded
        return NATIVE
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return ABSENT
    if _works(list(spec.submodule_search_locations or ())):
        return NATIVE
    _declare()
    return GUARDED


def _works(folders: list[str]) -> bool:
    """Whether torchvision found in ``folders`` imports by itself."""
    import torch

    if _declared("nms"):
        return True
    library = _compiled_library(folders)
    if library is None:  # not a published build: only an import can tell, and it must not happen in this process
        child = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False)
        return child.returncode == 0
    operators: Any = torch.ops
    try:
        operators.load_library(library)
    except (OSError, ImportError):
        return False
    return _declared("nms")


def _compiled_library(folders: list[str]) -> str | None:
    """Path of torchvision's compiled operators, found the way torchvision finds them."""
    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    for folder in folders:
        found = importlib.machinery.FileFinder(str(Path(folder).resolve()), loader).find_spec("_C")
        if found is not None and found.origin is not None:
            return found.origin
    return None


def _declared(operator: str) -> bool:
    import torch

    return hasattr(torch.ops.torchvision, operator)


def _declare() -> None:
    """Declare the operators' schemas, without implementations: calling one still fails, importing no longer does."""
    import torch

    make: Any = torch.library.Library
    library = make("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        if not _declared(schema.partition("(")[0]):
            library.define(schema)
    _kept_alive.append(library)
