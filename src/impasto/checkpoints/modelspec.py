"""The metadata of an exported file: Stability AI's model metadata standard 1.0.1.

Keys and meanings: github.com/Stability-AI/ModelSpec. Programs show it to the user, and some read
`modelspec.prediction_type` and `modelspec.encoder_layer` to configure themselves.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from impasto.checkpoints.writing import HASH_KEY

PREDICTION_TYPE = "modelspec.prediction_type"
PREDICTION_KEYS = (PREDICTION_TYPE, "modelspec.predict_key")
"""The standard's key, and the one that ComfyUI writes when it saves checkpoints."""

ARCHITECTURE = "modelspec.architecture"
ENCODER_LAYER = "modelspec.encoder_layer"
RESOLUTION = "modelspec.resolution"
ZERO_TERMINAL_SNR_KEY = "impasto.zero_terminal_snr"
"""Metadata key of single files with zero terminal SNR: no standard has one."""

ZERO_TERMINAL_SNR_KEYS = (ZERO_TERMINAL_SNR_KEY, "ss_zero_terminal_snr")
"""Impasto's key, and that of sd-scripts' `train_network.py`."""

SIDES = range(8, 8193)
"""Sides of images, in pixels, that a model can have been trained at."""

_RESOLUTION = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?", re.ASCII)
_LAYER = re.compile(r"[1-9]\d?", re.ASCII)
IMPLEMENTATION = {
    "ldm": "https://github.com/Stability-AI/generative-models",
    "diffusers": "diffusers",
}
PREDICTION_NAMES = {"epsilon": "epsilon", "v_prediction": "v"}
_ALSO = {
    "eps": "epsilon",
    **dict.fromkeys(("v-prediction", "v_pred", "v-pred", "vpred", "v-zsnr"), "v_prediction"),
}
"""Other spellings that programs write -> diffusers' name."""

_KNOWN = {**{spec: name for name, spec in PREDICTION_NAMES.items()},
          **{name: name for name in PREDICTION_NAMES}, **_ALSO}  # fmt: skip


@dataclass(frozen=True)
class ModelSpec:
    """The modelspec metadata of a model's file.

    Attributes:
        architecture: `stable-diffusion-v1`, `stable-diffusion-v2-512` or `...-v2-768-v`.
        prediction_type: `epsilon` or `v_prediction`, as in diffusers.
        title: Title of the model.
        resolution: `WIDTHxHEIGHT` in pixels that it was trained at.
        encoder_layer: CLIP layer, counted from the end; 1 is the last.
        timestep_range: First and last timestep that were trained on, or None for all.
        dtypes: Component -> `float16` or the like.
        others: Author, description, license, tags and so on by the standard's names.
    """

    architecture: str
    prediction_type: str
    title: str
    resolution: str
    encoder_layer: int = 1
    timestep_range: tuple[int, int] | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)

    def metadata(
        self, layout: str, *, written_at: datetime.datetime | None = None
    ) -> dict[str, str]:
        """Return all keys with their prefix; the hash is filled in when the file is written.

        Args:
            layout: `ldm` or `diffusers`.
            written_at: Date of writing; None means now.
        """
        now = written_at or datetime.datetime.now(datetime.UTC)
        texts = {
            "sai_model_spec": "1.0.1",
            "architecture": self.architecture,
            "implementation": IMPLEMENTATION[layout],
            "title": self.title,
            "resolution": self.resolution,
            "date": now.isoformat(timespec="seconds"),
            "prediction_type": PREDICTION_NAMES[self.prediction_type],
            "encoder_layer": str(self.encoder_layer),
            **{f"{component}_dtype": dtype for component, dtype in self.dtypes.items()},
            **self.others,
        }
        if self.timestep_range is not None:
            texts["timestep_range"] = "{},{}".format(*self.timestep_range)
        return {f"modelspec.{key}": text for key, text in texts.items()} | {HASH_KEY: ""}


def read_prediction_type(metadata: Mapping[str, str]) -> tuple[str, str | None] | None:
    """Return the prediction type that a file's metadata states.

    Returns:
        The key that states it, with diffusers' name, or with None if the text is not known; None if
            no key states it.
    """
    for key in PREDICTION_KEYS:
        said = metadata.get(key, "").strip().lower()
        if said:
            return key, _KNOWN.get(said)
    return None


def says_zero_terminal_snr(metadata: Mapping[str, str]) -> bool:
    """Return whether a file's metadata states that its noise schedule has zero terminal SNR."""
    return any(metadata.get(key, "").lower() == "true" for key in ZERO_TERMINAL_SNR_KEYS)


def read_resolution(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Return width and height in pixels that a file was trained at; None if missing or invalid."""
    match = _RESOLUTION.fullmatch(metadata.get(RESOLUTION, "").strip())
    if match is None:
        return None
    width, height = int(match[1]), int(match[2] or match[1])
    return (width, height) if width in SIDES and height in SIDES else None


def read_encoder_layer(metadata: Mapping[str, str]) -> int | None:
    """Return the CLIP layer, from the end, that a file was trained with; None if not stated."""
    said = metadata.get(ENCODER_LAYER, "")
    return int(said) if _LAYER.fullmatch(said) else None
