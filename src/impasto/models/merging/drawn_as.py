"""How a mixture is drawn: as that one of its models is of which there is most in it.

What a model was taught with, such as the layer of CLIP that texts are read at, stands in its file
and cannot be mixed; drawn otherwise than it learned, a model is not what its weights are.
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
    """How a model says that it is drawn.

    Attributes:
        layer: CLIP's layer from the end that texts are read at.
        resolution: `WIDTHxHEIGHT` in pixels.
        layout: How prompts are laid out, as its metadata says it; None where it says nothing.
        zeroes_empty_text: Whether an empty prompt is zeros.
        ends_in_noise: Whether its noise schedule ends in noise alone.
    """

    layer: int
    resolution: str
    layout: str | None
    zeroes_empty_text: bool
    ends_in_noise: bool

    @classmethod
    def of(cls, model: ModelContents) -> DrawnAs:
        """What a model's files say."""
        return cls(
            read_encoder_layer(model.metadata) or 1,
            "{}x{}".format(*native_size(model)),
            model.metadata.get(LAYOUT_KEY),
            model.zeroes_empty_text,
            bool(model.scheduler_config.get("rescale_betas_zero_snr")),
        )

    @property
    def more(self) -> dict[str, str]:
        """The metadata of a model that is drawn so, beside what its writer asks for."""
        return {} if self.layout is None else {LAYOUT_KEY: self.layout}

    def told(self, other: DrawnAs) -> list[str]:
        """In what it differs from another, in words."""
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
                f"noise schedule {'ends' if self.ends_in_noise else 'does not end'} in noise alone",
            ),
        ]
        return [text for differs, text in said if differs]


def model_drawn_as(models: Sequence[ModelContents], formula: Formula | None, ratios: Ratios) -> int:
    """The index of the model that a mixture is drawn as.

    It is the one with the largest share in the U-Net; of equal shares the first whose file says at
    which layer, at which size or how it was trained to read texts.

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
    """A mixture whose empty prompts and noise schedule are those of one of its models."""
    return replace(
        contents,
        zeroes_empty_text=model.zeroes_empty_text,
        scheduler_config=model.scheduler_config,
    )


def drawing_text(models: Sequence[ModelContents], chosen: int) -> str | None:
    """Which model a mixture is drawn as, and how the others differ; None where all are alike."""
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
