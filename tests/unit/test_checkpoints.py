"""Files of tensors: read safely, written as they are read, broken ones explained."""

import os
import pickle
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from impasto.checkpoints import stored_bytes
from impasto.checkpoints import tensors as tensors_module
from impasto.checkpoints.kinds import BASE_MODEL, kind_of
from impasto.checkpoints.modelspec import ModelSpec, read_encoder_layer, read_prediction_type
from impasto.checkpoints.pickles import LightningCallback
from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.writing import HASH_KEY, tensor_hash, write_ckpt, write_safetensors
from impasto.errors import ModelError
from impasto.models.families import file_layouts

LEGACY = {"_use_new_zipfile_serialization": False}


def lazily(tensors):
    return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "half": torch.randn(3, 5, generator=generator).half(),
        "b": torch.randn(7, generator=generator),
        "scalar": torch.tensor(1.0),
        "ids": torch.arange(4),
        "brain": torch.randn(2, 2, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 3),
    }


def test_what_is_written_is_what_safetensors_reads(tensors, tmp_path):
    file = tmp_path / "x.safetensors"
    write_safetensors(file, lazily(tensors), {"format": "pt", "ä": "ö"})
    found = load_file(file)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "ä": "ö"}
    ours = open_tensor_file(file)
    assert all(torch.equal(ours.tensors[n].read(), t) for n, t in tensors.items())


def test_the_hash_in_the_header_is_that_of_the_bytes_after_it(tensors, tmp_path):
    import hashlib

    file = tmp_path / "x.safetensors"
    digest = write_safetensors(file, lazily(tensors), {HASH_KEY: ""})
    content = file.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    assert hashlib.sha256(content[begin:]).hexdigest() == digest
    assert open_tensor_file(file).metadata[HASH_KEY] == f"0x{digest}"


def test_a_ckpt_holds_tensors_and_texts(tensors, tmp_path):
    file = tmp_path / "x.ckpt"
    write_ckpt(file, lazily(tensors), {"a": "b"})
    assert not zipfile.is_zipfile(file)  # A1111's check reads only the first of such members
    content = torch.load(file, weights_only=True)
    assert content["impasto_metadata"] == {"a": "b"}
    assert all(torch.equal(content["state_dict"][n], t) for n, t in tensors.items())
    assert open_tensor_file(file).metadata == {"a": "b"}
    assert os.listdir(tmp_path) == ["x.ckpt"]


@pytest.mark.parametrize("how", ["replaced", "rewritten", "removed", "cut short"])
def test_a_file_that_changes_while_it_is_read_is_noticed(tensors, tmp_path, how):
    file, other = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    save_file(tensors, file)
    opened = open_tensor_file(file)
    opened.tensors["b"].read()
    if how == "replaced":
        save_file(tensors, other)
        other.replace(file)
    elif how == "rewritten":
        os.utime(file, ns=(1, 1))
    elif how == "removed":
        file.unlink()
    else:
        os.truncate(file, 40)
    with pytest.raises(ModelError, match="changed, replaced or removed while it was being read"):
        opened.tensors["half"].read()


class Payload:
    """Would create a file if it were ever executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Nested:
    """Hides a second pickle behind a function that would load it."""

    def __init__(self, path):
        self.inner = pickle.dumps(Payload(path))

    def __reduce__(self):
        return pickle.loads, (self.inner,)


class ByEval:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({str(self.path)!r})",)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("attack", "names"),
    [(Payload, r"(posix|nt)\.mkdir"), (Nested, r"pickle\.loads"), (ByEval, r"builtin(s|__)\.eval")],
)
def test_payloads_are_named_and_never_run(tmp_path, options, protocol, attack, names):
    file, trace = tmp_path / "x.ckpt", tmp_path / "it-ran"
    content = {"state_dict": {"w": torch.ones(2)}, "evil": attack(trace)}
    torch.save(content, file, pickle_protocol=protocol, **options)
    with pytest.raises(ModelError, match=names) as caught:
        open_tensor_file(file)
    assert not trace.exists()
    assert "Nothing in it was run" in str(caught.value)
    with warnings.catch_warnings(action="ignore"):
        torch.load(file, weights_only=False)  # the payload works
    assert trace.exists()


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_what_training_programs_leave_in_files_is_read(tmp_path, monkeypatch, options):
    """Lightning's callbacks, NumPy scalars, counters and SD 1's nested dicts are accepted."""
    import sys
    import types

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    weights = OrderedDict(w=torch.ones(2), p=torch.nn.Parameter(torch.ones(1)))
    content = {
        "state_dict": {"state_dict": weights},
        "global_step": 470000,
        "callbacks": {callback: {"best": np.float64(0.5), "seen": np.float32(1), "n": np.int64(2)}},
    }
    file = tmp_path / "x.ckpt"
    torch.save(content, file, **options)
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    opened = open_tensor_file(file)
    assert opened.counters == {"global_step": 470000}
    assert opened.tensors.keys() == {"w", "p"}
    assert torch.equal(opened.tensors["w"].read(), torch.ones(2))
    assert LightningCallback.__module__.startswith("impasto")


def test_numpy_1_scalars_are_read(tmp_path):
    file = tmp_path / "x.ckpt"
    torch.save({"w": torch.ones(2), "loss": np.float64(0.5)}, file, **LEGACY)
    old = file.read_bytes().replace(
        b"cnumpy._core.multiarray\nscalar", b"cnumpy.core.multiarray\nscalar"
    )
    assert old != file.read_bytes()
    file.write_bytes(old)
    assert open_tensor_file(file).tensors.keys() == {"w"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"GGUF" + bytes(60), "a GGUF file, whose weights are quantized"),
        (b"WXYZ" + bytes(60), "starts with 57 58 59 5a"),
        (b"PK\x03\x04" + bytes(60), "damaged"),
        (b"\x80\x02}q\x00.", "damaged"),
        ((1 << 40).to_bytes(8, "little") + b'{"a": 1}', "damaged or cut short"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "damaged or cut short"),
    ],
)
def test_files_of_other_sorts_are_explained(tmp_path, content, words):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        open_tensor_file(file)


def test_a_header_length_that_looks_like_a_pickle(tmp_path):
    """The length's lowest byte is 0x80, like a pickle's first byte."""
    file = tmp_path / "x.safetensors"
    for padding in range(300):
        save_file({"w": torch.ones(2)}, file, {"padding": "x" * padding})
        if file.read_bytes()[0] == 0x80:
            assert torch.equal(open_tensor_file(file).tensors["w"].read(), torch.ones(2))
            return
    pytest.fail("no such header was made")


def test_a_cut_file_is_explained(tensors, tmp_path):
    file = tmp_path / "x.safetensors"
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ModelError, match="damaged or cut short"):
        open_tensor_file(file)
    ckpt = tmp_path / "x.ckpt"
    torch.save(tensors, ckpt)
    ckpt.write_bytes(ckpt.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged"):
        open_tensor_file(ckpt)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["conditioner.embedders.1.model.x", "model.diffusion_model.label_emb.0.0.weight"], "SDXL"),
        (["lora_unet_down_blocks_0.lora_down.weight"], "LoRA"),
        (["unet.down_blocks.0.attn.to_q.lora_A.weight"], "LoRA"),
        (["model.diffusion_model.joint_blocks.0.x"], "SD 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["emb_params"], "textual-inversion"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a U-Net alone"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "a VAE alone"),
        (["first_stage_model.encoder.conv_in.weight"], "a VAE alone"),
        (["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "U-Net of a Diffusers"),
        (["encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.x"], "VAE of a Diffusers"),
        (["text_model.encoder.layers.0.x"], "text encoder of a Diffusers"),
        (["something"], "no kind"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, names, words):
    file = tmp_path / "x.safetensors"
    save_file({name: torch.ones(1) for name in names}, file)
    kind = kind_of(open_tensor_file(file), file_layouts())
    assert kind is not BASE_MODEL
    assert words in kind.name


def test_a_hypernetwork_is_named(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({768: ({"linear.0.weight": torch.ones(1)},) * 2, "step": 1}, file)
    assert kind_of(open_tensor_file(file), file_layouts()).name == "a hypernetwork"


def test_the_metadata_standard():
    spec = ModelSpec(
        "stable-diffusion-v2-768-v", "v_prediction", "T", "768x768", 2, (0, 999),
        {"unet": "float16"}, {"author": "me"},
    )  # fmt: skip
    texts = spec.metadata("ldm")
    assert texts["modelspec.sai_model_spec"] == "1.0.1"
    assert texts["modelspec.prediction_type"] == "v"
    assert texts["modelspec.timestep_range"] == "0,999"
    assert texts["modelspec.author"] == "me"
    assert texts["modelspec.unet_dtype"] == "float16"
    assert texts["modelspec.date"].endswith("+00:00")
    assert all(isinstance(value, str) for value in texts.values())
    assert read_prediction_type(texts) == ("modelspec.prediction_type", "v_prediction")
    assert read_encoder_layer(texts) == 2
    assert read_prediction_type({}) is None
    assert read_encoder_layer({"modelspec.encoder_layer": "x"}) is None


RANGED = {
    torch.float64: torch.float64,
    torch.float32: torch.float16,
    torch.float16: torch.bfloat16,
    torch.bfloat16: torch.float16,
    torch.float8_e4m3fn: torch.float32,
}
"""Stored dtype -> dtype when read."""


@pytest.mark.parametrize("stored", RANGED)
@pytest.mark.parametrize("piece", [8, 24, 1 << 20])
@pytest.mark.parametrize("at_once", [1, 3, 1 << 15])
def test_a_tensor_read_in_pieces_is_the_whole_one(stored, piece, at_once, tmp_path, monkeypatch):
    """Unchanged, reshaped, in thirds, and cast, with any pieces; rounded as in PyTorch."""
    monkeypatch.setattr(tensors_module, "_PIECE", piece)
    monkeypatch.setattr(tensors_module, "_AT_ONCE", at_once)
    values = torch.linspace(-3, 5, 90).reshape(9, 5, 2).to(stored)
    file, read_as = tmp_path / "x.safetensors", RANGED[stored]
    save_file({"w": values, "none": values[:0]}, file)
    lazy = open_tensor_file(file).tensors["w"]
    wanted = {
        "as it is": (lazy, values),
        "reshaped": (lazy.reshaped((6, 15)), values.reshape(6, 15)),
        "a third": (lazy.third(1), values[3:6]),
        "cast": (lazy.cast(read_as), values.to(read_as)),
        "a third, cast and reshaped": (
            lazy.third(2).cast(read_as).reshaped((30,)), values[6:].to(read_as).reshape(30),
        ),
    }  # fmt: skip
    for name, (read, whole) in wanted.items():
        ranges = read.ranges()
        assert len(ranges) == max(
            1, -(-read.size_bytes // (piece // read.dtype.itemsize * read.dtype.itemsize))
        ), name
        flat = torch.cat([read.elements(*each).view(torch.uint8) for each in ranges])
        assert torch.equal(flat, whole.reshape(-1).view(torch.uint8)), name
        other = read.read_as(torch.float32)
        assert torch.equal(other, whole.float()), name
    assert open_tensor_file(file).tensors["none"].read_as(torch.float32).shape == (0, 5, 2)
    hashes = {}
    write_safetensors(tmp_path / "y.safetensors", {"w": lazy}, {}, hashes=hashes)
    assert hashes == {"w": tensor_hash(values)}
    assert (
        load_file(tmp_path / "y.safetensors")["w"].view(torch.uint8).equal(values.view(torch.uint8))
    )


def test_a_file_that_is_replaced_while_it_is_read_is_noticed(tensors, tmp_path, monkeypatch):
    """A file replaced during reading is an error: half of the bytes could be another model's."""
    file = tmp_path / "x.safetensors"
    write_safetensors(file, lazily(tensors), {})
    opened, real = open_tensor_file(file).tensors, stored_bytes._fill

    def replaced(*given):
        done = real(*given)
        write_safetensors(file, lazily({"b": torch.zeros(7)}), {})
        return done

    monkeypatch.setattr(stored_bytes, "_fill", replaced)
    with pytest.raises(ModelError, match="was changed, replaced or removed while it was being"):
        opened["b"].read()
