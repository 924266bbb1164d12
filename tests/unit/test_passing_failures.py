"""Cached facts are true of the file itself, not of temporary permissions, memory or decoders.

If one of these failed, an image that was unreadable once would be skipped for ever.
"""

import errno
import os

import pytest
from PIL import Image

from impasto.data.caching.wanted_keys import require_read
from impasto.data.folders import formats
from impasto.data.inspecting.likeness import PerceptualHashes
from impasto.data.pixels import opening
from impasto.data.scanning.scan import decode_all, scan_folder
from impasto.data.subsets import Subset
from impasto.errors import DatasetError
from impasto.progress import SilentProgress

PASSING = [
    PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    MemoryError(),
    OSError("out of memory"),
]


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (80, 72)).save(target / f"{name}.png")
    return target


def failing(error, name="a.png"):
    real = Image.open

    def opened(path, *rest, **options):
        if str(path).endswith(name):
            raise error
        return real(path, *rest, **options)

    return opened


def scan(folder):
    index = folder.parent / "index.json"
    return scan_folder(folder, index=index, subset=Subset(root=folder))


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_scan_looks_again_at_what_could_not_be_read(folder, error, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", failing(error))
        assert [item.path.name for item in scan(folder).skipped] == ["a.png"]
        assert [item.path.name for item in scan(folder).skipped] == ["a.png"]
    assert scan(folder).skipped == ()


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_decoding_is_tried_again(folder, error, monkeypatch):
    found, memory = scan(folder), folder.parent / "decoded.json"
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", failing(error))
        assert len(decode_all(found, memory=memory).skipped) == 1
    assert decode_all(found, memory=memory).skipped == ()


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_likeness_is_looked_for_again(folder, error, monkeypatch):
    records = scan(folder).records
    digests = {record.path: f"digest of {record.path.name}" for record in records}
    file = folder.parent / "looks.json"
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", failing(error))
        hashes, faults = PerceptualHashes(file).of(records, digests, SilentProgress())
        assert (len(hashes), len(faults)) == (1, 1)
    hashes, faults = PerceptualHashes(file).of(records, digests, SilentProgress())
    assert (len(hashes), len(faults)) == (2, 0)


def test_what_is_damaged_is_remembered(folder, monkeypatch):
    """Neither damaged nor valid files are opened again."""
    (folder / "a.png").write_bytes(b"no image")
    assert len(scan(folder).skipped) == 1
    monkeypatch.setattr(Image, "open", failing(AssertionError("opened again"), ".png"))
    assert "not an image" in scan(folder).skipped[0].reason


def test_a_decoder_that_is_installed_later_is_used(folder, monkeypatch):
    Image.new("RGB", (8, 8)).save(folder / "c.png")
    (folder / "c.png").rename(folder / "c.heic")
    with monkeypatch.context() as patch:
        patch.setattr(opening, "register_heif", lambda: False)
        assert scan(folder).skipped[0].reason == formats.heif_advice()
    monkeypatch.setattr(opening, "register_heif", lambda: True)
    assert scan(folder).skipped == ()


def test_nothing_usable_for_lack_of_rights_is_no_lasting_verdict(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", failing(PASSING[0], ".png"))
        with pytest.raises(DatasetError, match="Permission denied"):
            scan(folder)
    assert len(scan(folder).records) == 2


def test_what_could_not_be_read_is_told_from_what_is_damaged(folder, monkeypatch):
    """Pruning stops if an image may be needed again, and continues if a file is no image."""
    (folder / "damaged.png").write_bytes(b"no image")
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", failing(PASSING[0]))
        skipped = scan_folder(folder).skipped
    assert [(item.path.name, item.is_unread) for item in skipped] == [
        ("a.png", True),
        ("damaged.png", False),
    ]
    require_read([item for item in skipped if not item.is_unread])
    with pytest.raises(DatasetError, match=r"1 file of the dataset .*a\.png: cannot be read"):
        require_read(skipped)
    require_read(scan_folder(folder).skipped)


def test_a_folder_that_cannot_be_listed_is_no_proof_that_it_is_empty(folder, monkeypatch):
    inner = folder / "inner"
    inner.mkdir()
    listed = os.scandir

    def refusing(path):
        if os.fspath(path) == os.fspath(inner):
            raise PASSING[0]
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DatasetError, match=r"inner: a folder that cannot be read"):
        require_read(scan_folder(folder).skipped)
