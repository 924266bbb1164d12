"""Opens one file of tensors, `.safetensors` or pickled, whatever its extension."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from impasto import presence
from impasto.checkpoints.pickles import PICKLE_MAGIC, ZIP_MAGIC, load_pickle
from impasto.checkpoints.stored_bytes import StoredBytes, unchanged
from impasto.checkpoints.tensors import SAFETENSORS_TYPES, LazyTensor, Tensors
from impasto.checkpoints.untrusted import untrusted
from impasto.errors import ModelError
from impasto.parsing import parse_json

METADATA_ENTRY = "impasto_metadata"
_MAGICS = {
    b"GGUF": "a GGUF file, whose weights are quantized",
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"RIFF": "a WebP image or another RIFF file",
    b"\x08": "an ONNX model, or another file of Protocol Buffers",
    b"%PDF": "a PDF document",
}
READABLE = frozenset(SAFETENSORS_TYPES.values())
_NESTED = ("state_dict", "model_state_dict")


@dataclass(frozen=True)
class TensorFile:
    """A checkpoint that was opened, with its tensors by name.

    Attributes:
        path: Path of the file.
        form: `safetensors` or `pickle`.
        tensors: Its tensors by name.
        metadata: Its metadata texts; for pickled files those that Impasto wrote.
        counters: Integers beside the tensors, such as `global_step`.
        other_keys: Keys that are not strings: hypernetworks have integers.
        text_keys: Names of entries that are not tensors; they help to identify other kinds of
            files.
    """

    path: Path
    form: str
    tensors: Tensors
    metadata: Mapping[str, str] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    other_keys: tuple[Any, ...] = ()
    text_keys: tuple[str, ...] = ()


def open_tensor_file(path: Path) -> TensorFile:
    """Open a file by its content, not by its name.

    Raises:
        ModelError: It is missing, damaged, refused, or of no known form.
    """
    try:
        # opening a pipe or device would block
        if presence.exists(path) and not presence.is_file(path):
            what = "a folder" if presence.is_dir(path) else "no regular file"
            raise ModelError(f"{path} is {what}; expected a file of tensors.")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist. Check its path.") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    with untrusted(path):
        return _open_by_content(path, head)


def _open_by_content(path: Path, head: bytes) -> TensorFile:
    pickled = head.startswith((ZIP_MAGIC, PICKLE_MAGIC))
    header_fits = int.from_bytes(head[:8], "little") + 8 <= path.stat().st_size
    if head[8:9] == b"{" and (
        header_fits or not pickled
    ):  # a header length may start like a pickle
        return _open_safetensors(path)
    if pickled:
        return _open_pickle(path)
    raise ModelError(
        f"{path} is neither a safetensors nor a PyTorch file: {_what_it_looks_like(head)}. "
        f"Download or copy it again."
    )


def _what_it_looks_like(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "it is empty"
    if text.startswith((b"<!doctype", b"<html")):
        return "it is a web page, saved in place of the file"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself"
    named = next((what for magic, what in _MAGICS.items() if head.startswith(magic)), None)
    if named is not None:
        return f"it is {named}"
    return f"it starts with {head[:8].hex(' ')}"


def _open_safetensors(path: Path) -> TensorFile:
    """Open a safetensors file; its tensors are read one by one, or in part, into separate memory.

    A mapped file would count as the process's memory until the last tensor is read, and could crash
    the process if another program truncated it meanwhile. The library checks the header first.
    """
    check = unchanged(path)
    try:
        with safe_open(path, framework="pt") as checked:
            metadata = checked.metadata() or {}
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            rows: dict[str, Any] = parse_json(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} is damaged or cut short ({error}). Download or copy it again."
        ) from error
    rows.pop("__metadata__", None)
    unknown = sorted({row["dtype"] for row in rows.values()} - SAFETENSORS_TYPES.keys())
    if unknown:
        raise ModelError(f"{path} holds tensors of types that cannot be read: {unknown}.")

    def lazy(row: Mapping[str, Any]) -> LazyTensor:
        begin, end = row["data_offsets"]
        dtype, shape = SAFETENSORS_TYPES[row["dtype"]], tuple(row["shape"])
        stored = StoredBytes(path, 8 + size + begin, check)

        def read_bytes(first: int, last: int) -> Tensor:
            values = torch.empty(last - first, dtype=torch.uint8)
            stored.shifted(first).read_into(values.numpy().data)
            return values.view(dtype)

        return LazyTensor(
            shape,
            dtype,
            read=lambda: read_bytes(0, end - begin).reshape(shape),
            owns_memory=True,
            read_range=lambda first, last: read_bytes(
                first * dtype.itemsize, last * dtype.itemsize
            ),
            stored=stored,
        )

    return TensorFile(
        path, "safetensors", {name: lazy(row) for name, row in rows.items()}, metadata
    )


def _open_pickle(path: Path) -> TensorFile:
    check = unchanged(path)
    content = load_pickle(path)
    if not isinstance(content, Mapping):
        raise ModelError(
            f"{path} holds a {type(content).__name__}, not tensors by name: it is not a model."
        )
    counters = {
        key: value for key, value in content.items() if isinstance(key, str) and type(value) is int
    }
    metadata = content.get(METADATA_ENTRY)
    texts = metadata if isinstance(metadata, Mapping) else {}
    inner = _unnested(content)

    for name, value in inner.items():
        if isinstance(value, Tensor):
            _require_plain(path, name, value)

    def reader(tensor: Tensor) -> Callable[[], Tensor]:
        def read() -> Tensor:
            check()
            return tensor.detach()

        return read

    tensors = {
        name: LazyTensor(tuple(value.shape), value.dtype, reader(value))
        for name, value in inner.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    others = tuple(key for key in inner if not isinstance(key, str))
    clean = {str(k): v for k, v in texts.items() if isinstance(v, str)}
    words = tuple(key for key in inner if isinstance(key, str) and key not in tensors)
    return TensorFile(path, "pickle", tensors, clean, counters, others, words)


def _require_plain(path: Path, name: Any, tensor: Tensor) -> None:
    """Refuse a tensor that does not store a value for each of its elements.

    Raises:
        ModelError: It is not dense, not on the CPU, of an unreadable dtype, or larger than its
            data.
    """
    is_dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized
    if not is_dense or tensor.device.type != "cpu" or tensor.dtype not in READABLE:
        raise ModelError(
            f"{path}: {name} is a kind of tensor that models do not have ({tensor.dtype}, "
            f"{tensor.layout}, on {tensor.device.type}). Use another copy of this model."
        )
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ModelError(
            f"{path} is damaged: {name} claims {tensor.nbytes} bytes, but the file has "
            f"{tensor.untyped_storage().nbytes()} for it. Download or copy it again."
        )


def _unnested(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the innermost dictionary of tensors: some programs nest them more than once."""
    for _ in range(4):
        inner = next((content[k] for k in _NESTED if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            return content
        content = inner
    return content
