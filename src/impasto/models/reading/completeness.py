"""Compares a model's tensors with those that its networks need: one check for all commands.

`load_base_model` and `convert` refuse missing tensors and wrong shapes, and leave out tensors that
no network uses, with a note; `inspect` shows the same without refusing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.errors import ModelError
from impasto.models.reading.contents import ModelContents

NAMES_SHOWN = 3


@dataclass(frozen=True)
class Fit:
    """The result of comparing tensors with those that a network expects.

    Attributes:
        missing: Names that the network needs and the file lacks.
        unknown: Names that the network does not use.
        wrong: Descriptions of tensors of another shape or dtype.
    """

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def faults(self) -> list[str]:
        """Descriptions of all differences, with the first few names of each sort."""
        sorts = {"missing": self.missing, "unknown": self.unknown, "of another shape": self.wrong}
        return [f"{sort}: {listed(names)}" for sort, names in sorts.items() if names]

    @property
    def gaps(self) -> list[str]:
        """Descriptions of the differences that make the model unusable, without unused tensors."""
        return replace(self, unknown=()).faults


def compare(expected: Mapping[str, Tensor], tensors: Tensors) -> Fit:
    """Compare names and shapes, and check that floating-point weights are not integers."""
    wrong = (
        fault
        for name in sorted(expected.keys() & tensors.keys())
        if (fault := _fault(name, expected[name], tensors[name])) is not None
    )
    return Fit(
        tuple(sorted(expected.keys() - tensors.keys() - {"embeddings.position_ids"})),
        tuple(sorted(tensors.keys() - expected.keys())),
        tuple(wrong),
    )


def require_complete(
    contents: ModelContents, needed: Mapping[str, Mapping[str, Tensor]]
) -> ModelContents:
    """Return the contents without unused tensors, which the notes name, if no tensor is missing.

    Args:
        contents: The opened model.
        needed: Component -> the tensors of the network that its configuration describes; their
            values are not read.

    Raises:
        ModelError: A tensor of any component is missing, or of another shape or dtype.
    """
    components: dict[str, Tensors] = {}
    notes = list(contents.notes)
    for component, tensors in contents.components.items():
        expected = needed[component]
        fit = compare(expected, {named_as_in(expected, n): t for n, t in tensors.items()})
        if fit.gaps:
            raise ModelError(
                f"{contents.source} ({component}) does not fit its configuration: "
                f"{'; '.join(fit.gaps)}. The file is damaged, incomplete, or belongs to another "
                f"model. Download or copy it again."
            )
        unused = set(fit.unknown)
        components[component] = {
            n: t for n, t in tensors.items() if named_as_in(expected, n) not in unused
        }
        if unused:
            notes.append(
                f"left out of the {component}, which does not use them: {listed(fit.unknown)}"
            )
    return replace(contents, components=components, notes=tuple(notes))


def named_as_in(expected: Collection[str], name: str) -> str:
    """Return the name that `expected` has for a tensor: with or without transformers 4's prefix.

    Version 4 of transformers has `text_model.` before CLIP's names, version 5 has not.
    """
    old = f"text_model.{name}"
    return old if name not in expected and old in expected else name


def listed(names: Iterable[str]) -> str:
    """Return the first few names as text, with the number of the others."""
    names = list(names)
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _fault(name: str, expected: Tensor, found: LazyTensor) -> str | None:
    if tuple(expected.shape) != found.shape:
        return f"{name} is {found.shape}, expected {tuple(expected.shape)}"
    if expected.dtype.is_floating_point and not found.dtype.is_floating_point:
        return f"{name} is {found.dtype}, expected floating-point numbers"
    return None
