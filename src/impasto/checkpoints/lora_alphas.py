"""Reads the alphas that PEFT stores as settings instead of as tensors of a LoRA.

diffusers writes them into a file's metadata, as JSON with the network's name before each key
(`lora_adapter_metadata`); PEFT itself into `adapter_config.json` beside the file (`LoraConfig`).
Keys of `alpha_pattern` are matched as in PEFT's `get_pattern_key`: a layer's name, or the end of it
after a dot. Without them a file of PEFT does not state its scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.checkpoints.reading import TensorFile
from impasto.errors import ModelError
from impasto.finite import finite
from impasto.parsing import parse_json, read_object

PEFT_ROOT = "base_model.model."
"""Prefix that PEFT puts before the names of a network's layers."""

SETTINGS = "adapter_config.json"
"""Name of PEFT's settings file, beside the weights."""

_ADAPTER = "lora_adapter_metadata"
_REFUSED = ("use_rslora", "use_dora")
_PLAIN_KEY = re.compile(r"\^?[A-Za-z0-9_.]{1,256}", re.ASCII)
_MOST_KEYS = 10_000


@dataclass(frozen=True)
class Alphas:
    """The alphas of a LoRA that are not among its tensors.

    Attributes:
        by_prefix: Prefix of layers' names -> their alpha, and the alphas of some layers by the end
            of their names.
    """

    by_prefix: Mapping[str, tuple[float, Mapping[str, float]]]

    @classmethod
    def of(cls, file: TensorFile) -> Alphas:
        """Read the alphas that are stored beside a LoRA's tensors; empty if there are none.

        Raises:
            ModelError: It needs a scale that only PEFT's own code supports, its settings are
                damaged, or they are missing and it needs them.
        """
        found: dict[str, dict[str, Any]] = {}
        for key, value in _settings_of(file).items():
            prefix, _, setting = key.rpartition(".")
            found.setdefault(prefix, {})[setting] = value
        return cls(
            {
                prefix: _checked(settings, file.path)
                for prefix, settings in found.items()
                if _requires_alpha(settings, file.path)
            }
        )

    def of_layer(self, layer: str) -> float | None:
        """Return the alpha of a layer, or None if the file has none for it."""
        for prefix, (alpha, pattern) in self.by_prefix.items():
            if not prefix or layer.startswith(f"{prefix}."):
                module = layer.removeprefix(f"{prefix}." if prefix else PEFT_ROOT)
                return next((a for key, a in pattern.items() if _is_of(key, module)), alpha)
        return None


def _settings_of(file: TensorFile) -> Mapping[str, Any]:
    text = file.metadata.get(_ADAPTER)
    if text:
        said = parse_json(text)
        if not isinstance(said, dict):
            raise ModelError(f"{file.path}: its {_ADAPTER} is not a JSON object. Use another copy.")
        return said
    is_peft = any(name.startswith(PEFT_ROOT) for name in file.tensors)
    if not is_peft or all(
        f"{name.rpartition('.lora_')[0]}.alpha" in file.tensors
        for name in file.tensors
        if ".lora_" in name
    ):
        return {}
    beside = file.path.with_name(SETTINGS)
    settings = read_object(beside)
    if settings is None or "lora_alpha" not in settings:
        raise ModelError(
            f"{file.path} is an adapter of PEFT, whose scale is in {SETTINGS}: {beside} is "
            f"missing, damaged or without lora_alpha. Put the file saved with it beside it."
        )
    return {key: value for key, value in settings.items() if "." not in key}


def _requires_alpha(settings: Mapping[str, Any], path: Path) -> bool:
    """Return whether settings have an alpha.

    Raises:
        ModelError: They need another scale.
    """
    odd = next((setting for setting in _REFUSED if settings.get(setting)), None)
    if odd is not None:
        raise ModelError(
            f"{path} was trained with PEFT's {odd}, which cannot be merged; use it in diffusers."
        )
    return "lora_alpha" in settings


def _checked(settings: Mapping[str, Any], path: Path) -> tuple[float, dict[str, float]]:
    """Return the alpha of a network, and the alphas of some layers by name.

    Raises:
        ModelError: One is not a finite number, or its name is not a plain one.
    """
    pattern = settings.get("alpha_pattern") or {}
    if not isinstance(pattern, dict) or len(pattern) > _MOST_KEYS:
        raise ModelError(f"{path}: its alpha_pattern is not a table of layers. Use another copy.")
    odd = next((key for key in pattern if not _PLAIN_KEY.fullmatch(key)), None)
    if odd is not None:
        raise ModelError(
            f"{path}: its alpha_pattern has {odd[:80]!r}, which is not a plain layer name "
            f"(letters, digits, dots and _, optionally after ^). Use it in diffusers."
        )
    alpha = finite_alpha(settings["lora_alpha"], path)
    return alpha, {key: finite_alpha(value, path) for key, value in pattern.items()}


def finite_alpha(value: Any, path: Path) -> float:
    """Return an alpha as a number.

    Raises:
        ModelError: It is not a number, or is NaN or infinite.
    """
    try:
        return finite(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"{path}: an alpha is {str(value)[:40]!r}; expected a finite number. The file is "
            f"damaged; use another copy of it."
        ) from error


def _is_of(key: str, module: str) -> bool:
    """Return whether a key of `alpha_pattern` is for a layer: its name, or a dotted end of it.

    PEFT uses the key as a regular expression, so a dot in it is any character, and with ^ it is the
    whole name.
    """
    plain = key.removeprefix("^")
    tail = module[-len(plain) :]
    if len(tail) != len(plain) or any(
        wanted not in (".", found) for wanted, found in zip(plain, tail, strict=True)
    ):
        return False
    before = module[: -len(plain)]
    return not before or (before.endswith(".") and not key.startswith("^"))
