"""What the exported models of a run are a mixture of (`saving.merge_ratio`), in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from impasto.parsing import parse_toml, read_text
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
    def parts(self) -> str:
        """The shares, in words."""
        return f"{self.ratio:g} of what was trained, {1 - self.ratio:.4g} of the base model"

    @property
    def sentence(self) -> str:
        """What a reader of a run's figures has to know, without a full stop."""
        of = "losses, curves and samples are of what was trained"
        if self.loss is None:
            return f"{self.parts}; {of}"
        return f"{self.parts}, with a validation loss of {self.loss:.4f}; the other {of}"

    def beside(self, name: str) -> str:
        """The name of a model with the shares behind it."""
        return f"{name} ({self.parts})"


def mixture_of(run: RunDirectory) -> Mixture | None:
    """What a run's exported models are a mixture of; None where they are what was trained.

    As the run says it itself at its end; until then, as its settings do.
    """
    status = run.status()
    ratio = status.get("merge_ratio")
    if ratio is None and status.get("phase") != "finished":
        ratio = _asked(run)
    if not isinstance(ratio, float) or not 0 < ratio < 1:
        return None
    loss = status.get("merged_loss")
    return Mixture(ratio, loss if isinstance(loss, float) else None)


def named(name: str, mixture: Mixture | None) -> str:
    """The name of an exported model, with its shares where it is a mixture."""
    return name if mixture is None else mixture.beside(name)


def _asked(run: RunDirectory) -> Any:
    try:
        section = parse_toml(read_text(run.config_file, "replace")).get("saving")
    except (OSError, ValueError):
        return None
    return section.get("merge_ratio") if isinstance(section, Mapping) else None
