"""The rules of the house, held by tests: who imports whom, what is heavy, how files look."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "medmae"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = [
    "torch", "monai", "SimpleITK", "torchio", "nibabel", "accelerate", "matplotlib", "sklearn", "scipy", "pandas",
    "nilearn", "torchvision", "timm", "transformers", "nnunetv2", "skimage", "blosc2", "lightly",
]  # fmt: skip
LIGHT = ("medmae", "medmae.find", "medmae.config", "medmae.data.spec", "medmae.data.cohort", "medmae.cli")
# Classes that nnU-Net calls are subclasses of its own: their files import it, and everyone else imports them lazily.
INSIDE_NNUNET = [PACKAGE / "transfer" / "nnunet" / f"{name}.py" for name in ("trainer", "absence", "dropout")]
NOT_A_PACKAGE = [PACKAGE / "transfer" / "nnunet" / "shim"]  # a folder whose files nnU-Net imports one by one
METHOD_ROOMS = ("volume", "image", "video", "points", "audio")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports_of(path: Path) -> set[str]:
    """Absolute names of everything a file imports, at any depth; type-checking blocks included."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def run_python(code: str) -> str:
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert child.returncode == 0, child.stderr
    return child.stdout


# --- who imports whom ---------------------------------------------------------------------------------------------


def test_import_contracts_hold() -> None:
    command = shutil.which("lint-imports", path=f"{Path(sys.executable).parent}:{shutil.os.environ['PATH']}")
    if command is None:
        pytest.skip("import-linter is not installed")
    child = subprocess.run([command, "--no-cache"], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=name_of)
def test_the_core_imports_torch_only(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "jaxtyping"}
    foreign = {name for name in imports_of(path) if name.partition(".")[0] not in allowed}
    assert {name for name in foreign if not name.startswith("medmae.core")} == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "nets").glob("*.py")), ids=name_of)
def test_nets_import_the_core_only(path: Path) -> None:
    inside = {name for name in imports_of(path) if name.startswith("medmae.")}
    ground = ("medmae.core", "medmae.nets", "medmae.torchvision_guard")
    assert {name for name in inside if not name.startswith(ground)} == set()


@pytest.mark.parametrize(
    "path", [path for room in METHOD_ROOMS for path in sorted((PACKAGE / room).glob("*.py"))], ids=name_of
)
def test_methods_do_not_import_one_another(path: Path) -> None:
    room = path.parent.name
    methods = {p.stem for p in path.parent.glob("*.py") if "\nCARD = " in p.read_text("utf-8")}
    for name in imports_of(path):
        if name.startswith("medmae."):
            _, first, *rest = name.split(".")
            assert first in ("core", "nets", room), f"{name_of(path)} imports {name}"
            assert first != room or not rest or rest[0] not in methods - {path.stem}, f"{name_of(path)} imports {name}"


# --- what is heavy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", LIGHT)
def test_doors_open_without_heavy_guests(module: str) -> None:
    loaded = run_python(f"import sys, {module}; print(*[m for m in {HEAVY} if m in sys.modules])").split()
    assert loaded == [], f"importing {module} imports {loaded}"


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
sys.argv = ["medmae", "--help"]
try:
    from medmae.cli import main
    main()
except SystemExit:
    pass
print("loaded:", *[m for m in {HEAVY} if m in sys.modules])
"""
    out = run_python(code)
    assert "pretrain" in out
    assert out.strip().splitlines()[-1].split()[1:] == []


def test_rooms_import_their_heavy_guests_lazily() -> None:
    """Every module of the package can be imported, and none brings in what only some of its functions need."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if path.stem != "__main__" and path not in INSIDE_NNUNET and path.parent not in NOT_A_PACKAGE
    ]
    lazy = [guest for guest in HEAVY if guest not in ("torch", "scipy")]
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
    guests = [m for m in {lazy} if m in sys.modules]
    if guests:
        print(module, *guests)
        break
"""
    assert run_python(code).split() == []


# --- how files look -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_named_and_documented(path: Path) -> None:
    text = path.read_text("utf-8")
    lines = text.count("\n")
    assert lines <= 400, f"{name_of(path)} has {lines} lines: split it by what its parts are about"
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
    assert not vague & set(path.with_suffix("").relative_to(ROOT).parts), f"{name_of(path)} is named after nothing"
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not tree.body, f"{name_of(path)} has no docstring"
    bare = []
    for owner in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
        for node in owner.body:
            public = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_"
            decorators = {ast.unparse(d) for d in getattr(node, "decorator_list", ())}
            inherited = "override" in decorators or any(d.endswith((".setter", ".deleter")) for d in decorators)
            private_owner = isinstance(owner, ast.ClassDef) and owner.name.startswith("_")
            if public and not inherited and not private_owner and ast.get_docstring(node) is None:
                bare.append(f"{node.name} (line {node.lineno})")
    assert bare == [], f"{name_of(path)}: no docstring on {', '.join(bare)}"


@pytest.mark.parametrize("kind", ["image", "video", "points", "audio"])
def test_a_method_of_a_sibling_kind_states_only_what_is_different(kind: str) -> None:
    """What more than one method needs belongs into ``nets`` or ``core``, its words into the glossary."""
    methods = [path for path in (PACKAGE / kind).glob("*.py") if "\nCARD = Card(" in path.read_text("utf-8")]
    assert methods
    for path in methods:
        lines = len(path.read_text("utf-8").splitlines())
        assert lines <= 150, f"{path.name} has {lines} lines"


def test_every_folder_of_the_package_is_a_package() -> None:
    folders = {path.parent for path in FILES} - set(NOT_A_PACKAGE)
    assert [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_methods_fit_in_one_short_file() -> None:
    from medmae import find

    for name in find.names():
        path = ROOT / Path(*find.find(name).module.split(".")).with_suffix(".py")
        assert path.read_text("utf-8").count("\n") <= 220, f"{name_of(path)} is long for one method"
