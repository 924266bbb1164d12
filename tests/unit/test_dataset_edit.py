"""`impasto dataset edit` and undo of any edit: no caption of a user is lost.

If one of these failed, captions would be changed that were not selected, or could not be restored.
"""

import errno
import itertools
import json
import os
import shlex
import stat
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from support.warm import running

from impasto.annotate import editing
from impasto.annotate.dataset_folders import DatasetFolders
from impasto.annotate.journal import Journal, alone
from impasto.annotate.undoing import undo
from impasto.cli.main import impasto
from impasto.errors import ConfigError, DatasetError, RunError, StorageError

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links and permissions")


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "pictures"
    (target / "sub").mkdir(parents=True)
    words = {"a": "cat, solo", "b": "dog, solo\r\n", "sub/c": "cat,dog, solo", "bare": None}
    for name, text in words.items():
        Image.new("RGB", (16, 16)).save(target / f"{name}.png")
        if text is not None:
            (target / f"{name}.txt").write_bytes(text.encode())
    return target


def folders_of(folder):
    return DatasetFolders((folder,), folder / ".impasto" / "annotations")


def words_of(folder):
    files = sorted(folder.rglob("*.txt")) + sorted(folder.rglob("*.caption"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def run(*words, answer=None):
    return CliRunner().invoke(impasto, ["dataset", *map(str, words)], input=answer)


def edit(folder, *words, **options):
    done = run("edit", folder, *words, **options)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def changes(folder, *words):
    return {
        change["image"]: change["after"]
        for change in json.loads(edit(folder, *words, "--dry-run", "--json"))["changes"]
    }


def test_images_that_share_a_file_of_words_are_named_by_either(folder, tmp_path):
    """`a.jpg` and `a.png` share one `a.txt`: it is edited once, whichever of them is selected."""
    Image.new("RGB", (16, 16)).save(folder / "a.jpg")
    for named in ("a.jpg", "a.png", "a.jpg\na.png"):
        given = edit(folder, "--add=x", "--images=-", "--dry-run", "--json", answer=f"{named}\n")
        (change,) = json.loads(given)["changes"]
        assert change["after"] == "cat, solo, x"
    with pytest.raises(DatasetError, match=r"The first is 'a\.gif'"):
        edit(folder, "--add=x", "--images=-", "--yes", answer="a.gif\na.jpg\n")


def test_operations_are_done_in_the_order_in_which_they_are_typed(folder):
    one = changes(folder, "--add", "x@first", "--remove", "cat", "--add", "cat", "--where-tag=cat")
    assert one == {"a.png": "x, solo, cat", "sub/c.png": "x, dog, solo, cat"}
    other = changes(folder, "--add=cat", "--remove=cat", "--add=x@2", "--where-tag=cat")
    assert other == {"a.png": "solo, x", "sub/c.png": "dog, x, solo"}
    assert changes(folder, "--regex", "cat", "bird", "--replace", "bird=owl", "--move", "owl", "9",
                   "--where-text", "CAT") == {
        "a.png": "solo, owl", "sub/c.png": "dog, solo, owl",
    }  # fmt: skip
    assert words_of(folder).keys() == {"a.txt", "b.txt", "sub/c.txt"}
    assert not (folder / ".impasto").exists(), "a dry run writes nothing"


def test_which_images_are_meant(folder, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("a.png\nsub/c.png\n", encoding="utf-8")
    assert changes(folder, "--add=x", "--images", listed).keys() == {"a.png", "sub/c.png"}
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be"):  # written by Notepad and PowerShell
        mark = "\ufeff" if encoding == "utf-16-be" else ""
        listed.write_bytes(f"{mark}a.png\r\nsub/c.png\r\n".encode(encoding))
        assert changes(folder, "--add=x", "--images", listed).keys() == {"a.png", "sub/c.png"}
    listed.write_bytes(b"\xff\xfea")
    with pytest.raises(ConfigError, match="is not valid UTF-16"):
        edit(folder, "--add=x", "--images", listed, "--yes")
    listed.write_bytes(b"bare.png\0")
    assert changes(folder, "--set", "new\ncaption", "--images", listed) == {
        "bare.png": "new\ncaption"
    }
    listed.write_text("a.png\nnone.png\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"'none\.png'"):
        edit(folder, "--add=x", "--images", listed, "--yes")
    stdin = edit(folder, "--add=x", "--images=-", "--dry-run", "--json", answer="b.png\n")
    assert [c["image"] for c in json.loads(stdin)["changes"]] == ["b.png"]
    assert changes(folder, "--add=x", "--where-not-tag=cat").keys() == {"b.png", "bare.png"}
    both = changes(folder, "--add=x", "--where-tag=cat", "--where-tag=dog")
    assert both.keys() == {"sub/c.png"}


def test_it_asks_before_it_writes(folder):
    before = words_of(folder)
    assert "3 of 4 captions would change." in edit(folder, "--remove=solo", answer="n\n")
    assert words_of(folder) == before
    assert "Written as edit 1." in edit(folder, "--remove=solo", answer="y\n")
    assert words_of(folder) == {"a.txt": b"cat\n", "b.txt": b"dog\n", "sub/c.txt": b"cat, dog\n"}
    before = words_of(folder)
    assert json.loads(edit(folder, "--remove=cat", "--json"))["changed"] == 2
    assert words_of(folder) == before


def test_an_edit_changes_what_was_previewed_and_as_it_was_then(folder, tmp_path):
    words = ("--replace", "cat=bird", "--previewed", tmp_path / "seen.json")
    assert json.loads(edit(folder, *words, "--json"))["changed"] == 2
    (folder / "a.txt").write_text("cat, on a mat", encoding="utf-8")
    (folder / "b.txt").write_text("cat", encoding="utf-8")  # it had no cat
    said = json.loads(edit(folder, *words, "--json", "--yes"))
    assert [change["image"] for change in said["changes"]] == ["sub/c.png"]
    assert [Path(one["path"]).name for one in said["skipped"]] == ["a.txt", "b.txt"]
    assert "changed after the preview" in said["skipped"][0]["reason"]
    assert words_of(folder) == {
        "a.txt": b"cat, on a mat", "b.txt": b"cat", "sub/c.txt": b"bird, dog, solo\n",
    }  # fmt: skip


def test_a_previewed_image_that_is_gone_is_named_and_no_preview_is_an_error(folder, tmp_path):
    words = ("--replace", "cat=bird", "--previewed", tmp_path / "seen.json")
    with pytest.raises(ConfigError, match="no preview is recorded there"):
        edit(folder, *words, "--yes")
    edit(folder, *words, "--dry-run")
    assert not (tmp_path / "seen.json").exists()
    edit(folder, *words, "--json")
    (folder / "a.png").unlink()
    told = edit(folder, *words, "--yes")
    assert "1 of 3 captions changed" in " ".join(told.split())
    assert "its image no longer exists" in " ".join(told.split())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--add", "a, b"], "contains it"),
        (["--add", " "], "is not a tag"),
        (["--replace", "ab"], "OLD=NEW"),
        (["--move", "a", "0"], "first, last or a number"),
        (["--regex", "(", "x"], "regular expression"),
        (["--regex", "a", r"\2"], "regular expression"),
        (["--images", "nowhere.txt", "--add", "x"], "cannot be read"),
        (["--operations", "nowhere.json"], "cannot be read"),
    ],
)
def test_what_does_not_fit_is_said(folder, words, reason):
    with pytest.raises(ConfigError, match=reason):
        edit(folder, *words, "--yes")


def test_no_operation_or_both_ways_of_giving_them(folder):
    assert run("edit", folder, "--yes").exit_code == 2
    assert run("edit", folder, "--yes", "--add=x", "--operations=f").exit_code == 2


def test_operations_from_a_file(folder, tmp_path):
    file = tmp_path / "operations.json"
    long = "é" * 50_000
    file.write_text(json.dumps([{"do": "set", "text": long}]), encoding="utf-8")
    edit(folder, "--operations", file, "--where-tag=cat", "--yes")
    assert (folder / "a.txt").read_text(encoding="utf-8") == f"{long}\n"
    file.write_text(json.dumps([{"do": "add", "tag": "x", "at": "first"}]), encoding="utf-8")
    assert changes(folder, "--operations", file, "--where-text", long[:9])["a.png"] == f"x, {long}"
    file.write_text(json.dumps([{"do": "add", "tag": 3}]), encoding="utf-8")
    with pytest.raises(ConfigError, match="add takes tag and at"):
        edit(folder, "--operations", file, "--yes")


@pytest.mark.parametrize("order", list(itertools.permutations("1234")))
def test_edits_of_different_files_are_undone_in_any_order(folder, order):
    before = words_of(folder)
    edit(folder, "--add=x", "--where-tag=cat", "--where-not-tag=dog", "--yes")
    edit(folder, "--remove=dog", "--where-tag=dog", "--where-not-tag=cat", "--yes")
    edit(folder, "--set=new", "--where-tag=cat", "--where-tag=dog", "--yes")
    edit(folder, "--add=fresh", "--where-not-tag=solo", "--where-not-tag=new", "--yes")
    for name in order:
        assert undo(folders_of(folder), name).unchanged == ()
    assert words_of(folder) == before


def test_an_older_edit_waits_for_a_later_one_of_the_same_file(folder):
    before = words_of(folder)
    edit(folder, "--add=x", "--where-tag=cat", "--yes")
    edit(folder, "--remove=solo", "--where-text=cat, s", "--yes")
    after = words_of(folder)
    undone = undo(folders_of(folder), "1", force=True)
    assert (undone.restored, undone.blocked) == (1, 1)
    assert [(p.name, why) for p, why in undone.unchanged] == [
        ("a.txt", "edit 2 changed it later; undo that one first")
    ]
    assert words_of(folder) == {**after, "sub/c.txt": before["sub/c.txt"]}
    assert undo(folders_of(folder), "2").restored == 1
    assert undo(folders_of(folder), "1").unchanged == ()
    assert words_of(folder) == before
    with pytest.raises(RunError, match="nothing to undo"):
        undo(folders_of(folder), "1")


def test_an_edit_that_a_later_one_reversed_is_not_taken_for_undone(folder):
    """Two edits that end with the same bytes are undone in order, or the way back would be lost."""
    (folder / "a.txt").write_bytes(b"cat\n")
    edit(folder, "--set=dog", "--where-tag=cat", "--yes")
    edit(folder, "--set=cat", "--where-text=dog", "--yes")
    assert undo(folders_of(folder), "1").blocked >= 1
    undo(folders_of(folder), "2")
    undo(folders_of(folder), "1")
    assert (folder / "a.txt").read_bytes() == b"cat\n"


def test_a_hand_edit_is_kept_and_named(folder):
    edit(folder, "--add=x", "--yes")
    (folder / "a.txt").write_text("by hand", encoding="utf-8")
    done = run("undo", folder, "1")
    assert "3 files restored." in done.stdout
    assert "it was changed since" in done.stdout
    assert "undo" in done.stdout.splitlines()[-1]
    assert "1 --force" in done.stdout
    assert (folder / "a.txt").read_text(encoding="utf-8") == "by hand"
    assert run("undo", folder, "1", "--force").exit_code == 0
    assert (folder / "a.txt").read_text(encoding="utf-8") == "cat, solo"


def test_the_list_says_what_each_edit_did(folder):
    edit(folder, "--add=x@first", "--remove=solo", "--yes")
    edit(folder, "--regex", "cat", "<b>", "--where-tag=cat", "--yes")
    with Journal(folders_of(folder), '[["tag","model"],{"existing":"missing"}]') as journal:
        journal.write(folder / "b.txt", "tagged", "0:b.png")
    listed = json.loads(run("undo", folder, "--list", "--json").stdout)
    assert [(e["name"], e["files"], e["ended"]) for e in listed] == [
        ("3", 1, True), ("2", 2, True), ("1", 4, True),
    ]  # fmt: skip
    assert listed[0]["first"] == ["b.txt"]
    assert len(listed[2]["first"]) == 3
    assert [e["what"] for e in listed] == [
        "tag with model",
        "regular expression 'cat' by '<b>'",
        "add 'x' first; remove 'solo'",
    ]
    assert "3 edits can be undone." in run("undo", folder, "--list").stdout
    assert run("undo", folder, "--list", "--force").exit_code == 2
    assert run("undo", folder, "--json").exit_code == 2


def test_a_pattern_that_takes_for_ever_is_given_up(folder, monkeypatch):
    (folder / "a.txt").write_text("a" * 40, encoding="utf-8")
    before = words_of(folder)
    monkeypatch.setitem(
        editing._FIELDS, "regex",
        (lambda pattern, by: editing.ReplacePattern(pattern, by, 1.0), ("pattern", "by")),
    )  # fmt: skip
    with pytest.raises(DatasetError, match=r"a\.txt: it takes longer than 1 s"):
        edit(folder, "--regex", "(a+)+b", "x", "--yes")
    assert words_of(folder) == before


def test_a_caption_that_would_become_huge_is_refused(folder):
    before = words_of(folder)
    with pytest.raises(DatasetError, match="1,048,576 characters"):
        edit(folder, "--regex", "o", "x" * 400_000, "--yes")
    with pytest.raises(DatasetError, match="over 1 MiB"):
        edit(folder, "--set", "é" * 600_000, "--yes")
    assert words_of(folder) == before


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_encodings_are_read_written_as_utf_8_and_restored(folder, encoding):
    content = "café, solo\r\n".encode(encoding)
    (folder / "a.txt").write_bytes(content)
    edit(folder, "--remove=solo", "--where-tag=café", "--yes")
    assert (folder / "a.txt").read_bytes() == "café\n".encode()
    run("undo", folder, "1")
    assert (folder / "a.txt").read_bytes() == content


def test_what_cannot_be_edited_is_named_and_left(folder):
    (folder / "a.txt").write_bytes("café".encode("latin-1"))
    (folder / "b.txt").write_bytes(b"x" * (1 << 21))
    before = words_of(folder)
    found = json.loads(edit(folder, "--add=x", "--yes", "--json"))
    assert len(found["skipped"]) == 2
    after = words_of(folder)
    assert {name for name in after if after[name] != before.get(name)} == {"sub/c.txt", "bare.txt"}


def test_words_that_are_in_no_file_of_their_own_are_not_covered_up(folder):
    """A face crop uses its whole image's caption: a new caption file would hide that."""
    Image.new("RGB", (16, 16)).save(folder / "a_1_2_3_4.png")
    found = json.loads(edit(folder, "--add=x", "--yes", "--json"))
    assert [Path(item["path"]).name for item in found["skipped"]] == ["a_1_2_3_4.txt"]
    assert not (folder / "a_1_2_3_4.txt").exists()


@POSIX
def test_permissions_and_links_stay_and_none_leads_out(folder, tmp_path):
    (folder / "a.txt").chmod(0o400)
    outside = tmp_path / "outside.txt"
    outside.write_text("theirs", encoding="utf-8")
    (folder / "bare.txt").symlink_to(outside)
    (folder / "kept").mkdir()
    (folder / "b.txt").rename(folder / "kept" / "b.words")
    (folder / "b.txt").symlink_to(folder / "kept" / "b.words")
    edit(folder, "--add=x", "--yes")
    assert outside.read_text(encoding="utf-8") == "theirs"
    assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o400
    assert (folder / "b.txt").is_symlink()
    assert (folder / "kept" / "b.words").read_text(encoding="utf-8") == "dog, solo, x\n"
    assert undo(folders_of(folder), "1").unchanged == ()
    assert (folder / "kept" / "b.words").read_bytes() == b"dog, solo\r\n"


KILLED = """
import os, sys
from impasto.annotate.journal import Journal
from impasto.cli.main import impasto
write, done = Journal.write, []
def dies(self, *words):
    if len(done) == 2:
        os._exit(9)
    done.append(words)
    write(self, *words)
Journal.write = dies
impasto(["dataset", *sys.argv[1:]])
"""


@pytest.mark.parametrize("ends", ["goes on", "undone"])
def test_an_edit_that_is_killed_half_way(folder, ends):
    """An edit is not idempotent: captions written before the kill must not be edited twice."""
    before = words_of(folder)
    words = ["edit", folder, "--regex", "solo", "solosolo", "--yes"]
    killed = running.run("-c", KILLED, *words)
    assert killed.returncode == 9
    half = words_of(folder)
    assert sum(half[name] != before[name] for name in before) == 2
    assert json.loads(run("undo", folder, "--list", "--json").stdout)[0]["ended"] is False
    if ends == "goes on":
        edit(folder, *words[2:])
        assert all(text.count(b"solo") == 2 for text in words_of(folder).values())
    assert undo(folders_of(folder), "1").unchanged == ()
    assert words_of(folder) == before


def test_a_full_disk_half_way_costs_nothing(folder, monkeypatch):
    before, write = words_of(folder), Path.write_bytes
    written = []

    def full(path, content):
        if ".txt." in path.name:
            written.append(path)
            if len(written) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="disk is full"):
        patch.setattr(Path, "write_bytes", full)
        edit(folder, "--remove=solo", "--yes")
    assert sum(words_of(folder)[name] != before[name] for name in before) == 1
    edit(folder, "--remove=solo", "--yes")
    assert undo(folders_of(folder), "1").restored == 3
    assert words_of(folder) == before


def test_a_preview_shows_what_an_edit_that_was_broken_off_would_still_do(folder):
    words = ["edit", folder, "--regex", "solo", "solosolo", "--yes"]
    assert running.run("-c", KILLED, *words).returncode == 9
    left = changes(folder, *words[2:-1])
    assert len(left) == 1
    assert json.loads(edit(folder, *words[2:], "--json"))["changed"] == 1


def test_the_command_that_takes_it_back_can_be_pasted(folder, tmp_path):
    before = words_of(folder)
    for words in (("edit", folder, "--add=x"), ("clean", folder)):
        (folder / "a.txt").write_text("cat, dog_food, cat", encoding="utf-8")
        told = run(*words, "--yes", "--cache-dir", tmp_path / "my notes").stdout
        command = shlex.split(told.rpartition("Undo with: ")[2])
        assert command[-2:] == ["--cache-dir", str(tmp_path / "my notes")]
        assert run(*command[command.index("undo") :]).exit_code == 0
        assert (folder / "a.txt").read_text(encoding="utf-8") == "cat, dog_food, cat"
    (folder / "a.txt").write_bytes(before["a.txt"])
    assert words_of(folder) == before


def test_tags_between_other_signs_are_cleaned(folder, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('separator = "; "\n', encoding="utf-8")
    (folder / "a.txt").write_text("sun; long_hair; sun", encoding="utf-8")
    assert run("clean", folder, "--rules", rules, "--yes").exit_code == 0
    assert (folder / "a.txt").read_text(encoding="utf-8") == "sun; long hair\n"


def test_cleaning_reads_again_what_was_changed_while_it_asked(folder, monkeypatch):
    (folder / "a.txt").write_text("long_hair", encoding="utf-8")

    def meanwhile(question):
        (folder / "a.txt").write_text("my_style, long_hair", encoding="utf-8")
        return True

    monkeypatch.setattr("click.confirm", meanwhile)
    assert run("clean", folder).exit_code == 0
    assert (folder / "a.txt").read_text(encoding="utf-8") == "my style, long hair\n"


def test_two_edits_at_once(folder):
    before = words_of(folder)
    with (
        alone(folders_of(folder)),
        pytest.raises(RunError, match="Another command is changing captions"),
    ):
        edit(folder, "--add=x", "--yes")
    assert words_of(folder) == before


def test_what_was_changed_while_it_asked_is_left_and_named(folder, monkeypatch):
    """Another edit may end meanwhile: its new captions were not part of the confirmation."""
    before = words_of(folder)

    def meanwhile(question):
        (folder / "a.txt").write_text("bird, solo", encoding="utf-8")
        return True

    monkeypatch.setattr("click.confirm", meanwhile)
    said = edit(folder, "--remove=solo", "--where-tag=solo")
    assert "a.txt: it was changed after the preview, and is left unchanged" in said
    assert (folder / "a.txt").read_text(encoding="utf-8") == "bird, solo"
    changed = [name for name, words in words_of(folder).items() if words != before[name]]
    assert changed == ["a.txt", "b.txt", "sub/c.txt"]
