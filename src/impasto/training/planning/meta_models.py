"""Base models without values, for predictions: one to look at, and others to use up.

A fake step puts other tensors into a network and leaves it of no use. Making a base model takes
longer than some fake steps, so that what one has left whole is kept for the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from impasto.config.run import RunConfig
from impasto.models.networks.loading import BaseModel
from impasto.models.trainable import Trainable
from impasto.training.builders.methods import BuildTrainable, build_trainable
from impasto.training.builders.overrides import require_trainable
from impasto.training.compute.precision import computed_kind
from impasto.training.fingerprints.code_identity import described


class MetaModels:
    """Hands out meta models of a base model.

    Args:
        make: Makes one.
        build: Makes what learns of it.
    """

    def __init__(
        self, make: Callable[[], BaseModel], build: BuildTrainable = build_trainable
    ) -> None:
        self._make, self._build = make, build
        self._shown: dict[str, tuple[BaseModel, Trainable]] = {}
        self._with_unet: list[BaseModel] = []
        self._with_vae: list[BaseModel] = []

    @property
    def is_usual(self) -> bool:
        """Whether no code has a look at the networks, so that frozen ones may wait or be narrow."""
        return self._build is build_trainable

    @property
    def code(self) -> str:
        """What identifies the code that makes what learns; empty for that of the settings."""
        return "" if self.is_usual else described(self._build, learns=True)

    def shown(self, config: RunConfig) -> tuple[BaseModel, Trainable]:
        """A model and what learns of it: numbers, shapes and types to look at, and nothing else.

        Raises:
            ImpastoError: The model cannot be read, or the settings do not fit it.
        """
        sections = config.model_dump_json(include={"model", "method"})
        key = f"{computed_kind(config)} {sections}"
        if key not in self._shown:
            model = self._make()
            self._shown[key] = model, self._built(config, model)
        return self._shown[key]

    def trainable(self, config: RunConfig) -> Trainable:
        """What learns, to be used up."""
        if self._with_unet:
            return self._built(config, self._with_unet.pop())
        model = self._make()
        self._with_vae.append(model)
        return self._built(config, model)

    def _built(self, config: RunConfig, model: BaseModel) -> Trainable:
        made = self._build(config, model)
        if not self.is_usual:
            require_trainable(made)
        return made

    def vae(self) -> Any:
        """A VAE, to be used up."""
        if self._with_vae:
            return self._with_vae.pop().vae
        model = self._make()
        self._with_unet.append(model)
        return model.vae
