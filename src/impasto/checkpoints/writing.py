"""Writes files of tensors one tensor at a time, so that saving a model needs no second copy of it.

The safetensors library takes all tensors at once, which for a cast model means a copy of the whole;
its format (github.com/huggingface/safetensors, README "Format") is eight bytes of header length, a
JSON header, and the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import torch
from safetensors.torch import load_file
from torch import Tensor

from impasto import files
from impasto.checkpoints.pickle_writing import require_picklable, save_pickle
from impasto.checkpoints.reading import METADATA_ENTRY
from impasto.checkpoints.tensors import SAFETENSORS_TYPES, LazyTensor, Tensors
from impasto.errors import ModelError
from impasto.parsing import printable
from impasto.progress import Advance

HASH_KEY = "modelspec.hash_sha256"
_NO_HASH = "0x" + "0" * 64
_TYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_TYPES.items()}


def write_safetensors(
    path: Path,
    tensors: Tensors,
    metadata: Mapping[str, str],
    advance: Advance | None = None,
    *,
    finite_only: bool = True,
    hashes: dict[str, str] | None = None,
) -> str:
    """Write a safetensors file durably, and return the SHA-256 of the tensors' bytes.

    Where `metadata` has `modelspec.hash_sha256`, its value is replaced by that hash.

    Args:
        path: Where; replaced if it exists.
        tensors: Read one by one, in the order of the file.
        metadata: Texts for the header.
        advance: Called with the number of bytes written.
        finite_only: Whether values that are not finite are refused.
        hashes: Is filled with `tensor_hash` of each tensor by name; then the hash of all bytes is
            not made, and what is returned is empty, so that each byte is still hashed once.

    Raises:
        ModelError: A value is NaN or infinite, or becomes so in the type asked for.
        StorageError: The disk is full or the folder cannot be written; `path` is as it was.
    """
    with files.replace_file(path) as partial:
        told = advance or (lambda _: None)
        if hashes is None:
            return _write_into(partial, tensors, metadata, told, finite_only=finite_only)
        with partial.open("wb") as file:
            file.write(header_of(tensors, metadata))
            hasher = _HashEach(hashes)
            _write_values(file, tensors, told, hasher, finite_only=finite_only)
        return ""


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 over a tensor's type, shape and bytes: two tensors of one hash are the same."""
    return _tensor_hash(tensor, _bytes_of(tensor))


def write_ckpt(
    path: Path, tensors: Tensors, metadata: Mapping[str, str], advance: Advance | None = None
) -> str:
    """Write a `.ckpt` durably: `state_dict` and the metadata, by torch.save.

    The form is that of `save_pickle`, which A1111 opens. torch.save wants all tensors at once: they
    are written as safetensors first and mapped from there, so memory stays small and the disk needs
    room for both for a moment.

    Args and errors are those of `write_safetensors`; a type of tensor that A1111 refuses in a
    pickled file is a ModelError too.
    """
    require_picklable({name: tensor.dtype for name, tensor in tensors.items()}, path)
    with files.replace_file(path) as partial:
        mapped = files.partial_name(path)
        try:
            digest = _write_into(mapped, tensors, {}, advance or (lambda _: None))
            texts = {**metadata, HASH_KEY: f"0x{digest}"} if HASH_KEY in metadata else metadata
            content = {"state_dict": load_file(mapped), METADATA_ENTRY: _as_text(texts)}
            with partial.open("wb") as file:
                save_pickle(content, file)
            del content  # unmaps the file, which Windows asks for before it is removed
        finally:
            mapped.unlink(missing_ok=True)
    return digest


_HASHED_ASIDE = 1 << 18
"""Bytes of a tensor from which hashing (0.2 ms then) takes longer than telling a thread of it."""


def in_file_order(tensors: Tensors) -> list[str]:
    """Names, widest types first, so that each tensor begins at a multiple of its type's size."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def header_of(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON header, padded with spaces to a multiple of eight bytes."""
    rows: dict[str, object] = {}
    if metadata:
        rows["__metadata__"] = _as_text(metadata)
    begin = 0
    for name in in_file_order(tensors):
        tensor = tensors[name]
        end = begin + tensor.size_bytes
        kind = _TYPE_NAMES[tensor.dtype]
        rows[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _as_text(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata as UTF-8 has it: a title may be a file's name, which may be of any bytes."""
    return {printable(key): printable(text) for key, text in metadata.items()}


def _write_into(
    partial: Path,
    tensors: Tensors,
    metadata: Mapping[str, str],
    advance: Advance,
    *,
    finite_only: bool = True,
) -> str:
    hashed = HASH_KEY in metadata
    texts = {**metadata, HASH_KEY: _NO_HASH} if hashed else metadata
    with partial.open("wb") as file:
        file.write(header_of(tensors, texts))
        whole = _HashAll()
        _write_values(file, tensors, advance, whole, finite_only=finite_only)
        digest = whole.digest.hexdigest()
        if hashed:  # of the same length, so the header keeps its size
            file.seek(0)
            file.write(header_of(tensors, {**metadata, HASH_KEY: f"0x{digest}"}))
    return digest


class _HashAll:
    """One hash over the bytes of all tensors."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def __call__(self, name: str, tensor: Tensor, values: memoryview) -> None:  # noqa: ARG002
        self.digest.update(values)


class _HashEach:
    """A hash for each tensor, with its type and shape."""

    def __init__(self, hashes: dict[str, str]) -> None:
        self._hashes = hashes

    def __call__(self, name: str, tensor: Tensor, values: memoryview) -> None:
        self._hashes[name] = _tensor_hash(tensor, values)


def _tensor_hash(tensor: Tensor, values: memoryview) -> str:
    digest = hashlib.sha256(f"{_TYPE_NAMES[tensor.dtype]}{list(tensor.shape)}".encode())
    digest.update(values)
    return digest.hexdigest()


def _write_values(
    file: IO[bytes],
    tensors: Tensors,
    advance: Advance,
    hasher: Callable[[str, Tensor, memoryview], None],
    *,
    finite_only: bool,
) -> None:
    """Write the tensors; a large one is hashed on another thread while it is written."""
    with ThreadPoolExecutor(1) as pool:
        for name in in_file_order(tensors):
            values = _checked(name, tensors[name], finite_only=finite_only)
            view = _bytes_of(values)
            if len(view) < _HASHED_ASIDE:
                hasher(name, values, view)
                file.write(view)
            else:
                hashing: Future[None] = pool.submit(hasher, name, values, view)
                file.write(view)
                hashing.result()
            advance(len(view))


def _bytes_of(tensor: Tensor) -> memoryview:
    values: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return values


def _checked(name: str, lazy: LazyTensor, *, finite_only: bool) -> Tensor:
    tensor = lazy.read().contiguous()
    if tuple(tensor.shape) != lazy.shape or tensor.dtype != lazy.dtype:
        raise ModelError(f"{name} changed its shape or type while it was being read.")
    if finite_only and not is_finite(tensor):
        raise ModelError(
            f"{name} has values that are NaN, infinite, or too large for {lazy.dtype}; nothing was "
            f"written. Write it as fp32 or bf16, or repair the model."
        )
    return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; NaN is passed on by the minimum and the maximum."""
    if not tensor.dtype.is_floating_point or tensor.numel() == 0:
        return True
    if tensor.dtype.itemsize == 1:  # PyTorch finds no extremes of fp8
        tensor = tensor.to(torch.float32)
    least, greatest = tensor.aminmax()
    return math.isfinite(least) and math.isfinite(greatest)
