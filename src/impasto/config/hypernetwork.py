"""Settings for training a hypernetwork."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from impasto.config.base import Section, is_of_begun

DEFAULT_LR = 1e-5  # A1111's, `modules/ui.py`


class HypernetworkMethod(Section):
    """Trains a hypernetwork: small networks beside the model, which stays unchanged."""

    kind: Literal["hypernetwork"] = "hypernetwork"
    """Trains a hypernetwork."""

    widths: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Attention contexts that the hypernetwork changes, by width: 768 (SD 1), 1024 (SD 2) or 2048
    (SDXL) is the caption's, 320 (not in SDXL), 640 and 1280 are the image's own; off means all that
    the model has."""

    layers: tuple[Annotated[float, Field(gt=0, le=16)], ...] = (1, 2, 1)
    """Layer structure: the widths between the linear layers as multiples of the context's width;
    `[1, 2, 1]` is NovelAI's. Deeper networks are reported to learn slowly and to fail."""

    activation: str = "linear"
    """Activation between the layers, by A1111's names: `linear` (none), `relu`, `leakyrelu`, `elu`,
    `swish` (Hardswish), `tanh`, `sigmoid`, or any activation of PyTorch in lower case."""

    activate_output: bool = False
    """Apply the activation after the last layer too; reported to prevent learning."""

    layer_norm: bool = False
    """Add a layer norm after each linear layer; reported to make training unstable."""

    dropout: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = ()
    """Dropout rates during training, one per entry of `layers`, with 0 for the first and the last;
    empty means no dropout."""

    initialization: Literal[
        "Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal", "ZeroOutput",
    ] = "Normal"  # fmt: skip
    """Initialization of the weights, by A1111's names; `ZeroOutput` is Normal with a last layer of
    zeros, so that the hypernetwork changes nothing at first."""

    start_from: Path | None = None
    """Hypernetwork file to continue from, with its structure and widths; off means to start from
    newly initialized weights."""

    templates: tuple[str, ...] = ()
    """Caption templates, as in A1111; one is drawn at random for each caption. `[filewords]` stands
    for the caption and `[name]` for the hypernetwork's name. Empty means the captions alone."""

    template_file: Path | None = None
    """Text file with one caption template per line."""

    info: str | None = None
    """Free text that is stored in the file (A1111's `optional_info`)."""

    @model_validator(mode="after")
    def _structure_fits(self, info: ValidationInfo) -> HypernetworkMethod:
        if len(self.layers) < 2 or self.layers[0] != 1 or self.layers[-1] != 1:
            raise ValueError(f"layers is {list(self.layers)}; it must start and end with 1")
        if self.dropout and len(self.dropout) != len(self.layers):
            raise ValueError(
                f"dropout has {len(self.dropout)} rates, and layers {len(self.layers)} entries; "
                f"give one rate per entry"
            )
        if self.dropout and (self.dropout[0] or self.dropout[-1]):
            raise ValueError("dropout must be 0 for the first and the last entry of layers")
        if self.start_from is not None:
            fixed = {"widths", "layers", "activation", "activate_output", "layer_norm", "dropout"}
            if not is_of_begun(info):
                fixed.add("initialization")
            defaults = type(self).model_fields
            changed = [n for n in sorted(fixed) if getattr(self, n) != defaults[n].default]
            if changed:
                raise ValueError(
                    f"{changed[0]} has no effect with start_from: that file determines it"
                )
        return self
