"""Files are written while the next tensors are read: memory in between, and failures.

If this failed, a model would be in memory twice, or a file would lack some of its tensors.
"""

import errno
import gc
import os
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import leave_out_of_collections

from impasto.checkpoints import pieces, writing
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.writing import write_ckpt, write_safetensors
from impasto.errors import ModelError, StorageError


def lazily(tensors):
    return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize(("waiting", "ahead"), [(4000, 1), (8000, 2), (12_000, 3)])
def test_writing_reads_so_many_bytes_ahead(tmp_path, monkeypatch, waiting, ahead):
    """With tensors of 4000 bytes: if more were alive, a model would be in memory twice.

    The first is written only when that many are read, so they must be read while it waits; at most
    one more is alive then, the one being read.
    """
    monkeypatch.setattr(pieces, "_TOGETHER", 1)
    monkeypatch.setattr(pieces, "_WAITING", waiting)
    memory, found, are_read = [], [], threading.Event()
    leave_out_of_collections()  # so that each check below sees only new entries

    def make():
        gc.collect()
        values = np.ones(1000, np.float32)  # whose memory the tensor keeps alive
        memory.append(weakref.ref(values))
        found.append(sum(values() is not None for values in memory))
        if len(found) == ahead:
            are_read.set()
        return torch.from_numpy(values)

    real = pieces.HashedAndWritten._write

    def held(self, tensors):
        assert are_read.wait(60)
        real(self, tensors)

    monkeypatch.setattr(pieces.HashedAndWritten, "_write", held)
    many = {f"t{n}": LazyTensor((1000,), torch.float32, make) for n in range(20)}
    write_safetensors(tmp_path / "x.safetensors", many, {})
    assert found[ahead - 1] == ahead
    assert max(found) <= ahead + 1


@pytest.mark.parametrize("after", [1.0, float("nan")])
@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("failing", ["_hash", "_write"])
def test_a_failure_behind_the_reading_ends_the_writing(
    tmp_path, monkeypatch, failing, batch, after
):
    """Hashing and writing run in separate threads, whose errors must not be lost.

    The first failure is reported, even if a later tensor cannot be written either.
    """
    monkeypatch.setattr(pieces, "_TOGETHER", 1)
    monkeypatch.setattr(pieces, "_WAITING", 8)
    real = getattr(pieces.HashedAndWritten, failing)

    def full(self, tensors):
        if tensors[0].name == f"t{batch}":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, tensors)

    monkeypatch.setattr(pieces.HashedAndWritten, failing, full)
    many = {f"t{n}": torch.full((2,), after if n > batch + 2 else 1.0) for n in range(8)}
    with pytest.raises(StorageError, match="disk is full"):
        write_safetensors(tmp_path / "x", lazily(many), {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", ["_hash", "_write"])
def test_a_failure_of_a_last_tensor_without_elements_is_told(tmp_path, monkeypatch, failing):
    """A tensor without bytes must be waited for too: its hash or its error would be lost."""
    monkeypatch.setattr(pieces, "_TOGETHER", 1)
    hashes = {}
    tensors = lazily({"a": torch.ones(4), "z": torch.zeros(0, 3)})
    write_safetensors(tmp_path / "x", tensors, {}, hashes=hashes)
    assert hashes.keys() == tensors.keys()
    real = getattr(pieces.HashedAndWritten, failing)

    def full(self, tensors):
        if tensors[0].name == "z":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, tensors)

    monkeypatch.setattr(pieces.HashedAndWritten, failing, full)
    with pytest.raises(StorageError, match="disk is full"):
        write_safetensors(tmp_path / "y", tensors, {})
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("write", [write_safetensors, write_ckpt])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_values_that_cannot_be_written_leave_the_old_file(tmp_path, write, value):
    file = tmp_path / "x"
    file.write_text("old", encoding="utf-8")
    broken = {"good": LazyTensor.of(torch.ones(3)), "w": LazyTensor.of(torch.tensor([1.0, value]))}
    with pytest.raises(ModelError, match=r"w has values that are NaN, infinite, or too large"):
        write(file, {n: t.cast(torch.float16) for n, t in broken.items()}, {})
    assert os.listdir(tmp_path) == ["x"]
    assert file.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("write", [write_safetensors, write_ckpt])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, write):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "_write_values", full)
    with pytest.raises(StorageError, match="disk is full"):
        write(tmp_path / "x", lazily({"w": torch.ones(3)}), {})
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")
def test_a_ckpt_that_fills_the_disk_leaves_nothing_mapped(tmp_path, monkeypatch):
    """The safetensors file that it is made from fits; Windows cannot remove a mapped file."""
    import resource

    tensors = lazily({"w": torch.ones(1_000_000)})
    write_safetensors(tmp_path / "size", tensors, {})
    size = (tmp_path / "size").stat().st_size
    (tmp_path / "size").unlink()
    mapped = []

    def unlink(path, **options):
        mapped.append(str(path) in Path("/proc/self/maps").read_text(encoding="utf-8"))
        return real(path, **options)

    real = Path.unlink
    monkeypatch.setattr(Path, "unlink", unlink)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(StorageError, match="disk is full"):
            write_ckpt(tmp_path / "x.ckpt", tensors, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert mapped == [False, False]
    assert os.listdir(tmp_path) == []


def test_a_third_holds_no_more_memory_than_its_own():
    """A slice holds only its own memory, or waiting bytes would be three times those counted."""
    fused = torch.arange(12.0).reshape(6, 2)
    thirds = [LazyTensor.of(fused).third(number) for number in range(3)]
    found = [third.read() for third in thirds]
    assert torch.equal(torch.cat(found), fused)
    sizes = [tensor.untyped_storage().nbytes() for tensor in found]
    assert sizes == [third.size_bytes for third in thirds]
    thirds[1].read_as(torch.float32).zero_()
    assert torch.equal(torch.cat(found), fused)
    assert fused.count_nonzero() == 11
