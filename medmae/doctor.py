"""What this machine has, what of it does not work, and what to do about it.

Nothing found wrong stops the rest from being looked at. Packages are imported in a child process, because a broken
compiled extension can take the interpreter down with it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

GIB = 1024**3
MODULES = {
    "pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage", "scikit-learn": "sklearn", "simpleitk": "SimpleITK",
    "torch-geometric": "torch_geometric",
}  # fmt: skip
UNITED = ("all", "dev")  # extras that are made of others, or only for developers
LITTLE_RAM, LITTLE_DISK, LITTLE_SHARED = 4 * GIB, 5 * GIB, GIB

# Imports the modules named on its command line and prints one JSON line before and after each.
_IMPORTER = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
from medmae.torchvision_guard import guard
guard()
for name in sys.argv[1:]:
    print(json.dumps({"trying": name}), flush=True)
    try:
        importlib.import_module(name)
        fault = None
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    print(json.dumps({"tried": name, "fault": fault}), flush=True)
"""


@dataclass(frozen=True)
class Problem:
    """Something wrong and its remedy; ``needed`` where medmae cannot do its main job without it."""

    what: str
    remedy: str
    needed: bool


@dataclass(frozen=True)
class Diagnosis:
    """Facts by topic (JSON-able), and the problems found."""

    facts: Mapping[str, Any]
    problems: tuple[Problem, ...] = field(default_factory=tuple)

    @property
    def healthy(self) -> bool:
        """Whether everything needed works."""
        return not any(problem.needed for problem in self.problems)

    def describe(self) -> dict[str, Any]:
        """JSON-able form of everything."""
        return {**self.facts, "problems": [asdict(problem) for problem in self.problems], "healthy": self.healthy}


def examine(*, folder: Path | None = None, imports: bool = True, step: bool = True) -> Diagnosis:
    """Look at everything; ``folder`` is where runs will be written, ``imports`` and ``step`` take some seconds each."""
    place = Path.cwd() if folder is None else folder
    facts: dict[str, Any] = {}
    problems: list[Problem] = []
    facts["versions"] = _versions()
    core, extras, found = packages()
    facts["packages"], facts["extras"] = core, extras
    problems += found
    torch_facts, found = _torch()
    facts["torch"] = torch_facts
    problems += found
    facts["machine"], found = _machine(place)
    problems += found
    if torch_facts is not None:
        facts["torchvision"] = _torchvision()
    if imports and torch_facts is not None:
        modules = [_module(name) for name, version in core.items() if version is not None and name != "torch"]
        problems += import_problems(modules, needed=True)
        if facts["torchvision"]["state"] != "absent":
            problems += import_problems(["torchvision"], needed=False)
    if step and torch_facts is not None:
        facts["training_step"], found = _training_steps(torch_facts)
        problems += found
    return Diagnosis(facts, tuple(problems))


def _versions() -> dict[str, str]:
    from medmae import __version__

    return {"medmae": __version__, "python": platform.python_version(), "platform": platform.platform()}


def packages() -> tuple[dict[str, str | None], dict[str, dict[str, str | None]], list[Problem]]:
    """Versions (None: absent) of the packages medmae needs, and of those each extra asks for, and the faults."""
    try:
        written = importlib.metadata.requires("medmae") or []
    except importlib.metadata.PackageNotFoundError:
        return {}, {}, [Problem("medmae is not installed in this Python", "pip install -e . (in its folder)", True)]
    from packaging.requirements import Requirement

    core: dict[str, str | None] = {}
    extras: dict[str, dict[str, str | None]] = {}
    problems = []
    names = importlib.metadata.metadata("medmae").get_all("Provides-Extra") or []
    for requirement in map(Requirement, written):
        name = requirement.name
        version = _installed(name)
        good = version is not None and requirement.specifier.contains(version, prereleases=True)
        extra = _extra_of(requirement, names)
        if extra in UNITED or name == "medmae":
            continue
        if extra is not None:
            extras.setdefault(extra, {})[name] = version
            if version is not None and not good:
                remedy = f"pip install 'medmae[{extra}]'"
                problems.append(Problem(f"{name} {version} does not satisfy {requirement.specifier}", remedy, False))
        elif requirement.marker is None or requirement.marker.evaluate():
            core[name] = version
            if not good:
                have = "is missing" if version is None else f"{version} does not satisfy {requirement.specifier}"
                problems.append(Problem(f"{name} {have}", f"pip install '{name}{requirement.specifier}'", True))
    return core, extras, problems


def _extra_of(requirement: Any, names: list[str]) -> str | None:
    """The extra that asks for ``requirement``, None where medmae itself does."""
    marker = requirement.marker
    if marker is None or marker.evaluate({"extra": ""}):
        return None
    return next((name for name in names if marker.evaluate({"extra": name})), None)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _module(distribution: str) -> str:
    return MODULES.get(distribution.lower(), distribution.replace("-", "_"))


def import_problems(modules: list[str], *, needed: bool) -> list[Problem]:
    """Import ``modules`` in a child process; one problem for each that fails or takes the process down."""
    if not modules:
        return []
    child = subprocess.run([sys.executable, "-c", _IMPORTER, *modules], capture_output=True, text=True, check=False)
    problems, trying, tried = [], None, set()
    for line in _json_lines(child.stdout):
        trying = line.get("trying", trying)
        if "tried" in line:
            tried.add(line["tried"])
            if line["fault"] is not None:
                remedy = f"pip install --force-reinstall the package of {line['tried']}"
                problems.append(Problem(f"import {line['tried']} fails: {line['fault']}", remedy, needed))
    if child.returncode != 0:
        culprit = trying if trying not in tried else None
        last = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        what = f"import {culprit} ends the interpreter: {last}" if culprit else f"imports could not be tried: {last}"
        problems.append(Problem(what, f"pip install --force-reinstall the package of {culprit or 'torch'}", needed))
        rest = [module for module in modules if module not in tried and module != culprit]
        problems += import_problems(rest, needed=needed) if culprit else []
    return problems


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    """The lines of ``text`` that are JSON objects (packages print other things while they are imported)."""
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def _torch() -> tuple[dict[str, Any] | None, list[Problem]]:
    """torch's build and its devices."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return None, [
            Problem(f"import torch fails: {error}", "pip install --force-reinstall 'torch>=2.8,!=2.9.*,<2.14'", True)
        ]
    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    gpus, problems = [], []
    try:
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            capability = f"{properties.major}.{properties.minor}"
            memory = {"memory_gib": round(total / GIB, 1), "free_gib": round(free / GIB, 1)}
            gpus.append({"name": properties.name, "capability": capability, **memory})
    except RuntimeError as error:
        problems.append(
            Problem(f"a GPU is there but cannot be used: {error}", "check the driver with nvidia-smi", False)
        )
    if not gpus and (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()):
        remedy = "install the torch build for your driver: https://pytorch.org/get-started/locally"
        problems.append(Problem(f"this machine has an NVIDIA driver, but torch ({build}) sees no GPU", remedy, False))
    facts = {"version": torch.__version__, "build": build, "threads": torch.get_num_threads(), "gpus": gpus}
    return facts | {"mps": torch.backends.mps.is_available()}, problems


def _torchvision() -> dict[str, Any]:
    """How torchvision stands."""
    from medmae.torchvision_guard import guard

    return {"state": guard(), "version": _installed("torchvision")}


def _machine(folder: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Cores, memory and disk, as far as this process may use them."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    limit = _memory_limit() or memory.total
    disk = shutil.disk_usage(folder)
    facts = {
        "cores": cores,
        "physical_cores": psutil.cpu_count(logical=False),
        "ram_gib": round(min(memory.total, limit) / GIB, 1),
        "ram_free_gib": round(min(memory.available, limit) / GIB, 1),
        "disk_free_gib": round(disk.free / GIB, 1),
    }
    problems = []
    if min(memory.total, limit) < LITTLE_RAM:
        problems.append(Problem(f"only {facts['ram_gib']} GiB of RAM", "use a small scale and a small batch", False))
    if disk.free < LITTLE_DISK:
        remedy = "free some space, or choose an --out elsewhere"
        problems.append(Problem(f"only {facts['disk_free_gib']} GiB free where runs are written", remedy, False))
    if not os.access(folder, os.W_OK):
        problems.append(Problem("the current folder cannot be written to", "change folder, or give --out", False))
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        facts["shared_memory_gib"] = round(size / GIB, 2)
        if size < LITTLE_SHARED:
            remedy = "start the container with --shm-size=8g (or --ipc=host), or use --workers 0"
            problems.append(Problem("shared memory is too small for loader workers", remedy, False))
    return facts, problems


def _memory_limit() -> int | None:
    """The memory limit of this container in bytes, None where there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(path).is_file():
            text = Path(path).read_text(encoding="ascii").strip()
            return int(text) if text.isdigit() and int(text) < 2**60 else None
    return None


def _training_steps(torch_facts: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """A training step on every kind of device there is."""
    done, problems = [], []
    for device in ["cpu", *(["cuda"] if torch_facts["gpus"] else [])]:
        try:
            done.append(training_step(device))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the user needs to see
            what = f"a training step on {device} fails: {type(error).__name__}: {error}"
            remedy = "reinstall medmae and torch in a new environment; if it stays, please report it with this output"
            problems.append(Problem(what, remedy, True))
    return done, problems


def training_step(device: str, *, method: str = "bm_mae") -> dict[str, Any]:
    """Train ``method`` at its smallest size for one step on ``device``; loss before and after, and the seconds taken.

    Raises:
        ArithmeticError: a loss is not finite; other errors come from torch as they are.
    """
    import torch

    from medmae.find import find

    found = find(method)
    recipe = found.recipe(scale="test")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = found.build(scale="test").to(device).train()
        volumes = {name: torch.randn(2, 1, *recipe["size"]).to(device) for name in model.sequences}
    batch = {**volumes, "key": torch.arange(2, device=device)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    start, losses = time.perf_counter(), []
    for _ in range(2):
        optimizer.zero_grad()
        loss: Any = torch.stack(list(model(batch).values())).sum()
        if not torch.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss.item()}")
        loss.backward()
        optimizer.step()
        model.after_step()
        losses.append(loss.item())
    seconds = (time.perf_counter() - start) / 2
    before, after = (round(value, 4) for value in losses)
    return {"device": device, "method": method, "before": before, "after": after, "seconds": round(seconds, 3)}
