"""Recognises the file names of models, and derives a model's name from them."""

from __future__ import annotations

from pathlib import PurePath

FILE_ENDINGS = (
    ".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft", ".gguf", ".onnx", ".pkl", ".pickle",
    ".h5", ".npz", ".zip", ".model", ".st", ".msgpack",
)  # fmt: skip
"""Extensions of model files, of Impasto and of other programs; no folder is named with one."""


def is_file_name(target: PurePath) -> bool:
    """Return whether a model of this name is one file; `model-v1.5` is the name of a folder."""
    return target.suffix.lower() in FILE_ENDINGS


def name_and_ending(target: PurePath) -> tuple[str, str]:
    """Return a model's name and its file extension, which is empty for a folder.

    `model-v1.5` is a name without extension.
    """
    return (target.stem, target.suffix) if is_file_name(target) else (target.name, "")


def model_name(target: PurePath) -> str:
    """Return a model's name without file extension, for example for its title."""
    return name_and_ending(target)[0]
