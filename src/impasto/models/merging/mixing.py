"""Models mixed tensor by tensor: the formulas, and what has to agree before they are applied.

Nothing is read here before the result is written: what comes out is a `ModelContents` of lazy
tensors, each of which reads its own of every model when it is asked for. So memory is needed for
the few tensors of one name, whatever the size and the number of models.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.checkpoints.writing import is_finite
from impasto.errors import ModelError
from impasto.models.merging.blocks import Ratios
from impasto.models.reading.completeness import listed
from impasto.models.reading.contents import ModelContents
from impasto.models.writing.saving import at_least_16_bits

Combine = Callable[[Iterator[Tensor], float], Tensor]
"""Makes one tensor of those of one name in all models, one after another, and of a ratio."""

Shares = Callable[[float], Sequence[float]]
"""How much of each model is in what a ratio makes, as far as a model is in it as a whole."""


@dataclass(frozen=True)
class Formula:
    """A way to mix models.

    Attributes:
        key: How the command line calls it.
        text: The formula, in letters of the models and M for the ratio.
        models: How many it takes.
        ratio: The ratio where none is given.
        combine: What computes it, in float32.
        shares: How much of each model is in the result.
    """

    key: str
    text: str
    models: int
    ratio: float
    combine: Combine
    shares: Shares

    @property
    def takes_ratio(self) -> bool:
        """Whether the formula has a ratio, M."""
        return self.key != AVERAGE


def weighted_sum(tensors: Iterator[Tensor], ratio: float) -> Tensor:
    """(1 - M) * A + M * B: "Weighted sum" of A1111 (`modules/extras.py`, `weighted_sum`)."""
    return (1 - ratio) * next(tensors) + ratio * next(tensors)


def add_difference(tensors: Iterator[Tensor], ratio: float) -> Tensor:
    """A + M * (B - C): "Add difference" of A1111 (`modules/extras.py`, `add_difference`)."""
    a, b, c = tensors
    return a + ratio * (b - c)


TRAIN_DIFFERENCE_GAIN = 1.8
"""What supermerger multiplies the ratio of `traindiff` by."""


def train_difference(tensors: Iterator[Tensor], ratio: float) -> Tensor:
    """A + 1.8 M * s * (B - C), with s = |B - A| / (|B - A| + |B - C|) for each number.

    `traindiff` of hako-mikan/sd-webui-supermerger (`scripts/mergers/mergers.py`): a number of A
    moves less the nearer it is to B already, as if it were trained towards it. Where B is C it
    stays.
    """
    a, b, c = tensors
    change, distance = b - c, (b - a).abs()
    reach = distance + change.abs()
    share = torch.where(reach != 0, distance / reach, torch.zeros_like(reach))
    return a + share * change * (ratio * TRAIN_DIFFERENCE_GAIN)


def _of_two(ratio: float) -> Sequence[float]:
    return 1 - ratio, ratio


def _of_first(_: float) -> Sequence[float]:
    return 1.0, 0.0, 0.0


FORMULAS = {
    formula.key: formula
    for formula in (
        Formula("weighted-sum", "(1 - M) * A + M * B", 2, 0.5, weighted_sum, _of_two),
        Formula("add-difference", "A + M * (B - C)", 3, 1.0, add_difference, _of_first),
        Formula(
            "train-difference",
            "A + 1.8 M * (B - C) * |B - A| / (|B - A| + |B - C|)",
            3,
            1.0,
            train_difference,
            _of_first,
        ),
    )
}
AVERAGE = "average"


def letter_of(number: int) -> str:
    """What formulas call a model: A to Z, then A2 to Z2 and so on.

    Args:
        number: Its index among all, from 0.
    """
    again, index = divmod(number, len(string.ascii_uppercase))
    return string.ascii_uppercase[index] + (str(again + 1) if again else "")


def average(shares: Sequence[float]) -> Formula:
    """The mean of models, each as often as its share says.

    With equal shares this is the uniform soup of Wortsman et al. 2022 (arXiv:2203.05482).

    Args:
        shares: One for each model, 0 or more; not all 0.
    """
    total = sum(shares)

    def combine(tensors: Iterator[Tensor], _: float) -> Tensor:
        mean = torch.zeros(())
        for share, tensor in zip(shares, tensors, strict=True):
            mean = mean + tensor * (share / total)
        return mean

    letters = [letter_of(number) for number in range(len(shares))]
    terms = (f"{share:g} {letter}" for share, letter in zip(shares, letters, strict=True))
    equal = f"({' + '.join(letters)}) / {len(shares)}"
    text = equal if len(set(shares)) == 1 else f"({' + '.join(terms)}) / {total:g}"
    return Formula(AVERAGE, text, len(shares), 1.0, combine, lambda _: shares)


def mix(models: Sequence[ModelContents], combine: Combine, ratios: Ratios) -> ModelContents:
    """The first model with its tensors mixed with those of the others.

    Values are computed in float32 and come out so. Tensors whose ratio is 0 come out as the first
    model has them, bit for bit. What a single file has beside its networks (position ids, the
    noise schedule, the layers of a text encoder that are not used) is the first model's.

    Args:
        models: All of one family, with the same tensors: see `require_mixable`.
        combine: The formula.
        ratios: The ratio of each tensor.

    Raises:
        ConfigError: A ratio is for a block that the model does not have.
    """
    first = models[0]
    by_name = ratios.of(first)
    components: dict[str, Tensors] = {
        component: {
            name: _mixed(models, component, name, combine, by_name[component][name])
            for name in tensors
        }
        for component, tensors in first.components.items()
    }
    return replace(first, components=components)


def _mixed(
    models: Sequence[ModelContents], component: str, name: str, combine: Combine, ratio: float
) -> LazyTensor:
    own = models[0].components[component][name]
    if ratio == 0 or not own.dtype.is_floating_point:
        return own
    tensors = [(model.source, model.components[component][name]) for model in models]
    return LazyTensor(
        own.shape,
        torch.float32,
        partial(_compute, tensors, component, name, combine, ratio),
        owns_memory=True,
    )


def _compute(
    tensors: Sequence[tuple[str, LazyTensor]],
    component: str,
    name: str,
    combine: Combine,
    ratio: float,
) -> Tensor:
    read = (finite_values(tensor, source, component, name) for source, tensor in tensors)
    return combine(read, ratio)


def finite_values(tensor: LazyTensor, source: str, component: str, name: str) -> Tensor:
    """A tensor's values in float32.

    Raises:
        ModelError: One is NaN or infinite.
    """
    values = tensor.read().to(torch.float32)
    if not is_finite(values):
        raise ModelError(
            f"{source} ({component}): {name} holds NaN or infinite values, and so would the "
            f"mixture. Nothing was written. Take another copy of this model."
        )
    return values


def stored_as(
    contents: ModelContents, like: ModelContents, dtypes: Mapping[str, torch.dtype]
) -> ModelContents:
    """A model in the precision that it is written in.

    Args:
        contents: With what was computed.
        like: The model whose types are kept, but no less than 16 bits where values changed.
        dtypes: Network -> its type, where it is asked for by name.
    """
    components: dict[str, Tensors] = {}
    for component, tensors in contents.components.items():
        asked, kept = dtypes.get(component), _kept(component, tensors, like)
        components[component] = {
            name: tensor.cast(asked or kept[name]) for name, tensor in tensors.items()
        }
    whole = replace(contents, components=components)
    return replace(whole, ldm_only=contents.cast(dtypes).ldm_only)


def _kept(component: str, tensors: Tensors, like: ModelContents) -> dict[str, torch.dtype]:
    """The types of a network's tensors where none is asked for.

    Query, key and value are one tensor in files of some text encoders: where one of the three
    changed, all have 16 bits or more.
    """
    naming = next(c.naming for c in like.identity.family.components if c.name == component)
    component_map = naming.map_of_ours(tensors.keys())
    changed = {n for n, tensor in tensors.items() if tensor is not like.components[component][n]}
    fused = {n for name in changed for n in component_map.to_diffusers(component_map.to_ldm(name))}
    return {
        name: at_least_16_bits(own.dtype) if name in fused | changed else own.dtype
        for name, own in ((n, like.components[component][n]) for n in tensors)
    }


def require_mixable(models: Sequence[ModelContents]) -> None:
    """Make sure that models can be mixed: one family, one prediction type, the same tensors.

    Raises:
        ModelError: They are not; with what differs, and in which files.
    """
    first = models[0]
    for other in models[1:]:
        own, others = first.identity, other.identity
        if own.family.generation != others.family.generation:
            raise ModelError(
                f"{first.source} is {own.family.generation} and {other.source} is "
                f"{others.family.generation}: their networks are not alike, so they cannot be "
                f"mixed. Give models of one family."
            )
        if own.prediction is not others.prediction:
            raise ModelError(
                f"{first.source} predicts {own.prediction.name} ({own.evidence}) and "
                f"{other.source} {others.prediction.name} ({others.evidence}): a mixture would "
                f"predict neither. If one of these is wrong, say what both predict with "
                f"--prediction-type."
            )
        for component, tensors in first.components.items():
            _require_same_tensors(
                component, first.source, tensors, other.source, other.components[component]
            )


def _require_same_tensors(
    component: str, source: str, tensors: Tensors, other_source: str, others: Tensors
) -> None:
    missing, more = sorted(tensors.keys() - others.keys()), sorted(others.keys() - tensors.keys())
    wrong = [
        f"{name} is {others[name].shape} there and {tensor.shape} here"
        for name, tensor in tensors.items()
        if name in others and others[name].shape != tensor.shape
    ]
    faults = {"missing there": missing, "more there": more, "of another shape": wrong}
    told = [f"{sort}: {listed(names)}" for sort, names in faults.items() if names]
    if told:
        raise ModelError(
            f"{other_source} does not have the same tensors as {source} ({component}): "
            f"{'; '.join(told)}. Models that are mixed have to be of one size and structure."
        )
