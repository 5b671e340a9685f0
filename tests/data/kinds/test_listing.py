"""What ``--data`` means for images: folders, folders of classes, tables, specs and toys, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medmae.core.errors import DataError, UsageError
from medmae.data.kinds.listing import guess_kind, list_samples, names_samples, sample_hash


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def test_a_folder_is_searched_for_files_of_the_kind(tmp_path: Path) -> None:
    touch(tmp_path, "b.PNG", "a.jpg", "deep/er/c.tiff", "readme.txt", ".hidden.png", ".git/d.png")
    listing = list_samples(tmp_path, kind="image")
    assert [s.key for s in listing.samples] == ["a.jpg", "b.PNG", "deep/er/c.tiff"]
    assert listing.classes == ()
    assert {s.label for s in listing.samples} == {None}
    assert [s.subject for s in listing.samples] == [s.key for s in listing.samples]
    assert listing.name == tmp_path.name
    assert "3 image sample(s)" in listing.notes[0]


def test_folders_beside_one_another_are_classes(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "cat/old/2.png", "dog/1.png")
    listing = list_samples(tmp_path, kind="image")
    assert listing.classes == ("cat", "dog")
    assert [s.label for s in listing.samples] == ["cat", "cat", "dog"]
    (tmp_path / "spec.yaml").write_text("kind: image\nlabels: none\n")
    assert list_samples(tmp_path / "spec.yaml", kind="image").classes == ()
    touch(tmp_path, "beside.png")  # with files beside them, folders are places
    assert list_samples(tmp_path, kind="image").classes == ()


def test_folders_of_parts_fix_the_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.png", "train/dog/2.png", "Validation/cat/3.png", "test/dog/4.png")
    listing = list_samples(tmp_path, kind="image")
    assert listing.classes == ("cat", "dog")
    parts = {part: [s.key for s in samples] for part, samples in listing.split().items()}
    assert parts == {
        "train": ["train/cat/1.png", "train/dog/2.png"],
        "val": ["Validation/cat/3.png"],
        "test": ["test/dog/4.png"],
    }


def test_the_split_is_by_subject_and_depends_on_names_alone(tmp_path: Path) -> None:
    rows = [f"p{i % 10}/{i}.png" for i in range(40)]
    touch(tmp_path, *rows)
    table = tmp_path / "table.csv"
    table.write_text("path,subject,age\n" + "".join(f"{r},p{i % 10},{i}\n" for i, r in enumerate(rows)))
    listing = list_samples(table, kind="image")
    parts = listing.split()
    assert sum(map(len, parts.values())) == 40
    subjects = [{s.subject for s in part} for part in parts.values()]
    assert not subjects[0] & subjects[1]
    assert not subjects[0] & subjects[2]
    assert listing.samples[3].extra == {"age": "3"}
    again = list_samples(table, kind="image", split={"seed": 1, "val": 0.3})
    assert len(again.split()["val"]) == 12
    assert again.split()["test"] != parts["test"]


def test_a_spec_says_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "files", "p1-a.png", "p1-b.png", "p2-a.png", "mask/p1.png")
    monkeypatch.setenv("IMAGES", str(tmp_path / "files"))
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "kind: image\nname: ours\nroot: ${IMAGES}\nfiles: 'p*.png'\nsubject: '(p\\d)-'\nlabels: none\n"
        "split: {test: 0, val: 0.5}\non_error: skip\nlicense: CC0\n"
    )
    listing = list_samples(spec, kind="image")
    assert (listing.name, listing.license, listing.on_error) == ("ours", "CC0", "skip")
    assert [s.subject for s in listing.samples] == ["p1", "p1", "p2"]
    assert list_samples(spec, kind="image", on_error="fail").on_error == "fail"
    assert names_samples(spec, kind="image")
    assert guess_kind(spec) == "image"
    with pytest.raises(UsageError, match="describes image data, and video data is wanted"):
        list_samples(spec, kind="video")


def test_toys(tmp_path: Path) -> None:
    listing = list_samples("toy-image:30", kind="image")
    assert len(listing.samples) == 30
    assert len(listing.classes) >= 4
    assert listing.samples[7].extra == {"toy": 7}
    assert sample_hash(listing.samples[7]) != sample_hash(listing.samples[8])
    for text, kind, words in [
        ("toy-imag", "image", "no toy called 'toy-imag'"),
        ("toy-image:none", "image", "positive integer"),
        ("toy-image", "video", "toy-video"),
    ]:
        with pytest.raises(UsageError, match=words):
            list_samples(text, kind=kind)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\n1.png,a\n\ngone.png,b\n1.png,a\n", r"table.csv:4: .*gone.png: no such file"),
        ("path,split\n1.png,trial\n", r"table.csv:2: split is 'trial'"),
        ("path\n1.png\n1.png\n", r"table.csv:3: a second row for 1.png"),
        ("path\n1.png\nx/../1.png\n", r"table.csv:3: a second row for x/../1.png"),
        ("file\n1.png\n", r"table.csv:1: no column 'path'; it has file"),
        ("path,label\n1.png\n", "line 2 has another number of cells"),
        ("path\n", "no rows"),
        ("path,label\n,a\n", "table.csv:2: the path is empty"),
    ],
)
def test_tables_are_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    touch(tmp_path, "1.png")
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        list_samples(tmp_path / "table.csv", kind="image")


def test_a_subject_in_two_parts_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    (tmp_path / "table.csv").write_text("path,subject,split\n1.png,p,train\n2.png,p,test\n")
    with pytest.raises(DataError, match="subject p is in both train and test"):
        list_samples(tmp_path / "table.csv", kind="image").split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: image\nrot: x\n", r"spec.yaml:2: unknown key 'rot'. Did you mean 'root'"),
        ("kind: imag\n", r"spec.yaml:1: kind cannot be 'imag'"),
        ("kind: image\nsubject: '('\n", r"spec.yaml:2: subject is not a regular expression"),
        ("kind: image\ntable: a.csv\nfiles: '*'\n", r"spec.yaml:3: .*leave out"),
        ("kind: image\nroot: ${NOT_SET_ANYWHERE}\n", "NOT_SET_ANYWHERE"),
        ("- 1\n", "spec.yaml:1: a data spec is a mapping"),
    ],
)
def test_specs_are_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        list_samples(tmp_path / "spec.yaml", kind="image")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image files in it or below \(.png"):
        list_samples(tmp_path, kind="image")
    with pytest.raises(UsageError, match="no such file or folder"):
        list_samples(tmp_path / "gone", kind="image")
    with pytest.raises(UsageError, match="not a data source"):
        list_samples(touch(tmp_path, "a.txt") / "a.txt", kind="image")
    with pytest.raises(UsageError, match="no kind of data"):
        list_samples(tmp_path, kind="smell")
    (tmp_path / "spec.yaml").write_text("kind: image\nroot: gone\n")
    with pytest.raises(DataError, match=r"root .*gone is no folder"):
        list_samples(tmp_path / "spec.yaml", kind="image")


def test_volumes_are_a_cohort_to_methods_that_read_them(tmp_path: Path) -> None:
    touch(tmp_path, "case1/t1n.nii.gz", "case1/picture.png")
    assert not names_samples(tmp_path, kind="image")
    assert not names_samples(tmp_path, kind="volume")
    assert names_samples(tmp_path, kind="points")
    assert guess_kind(tmp_path) is None
    (tmp_path / "spec.yaml").write_text("medmae: 1\nname: x\nsequences: [t1n]\n")
    assert not names_samples(tmp_path / "spec.yaml", kind="points")
    (tmp_path / "list.csv").write_text("case,t1n\na,b\n")
    assert not names_samples(tmp_path / "list.csv", kind="image")


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")

    def scandir(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    opened = os.scandir
    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(DataError, match="b: cannot be opened"):
        list_samples(tmp_path, kind="image")


def test_a_home_of_nobody_is_a_name_like_any_other() -> None:
    assert guess_kind("~nobody-is-called-so/x") is None
    assert names_samples("~nobody-is-called-so/x", kind="image")
    with pytest.raises(UsageError, match="~nobody-is-called-so/x: no such file or folder"):
        list_samples("~nobody-is-called-so/x", kind="image")


def test_links_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert [s.key for s in list_samples(tmp_path, kind="image").samples] == ["a/1.png"]


def test_hashes_are_of_content(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes())
    one, two = list_samples(tmp_path, kind="image").samples
    assert sample_hash(one) == sample_hash(two)
    (tmp_path / "2.png").write_bytes(b"other")
    assert sample_hash(one) != sample_hash(two)
