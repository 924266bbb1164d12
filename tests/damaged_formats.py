"""Damaged files of the formats that hold tensors and pickles."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import torch
from mutations import damaged_bytes, damaged_json, damaged_tree, json_bytes
from PIL import Image

CANARY = "this-ran"
HEADER_BYTES = 8


def picture(path):
    Image.new("RGB", (64, 64), (200, 30, 60)).save(path)
    return path


def damaged_tensors(rng, whole):
    """Return a safetensors file with damaged header values, header bytes, or bytes anywhere."""
    size = int.from_bytes(whole[:HEADER_BYTES], "little")
    header, body = whole[HEADER_BYTES : HEADER_BYTES + size], whole[HEADER_BYTES + size :]
    how = rng.random()
    if how < 0.4:
        return damaged_bytes(rng, whole)
    header = (
        json_bytes(damaged_tree(rng, json.loads(header)))
        if how < 0.8
        else damaged_json(rng, json.loads(header))
    )
    return len(header).to_bytes(HEADER_BYTES, "little") + header + body


class Evil:
    """Creates a file when it is unpickled by a reader that calls the functions a pickle names."""

    def __init__(self, folder):
        self.path = str(folder / CANARY)

    def __reduce__(self):
        return open, (self.path, "w")


def saved(content, *, zipped):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def damaged_pickle(rng, content, folder):
    """Return a PyTorch file that is damaged, has other content, or is malicious."""
    how, zipped = rng.random(), rng.random() < 0.5
    if how < 0.5:
        return damaged_bytes(rng, saved(content, zipped=zipped))
    if how < 0.65:
        return _with_damaged_members(rng, saved(content, zipped=True))
    if how < 0.75:
        return saved({"state_dict": content, "more": Evil(folder)}, zipped=zipped)
    if how < 0.85:
        return pickle.dumps(Evil(folder), protocol=rng.choice([0, 1, 2, 4]))
    depth = rng.choice([900, 60_000])
    opcodes = [
        b"]" * depth + b"a" * (depth - 1), b"(" * depth, b"}\x94" * depth, b"h\x05", b"N", b"I1\n",
        b"\x8e" + b"\xff" * 8, b"r\xff\xff\xff\x7f", b"cos\nsystem\n(X\x01\0\0\0xtR",
    ]  # fmt: skip
    if how < 0.95:
        return b"\x80\x02" + rng.choice(opcodes) + b"."
    odd = [torch.ones(3), [1], "text", 5, None, {}, {1: 2}, {"a": {"b": torch.ones(2)}},
           {"a": torch.ones(2).to_sparse()}, {"state_dict": 3}, {"state_dict": {"state_dict": {}}},
           {"a": torch.empty(2, device="meta")}, {"a": np.float64(3)},
           {"a": torch.ones(1).expand(10**6)}, {b"x": torch.ones(1), "step": 10**40}]  # fmt: skip
    return saved(rng.choice(odd), zipped=zipped)


def _with_damaged_members(rng, whole):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if rng.random() < 0.1:
                continue
            if rng.random() < 0.5:
                content = damaged_bytes(rng, content)
            new.writestr(rng.choice(["../" + name, name, name, name, name, name]), content)
    return buffer.getvalue()
