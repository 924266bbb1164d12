"""Files of hypernetworks: NovelAI's and A1111's `.pt`, the `.pt` that ComfyUI reads, safetensors.

A hypernetwork is a pair of small networks for each width of attention inputs, one for keys and one
for values; A1111's `modules/hypernetworks/hypernetwork.py` defines names, keys and defaults.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from impasto.checkpoints.pickles import load_pickle
from impasto.checkpoints.reading import TensorFile, open_tensor_file
from impasto.checkpoints.untrusted import untrusted
from impasto.errors import ModelError
from impasto.parsing import parse_json

Dialect = Literal["a1111", "portable", "novelai", "safetensors"]
SUFFIXES: dict[Dialect, str] = {
    "a1111": ".pt", "portable": ".pt", "novelai": ".pt", "safetensors": ".safetensors",
}  # fmt: skip
METADATA_KEY = "impasto.hypernetwork"
HALVES = ("k", "v")
MOST_LAYERS, MOST_TIMES, WIDEST = 64, 256, 65_536  # far beyond any trained one
OLD_DROPOUT = 0.3  # the dropout that A1111's two older flags mean
OLD_NAMES = {"linear1.": "linear.0.", "linear2.": "linear.1."}
Half = Mapping[str, Tensor]


@dataclass(frozen=True)
class Structure:
    """How the networks of a hypernetwork are built; raises ModelError for invalid values.

    Attributes:
        layers: Widths between the linear layers, as multiples of the input's; first and last 1.
        activation: Activation by A1111's names; `linear` is none, and `swish` is Hardswish.
        layer_norm: Whether a layer norm follows each linear layer.
        activate_output: Whether the activation follows the last linear layer too.
        dropout: Fraction dropped at each of `layers` during training; first and last 0.
    """

    layers: tuple[float, ...] = (1, 2, 1)
    activation: str = "linear"
    layer_norm: bool = False
    activate_output: bool = False
    dropout: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.layers) > MOST_LAYERS or not all(0 < n <= MOST_TIMES for n in self.layers):
            raise ModelError(
                f"A hypernetwork states {len(self.layers) - 1} layers of up to "
                f"{max(self.layers):g} times its width; expected {MOST_LAYERS - 1} at most, each "
                f"more than 0 and up to {MOST_TIMES} times as wide."
            )
        if len(self.layers) < 2 or self.layers[0] != 1 or self.layers[-1] != 1:
            raise ModelError(
                f"The layers of a hypernetwork are {list(self.layers)}; expected multiples of the "
                f"width that begin and end with 1, such as [1, 2, 1]."
            )
        if self.dropout and (
            len(self.dropout) != len(self.layers)
            or self.dropout[0] != 0
            or self.dropout[-1] != 0
            or not all(0 <= rate < 1 for rate in self.dropout)
        ):
            raise ModelError(
                f"The dropout of a hypernetwork is {list(self.dropout)}; expected a fraction below "
                f"1 for each of its {len(self.layers)} layers, 0 for the first and the last."
            )

    @property
    def has_dropout(self) -> bool:
        """Whether a layer has dropout during training."""
        return any(self.dropout)

    def modules(self) -> Iterator[tuple[str, int]]:
        """Yield the kind of each module in order, with the number of its linear layer."""
        last = len(self.layers) - 2
        for number in range(last + 1):
            yield "linear", number
            if self.activation != "linear" and (number < last or self.activate_output):
                yield "activation", number
            if self.layer_norm:
                yield "layer_norm", number
            if self.dropout and self.dropout[number + 1] > 0:
                yield "dropout", number

    def widths(self, width: int) -> list[int]:
        """Return the widths between the linear layers, for inputs of `width`."""
        return [int(width * multiple) for multiple in self.layers]

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the tensors of one network."""
        widths = self.widths(width)
        found: dict[str, tuple[int, ...]] = {}
        for index, (kind, number) in enumerate(self.modules()):
            if kind == "linear":
                found[f"linear.{index}.weight"] = (widths[number + 1], widths[number])
                found[f"linear.{index}.bias"] = (widths[number + 1],)
            elif kind == "layer_norm":
                found[f"linear.{index}.weight"] = (widths[number + 1],)
                found[f"linear.{index}.bias"] = (widths[number + 1],)
            elif kind == "activation" and self.activation == "prelu":  # PReLU has a weight
                found[f"linear.{index}.weight"] = (1,)
        return found


@dataclass(frozen=True)
class HypernetworkContents:
    """The tensors and settings of a hypernetwork.

    Attributes:
        halves: Width -> tensors of the networks for keys and for values, by A1111's names.
        structure: How the networks are built.
        name: Name of the hypernetwork.
        step: Number of steps that it was trained for.
        initialization: Initialization of its weights, by A1111's names.
        base_hash: Short hash of the model that it was trained on, if known.
        base_name: Name of that model, if known.
        info: Free text.
        form: Form of the file, in words.
        metadata: Metadata of a safetensors file.
    """

    halves: Mapping[int, tuple[Half, Half]]
    structure: Structure
    name: str
    step: int = 0
    initialization: str = "Normal"
    base_hash: str | None = None
    base_name: str | None = None
    info: str | None = None
    form: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def widths(self) -> tuple[int, ...]:
        """The context widths that it has networks for."""
        return tuple(sorted(self.halves))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors under flat names, such as `768.k.linear.0.weight`."""
        return {
            f"{width}.{half}.{name}": tensor
            for width, pair in sorted(self.halves.items())
            for half, tensors in zip(HALVES, pair, strict=True)
            for name, tensor in tensors.items()
        }

    def cast(self, dtype: torch.dtype | None) -> HypernetworkContents:
        """Return the hypernetwork with its tensors in another dtype; None leaves it unchanged."""
        if dtype is None:
            return self
        halves = {
            width: ({n: t.to(dtype) for n, t in k.items()}, {n: t.to(dtype) for n, t in v.items()})
            for width, (k, v) in self.halves.items()
        }
        return replace(self, halves=halves)


def halves_of(tensors: Mapping[str, Tensor]) -> dict[int, tuple[Half, Half]]:
    """Split tensors by name into halves: the inverse of `HypernetworkContents.tensors`."""
    found: dict[int, dict[str, dict[str, Tensor]]] = {}
    for full, tensor in tensors.items():
        width, half, name = full.split(".", 2)
        found.setdefault(int(width), {}).setdefault(half, {})[name] = tensor
    return {width: (pair["k"], pair["v"]) for width, pair in found.items()}


def is_hypernetwork(file: TensorFile) -> bool:
    """Return whether a file is a hypernetwork that Impasto wrote as safetensors."""
    return METADATA_KEY in file.metadata


def read_hypernetwork(path: Path) -> HypernetworkContents:
    """Read a hypernetwork in any of the forms; no code in the file is run.

    Raises:
        ModelError: It is missing, damaged, refused as unsafe, not a hypernetwork, or has tensors
            that do not fit its stated structure.
    """
    file = open_tensor_file(path)
    with untrusted(path):
        contents = _from_safetensors(file) if is_hypernetwork(file) else _from_pickle(path)
        _require_fitting(contents, path)
    return contents


def _from_pickle(path: Path) -> HypernetworkContents:
    content = load_pickle(path)
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}, not a hypernetwork.")
    texts = sorted(key for key in content if isinstance(key, str) and key.isdigit())
    if texts:
        raise ModelError(
            f"{path} has its widths as texts ({', '.join(texts)}); A1111, ComfyUI and NovelAI use "
            f"integers. Save it again with integers as keys."
        )
    widths = [key for key in content if type(key) is int]
    if not widths:
        raise ModelError(
            f"{path} is not a hypernetwork: it has no widths such as 320 or 768 as keys."
        )
    odd = next((width for width in widths if not 0 < width <= WIDEST), None)
    if odd is not None:
        raise ModelError(f"{path} has the width {odd}; expected 1 to {WIDEST}, such as 320 or 768.")
    halves = {width: _pair(content[width], width, path) for width in widths}
    is_novelai = not any(isinstance(key, str) for key in content)
    structure = _read_structure(content, halves, path)
    return HypernetworkContents(
        halves,
        structure,
        name=str(content.get("name") or path.stem),
        step=_whole(content.get("step")),
        initialization=str(content.get("weight_initialization") or "Normal"),
        base_hash=_text(content.get("sd_checkpoint")),
        base_name=_text(content.get("sd_checkpoint_name")),
        info=_text(content.get("optional_info")),
        form="NovelAI .pt" if is_novelai else "A1111 .pt",
    )


def _pair(value: Any, width: int, path: Path) -> tuple[Half, Half]:
    good = (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(half, Mapping) for half in value)
        and all(isinstance(t, Tensor) for half in value for t in half.values())
    )
    if not good:
        raise ModelError(
            f"{path} does not have two networks, for keys and values, at width {width}."
        )
    first, second = ({_new_name(str(n)): t for n, t in half.items()} for half in value)
    return first, second


def _new_name(name: str) -> str:
    return next((new + name[len(old) :] for old, new in OLD_NAMES.items() if name.startswith(old)),
                name)  # fmt: skip


def _read_structure(
    content: Mapping[Any, Any], halves: Mapping[int, tuple[Half, Half]], path: Path
) -> Structure:
    layers = content.get("layer_structure")
    activation = str(content.get("activation_func") or "linear").lower()
    layers = tuple(map(float, layers)) if layers else _layers_from(halves)
    if not all(map(math.isfinite, layers)):
        raise ModelError(
            f"{path} states the layers {list(layers[:MOST_LAYERS])}; expected finite numbers."
        )
    return Structure(
        layers,
        activation,
        layer_norm=bool(content.get("is_layer_norm", False)),
        # on by default in A1111's constructor; meaningless without an activation
        activate_output=bool(content.get("activate_output", True)) and activation != "linear",
        dropout=_read_dropout(content, len(layers)),
    )


def _layers_from(halves: Mapping[int, tuple[Half, Half]]) -> tuple[float, ...]:
    """Derive the multiples from the shapes of one network, for files that do not state them."""
    width, (half, _) = next(iter(halves.items()))
    rows = [tensor.shape[0] / width for tensor in half.values() if tensor.dim() == 2]
    return (1.0, *rows)


def _read_dropout(content: Mapping[Any, Any], count: int) -> tuple[float, ...]:
    """Read dropout: the newer key, or 0.3 for the older two, except at the ends or the last two."""
    given = content.get("dropout_structure")
    if given is not None:
        return tuple(map(float, given)) if any(given) else ()
    if not content.get("use_dropout", False) or count < 3:
        return ()
    before_last = OLD_DROPOUT if content.get("last_layer_dropout", False) else 0.0
    rates = (0.0, *[OLD_DROPOUT] * (count - 3), before_last, 0.0)
    return rates if any(rates) else ()


def _from_safetensors(file: TensorFile) -> HypernetworkContents:
    try:
        said = parse_json(file.metadata[METADATA_KEY])
        structure = Structure(
            tuple(map(float, said["layers"])),
            str(said["activation"]),
            layer_norm=bool(said["layer_norm"]),
            activate_output=bool(said["activate_output"]),
            dropout=tuple(map(float, said["dropout"])),
        )
        halves = halves_of({name: lazy.read() for name, lazy in file.tensors.items()})
        texts = {key: _text(said.get(key)) for key in ("base_hash", "base_name", "info")}
        return HypernetworkContents(
            halves,
            structure,
            name=str(said["name"]),
            step=int(said["step"]),
            initialization=str(said["initialization"]),
            form="safetensors",
            metadata=file.metadata,
            **texts,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{file.path} is damaged: its metadata is invalid ({error!r}).") from error


def _require_fitting(contents: HypernetworkContents, path: Path) -> None:
    """Check that all tensors fit the structure.

    Raises:
        ModelError: A tensor is missing, unexpected or of another shape.
    """
    linear = sum(kind == "linear" for kind, _ in contents.structure.modules())
    for width, pair in contents.halves.items():
        expected = contents.structure.shapes(width)
        for half, tensors in zip(HALVES, pair, strict=True):
            found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            if found == expected:
                continue
            there = sum(len(shape) == 2 for shape in found.values())
            if there != linear:
                raise ModelError(
                    f"{path}: the {half} network of width {width} has {there} linear layers, but "
                    f"its structure {list(contents.structure.layers)} has {linear}."
                )
            name = next(n for n in {**expected, **found} if expected.get(n) != found.get(n))
            raise ModelError(
                f"{path}: {name} of the {half} network of width {width} is "
                f"{found.get(name, 'missing')}; expected {expected.get(name, 'no such tensor')} "
                f"for the structure {list(contents.structure.layers)}, activation "
                f"{contents.structure.activation}."
            )


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
