"""Reads PyTorch's pickled files (`.ckpt`, `.pt`, `.bin`) without ever running code in them.

torch.load(weights_only=True) builds tensors and plain containers alone. A few harmless classes that
training programs left in such files are also allowed; anything else is refused by name.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import numpy as np
import torch

from impasto.checkpoints.untrusted import reason_of
from impasto.errors import ModelError

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
LEGACY_PICKLES = 4  # magic number, protocol version, system facts, the object


MOST_INFLATED = 16
"""How many times its size a compressed file may take in RAM. Repacked weights take 1.1 to 3 times,
and a file that is made to fill the RAM about 1,000 times (the limit of DEFLATE is 1,032)."""


class LightningCallback:
    """Stands in for pytorch-lightning's ModelCheckpoint, a key of a dictionary in SD 1's files."""


_scalar = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    (LightningCallback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),  # its name before NumPy 2
    np.dtype,
    type(np.dtype("float64")),
    type(np.dtype("float32")),
    type(np.dtype("int64")),
]
_USUAL = {
    "collections.OrderedDict",
    "collections.defaultdict",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "_codecs.encode",
    "numpy.dtype",
    *(name for entry in _HARMLESS if isinstance(entry, tuple) for name in entry[1:]),
}


def load_pickle(path: Path) -> Any:
    """Read a pickled file; tensors of an uncompressed zip file are mapped instead of read.

    Raises:
        ModelError: It needs to run or build something that is not allowed (named), is damaged, or
            is compressed so far that it would fill the RAM.
    """
    is_zip = _is_zip(path)
    named = path.suffix == ".safetensors"  # torch would go by that name
    is_stored = is_zip and _is_stored(path)
    can_map = is_stored and not named
    if is_zip and not is_stored:
        _require_modest(path)
    try:
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_HARMLESS),
        ):
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            source = path if can_map else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=can_map)
    except UnpicklingError as error:
        names = _unusual_names(path, is_zip=is_zip)
        if not names:  # torch's own message advises unsafe loading
            raise _damaged(path, "its pickle cannot be read") from error
        raise ModelError(
            f"{path} is refused: beside tensors it contains {', '.join(names)}, and a file with "
            f"that could run a program on this machine. Nothing in it was run. Use a .safetensors "
            f"version of this model, or another source."
        ) from error
    except Exception as error:  # the opcodes of a damaged pickle may raise any class
        raise _damaged(path, reason_of(error)) from error


def is_read_whole(path: Path) -> bool:
    """Return whether a file is a pickle that cannot be mapped: compressed, or in the old format.

    The old format is that before PyTorch 1.6.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    if _is_zip(path):
        return not _is_stored(path)
    return head.startswith(PICKLE_MAGIC) and not head.endswith(b"{")


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except (OSError, ValueError, OverflowError):  # an end record with absurd offsets
        return False


def _is_stored(path: Path) -> bool:
    """Return whether a zip file's members are all uncompressed, as PyTorch writes them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    except Exception:  # damaged: torch's own error says more
        return False


def _require_modest(path: Path) -> None:
    """Refuse a compressed zip file whose members would take far more than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(member.file_size for member in archive.infolist())
    except Exception as error:  # damaged: `zipfile` raises any class
        raise _damaged(path, reason_of(error)) from error
    size = path.stat().st_size
    if inflated > MOST_INFLATED * size:
        raise ModelError(
            f"{path} is refused: {size / 2**20:.1f} MiB would become {inflated / 2**20:,.0f} MiB "
            f"in RAM, {inflated // size} times as much; expected {MOST_INFLATED} times at most, as "
            f"weights do not compress that well. Use another source of this model."
        )


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} is damaged or not a PyTorch file ({reason}). Download or copy it again."
    )


def _unusual_names(path: Path, *, is_zip: bool) -> list[str]:
    """Return names in a file's pickles that files of tensors do not have; nothing is run."""
    try:
        names = set(_names_in(path, is_zip=is_zip))
    except Exception:  # a damaged pickle, as above: only the message lacks the names then
        return []
    return sorted(n for n in names if n not in _USUAL and not _is_storage(n))


def _is_storage(name: str) -> bool:
    module, _, class_name = name.rpartition(".")
    return module in {"torch", "torch.cuda"} and class_name.endswith("Storage")


def _names_in(path: Path, *, is_zip: bool) -> Iterator[str]:
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(".pkl"):
                    with archive.open(member) as file:
                        yield from _names_of_pickle(file)
        return
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            yield from _names_of_pickle(file)


def _names_of_pickle(file: IO[bytes]) -> Iterator[str]:
    """Yield `module.name` of each global in one pickle; PEP 307 and PEP 3154 have the forms."""
    texts: list[str] = []
    memory: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif opcode.name == "MEMOIZE":
            memory[len(memory)] = texts[-1] if texts else ""
        elif opcode.name in {"BINGET", "LONG_BINGET"}:
            texts.append(memory.get(argument or 0, ""))
        elif isinstance(argument, str):
            texts.append(argument)
