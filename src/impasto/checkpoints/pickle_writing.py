"""Writes PyTorch's pickled files in the form that other programs' safety checks accept.

Every `.ckpt` and `.pt` of Impasto is written here. A1111 checks such a file before it loads it
(`modules/safe.py`): only the zip members of PyTorch 1.6 to 2.0 and a short list of classes pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from impasto.errors import ModelError

PICKLABLE = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32,
    torch.uint8,
)  # fmt: skip
"""Dtypes whose storage classes A1111's check knows (bfloat16 since its version 1.4)."""


def require_picklable(dtypes: Mapping[str, torch.dtype], path: Path) -> None:
    """Check that other programs read tensors of these dtypes from a pickled file.

    Raises:
        ModelError: A1111 refuses one of the dtypes.
    """
    for name, dtype in dtypes.items():
        if dtype not in PICKLABLE:
            raise ModelError(
                f"{path} cannot be written: {name} is {dtype}, and A1111 refuses a pickled file "
                f"with that type as unsafe. Write fp32, fp16 or bf16, or a .safetensors file."
            )


def save_pickle(content: Mapping[Any, Any], file: IO[bytes]) -> None:
    """Write tensors and plain values as a pickled file in the format before PyTorch 1.6.

    The zip files of PyTorch 2.1 and later have members (`byteorder`, `.format_version`,
    `.storage_alignment`) that A1111 takes for a sign of a malicious file.
    """
    torch.save(content, file, _use_new_zipfile_serialization=False)
