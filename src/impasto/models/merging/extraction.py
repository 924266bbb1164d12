"""Extracts the difference of two models as a LoRA, layer by layer, and measures its error.

The layers of a LoRA are those of sd-scripts (`networks/lora.py`): in the U-Net all linear and
convolutional layers of attention blocks, and with a rank for convolutions those of residual blocks,
downsamplers and upsamplers too; in text encoders those of attention and of the MLP after it. Norms,
biases, embeddings, the first and last convolution and the VAE are in no such file: their changes
are measured and reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from impasto.checkpoints.keymap import ComponentKind
from impasto.checkpoints.tensors import LazyTensor
from impasto.errors import ConfigError, ModelError
from impasto.models.merging.lora_names import LayerName, kohya_names
from impasto.models.merging.low_rank import RankRule, decompose
from impasto.models.merging.mixing import finite_values
from impasto.models.reading.contents import ModelContents
from impasto.progress import Progress, SilentProgress

_ATTENTION = re.compile(r"\.attentions\.\d+\.")
_OTHER_BLOCKS = re.compile(r"\.(resnets|downsamplers|upsamplers)\.\d+\.")
ALPHA = 64.0
"""Alpha of all layers of a file whose ranks are not limited."""

_OF_TEXT = re.compile(r"\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])\.weight$")


@dataclass(frozen=True)
class ExtractionRules:
    """Limits for the size of an extracted difference.

    Attributes:
        rank: Maximum rank of linear layers and 1x1 convolutions; None for no limit.
        conv_rank: Maximum rank of other convolutions; 0 leaves residual blocks out, None for no
            limit.
        energy: Fraction of each layer's change that is retained at least, in (0, 1], as far as the
            ranks allow it; None for as much as they allow.
        dtype: Dtype in which the matrices are stored.
        with_text: Whether text encoders are included.
        asked: Options of the ranks that the user set; a default rank may exceed all widths.
    """

    rank: int | None
    conv_rank: int | None
    energy: float | None = None
    dtype: torch.dtype = torch.float16
    with_text: bool = True
    asked: tuple[str, ...] = ("--rank", "--conv-rank")

    @property
    def alpha(self) -> float:
        """The alpha of all layers, whatever their ranks.

        diffusers (0.42, `get_peft_kwargs` in `utils/peft_utils.py`) loses the alphas of attention
        layers if a file has several, and uses the most common one for them. So all layers have the
        same, and its factor is divided out of their matrices.
        """
        return ALPHA if self.rank is None else float(self.rank)

    def of(self, shape: tuple[int, ...]) -> RankRule:
        """Return the rule for a layer whose weight has this shape."""
        is_spatial = len(shape) > 2 and math.prod(shape[2:]) > 1
        return RankRule(self.conv_rank if is_spatial else self.rank, self.energy)


@dataclass(frozen=True)
class ExtractedLayer:
    """One layer of a LoRA.

    Attributes:
        up: `[out, rank]`, or `[out, rank, 1, 1]` for a convolution.
        down: `[rank, in]`, or `[rank, in, height, width]`.
        alpha: The product of the matrices is multiplied by `alpha / rank`.
        change: Sum of squares of the difference.
        missed: Sum of squares of the deviation of the stored product from the difference.
    """

    up: Tensor
    down: Tensor
    alpha: float
    change: float
    missed: float

    @property
    def rank(self) -> int:
        """The rank of the layer: the number of rows of `down`."""
        return self.down.shape[0]

    @property
    def error(self) -> float:
        """The relative error: the root of `missed / change`."""
        return math.sqrt(self.missed / self.change)


@dataclass(frozen=True)
class Extraction:
    """A LoRA and a measure of the changes that it leaves out.

    Attributes:
        layers: Name of a layer as sd-scripts writes it -> its matrices.
        outside: Network -> sum of squares of the changes in layers that no LoRA can hold.
        unchanged: Number of layers that are equal in both models.
        unasked: Network -> the same sum for layers that a LoRA can hold and the rules exclude.
    """

    layers: Mapping[str, ExtractedLayer]
    outside: Mapping[str, float] = field(default_factory=dict)
    unchanged: int = 0
    unasked: Mapping[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The relative error over all layers of the file."""
        missed = sum(layer.missed for layer in self.layers.values())
        return math.sqrt(missed / self._changed)

    @property
    def whole_error(self) -> float:
        """The relative error over all tensors of the model, those outside the file included."""
        outside = sum(self.outside.values()) + sum(self.unasked.values())
        missed = sum(layer.missed for layer in self.layers.values()) + outside
        return math.sqrt(missed / (self._changed + outside))

    @property
    def _changed(self) -> float:
        return sum(layer.change for layer in self.layers.values())


def extract(
    base: ModelContents,
    tuned: ModelContents,
    rules: ExtractionRules,
    progress: Progress | None = None,
) -> Extraction:
    """Make a LoRA of the difference between a model and its base.

    Layers are read, decomposed and released one after another: beside the LoRA, memory for a few
    layers is needed.

    Args:
        base: Model that the LoRA will be used with.
        tuned: Model with the same tensors.
        rules: Ranks and precision.
        progress: Shows the progress.

    Raises:
        ConfigError: A rank is above the width of every layer.
        ModelError: The two are equal in all layers of a LoRA, or a value is NaN or infinite.
    """
    all_rules = replace(rules, conv_rank=None, with_text=True)
    held = {p: name for p, name in kohya_names(base).items() if _is_in(p, base, all_rules)}
    targets = {layer: name for layer, name in held.items() if _is_in(layer, base, rules)}
    _require_modest(rules, [base.components[p.component][p.tensor].shape for p in targets])
    layers: dict[str, ExtractedLayer] = {}
    outside: dict[str, float] = {}
    unasked: dict[str, float] = {}
    total = sum(len(tensors) for tensors in base.components.values())
    told = progress or SilentProgress()
    with told.stage("Comparing and decomposing", total, "tensors") as advance:
        for layer, change in _differences(base, tuned, advance):
            if layer in targets:
                layers[targets[layer]] = _extracted(change, rules, targets[layer])
            else:
                squares = float(change.double().square().sum())
                left_out = unasked if layer in held else outside
                left_out[layer.component] = left_out.get(layer.component, 0.0) + squares
    if not layers:
        raise ModelError(
            f"{tuned.source} and {base.source} are the same in all {len(targets)} layers that the "
            f"LoRA would have. Nothing was written. Give the base model first, then the one that "
            f"was trained from it."
        )
    return Extraction(layers, outside, len(targets) - len(layers), unasked)


def _differences(
    base: ModelContents, tuned: ModelContents, advance: Callable[[int], None]
) -> Iterator[tuple[LayerName, Tensor]]:
    """Yield each tensor that differs, as the difference in float32."""
    for component, tensors in base.components.items():
        for name, own in tensors.items():
            other = tuned.components[component][name]
            if own.dtype.is_floating_point:
                change = _difference(
                    own, base.source, other, tuned.source, LayerName(component, name)
                )
                if change is not None:
                    yield LayerName(component, name), change
            advance(1)


def _difference(
    own: LazyTensor, source: str, other: LazyTensor, other_source: str, layer: LayerName
) -> Tensor | None:
    """Return the second minus the first; None if only their files' rounding differs."""
    before = finite_values(own, source, layer.component, layer.tensor)
    after = finite_values(other, other_source, layer.component, layer.tensor)
    change = after - before
    if own.dtype == other.dtype:
        return change if bool(change.any()) else None
    rounding = _half_ulp(before, own.dtype) + _half_ulp(after, other.dtype)
    return None if bool((change.double().abs() <= rounding).all()) else change


def _half_ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the maximum rounding error of values stored in a dtype, in float64.

    It is half of the distance between neighbouring values: `eps` of the dtype times the power of
    two below a value, and at least that of its smallest normal number.
    """
    info = torch.finfo(dtype)
    size = values.double().abs().clamp(min=info.smallest_normal)
    power = torch.exp2(torch.floor(torch.log2(size)))
    return power * (info.eps / 2)


def _is_in(layer: LayerName, contents: ModelContents, rules: ExtractionRules) -> bool:
    kinds = {component.name: component.kind for component in contents.identity.family.components}
    if kinds[layer.component] is ComponentKind.TEXT:
        return rules.with_text and _OF_TEXT.search(layer.tensor) is not None
    if _ATTENTION.search(layer.tensor):
        return True
    return rules.conv_rank != 0 and _OTHER_BLOCKS.search(layer.tensor) is not None


def _extracted(change: Tensor, rules: ExtractionRules, name: str) -> ExtractedLayer:
    shape = tuple(change.shape)
    matrix = change.flatten(1)
    found = decompose(matrix, rules.of(shape))
    scale = rules.alpha / found.rank
    up, down = ((m / math.sqrt(scale)).to(rules.dtype) for m in (found.up, found.down))
    product = (up.double() @ down.double()) * scale
    if not bool(product.isfinite().all()):
        raise ModelError(
            f"{name} changed by more than {rules.dtype} can hold. Nothing was written. Use "
            f"--dtype fp32."
        )
    missed = float((matrix.double() - product).square().sum())
    changed = float(matrix.double().square().sum())
    if len(shape) > 2:
        up = up.reshape(shape[0], found.rank, *(1 for _ in shape[2:]))
        down = down.reshape(found.rank, *shape[1:])
    return ExtractedLayer(up.contiguous(), down.contiguous(), rules.alpha, changed, missed)


def _require_modest(rules: ExtractionRules, shapes: list[tuple[int, ...]]) -> None:
    """Refuse a rank that no layer can have.

    Raises:
        ConfigError: It is above the width of every layer.
    """
    for option, rank, spatial in (
        ("--rank", rules.rank, False),
        ("--conv-rank", rules.conv_rank, True),
    ):
        widths = [
            min(shape[0], math.prod(shape[1:]))
            for shape in shapes
            if (math.prod(shape[2:]) > 1) == spatial
        ]
        if option in rules.asked and rank is not None and widths and rank > max(widths):
            raise ConfigError(
                f"{option} {rank} is above the width of every layer: the widest has "
                f"{max(widths)}. Give {max(widths)} or less; narrower layers use their own width."
            )
