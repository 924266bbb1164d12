"""Which names are those of model files, and what a model is called by its name."""

from __future__ import annotations

from pathlib import PurePath

FILE_ENDINGS = (
    ".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft", ".gguf", ".onnx", ".pkl", ".pickle",
    ".h5", ".npz", ".zip", ".model", ".st", ".msgpack",
)  # fmt: skip
"""Endings of files that hold models, here or elsewhere; nobody gives one to a folder."""


def is_file_name(target: PurePath) -> bool:
    """Whether a model of this name is one file; `model-v1.5` is the name of a folder."""
    return target.suffix.lower() in FILE_ENDINGS


def name_and_ending(target: PurePath) -> tuple[str, str]:
    """A model's name and the ending of its file, which is empty for a folder.

    `model-v1.5` is a name without an ending.
    """
    return (target.stem, target.suffix) if is_file_name(target) else (target.name, "")


def model_name(target: PurePath) -> str:
    """A model's name without the ending of its file, such as for its title."""
    return name_and_ending(target)[0]
