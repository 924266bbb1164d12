"""Describes exported models that are a mixture with the base model (`saving.merge_ratio`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from impasto.errors import RunError
from impasto.runs.directory import RunDirectory


@dataclass(frozen=True)
class Mixture:
    """The composition of an exported model.

    Attributes:
        ratio: The fraction of the trained weights, above 0 and below 1; the rest is the base model.
        loss: The validation loss of the final mixture; None if it was not measured.
    """

    ratio: float
    loss: float | None = None

    @property
    def shares(self) -> str:
        """The fractions, as text."""
        return f"{self.ratio:g} of the trained weights, {1 - self.ratio:.4g} of the base model"

    @property
    def sentence(self) -> str:
        """What a reader of a run's figures must know, without a full stop."""
        of = "losses, curves and samples are of the trained weights"
        if self.loss is None:
            return f"{self.shares}; {of}"
        return f"{self.shares}, with a validation loss of {self.loss:.4f}; the other {of}"

    def beside(self, name: str) -> str:
        """Return the name of a model followed by the fractions."""
        return f"{name} ({self.shares})"


def mixture_of(run: RunDirectory, model: Path | None = None) -> Mixture | None:
    """Return the composition of an exported model; None if it is not mixed.

    Args:
        run: The run.
        model: The model; None for the final one.
    """
    last = run.exported_model()
    model = last if model is None else model
    if model is None:
        return None
    try:
        ratios = run.read_json("models.json").get("mixed", {})
    except RunError:
        return None
    of_model = (r for key, r in ratios.items() if run.at(key).resolve() == model.resolve())
    ratio = next(of_model, None)
    if not isinstance(ratio, float) or not 0 < ratio < 1:
        return None
    loss = run.status().get("merged_loss")
    is_last = last is not None and last.resolve() == model.resolve()
    return Mixture(ratio, loss if is_last and isinstance(loss, float) else None)


def named(name: str, mixture: Mixture | None) -> str:
    """Return the name of an exported model, with its fractions if it is a mixture."""
    return name if mixture is None else mixture.beside(name)
