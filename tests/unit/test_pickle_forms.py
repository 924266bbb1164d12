"""The pickled files that Impasto writes pass the check that A1111 makes before loading one.

The rules of A1111's `modules/safe.py`, restated: a file that is not a zip holds five pickles, and
each may name only ordered dicts, functions that rebuild tensors, and some storage classes. Newer
zip files of PyTorch have members that it refuses.
"""

import pickletools
import zipfile

import pytest
import torch

from impasto.checkpoints.hypernetwork_writing import write_hypernetwork
from impasto.checkpoints.hypernetworks import HypernetworkContents, Structure
from impasto.checkpoints.pickle_writing import PICKLABLE
from impasto.checkpoints.pickles import is_read_whole
from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.writing import write_ckpt, write_safetensors
from impasto.errors import ModelError
from impasto.models.networks.hypernetwork import Hypernetwork

PICKLES = 5
STORAGES = {
    "FloatStorage", "HalfStorage", "IntStorage", "LongStorage", "DoubleStorage", "ByteStorage",
    "BFloat16Storage",
}  # fmt: skip
ALLOWED = {
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}" for name in STORAGES),
}  # fmt: skip


def names_in(file):
    assert not zipfile.is_zipfile(file)
    with file.open("rb") as opened:
        for _ in range(PICKLES):
            for opcode, argument, _ in pickletools.genops(opened):
                assert opcode.name != "STACK_GLOBAL"  # protocol 2, which every Python reads
                if opcode.name == "GLOBAL":
                    yield argument


@pytest.mark.parametrize("dtype", PICKLABLE, ids=str)
def test_a_checkpoint_names_only_what_passes(tmp_path, dtype):
    tensors = {"a": LazyTensor.of(torch.ones(3, dtype=dtype))}
    write_ckpt(tmp_path / "m.ckpt", tensors, {"format": "pt"})
    assert set(names_in(tmp_path / "m.ckpt")) <= ALLOWED


@pytest.mark.parametrize("dtype", PICKLABLE, ids=str)
def test_marks_without_elements_stand_beside_tensors_of_another_type(tmp_path, dtype):
    """SDXL's `v_pred` and `ztsnr` are such marks; mapped, they have the address of a neighbour."""
    marks = {name: LazyTensor.of(torch.empty(0)) for name in ("v_pred", "ztsnr")}
    tensors = {"a": LazyTensor.of(torch.ones(3, dtype=dtype)), **marks, "z": marks["ztsnr"]}
    write_ckpt(tmp_path / "m.ckpt", tensors, {"format": "pt"})
    assert set(names_in(tmp_path / "m.ckpt")) <= ALLOWED
    found = open_tensor_file(tmp_path / "m.ckpt").tensors
    assert {n: t.read().tolist() for n, t in found.items()} == {
        n: t.read().tolist() for n, t in tensors.items()
    }


@pytest.mark.parametrize("write", [write_ckpt, write_safetensors])
def test_what_no_network_uses_may_be_infinite_and_weights_may_not(tmp_path, write):
    """LDM's buffers of a schedule that ends in pure noise, and OpenCLIP's causal mask, are
    infinite."""
    tensors = {name: LazyTensor.of(torch.tensor([1.0, -torch.inf])) for name in ("mask", "weight")}
    with pytest.raises(ModelError, match="weight has values that are NaN, infinite"):
        write(tmp_path / "m", tensors, {}, unchecked={"mask"})
    write(tmp_path / "m", tensors, {}, unchecked=tensors.keys())
    assert open_tensor_file(tmp_path / "m").tensors["mask"].read().isinf().any()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bool, torch.int8, torch.int16])
def test_other_types_are_refused_before_anything_is_written(tmp_path, dtype):
    tensors = {"a": LazyTensor.of(torch.ones(3).to(dtype))}
    with pytest.raises(ModelError, match="A1111 refuses"):
        write_ckpt(tmp_path / "m.ckpt", tensors, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dialect", ["a1111", "portable", "novelai"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_hypernetwork_names_only_what_passes(tmp_path, dialect, dtype):
    network = Hypernetwork((8, 16), Structure())
    contents = HypernetworkContents(network.halves(), network.structure, "n").cast(dtype)
    write_hypernetwork(contents, tmp_path / "n.pt", dialect)
    assert set(names_in(tmp_path / "n.pt")) <= ALLOWED


def saved_and_repacked(folder, values):
    """A checkpoint, and the same one repacked by a zip program."""
    file, packed = folder / "m.ckpt", folder / "packed.ckpt"
    torch.save({"state_dict": {"a": values, "b": values[:5].clone()}}, file)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    return file, packed


def test_a_file_that_is_compressed_to_fill_the_ram_is_refused(tmp_path):
    file, packed = saved_and_repacked(tmp_path, torch.zeros(1 << 20))
    assert len(open_tensor_file(file).tensors) == 2
    with pytest.raises(ModelError, match=r"packed\.ckpt is refused: 0\.0 MiB would become 4 MiB"):
        open_tensor_file(packed)


def test_a_zip_file_with_compressed_members_is_read_as_numbers(tmp_path):
    """Mapped, its compressed bytes would be read as values."""
    values = torch.arange(10_000, dtype=torch.float32)
    file, packed = saved_and_repacked(tmp_path, values)
    assert packed.stat().st_size < file.stat().st_size
    assert (is_read_whole(file), is_read_whole(packed)) == (False, True)
    tensors = open_tensor_file(packed).tensors
    assert torch.equal(tensors["a"].read(), values)
    assert torch.equal(tensors["b"].read(), values[:5])
