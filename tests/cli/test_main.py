"""The command line as a newcomer meets it: help, exit codes, messages, flags anywhere."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from medmae import __version__
from medmae import cli as command_line
from medmae.checkpoint import save_model
from medmae.cli import VERBS, main
from medmae.cli.methods import markdown_table
from medmae.find import all as all_methods
from medmae.find import find


def test_help_names_every_verb_without_heavy_imports():
    code = (
        "import sys; from medmae.cli import main; main(['--help'])\n"
        "heavy = ('torch', 'monai', 'numpy', 'nibabel', 'pydantic', 'accelerate')\n"
        "print('HEAVY', [name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in out
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert "Usage:" in capsys.readouterr().out


def test_version_comes_from_one_place(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"medmae {__version__}"


@pytest.mark.parametrize("line", [["nothing"], ["show"], ["methods", "--nothing"], ["show", "bmmae"]])
def test_usage_errors_exit_with_2(line, capsys):
    assert main(line) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_unknown_method_suggests_the_nearest(capsys):
    main(["show", "bmmae"])
    assert "did you mean bm_mae" in capsys.readouterr().err


def test_a_missing_checkpoint_exits_with_5(tmp_path, capsys):
    assert main(["info", str(tmp_path / "none")]) == 5
    assert "medmae pretrain" in capsys.readouterr().err


def test_a_bug_saves_its_traceback_and_exits_with_1(monkeypatch, capsys):
    import medmae.cli.methods

    def broken(markdown: bool = False) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(medmae.cli.methods, "run", broken)
    assert main(["methods"]) == 1
    err = capsys.readouterr().err
    path = err.split("The traceback is in ")[1].strip().rstrip(".")
    assert "planted" in Path(path).read_text("utf-8")


def test_out_of_memory_exits_with_6_and_an_interrupt_with_130(monkeypatch):
    import medmae.cli.methods

    for error, code in ((MemoryError(), 6), (KeyboardInterrupt(), 130)):

        def broken(markdown: bool = False, error=error) -> None:
            raise error

        monkeypatch.setattr(medmae.cli.methods, "run", broken)
        assert main(["methods"]) == code


def test_global_flags_may_stand_anywhere(capsys):
    for line in (["--json", "methods"], ["methods", "--json"]):
        assert main(line) == 0
        assert {entry["name"] for entry in json.loads(capsys.readouterr().out)} == {f.name for f in all_methods()}
    assert command_line._split(["a", "--quiet", "--", "--json"])[0] == ["a", "--", "--json"]


def test_show_resolves_the_whole_recipe(capsys):
    assert main(["show", "bm_mae", "--preset", "published", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["recipe"] == find("bm_mae").recipe(preset="published")
    assert sum(shown["parameters"].values()) == 76_511_104
    assert list(shown["meanings"]) == list(shown["recipe"])
    assert main(["show", "bm_mae", "--scale", "test", "--set", "widht=3"]) == 2
    assert "did you mean width" in capsys.readouterr().err


def test_show_explains_every_entry_on_one_line(capsys):
    assert main(["show", "resenc_mae", "--scale", "test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, meaning in find("resenc_mae").meanings().items():
        (line,) = (line for line in lines if line.startswith(f"  {name}: "))
        assert meaning in line
    assert "size: [16, 16, 16]" in (size := next(line for line in lines if line.startswith("  size: ")))
    assert size.endswith("(default: [128, 128, 128])")


def test_show_wraps_to_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["show", "resenc_mae", "--scale", "test"]) == 0
    recipe = capsys.readouterr().out.partition("\nrecipe\n")[2].partition("\nparts\n")[0].splitlines()
    starts = {line.index(word) for line in recipe for word in ("voxels per axis", "share of hidden", "kernel edges")
              if word in line}  # fmt: skip
    assert len(starts) == 1, "meanings are not aligned"
    assert max(map(len, recipe)) <= 90
    assert " ".join(" ".join(recipe).split()).count("takes some to reconstruct missing sequences") == 1


def test_info_notices_changed_weights(tmp_path, capsys):
    found = find("mae")
    recipe = found.recipe(scale="test")
    save_model(tmp_path, found.build(**recipe), name="mae", recipe=recipe)
    assert main(["info", str(tmp_path)]) == 0
    assert "as written" in capsys.readouterr().out
    save_model(tmp_path / "other", found.build(**recipe), name="mae", recipe=recipe)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    assert main(["info", str(tmp_path)]) == 0
    assert "CHANGED" in capsys.readouterr().out


def test_the_readme_holds_the_generated_table_of_methods():
    repository = Path(__file__).parents[2]
    assert markdown_table(all_methods()) in (repository / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "here/a.json"), 1, "here/a.json: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "here/a.json"), 2, "here/a.json: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "here"), 2, "here: Read-only file system"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", b"gone"), 2, "gone: No such file"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 2, "a/b: Not a directory"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "folder"), 2, "folder: Is a directory"),
    ],
)
def test_what_the_system_refuses_is_no_bug(monkeypatch, capsys, error: OSError, code: int, words: str):
    import medmae.cli.methods

    def broken(markdown: bool = False) -> None:
        raise error

    monkeypatch.setattr(medmae.cli.methods, "run", broken)
    assert main(["methods"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "bug" not in said


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error", "here"),
        OSError(errno.EACCES, "Permission denied"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", command_line.__file__ + ".gone"),
        OSError("planted"),
    ],
)
def test_other_system_errors_stay_bugs(monkeypatch, capsys, error: OSError):
    import medmae.cli.methods

    def broken(markdown: bool = False) -> None:
        raise error

    monkeypatch.setattr(medmae.cli.methods, "run", broken)
    assert main(["methods"]) == 1
    assert "This is a bug" in capsys.readouterr().err
