"""Mixes models tensor by tensor: the formulas, and the checks before they are applied.

Nothing is read before the result is written: the result is a `ModelContents` of lazy tensors, each
of which reads the tensor of its name from every model when it is needed. So memory is needed only
for the few tensors of one name, whatever the size and the number of models.
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
"""Tensors of one name in all models, one after another, and a ratio -> the mixed tensor."""

Shares = Callable[[float], Sequence[float]]
"""Ratio -> fraction of each model in the result, as far as whole models are in it."""


@dataclass(frozen=True)
class Formula:
    """A formula that mixes models.

    Attributes:
        key: Name of the formula on the command line.
        text: The formula, with letters for the models and M for the ratio.
        models: Number of models that it takes.
        ratio: Default ratio.
        combine: Function that computes it, in float32.
        shares: Fraction of each model in the result.
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
    """Compute (1 - M) * A + M * B: A1111's "Weighted sum" (`modules/extras.py`, `weighted_sum`)."""
    return (1 - ratio) * next(tensors) + ratio * next(tensors)


def add_difference(tensors: Iterator[Tensor], ratio: float) -> Tensor:
    """Compute A + M * (B - C): A1111's "Add difference" (`modules/extras.py`, `add_difference`)."""
    a, b, c = tensors
    return a + ratio * (b - c)


TRAIN_DIFFERENCE_GAIN = 1.8
"""Factor by which supermerger multiplies the ratio of `traindiff`."""


def train_difference(tensors: Iterator[Tensor], ratio: float) -> Tensor:
    """Compute A + 1.8 M * s * (B - C), with s = |B - A| / (|B - A| + |B - C|) for each value.

    `traindiff` of hako-mikan/sd-webui-supermerger (`scripts/mergers/mergers.py`): a value of A
    moves less the nearer it is to B already, as if it were trained towards it. Where B equals C it
    does not change.
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
    """Return the letter of a model in formulas: A to Z, then A2 to Z2 and so on.

    Args:
        number: Its index among all models, from 0.
    """
    again, index = divmod(number, len(string.ascii_uppercase))
    return string.ascii_uppercase[index] + (str(again + 1) if again else "")


def average(shares: Sequence[float]) -> Formula:
    """Return the formula for the weighted mean of models.

    With equal weights this is the uniform soup of Wortsman et al. 2022 (arXiv:2203.05482).

    Args:
        shares: Weight of each model, 0 or more; not all 0.
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
    """Return the first model with its tensors mixed with those of the others.

    Values are computed and returned in float32. Tensors whose ratio is 0 are the first model's, bit
    for bit. Tensors that a single file has beside its networks (position ids, the noise schedule,
    the unused layers of a text encoder) are the first model's too.

    Args:
        models: Models of one family, with the same tensors: see `require_mixable`.
        combine: The formula.
        ratios: Ratio of each tensor.

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
    """Return a tensor's values in float32.

    Raises:
        ModelError: One is NaN or infinite.
    """
    values = tensor.read().to(torch.float32)
    if not is_finite(values):
        raise ModelError(
            f"{source} ({component}): {name} holds NaN or infinite values, and so would the "
            f"mixture. Nothing was written. Use another copy of this model."
        )
    return values


def stored_as(
    contents: ModelContents, like: ModelContents, dtypes: Mapping[str, torch.dtype]
) -> ModelContents:
    """Return a model in the dtypes in which it is written.

    Args:
        contents: The model with its computed tensors.
        like: Model whose dtypes are used, but at least 16 bits where values changed.
        dtypes: Network -> its dtype, for networks with a requested dtype.
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
    """Return the dtypes of a network's tensors if none is requested.

    Query, key and value are one tensor in files of some text encoders: if one of the three changed,
    all get 16 bits or more.
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
    """Check that models can be mixed: one family, one prediction type, the same tensors.

    Raises:
        ModelError: They cannot; the message names the files and their differences.
    """
    first = models[0]
    for other in models[1:]:
        own, others = first.identity, other.identity
        if own.family.generation != others.family.generation:
            raise ModelError(
                f"{first.source} is {own.family.generation} and {other.source} is "
                f"{others.family.generation}: their networks differ, so they cannot be "
                f"mixed. Give models of one family."
            )
        if own.prediction is not others.prediction:
            raise ModelError(
                f"{first.source} predicts {own.prediction.name} ({own.evidence}) and "
                f"{other.source} {others.prediction.name} ({others.evidence}): a mixture would "
                f"predict neither. If one of these is wrong, state what both predict "
                f"with --prediction-type."
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
            f"{'; '.join(told)}. The models of a mixture must have the same size and structure."
        )
