"""Model files of strangers: reading any bytes succeeds or raises Impasto's own error."""

import os
import random

import pytest
import torch
from safetensors.torch import save

from impasto.checkpoints.hypernetworks import read_hypernetwork
from impasto.checkpoints.kinds import kind_of
from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.untrusted import reason_of, untrusted
from impasto.errors import ImpastoError, ModelError
from impasto.models.families import file_layouts

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}
DEEP = 100_000


def half(width):
    return {
        "linear.0.weight": torch.ones(2 * width, width), "linear.0.bias": torch.zeros(2 * width),
        "linear.1.weight": torch.ones(width, 2 * width), "linear.1.bias": torch.zeros(width),
    }  # fmt: skip


def hypernetwork(**changes):
    return {16: (half(16), half(16)), "layer_structure": [1, 2, 1], **changes}


def saved(file, content, *, zipped=True):
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
        b"\x80\x02" + b"(" * DEEP + b"t" * DEEP + b".",
        b"\x80\x02\x8b\xff\xff\xff\x7f",
        b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x00",
        b"\x80\x02h\x05.",
        (8 + 2 * DEEP).to_bytes(8, "little") + b"{" + b"[" * DEEP + b"]" * DEEP + b"}" + bytes(9),
        (2**63).to_bytes(8, "little") + b"{}",
        b"PK\x03\x04" + bytes(200),
    ],
    ids=["lists", "tuples", "long", "bytes", "memo", "json", "huge header", "zip"],
)
def test_deep_and_huge_contents_are_our_errors(tmp_path, content):
    for name in ("m.ckpt", "m.pt", "m.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError):
            open_tensor_file(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda: torch.ones(2).as_strided((2**31,), (0,)), "claims"),
        (lambda: torch.ones(3).to_sparse(), "is a kind of tensor that models do not have"),
        (lambda: torch.ones(2, dtype=torch.complex64), "complex64"),
        (lambda: torch.empty(3, device="meta"), "meta"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_values_are_refused(tmp_path, value, words):
    with pytest.raises(ModelError, match=words):
        open_tensor_file(saved(tmp_path / "m.pt", {"x": value()}))


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_structure": [1.0] * 100_001},
        {"layer_structure": [1, 1e9, 1]},
        {"layer_structure": [1, -2, 1]},
        {"layer_structure": [1, "x", 1]},
        {"layer_structure": 5},
        {"dropout_structure": 5},
        {"dropout_structure": [0] * 7 + [0.5]},
        {"is_layer_norm": torch.ones(2)},
        {"activation_func": torch.ones(2)},
        {10**12: (half(16), half(16))},
        {-1: (half(16), half(16))},
        {0: (half(16), half(16))},
        {16: ({1: torch.ones(2)}, {})},
        {16: (half(16),)},
    ],
    ids=str,
)
def test_odd_hypernetworks_are_refused(tmp_path, changes):
    content = hypernetwork()
    content.update(changes)
    with pytest.raises(ModelError):
        read_hypernetwork(saved(tmp_path / "h.pt", content))


@pytest.mark.parametrize("zipped", [True, False])
def test_mutated_files_never_end_in_another_error(tmp_path, zipped):
    randomness = random.Random(7)
    kinds = [
        saved(tmp_path / "a.pt", {"state_dict": TENSORS}, zipped=zipped).read_bytes(),
        saved(tmp_path / "b.pt", hypernetwork(), zipped=zipped).read_bytes(),
        save(TENSORS, {"format": "pt"}),
    ]
    file = tmp_path / "m.pt"
    for number in range(240):
        content = bytearray(kinds[number % len(kinds)])
        for _ in range(randomness.choice([1, 2, 8])):
            place = randomness.randrange(len(content))
            if randomness.random() < 0.7:
                content[place] ^= 1 << randomness.randrange(8)
            else:
                del content[place : place + randomness.choice([1, 50, 5000])]
            content = content or bytearray(b"x")
        file.write_bytes(content)
        for read in (read_all, read_hypernetwork):
            try:
                read(file)
            except ImpastoError:
                continue


def read_all(file):
    opened = open_tensor_file(file)
    kind_of(opened, file_layouts())
    for tensor in opened.tensors.values():
        if tensor.size_bytes < 1 << 20:
            tensor.read()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a POSIX feature")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="no regular file"):
        open_tensor_file(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="a folder"):
        open_tensor_file(tmp_path)


def test_reasons_are_one_short_line():
    assert reason_of(ValueError("a\nb")) == "ValueError: a"
    assert reason_of(RecursionError()) == "RecursionError"
    assert len(reason_of(ValueError("x" * 10_000))) < 200
    with pytest.raises(ModelError, match=r"m\.ckpt .*MemoryError"), untrusted("m.ckpt"):
        raise MemoryError
    with pytest.raises(ModelError, match="ours"), untrusted("m.ckpt"):
        raise ModelError("ours")
