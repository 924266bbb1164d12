"""What the exported models of a run are a mixture of (`saving.merge_ratio`), in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from impasto.errors import RunError
from impasto.runs.directory import RunDirectory


@dataclass(frozen=True)
class Mixture:
    """What an exported model holds.

    Attributes:
        ratio: The share of what was trained, above 0 and below 1; the rest is the base model.
        loss: The validation loss of the last one; None where it was not measured.
    """

    ratio: float
    loss: float | None = None

    @property
    def shares(self) -> str:
        """The shares, in words."""
        return f"{self.ratio:g} of what was trained, {1 - self.ratio:.4g} of the base model"

    @property
    def sentence(self) -> str:
        """What a reader of a run's figures has to know, without a full stop."""
        of = "losses, curves and samples are of what was trained"
        if self.loss is None:
            return f"{self.shares}; {of}"
        return f"{self.shares}, with a validation loss of {self.loss:.4f}; the other {of}"

    def beside(self, name: str) -> str:
        """The name of a model with the shares behind it."""
        return f"{name} ({self.shares})"


def mixture_of(run: RunDirectory, model: Path | None = None) -> Mixture | None:
    """What a model that a run has exported is a mixture of; None where it is what was trained.

    Args:
        run: The run.
        model: The model; None is the one of the end.
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
    """The name of an exported model, with its shares where it is a mixture."""
    return name if mixture is None else mixture.beside(name)
