"""Writes files of tensors as they are read, so that saving a model needs no second copy of it.

Tensors are read in pieces if possible. While one is read and checked, up to 16 MiB of those before
it wait to be hashed and written, or one larger tensor that has to be read whole. The safetensors
library takes all tensors at once, which for a cast model means a copy of the whole; its format
(github.com/huggingface/safetensors, README "Format") is eight bytes of header length, a JSON
header, and the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors.torch import load_file
from torch import Tensor

from impasto import files, temporary_names
from impasto.checkpoints.pickle_writing import require_picklable, save_pickle
from impasto.checkpoints.pieces import (
    HashAll,
    HashEach,
    HashedAndWritten,
    Piece,
    begun_hash,
    bytes_of,
    hash_none,
)
from impasto.checkpoints.reading import METADATA_ENTRY
from impasto.checkpoints.tensors import (
    TYPE_NAMES,
    LazyTensor,
    TensorChangedError,
    Tensors,
    pieces_of,
)
from impasto.errors import ModelError
from impasto.parsing import printable
from impasto.progress import Advance

HASH_KEY = "modelspec.hash_sha256"
_NO_HASH = "0x" + "0" * 64


def write_safetensors(
    path: Path,
    tensors: Tensors,
    metadata: Mapping[str, str],
    advance: Advance | None = None,
    *,
    unchecked: Collection[str] = (),
    hashes: dict[str, str] | None = None,
    hashed: bool = True,
    durable: bool = True,
) -> str:
    """Write a safetensors file durably, and return the SHA-256 of the tensors' bytes.

    If `metadata` has `modelspec.hash_sha256`, its value is replaced by that hash.

    Args:
        path: Path to write to; replaced if it exists.
        tensors: Tensors, which are read one by one in the order of the file.
        metadata: Metadata texts for the header.
        advance: Called with the number of bytes written.
        unchecked: Names of tensors that may have non-finite values: those of states, and those that
            no network uses. An attention mask is infinite by definition, and so are ratios of a
            schedule with zero terminal SNR.
        hashes: Filled with `tensor_hash` of each tensor by name; the hash of all bytes is then not
            computed and the result is empty, so that each byte is still hashed once.
        hashed: Whether that hash is computed at all; if not, the result is empty.
        durable: Whether the file is flushed to the disk at once; if not, the system decides when.

    Raises:
        ModelError: A value is NaN or infinite, or becomes so in the requested dtype.
        StorageError: The disk is full or the folder cannot be written; an earlier file is
            unchanged.
    """
    with files.replace_file(path, durable=durable) as partial:
        told = advance or (lambda _: None)
        checked = tensors.keys() - set(unchecked)
        if hashes is None and hashed:
            return _write_into(partial, tensors, metadata, told, checked)
        hasher = hash_none if hashes is None else HashEach(hashes)
        with partial.open("wb") as file:
            file.write(header_of(tensors, metadata))
            _write_values(file, tensors, told, hasher, checked)
        return ""


def tensor_hash(tensor: Tensor) -> str:
    """Return a SHA-256 over a tensor's dtype, shape and bytes; equal hashes mean equal tensors."""
    digest = begun_hash(tensor.dtype, tensor.shape)
    digest.update(bytes_of(tensor))
    return digest.hexdigest()


def write_ckpt(
    path: Path,
    tensors: Tensors,
    metadata: Mapping[str, str],
    advance: Advance | None = None,
    *,
    unchecked: Collection[str] = (),
) -> str:
    """Write a `.ckpt` durably by torch.save: `state_dict` and the metadata.

    The form is that of `save_pickle`, which A1111 opens. torch.save needs all tensors at once: they
    are written as safetensors first and mapped from there, so memory stays small and the disk needs
    room for both for a moment.

    Args and errors are those of `write_safetensors`; a dtype that A1111 refuses in a pickled file
    is a ModelError too.
    """
    require_picklable({name: tensor.dtype for name, tensor in tensors.items()}, path)
    with files.replace_file(path) as partial:
        mapped = temporary_names.partial_name(path)
        try:
            checked = tensors.keys() - set(unchecked)
            digest = _write_into(mapped, tensors, {}, advance or (lambda _: None), checked)
            texts = {**metadata, HASH_KEY: f"0x{digest}"} if HASH_KEY in metadata else metadata
            with partial.open("wb") as file:
                save_pickle({"state_dict": _mapped(mapped), METADATA_ENTRY: _as_text(texts)}, file)
        except BaseException as error:  # raised again, Ctrl-C too
            # The failed frames keep the file mapped, and Windows does not remove mapped files.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            mapped.unlink(missing_ok=True)
    return digest


def _mapped(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, mapped; those without elements are allocated separately.

    Such a tensor starts at the address of its neighbour, and torch.save refuses two dtypes at one
    address.
    """
    return {
        name: tensor if tensor.numel() else torch.empty(tensor.shape, dtype=tensor.dtype)
        for name, tensor in load_file(path).items()
    }


def in_file_order(tensors: Tensors) -> list[str]:
    """Return names with the widest dtypes first, so that each tensor is aligned to its dtype."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def header_of(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """Return the length and the JSON header, padded with spaces to a multiple of eight bytes."""
    rows: dict[str, object] = {}
    if metadata:
        rows["__metadata__"] = _as_text(metadata)
    begin = 0
    for name in in_file_order(tensors):
        tensor = tensors[name]
        end = begin + tensor.size_bytes
        kind = TYPE_NAMES[tensor.dtype]
        rows[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _as_text(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata that UTF-8 can encode: a title may be a file name, which may be any bytes."""
    return {printable(key): printable(text) for key, text in metadata.items()}


def _write_into(
    partial: Path,
    tensors: Tensors,
    metadata: Mapping[str, str],
    advance: Advance,
    checked: Collection[str],
) -> str:
    hashed = HASH_KEY in metadata
    texts = {**metadata, HASH_KEY: _NO_HASH} if hashed else metadata
    with partial.open("wb") as file:
        file.write(header_of(tensors, texts))
        whole = HashAll()
        _write_values(file, tensors, advance, whole, checked)
        digest = whole.digest.hexdigest()
        if hashed:  # the hash has the same length, so the header's size does not change
            file.seek(0)
            file.write(header_of(tensors, {**metadata, HASH_KEY: f"0x{digest}"}))
    return digest


def _write_values(
    file: IO[bytes],
    tensors: Tensors,
    advance: Advance,
    hasher: Callable[[Piece], None],
    checked: Collection[str],
) -> None:
    """Write the tensors: while some are hashed and written, the next is read and checked."""
    with HashedAndWritten(file, hasher, advance) as behind:
        for name in in_file_order(tensors):
            tensor = tensors[name]
            for begin, end in tensor.ranges():
                behind.make_room((end - begin) * tensor.dtype.itemsize)
                values = _checked(name, tensor, begin, end, finite_only=name in checked)
                behind.add(Piece(name, tensor, bytes_of(values), begin, end))


def _checked(name: str, lazy: LazyTensor, begin: int, end: int, *, finite_only: bool) -> Tensor:
    """Return elements of a tensor, flat, after checking them.

    Raises:
        ModelError: They have non-finite values, or another shape or dtype than announced.
    """
    try:
        values = lazy.elements(begin, end)
    except TensorChangedError as error:
        raise ModelError(
            f"{name} changed its shape or type while it was being read. Nothing was written."
        ) from error
    if finite_only and not is_finite(values):
        raise ModelError(
            f"{name} has values that are NaN, infinite, or too large for {lazy.dtype}; nothing was "
            f"written. Write it as fp32 or bf16, or repair the model."
        )
    return values


def is_finite(tensor: Tensor) -> bool:
    """Return whether no value is NaN or infinite; a NaN shows in the minimum and the maximum."""
    if not tensor.dtype.is_floating_point:
        return True
    return all(map(_is_piece_finite, pieces_of(tensor.reshape(-1))))


def _is_piece_finite(piece: Tensor) -> bool:
    if piece.dtype.itemsize == 1:  # PyTorch has no aminmax for fp8
        piece = piece.to(torch.float32)
    least, greatest = piece.aminmax()
    return math.isfinite(least) and math.isfinite(greatest)
