"""Settings of a hypernetwork that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from impasto.config.base import Section, is_of_begun

DEFAULT_LR = 1e-5  # A1111's, `modules/ui.py`


class HypernetworkMethod(Section):
    """A hypernetwork is trained: small networks beside the model, which stays as it is."""

    kind: Literal["hypernetwork"] = "hypernetwork"
    """Trains a hypernetwork."""

    widths: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Contexts that are changed, by their widths: 768 (SD 1), 1024 (SD 2) or 2048 (SDXL) is
    the captions', 320 (not in SDXL), 640 and 1280 the image's own; off means all that the model
    has."""

    layers: tuple[Annotated[float, Field(gt=0, le=16)], ...] = (1, 2, 1)
    """Widths between the linear layers, as multiples; `[1, 2, 1]` is NovelAI's. Deeper ones are
    reported to learn slowly and to break."""

    activation: str = "linear"
    """What stands between the layers, by A1111's names: `linear` (nothing), `relu`, `leakyrelu`,
    `elu`, `swish` (Hardswish), `tanh`, `sigmoid`, or any activation of PyTorch in lower case."""

    activate_output: bool = False
    """Put the activation after the last layer too; reported to block learning."""

    layer_norm: bool = False
    """Put a layer norm after each linear layer; reported to make training unstable."""

    dropout: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = ()
    """Share that is dropped at each of `layers` while training, 0 at both ends; empty means
    none."""

    initialization: Literal[
        "Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal", "ZeroOutput",
    ] = "Normal"  # fmt: skip
    """What the weights begin as, by A1111's names; `ZeroOutput` is Normal with a last layer that
    changes nothing yet."""

    start_from: Path | None = None
    """A hypernetwork to go on from, with its structure and widths; off means to begin anew."""

    templates: tuple[str, ...] = ()
    """Lines of which one by chance is put around each caption, in A1111's way: `[filewords]` stands
    for the caption and `[name]` for the hypernetwork's name. Empty means the captions alone."""

    template_file: Path | None = None
    """A text file with such lines."""

    info: str | None = None
    """Free text for the file (A1111's `optional_info`)."""

    @model_validator(mode="after")
    def _structure_fits(self, info: ValidationInfo) -> HypernetworkMethod:
        if len(self.layers) < 2 or self.layers[0] != 1 or self.layers[-1] != 1:
            raise ValueError(f"layers {list(self.layers)} must begin and end with 1")
        if self.dropout and len(self.dropout) != len(self.layers):
            raise ValueError(
                f"dropout has {len(self.dropout)} shares for {len(self.layers)} layers; give one "
                f"for each"
            )
        if self.dropout and (self.dropout[0] or self.dropout[-1]):
            raise ValueError("dropout must be 0 at the first and the last layer")
        if self.start_from is not None:
            fixed = {"widths", "layers", "activation", "activate_output", "layer_norm", "dropout"}
            if not is_of_begun(info):
                fixed.add("initialization")
            defaults = type(self).model_fields
            changed = [n for n in sorted(fixed) if getattr(self, n) != defaults[n].default]
            if changed:
                raise ValueError(f"{changed[0]} has no effect with start_from, whose file says it")
        return self
