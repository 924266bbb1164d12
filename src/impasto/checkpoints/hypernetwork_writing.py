"""Writes hypernetworks in each of their forms, after checking that the form can represent them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from impasto import files
from impasto.checkpoints.hypernetworks import (
    METADATA_KEY,
    OLD_NAMES,
    Dialect,
    Half,
    HypernetworkContents,
    Structure,
)
from impasto.checkpoints.pickle_writing import require_picklable, save_pickle
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.writing import is_finite, write_safetensors
from impasto.errors import ModelError

COMFYUI_ACTIVATIONS = (
    "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish",
)  # fmt: skip
"""Activations that ComfyUI's `comfy_extras/nodes_hypernetwork.py` knows."""


def write_hypernetwork(
    contents: HypernetworkContents, path: Path, dialect: Dialect
) -> tuple[str, ...]:
    """Write a hypernetwork durably.

    Args:
        contents: Hypernetwork to write.
        path: Path to write to; replaced if it exists.
        dialect: `a1111`: with all its keys; `portable`: the keys that ComfyUI reads correctly;
            `novelai`: tensors alone; `safetensors`.

    Returns:
        Sentences about what was left out.

    Raises:
        ModelError: The dialect cannot represent it, or a value is not finite.
        StorageError: The disk is full or `path` cannot be written; an earlier file is unchanged.
    """
    lost = require_writable_as(contents.structure, dialect)
    if dialect != "safetensors":
        require_picklable({name: t.dtype for name, t in contents.tensors().items()}, path)
    for name, tensor in contents.tensors().items():
        if not is_finite(tensor):
            raise ModelError(f"{name} of the hypernetwork is NaN or infinite; nothing was written.")
    _WRITERS[dialect](contents, path)
    return lost


def require_writable_as(structure: Structure, dialect: Dialect) -> tuple[str, ...]:
    """Check, before anything is written, that a dialect can represent a hypernetwork.

    Returns:
        Sentences about what will be left out.

    Raises:
        ModelError: It cannot.
    """
    if dialect == "portable":
        if structure.activation not in COMFYUI_ACTIVATIONS:
            raise ModelError(
                f"ComfyUI does not know the activation {structure.activation}; it knows "
                f"{', '.join(COMFYUI_ACTIVATIONS)}. Write it for A1111 instead (a1111)."
            )
        if structure.layer_norm and structure.activation != "linear":
            raise ModelError(
                "ComfyUI computes a hypernetwork with layer norm and an activation wrongly: it "
                "activates the last layer too. Write it for A1111 instead (a1111)."
            )
        if structure.has_dropout:
            return ("Dropout is left out: ComfyUI would apply it when it generates images.",)
    if dialect == "novelai":
        plain = Structure()
        if replace(structure, dropout=(), activate_output=False) != plain:
            raise ModelError(
                "NovelAI's form has two linear layers, [1, 2, 1], without activation or layer "
                "norm; this hypernetwork has another structure. Write it for A1111 (a1111)."
            )
        dropped = ("Dropout is left out.",) if structure.has_dropout else ()
        return ("Name, steps and base model are left out: NovelAI's form has none.", *dropped)
    return ()


def without_dropout(contents: HypernetworkContents) -> HypernetworkContents:
    """Return a hypernetwork whose tensors are named as if it had no dropout."""
    plain = replace(contents.structure, dropout=())

    def renamed(half: Half, width: int) -> Half:
        old = contents.structure.shapes(width)
        return dict(zip(plain.shapes(width), (half[name] for name in old), strict=True))

    halves = {
        width: (renamed(k, width), renamed(v, width)) for width, (k, v) in contents.halves.items()
    }
    return replace(contents, structure=plain, halves=halves)


def _write_a1111(contents: HypernetworkContents, path: Path) -> None:
    structure = contents.structure
    dropout = list(structure.dropout or [0.0] * len(structure.layers))
    content: dict[Any, Any] = {
        width: tuple(_plain(half) for half in pair)
        for width, pair in sorted(contents.halves.items())
    }
    content |= {
        "step": contents.step,
        "name": contents.name,
        "layer_structure": list(structure.layers),
        "activation_func": structure.activation,
        "is_layer_norm": structure.layer_norm,
        "weight_initialization": contents.initialization,
        "sd_checkpoint": contents.base_hash,
        "sd_checkpoint_name": contents.base_name,
        "activate_output": structure.activate_output,
        "use_dropout": structure.has_dropout,
        "last_layer_dropout": len(dropout) > 2 and dropout[-2] != 0,
        "dropout_structure": dropout,
        "optional_info": contents.info,
    }
    _save(content, path)


def _write_portable(contents: HypernetworkContents, path: Path) -> None:
    _write_a1111(without_dropout(contents), path)


def _write_novelai(contents: HypernetworkContents, path: Path) -> None:
    old = {new: old for old, new in OLD_NAMES.items()}
    plain = without_dropout(contents)
    _save(
        {
            width: tuple(
                {old[name[:9]] + name[9:]: tensor for name, tensor in _plain(half).items()}
                for half in pair
            )
            for width, pair in sorted(plain.halves.items())
        },
        path,
    )


def _write_safetensors(contents: HypernetworkContents, path: Path) -> None:
    structure = contents.structure
    said = {
        "layers": structure.layers,
        "activation": structure.activation,
        "layer_norm": structure.layer_norm,
        "activate_output": structure.activate_output,
        "dropout": structure.dropout,
        "name": contents.name,
        "step": contents.step,
        "initialization": contents.initialization,
        "base_hash": contents.base_hash,
        "base_name": contents.base_name,
        "info": contents.info,
    }
    texts = {"format": "pt", **contents.metadata, METADATA_KEY: json.dumps(said)}
    tensors = {name: LazyTensor.of(tensor) for name, tensor in contents.tensors().items()}
    write_safetensors(path, tensors, texts)


_WRITERS: dict[Dialect, Callable[[HypernetworkContents, Path], None]] = {
    "a1111": _write_a1111,
    "portable": _write_portable,
    "novelai": _write_novelai,
    "safetensors": _write_safetensors,
}


def _plain(half: Half) -> dict[str, Tensor]:
    """Return copies on the CPU that own their memory: torch.save writes whole storages."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in half.items()}


def _save(content: Mapping[Any, Any], path: Path) -> None:
    with files.replace_file(path) as partial, partial.open("wb") as file:
        save_pickle(dict(content), file)
