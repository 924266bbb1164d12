"""Tensors read ahead equal those read on demand, errors included."""

import os
import threading

import pytest
import torch
from safetensors.torch import save_file

from impasto import ram
from impasto.checkpoints import reading_ahead, stored_bytes
from impasto.checkpoints import tensors as tensors_module
from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.reading_ahead import ReadAhead
from impasto.checkpoints.stored_bytes import StoredBytes
from impasto.checkpoints.tensors import LazyTensor
from impasto.config.run import RunConfig
from impasto.errors import ModelError
from impasto.models.networks.loading import load_base_model
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.reading.opening_ahead import open_ahead
from impasto.training import trainer

STORED = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e5m2, torch.uint8, torch.int64)


@pytest.fixture
def values():
    generator = torch.Generator().manual_seed(0)
    return {
        f"{number:02}": (torch.randn(side, 7, generator=generator) * 9).to(dtype)
        for number, (side, dtype) in enumerate((s, d) for d in STORED for s in (1, 5, 0, 30))
    }


@pytest.fixture
def file(values, tmp_path):
    save_file(values, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.view(-1).view(torch.uint8).tolist()


def reads_ahead():
    return [thread for thread in threading.enumerate() if thread.name == "reading ahead"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batch", [1, 100, 1 << 20])
@pytest.mark.parametrize("waits", [True, False])
def test_what_was_read_ahead_is_what_is_read_later(values, file, dtype, batch, waits, monkeypatch):
    """Bit for bit, in each dtype, whichever thread is faster."""
    monkeypatch.setattr(reading_ahead, "_BATCH", batch)
    monkeypatch.setattr(tensors_module, "_AT_ONCE", 16)
    tensors = open_tensor_file(file).tensors | {"given": LazyTensor.of(torch.ones(3))}
    ahead = ReadAhead(tensors, dtype)
    assert list(ahead.tensors) == list(tensors)
    if waits:
        ahead._thread.join()
    for name, lazy in ahead.tensors.items():
        assert bits(lazy.read_as(dtype)) == bits(tensors[name].read_as(dtype)), name
        assert bits(lazy.read_as(torch.float32)) == bits(tensors[name].read_as(torch.float32)), name
        assert bits(lazy.read()) == bits(values.get(name, torch.ones(3))), name
    ahead.close()
    assert not reads_ahead()


def test_what_is_asked_for_as_its_batch_begins_is_not_left_out_of_it(values, file, monkeypatch):
    """The thread may start a batch at any moment while another thread requests a tensor of it."""
    with monkeypatch.context() as held:
        held.setattr(threading.Thread, "start", lambda thread: None)
        ahead = ReadAhead(open_tensor_file(file).tensors, torch.float32)
    (batch,) = ahead._batches
    cancel = batch.read.cancel

    def just_too_late():
        monkeypatch.setattr(batch.read, "cancel", cancel)
        ahead._read()
        return cancel()

    monkeypatch.setattr(batch.read, "cancel", just_too_late)
    name = sorted(batch.memories)[1]
    assert bits(ahead.tensors[name].read_as(torch.float32)) == bits(values[name].float())
    for other in sorted(batch.memories):
        assert bits(ahead.tensors[other].read_as(torch.float32)) == bits(values[other].float())


def test_what_was_read_for_another_type_is_read_again(values, file):
    """Memory settings may still change the dtype."""
    tensors = open_tensor_file(file).tensors
    ahead = ReadAhead(tensors, torch.bfloat16)
    for name, lazy in ahead.tensors.items():
        assert bits(lazy.read_as(torch.float32)) == bits(tensors[name].read_as(torch.float32))
    ahead.close()


def test_each_is_given_once_and_then_let_go(file):
    """Two networks never share memory; tensors that are never requested are freed."""
    ahead = ReadAhead(open_tensor_file(file).tensors, torch.float32)
    first, second = (ahead.tensors["01"].read_as(torch.float32) for _ in range(2))
    assert first.data_ptr() != second.data_ptr()
    ahead.close()
    assert not any(batch.memories for batch in ahead._batches)


def test_a_file_that_changes_meanwhile_is_told_as_usual(values, file):
    """A file replaced before or after it is read ahead is reported as usual."""
    ahead = ReadAhead(open_tensor_file(file).tensors, torch.float32)
    ahead._thread.join()
    os.truncate(file, file.stat().st_size - 8)
    with pytest.raises(ModelError, match="was changed, replaced or removed while it was being"):
        ahead.tensors["01"].read_as(torch.float32)
    ahead.close()
    late = ReadAhead(ahead.tensors, torch.float32)
    with pytest.raises(ModelError, match="was changed, replaced or removed while it was being"):
        late.tensors["01"].read_as(torch.float32)
    late.close()


def test_whatever_goes_wrong_ahead_is_said_by_who_reads_it(file, monkeypatch):
    """The thread reports nothing itself, and leaves no reader waiting."""
    real = StoredBytes.read_into

    def failing(stored, *buffers):
        if threading.current_thread().name == "reading ahead":
            raise MemoryError
        real(stored, *buffers)

    tensors = open_tensor_file(file).tensors
    monkeypatch.setattr(StoredBytes, "read_into", failing)
    ahead = ReadAhead(tensors, torch.float32)
    ahead._thread.join()
    for name, lazy in ahead.tensors.items():
        assert bits(lazy.read_as(torch.float32)) == bits(tensors[name].read_as(torch.float32))
    ahead.close()


def test_nothing_is_read_ahead_without_room(file, monkeypatch):
    """A run's memory is predicted first: until then there must be room to spare."""
    monkeypatch.setattr(ram, "free_bytes", lambda: 1 << 30)
    tensors = open_tensor_file(file).tensors
    ahead = ReadAhead(tensors, torch.float32)
    assert ahead.tensors is tensors
    assert not reads_ahead()
    ahead.close()


@pytest.mark.parametrize("has_preadv", [True, False])
@pytest.mark.parametrize("most", [1, 2, 512])
def test_buffers_are_filled_one_after_another(has_preadv, most, tmp_path, monkeypatch):
    """Buffers are filled many at once or one at a time, and never past the end."""
    monkeypatch.setattr(stored_bytes, "_MOST_BUFFERS", most)
    if not has_preadv:
        monkeypatch.delattr(os, "preadv", raising=False)
    elif not hasattr(os, "preadv"):
        pytest.skip("this system has no preadv")
    (tmp_path / "x").write_bytes(bytes(range(100)))
    stored = StoredBytes(tmp_path / "x", 10, lambda: None)
    buffers = [bytearray(size) for size in (3, 0, 20, 1)]
    stored.read_into(*map(memoryview, buffers))
    assert b"".join(buffers) == bytes(range(10, 34))
    with pytest.raises(ModelError, match="became shorter while it was being read"):
        stored.read_into(*map(memoryview, [bytearray(80), bytearray(30)]))


def test_few_bytes_at_a_time_are_asked_for_again(tmp_path, monkeypatch):
    """Systems may read fewer bytes than requested."""
    real = stored_bytes._read_some
    (tmp_path / "x").write_bytes(bytes(range(100)))
    monkeypatch.setattr(
        stored_bytes, "_read_some", lambda file, at, left: real(file, at, [left[0][:7]])
    )
    buffers = [bytearray(30), bytearray(5), bytearray(40)]
    StoredBytes(tmp_path / "x", 1, lambda: None).read_into(*map(memoryview, buffers))
    assert b"".join(buffers) == bytes(range(1, 76))


def test_a_model_is_opened_ahead_where_it_is_here_and_whole(nano_model, tmp_path):
    """Errors of a model are reported when it is read."""
    opened = open_ahead(nano_model, OpenOptions(), torch.float32)
    unet = open_model(nano_model).components["unet"]
    for name, lazy in opened.current().components["unet"].items():
        assert bits(lazy.read_as(torch.float32)) == bits(unet[name].read_as(torch.float32)), name
    opened.close()
    assert open_ahead(tmp_path / "none", OpenOptions(), torch.float32) is None
    assert open_ahead("someone/something", OpenOptions(), torch.float32) is None
    assert open_ahead("s3://bucket/model.safetensors", OpenOptions(), torch.float32) is None
    assert open_ahead(nano_model, OpenOptions(vae="some/vae"), torch.float32) is None
    (tmp_path / "bad.safetensors").write_bytes(b"no model")
    assert open_ahead(tmp_path / "bad.safetensors", OpenOptions(), torch.float32) is None
    assert not reads_ahead()


def test_a_model_that_is_another_by_now_is_opened_anew(nano_model, ldm_file):
    """A file replaced while memory was predicted is not an error."""
    copy = ldm_file(nano_model)
    opened = open_ahead(copy, OpenOptions(), torch.float32)
    assert opened.current() is opened.contents
    copy.write_bytes(copy.read_bytes())
    assert load_base_model(opened).unet.conv_in.weight.dtype is torch.float32
    copy.unlink()
    with pytest.raises(ModelError):
        load_base_model(opened)
    opened.close()


def test_a_run_that_is_refused_leaves_no_thread(run_values, monkeypatch):
    """No directory is left either: nothing was written before the refusal."""

    def refuse(*_args, **_kwargs):
        raise ModelError("refused")

    monkeypatch.setattr(trainer, "resolve_run", refuse)
    config = RunConfig.model_validate(run_values)
    with pytest.raises(ModelError, match="refused"):
        trainer.train(config)
    assert not reads_ahead()
    assert not config.output_dir.exists()
