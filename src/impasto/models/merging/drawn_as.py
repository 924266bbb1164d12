"""The sampling settings of a mixture: those of the model with the largest fraction of it.

Settings that a model was trained with, such as the layer of CLIP that texts are read at, are in its
file and cannot be mixed; sampled with other settings, a model does not give its best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from impasto.checkpoints.modelspec import read_encoder_layer, read_resolution
from impasto.models.merging.blocks import Ratios
from impasto.models.merging.mixing import Formula, letter_of
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.native_size import native_size
from impasto.models.tokenization.text_metadata import LAYOUT_KEY, prompt_layout


@dataclass(frozen=True)
class DrawnAs:
    """The sampling settings that a model's files state.

    Attributes:
        layer: CLIP layer, counted from the end, that texts are read at.
        resolution: `WIDTHxHEIGHT` in pixels.
        layout: Layout of prompts in its metadata; None if it states none.
        zeroes_empty_text: Whether an empty prompt is zeros.
        ends_in_noise: Whether its noise schedule has zero terminal SNR.
    """

    layer: int
    resolution: str
    layout: str | None
    zeroes_empty_text: bool
    ends_in_noise: bool

    @classmethod
    def of(cls, model: ModelContents) -> DrawnAs:
        """Return the sampling settings of a model."""
        return cls(
            read_encoder_layer(model.metadata) or 1,
            "{}x{}".format(*native_size(model)),
            model.metadata.get(LAYOUT_KEY),
            model.zeroes_empty_text,
            bool(model.scheduler_config.get("rescale_betas_zero_snr")),
        )

    @property
    def more(self) -> dict[str, str]:
        """The metadata for these settings, apart from that which the writer adds itself."""
        return {} if self.layout is None else {LAYOUT_KEY: self.layout}

    def told(self, other: DrawnAs) -> list[str]:
        """Return the settings that differ from another model's, in words."""
        layout = prompt_layout(self.more)
        said = [
            (self.layer != other.layer, f"layer {self.layer} of CLIP"),
            (self.resolution != other.resolution, self.resolution),
            (
                self.layout != other.layout,
                f"prompts of {layout.max_tokens} tokens joined as by {layout.join}",
            ),
            (
                self.zeroes_empty_text != other.zeroes_empty_text,
                f"empty prompts {'as zeros' if self.zeroes_empty_text else 'encoded'}",
            ),
            (
                self.ends_in_noise != other.ends_in_noise,
                f"noise schedule {'ends' if self.ends_in_noise else 'does not end'} in pure noise",
            ),
        ]
        return [text for differs, text in said if differs]


def model_drawn_as(models: Sequence[ModelContents], formula: Formula | None, ratios: Ratios) -> int:
    """Return the index of the model whose sampling settings a mixture takes.

    It is the model with the largest fraction of the U-Net; of equal ones, the first whose file
    states the encoder layer, the size or the layout of texts that it was trained with.

    Raises:
        ConfigError: A ratio is for no block of the models.
    """
    if formula is None:
        return 0
    unet = models[0].identity.family.unet.name
    of_unet = [*ratios.of(models[0])[unet].values()]
    shares = formula.shares(sum(of_unet) / len(of_unet))
    known = [_says(model) for model in models]
    return max(range(len(shares)), key=lambda n: (round(shares[n], 6), known[n], -n))


def _says(model: ModelContents) -> bool:
    said = model.metadata
    layer, size = read_encoder_layer(said), read_resolution(said)
    return layer is not None or size is not None or LAYOUT_KEY in said


def drawn_as_model(contents: ModelContents, model: ModelContents) -> ModelContents:
    """Return a mixture with the empty prompts and the noise schedule of one of its models."""
    return replace(
        contents,
        zeroes_empty_text=model.zeroes_empty_text,
        scheduler_config=model.scheduler_config,
    )


def drawing_text(models: Sequence[ModelContents], chosen: int) -> str | None:
    """Describe the sampling settings of a mixture and how other models' differ; None if none do."""
    ways = [DrawnAs.of(model) for model in models]
    others = [
        f"{letter_of(number)}: {', '.join(differences)}"
        for number, way in enumerate(ways)
        if (differences := way.told(ways[chosen]))
    ]
    if not others:
        return None
    own = dict.fromkeys(text for way in ways for text in ways[chosen].told(way))
    return f"{letter_of(chosen)}: {', '.join(own)} ({'; '.join(others)})"
