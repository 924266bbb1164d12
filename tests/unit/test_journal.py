"""Journals of changes and undoing them, in any folder, and journals written by strangers.

If one of these failed, a user's captions would be lost, or files outside of the dataset changed.
"""

import base64
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from impasto.annotate import journal as journals
from impasto.annotate.dataset_folders import (
    DatasetFile,
    DatasetFolders,
    normalize_ending,
    why_not_a_caption_file,
)
from impasto.annotate.journal import Journal, done_before
from impasto.annotate.notes import journals_in, read_notes, with_checksum
from impasto.annotate.undoing import undo
from impasto.data.folders.beside import SidecarLookup
from impasto.data.scanning.scan import scan_folder
from impasto.demo.recipe import PICTURES
from impasto.errors import ImpastoError, RunError, StorageError
from impasto.temporary_names import partial_files_in, partial_name

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links and permissions")
LONG = "長" * 79  # with .webp 242 bytes of the 255 that a name may have


def folders_of(folder, metadata=None):
    return DatasetFolders((folder,), folder / ".impasto" / "annotations", metadata)


def sha(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "pictures"
    (target / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c", LONG):
        (target / f"{name}.txt").write_bytes(f"mine of {name[:5]}\r\n".encode())
    return target


def write(folder, text="new", command="tag", names=("a", "b", "sub/c", LONG, "fresh")):
    with Journal(folders_of(folder), command) as journal:
        for name in names:
            path = folder / f"{name}.txt"
            journal.write(path, f"{text} {name[:5]}", f"0:{name}.webp")


def words_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.txt"))
    }


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_folder_that_was_moved_or_copied_is_restored(folder, tmp_path, move):
    before = words_of(folder)
    write(folder)
    other = tmp_path / "elsewhere" / "moved"
    other.parent.mkdir()
    move(folder, other)
    assert undo(folders_of(other)).restored == 5
    assert words_of(other) == before
    if folder.exists():  # a copy has a separate journal
        assert undo(folders_of(folder)).restored == 5
        assert words_of(folder) == before


def test_a_hand_edit_is_kept_until_it_is_asked_for(folder):
    before = words_of(folder)
    write(folder)
    (folder / "a.txt").write_text("edited", encoding="utf-8")
    (folder / "b.txt").unlink()
    for _ in range(2):  # repeatedly: the journal stays
        undone = undo(folders_of(folder))
        assert undone.restored == 3
        assert [(p.name, why) for p, why in undone.unchanged] == [
            ("a.txt", "it was changed since"),
            ("b.txt", "it no longer exists"),
        ]
        assert (folder / "a.txt").read_text(encoding="utf-8") == "edited"
        assert not (folder / "fresh.txt").exists()
    assert undo(folders_of(folder), force=True).unchanged == ()
    assert words_of(folder) == before
    with pytest.raises(RunError, match="nothing to undo"):
        undo(folders_of(folder), force=True)


def test_keep_gives_up_what_was_changed_and_the_change_before_is_next(folder):
    before = words_of(folder)
    write(folder, "first", names=("a", "b"))
    write(folder, "second", names=("b",))
    (folder / "b.txt").write_text("edited", encoding="utf-8")
    assert undo(folders_of(folder), keep=True).restored == 0
    assert (folder / "b.txt").read_text(encoding="utf-8") == "edited"
    undone = undo(folders_of(folder))
    assert [p.name for p, _ in undone.unchanged] == ["b.txt"]
    assert words_of(folder)["a.txt"] == before["a.txt"]


def test_one_change_at_a_time(folder):
    before = words_of(folder)
    states = [before]
    for text in ("first", "second", "third"):
        write(folder, text)
        states.append(words_of(folder))
    for state in reversed(states[:-1]):
        undo(folders_of(folder))
        assert words_of(folder) == state


def test_a_hand_edit_between_two_halves_of_a_command_comes_back(folder):
    """An interrupted command is continued and rewrites a file that was edited by hand meanwhile."""
    with pytest.raises(ZeroDivisionError), Journal(folders_of(folder), "tag") as journal:
        journal.write(folder / "a.txt", "machine", "0:a.webp")
        raise ZeroDivisionError
    (folder / "a.txt").write_text("by hand", encoding="utf-8")
    with Journal(folders_of(folder), "tag") as journal:
        assert journal.done == {"0:a.webp"}
        journal.write(folder / "a.txt", "machine again", "0:a.webp")
    undone = undo(folders_of(folder))
    assert [p.name for p, _ in undone.unchanged] == ["a.txt"]
    assert (folder / "a.txt").read_text(encoding="utf-8") == "by hand"
    undo(folders_of(folder), force=True)
    assert (folder / "a.txt").read_bytes() == b"mine of a\r\n"


def test_an_interrupted_command_goes_on_but_for_what_was_taken_away(folder):
    with pytest.raises(ZeroDivisionError), Journal(folders_of(folder), "tag") as journal:
        for name in ("a", "b", "sub/c"):
            journal.write(folder / f"{name}.txt", "new", f"0:{name}.webp")
        journal.finish("0:nothing-to-say.webp")
        raise ZeroDivisionError
    (path,) = journals_in(folders_of(folder).journals)
    with path.open("a", encoding="ascii") as file:
        file.write('{"root": 0, "fi')  # truncated by the crash
    (folder / "b.txt").unlink()
    with Journal(folders_of(folder), "tag") as journal:
        assert journal.done == {"0:a.webp", "0:sub/c.webp", "0:nothing-to-say.webp"}
        journal.write(folder / "b.txt", "new", "0:b.webp")
    assert len(journals_in(folders_of(folder).journals)) == 1
    assert read_notes(path).damaged == []
    with Journal(folders_of(folder), "tag") as journal:
        assert journal.done == set()  # that command was completed


def test_a_command_taken_back_in_part_is_not_continued(folder):
    with pytest.raises(ZeroDivisionError), Journal(folders_of(folder), "tag") as journal:
        journal.write(folder / "a.txt", "new", "0:a.webp")
        journal.write(folder / "b.txt", "new", "0:b.webp")
        raise ZeroDivisionError
    (folder / "a.txt").write_text("edited", encoding="utf-8")
    undo(folders_of(folder))
    with Journal(folders_of(folder), "tag") as journal:
        assert journal.done == set()


def test_a_command_that_changed_nothing_leaves_no_notes(folder):
    write(folder)
    with Journal(folders_of(folder), "clean") as journal:
        journal.write(folder / "a.txt", "new a", "0:a.webp")
        journal.finish("0:b.webp")
    assert len(journals_in(folders_of(folder).journals)) == 1


@POSIX
def test_a_fault_half_way_costs_nothing(folder):
    """If a folder cannot be written, the others are restored, the journal stays, and undo
    continues."""
    before = words_of(folder)
    write(folder)
    (folder / "b.txt").unlink()
    (folder / "b.txt").mkdir()
    shutil.rmtree(folder / "sub")
    (folder / "sub").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="1 of 5 files could not be restored") as caught:
        undo(folders_of(folder), force=True)
    assert "Run undo again" in str(caught.value)
    assert (folder / "a.txt").read_bytes() == before["a.txt"]
    (folder / "b.txt").rmdir()
    (folder / "sub").unlink()
    assert undo(folders_of(folder), force=True).unchanged == ()
    assert words_of(folder) == before


@POSIX
def test_permissions_and_links_survive(folder):
    (folder / "a.txt").chmod(0o600)
    (folder / "link.txt").symlink_to("sub/c.txt")
    before = words_of(folder)
    write(folder, names=("a", "link"))
    assert (folder / "sub" / "c.txt").read_text(encoding="utf-8") == "new link\n"
    for _ in range(2):
        assert (folder / "a.txt").stat().st_mode & 0o777 == 0o600
        assert (folder / "link.txt").is_symlink()
        if words_of(folder) != before:
            undo(folders_of(folder))
    assert words_of(folder) == before


@POSIX
def test_nothing_is_written_through_a_link_that_leads_out(folder, tmp_path):
    secret = tmp_path / "profile"
    secret.write_text("own", encoding="utf-8")
    (folder / "out.txt").symlink_to(secret)
    with pytest.raises(RunError, match="outside of the dataset"):
        write(folder, names=("out",))
    assert secret.read_text(encoding="utf-8") == "own"


def hostile_notes(spots, contents, *, old):
    """Return a stranger's journal in a dataset: it restores, creates and deletes files
    elsewhere."""
    if old:
        lines = [{"begin": "tag", "at": 1}]
        for spot, (before, after) in zip(spots, contents, strict=True):
            text = None if before is None else base64.b64encode(before).decode()
            lines.append({"path": str(spot), "before": text, "after": sha(after)})
        return "".join(json.dumps(line) + "\n" for line in [*lines, {"end": True}])
    lines = [{"format": 2, "begin": "tag", "at": 1}]
    for spot, (before, after) in zip(spots, contents, strict=True):
        line = {"root": 0, "file": str(spot), "after": sha(after), "was": None}
        if before is not None:
            line |= {"was": sha(before), "before": base64.b64encode(before).decode()}
        lines.append(line)
    return "".join(map(with_checksum, lines))


@POSIX
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "lead", ["absolute", "../home", "sub/../../home", "door", "..\\home", "hidden", "image"]
)
def test_strange_notes_touch_nothing_outside(folder, tmp_path, force, old, lead):
    home = tmp_path / "home"
    home.mkdir()
    (folder / "door").symlink_to(home)
    contents = {"rc": b"# own\n", "precious.txt": b"precious\n"}
    for target in (home, folder):
        for name, content in contents.items():
            (target / name).write_bytes(content)
    (folder / ".bashrc").write_bytes(b"# own\n")
    (folder / "a.png").write_bytes(b"# own\n")
    spots = {
        "absolute": [home / "rc", home / "new.desktop", home / "precious.txt"],
        "hidden": [folder / ".bashrc" if old else ".bashrc"],
        "image": [folder / "a.png" if old else "a.png"],
    }.get(lead, [f"{lead}/rc", f"{lead}/new.desktop", f"{lead}/precious.txt"])
    if old and lead not in ("absolute", "hidden", "image"):
        spots = [folder / spot for spot in spots]
    changes = [(b"curl evil", b"# own\n"), (b"[Desktop]", b"x"), (None, b"precious\n")]
    notes = hostile_notes(spots, changes[: len(spots)], old=old)
    folders = folders_of(folder)
    folders.journals.mkdir(parents=True)
    name = "29990101-000000.jsonl" if old else "edit-000001.jsonl"
    (folders.journals / name).write_text(notes, encoding="utf-8")
    before = {p: p.read_bytes() for p in [*home.iterdir(), folder / ".bashrc", folder / "a.png"]}
    if lead == "door" and not old:  # a link that may have been created since
        assert undo(folders, force=force).restored == 0
    else:
        with pytest.raises(RunError, match="Nothing was changed"):
            undo(folders, force=force)
    assert {p: p.read_bytes() for p in before} == before
    assert sorted(home.iterdir()) == [home / "precious.txt", home / "rc"]
    assert (folders.journals / name).is_file()  # no backup was consumed either


def test_notes_of_an_earlier_version_are_taken_back(folder):
    """Earlier journals have absolute paths and `same` for metadata; some come from a failed
    undo."""
    before = words_of(folder)
    folders = folders_of(folder)
    folders.journals.mkdir(parents=True)
    lines = [{"begin": "tag missing", "at": 1}]
    for name, old in before.items():
        (folder / name).write_bytes(b"new\n")
        text = base64.b64encode(old).decode()
        lines.append({"path": str(folder / name), "before": text, "after": sha(b"new\n")})
    meta = folder / "meta.json"
    lines += [
        {"path": str(meta), "before": None},
        {"path": str(meta), "before": "same", "after": sha(b"{}")},
        {"picture": "x"},
        {"end": True},
    ]
    meta.write_bytes(b"{}")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folders.journals / "20250101-120000-2.partly-undone").write_text(text, encoding="utf-8")
    (folder / "a.txt").write_text("edited", encoding="utf-8")
    assert [p.name for p, _ in undo(folders).unchanged] == ["a.txt"]
    assert not meta.exists()
    assert undo(folders, force=True).unchanged == ()
    assert words_of(folder) == before
    assert journals_in(folders.journals) == []


def test_old_notes_of_a_folder_that_moved_are_kept(folder, tmp_path):
    folders = folders_of(folder)
    folders.journals.mkdir(parents=True)
    file = folders.journals / "20250101-120000.jsonl"
    line = {"path": str(tmp_path / "gone" / "a.txt"), "before": None, "after": "x"}
    file.write_text('{"begin": "tag", "at": 1}\n' + json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match="move it back"):
        undo(folders)
    assert file.is_file()


def test_several_data_sets_with_one_folder_of_notes(tmp_path):
    """With one --cache-dir for all, each dataset undoes its own changes."""
    places = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name, encoding="utf-8")
        places.append(DatasetFolders((tmp_path / name,), tmp_path / "cache" / "annotations"))
        with Journal(places[-1], "tag") as journal:
            journal.write(tmp_path / name / "a.txt", f"new {name}", "0:a.webp")
    assert undo(places[0]).restored == 1
    assert (tmp_path / "one" / "a.txt").read_text(encoding="utf-8") == "one"
    assert (tmp_path / "two" / "a.txt").read_text(encoding="utf-8") == "new two\n"
    (tmp_path / "two").rename(tmp_path / "moved")
    moved = DatasetFolders((tmp_path / "moved",), tmp_path / "cache" / "annotations")
    assert undo(moved).restored == 1
    assert (tmp_path / "moved" / "a.txt").read_text(encoding="utf-8") == "two"


def test_a_command_of_another_dataset_with_the_same_notes_is_not_continued(tmp_path):
    """Another dataset's images have the same names, and would be skipped as completed."""
    one, two = (
        DatasetFolders((tmp_path / name,), tmp_path / "cache" / "annotations") for name in "ab"
    )
    for folders in (one, two):
        folders.roots[0].mkdir()
        with pytest.raises(ZeroDivisionError), Journal(folders, "tag") as journal:
            assert journal.done == set()
            journal.write(folders.roots[0] / "x.txt", "new", "0:x.webp")
            raise ZeroDivisionError
    with Journal(one, "tag") as journal:  # though the other's is newer
        assert journal.done == {"0:x.webp"}
    shutil.rmtree(tmp_path / "b")  # for undo, the dataset may have been moved
    with Journal(one, "tag") as journal:
        assert journal.done == set()


def test_a_command_that_is_continued_with_nothing_left_ends(folder):
    with pytest.raises(ZeroDivisionError), Journal(folders_of(folder), "tag") as journal:
        journal.write(folder / "a.txt", "new", "0:a.webp")
        raise ZeroDivisionError
    assert done_before(folders_of(folder), "tag") == {"0:a.webp"}
    assert done_before(folders_of(folder), "edit") == set()
    with Journal(folders_of(folder), "tag") as journal:
        assert journal.done == {"0:a.webp"}
    assert done_before(folders_of(folder), "tag") == set()
    with Journal(folders_of(folder), "tag") as journal:
        assert journal.done == set()
    assert undo(folders_of(folder)).restored == 1


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="this system cannot simulate a full disk"
)
def test_notes_on_a_full_disk_are_one_sentence(folder, monkeypatch):
    with pytest.raises(StorageError, match="notes for undo cannot be written"):  # noqa: SIM117
        with Journal(folders_of(folder), "tag") as journal:
            journal.write(folder / "a.txt", "new", "0:a.webp")
            journal._file.close()
            journal._file = open("/dev/full", "a", encoding="ascii")  # noqa: SIM115, PTH123
            journal.write(folder / "b.txt", "new", "0:b.webp")
    assert words_of(folder)["b.txt"] == b"mine of b\r\n"


@pytest.mark.parametrize("by_hand", [True, False])
def test_what_a_later_change_wrote_is_never_forced_back(folder, by_hand):
    """A file stays if it was changed by hand since, or is in the middle of that change."""
    write(folder, "first", names=("a",))
    with Journal(folders_of(folder), "later") as journal:
        for text in ("second", "third"):
            journal.write(folder / "a.txt", text, "0:a.webp")
    (folder / "a.txt").write_text("by hand" if by_hand else "second\n", encoding="utf-8")
    now = (folder / "a.txt").read_bytes()
    undone = undo(folders_of(folder), "1", force=True)
    assert undone.restored == 0
    assert "edit 2 changed it later, and it was changed since" in undone.unchanged[0][1]
    assert (folder / "a.txt").read_bytes() == now


def test_two_commands_at_once(folder):
    with (
        Journal(folders_of(folder), "tag"),
        pytest.raises(RunError, match="Another command is changing captions"),
        journals.alone(folders_of(folder)),
    ):
        pass
    program = (
        "import sys, os\nfrom pathlib import Path\nfrom impasto.annotate.journal import Journal\n"
        "from impasto.annotate.dataset_folders import DatasetFolders\nf = Path(sys.argv[1])\n"
        "with Journal(DatasetFolders((f,), f / '.impasto' / 'annotations'), 'tag') as j:\n"
        "    j.write(f / 'a.txt', 'new', '0:a.webp')\n    os._exit(9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    assert killed.returncode == 9
    assert undo(folders_of(folder)).restored == 1  # a dead process holds no lock


def test_damaged_notes_are_named_and_not_used_up(folder):
    before = words_of(folder)
    write(folder)
    (file,) = journals_in(folders_of(folder).journals)
    text = file.read_text(encoding="ascii")
    first = base64.b64encode(before["a.txt"]).decode()
    file.write_text(text.replace(first, first.replace("b", "c", 1)), encoding="ascii")
    after = words_of(folder)
    with pytest.raises(RunError, match=r"are damaged \(line 2\)"):
        undo(folders_of(folder))
    assert words_of(folder) == after
    undo(folders_of(folder), force=True)
    assert words_of(folder) == {**before, "a.txt": after["a.txt"]}


def mutated(content, rng):
    """Return a file's bytes with a few kinds of damage that occur in practice."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 9)))
        elif kind == 1:
            del data[at : at + rng.randint(1, 60)]
        elif kind == 2 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            data[at:at] = b"[" * 3_000
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            values = [b"null", b"1e999", b"9" * 5000, b'"\\ud800"', b"{}", b"[]", b"-1", b"true"]
            data = bytearray(bytes(data).replace(b'"', rng.choice(values), rng.randint(1, 3)))
        else:
            lines = bytes(data).split(b"\n")
            rng.shuffle(lines)
            data = bytearray(b"\n".join(lines))
    return bytes(data)


@pytest.mark.parametrize("old", [False, True])
def test_whatever_notes_hold_only_our_errors_come(folder, tmp_path, old):
    """1,000 mutations each: an error or success, changing only the dataset's own files."""
    outside = tmp_path / "outside.txt"
    outside.write_text("own", encoding="utf-8")
    folders = folders_of(folder)
    if old:
        folders.journals.mkdir(parents=True)
        spots = [folder / "a.txt", folder / "b.txt"]
        file = folders.journals / "20250101-120000.jsonl"
        text = hostile_notes(spots, [(b"x", b"y"), (None, b"z")], old=True)
        file.write_text(text, encoding="utf-8")
    else:
        write(folder, names=("a", "b", "fresh"))
        (file,) = journals_in(folders.journals)
    content, rng = file.read_bytes(), random.Random(11)
    for number in range(1000):
        file.write_bytes(mutated(content, rng))
        with contextlib.suppress(ImpastoError):
            if number % 10 == 0:
                with Journal(folders, "tag"):
                    pass
            undo(folders, force=number % 2 == 0, keep=number % 3 == 0)
    assert outside.read_text(encoding="utf-8") == "own"


@pytest.mark.parametrize("name", ["fifo", "link", "folder", "other"])
@POSIX
def test_what_is_no_journal_is_passed_by(folder, tmp_path, name):
    folders = folders_of(folder)
    folders.journals.mkdir(parents=True)
    odd = folders.journals / "edit-000009.jsonl"
    own = tmp_path / "own.jsonl"
    own.write_text("own", encoding="utf-8")
    if name == "fifo":
        os.mkfifo(odd)
    elif name == "link":
        odd.symlink_to(own)
    elif name == "folder":
        odd.mkdir()
    else:
        (folders.journals / "notes.jsonl").write_text("x", encoding="utf-8")
    write(folder)
    assert undo(folders).restored == 5
    assert own.read_text(encoding="utf-8") == "own"


def test_a_folder_of_notes_stands_for_its_data_set(folder):
    before = words_of(folder)
    for notes in (folder / ".impasto" / "annotations", folder / "annotations"):
        with Journal(notes, "tag") as journal:
            journal.write(folder / "a.txt", "new", "a.webp")
        assert [path.name for path in notes.glob("*.jsonl")] == ["edit-000001.jsonl"]
        assert undo(notes).restored == 1
        assert words_of(folder) == before


@pytest.mark.parametrize("noted", [None, "", "x", "9" * 40, "-3"])
def test_the_number_of_a_change_that_was_taken_back_is_not_given_again(folder, noted):
    """Unless its journal is gone: then it gets a number that no journal has."""
    notes = folder / ".impasto" / "annotations"
    names = []
    for words in ("one", "two", "three"):
        with Journal(notes, words) as journal:
            journal.write(folder / "a.txt", words, "a.webp")
        names.append(journal.name)
        if words == "two":
            assert undo(notes).restored == 1
            if noted is not None:
                (notes / journals.LAST_NUMBER).write_text(noted, encoding="ascii")
    assert names == ["1", "2", "3" if noted is None else "2"]


def test_spots_and_endings():
    for below in ("a.txt", "sub/a.caption", "meta.json", "長.txt", "a b.TXT"):
        assert why_not_a_caption_file(below) == "", below
    odd = ("", ".", "..", "/a.txt", "C:/a.txt", "a/../b.txt", "a//b", ".x/a.txt", "a.PNG", "a\0")
    for below in odd:
        assert why_not_a_caption_file(below), below
    assert [normalize_ending(text) for text in ("txt", ".txt", " .Tags ")] == [
        ".txt",
        ".txt",
        ".Tags",
    ]
    for text in ("", ".", ".png", "webp", "a/b", "json", ".."):
        with pytest.raises(ValueError):  # noqa: PT011 - the words differ
            normalize_ending(text)
    with pytest.raises(RunError):
        DatasetFolders((), None).file_of(DatasetFile(0, "a.txt"))


def test_one_rule_of_what_has_words(tmp_path):
    """Captions of any kind count, in any spelling of the name, and bytes that are not UTF-8."""
    pictures = sorted(PICTURES.glob("*.webp"))[:8]
    for path in pictures:
        shutil.copy(path, tmp_path)
    stems = [path.stem for path in pictures]
    (tmp_path / f"{stems[0]}.txt").write_text("tags", encoding="utf-8")
    (tmp_path / f"{stems[1]}.caption").write_text("a caption", encoding="utf-8")
    (tmp_path / f"{stems[2]}.TXT").write_text("tags", encoding="utf-8")
    (tmp_path / f"{stems[3]}.own").write_text("others", encoding="utf-8")
    (tmp_path / f"{stems[4]}.txt").write_bytes(b"\xef\xbb\xbf \r\n")
    (tmp_path / f"{stems[5]}.caption").write_text("", encoding="utf-8")
    records = scan_folder(tmp_path).records
    plain, own = SidecarLookup(), SidecarLookup(".own")
    assert [plain.has_caption(r) for r in records] == [True] * 3 + [False] * 5
    assert [own.has_caption(r) for r in records] == [True] * 4 + [False] * 4
    assert plain.file(tmp_path / f"{stems[2]}.webp", ".txt").name == f"{stems[2]}.TXT"


@pytest.mark.parametrize("after", ["another change", "its undo"])
def test_what_a_killed_command_was_writing_goes_with_the_next_one(folder, after):
    """Temporary files of a running process stay."""
    write(folder)
    program = (
        "import sys; from pathlib import Path; from impasto.temporary_names import partial_name; "
        "partial_name(Path(sys.argv[1])).write_text('half')"
    )
    subprocess.run([sys.executable, "-c", program, str(folder / "a.txt")], check=True)
    (left,) = partial_files_in(folder)
    running = partial_name(folder / "b.txt")
    running.write_text("half", encoding="utf-8")
    if after == "its undo":
        undo(folders_of(folder))
    else:
        write(folder, "newer", "tag again")
    assert not left.exists()
    assert running.exists()
