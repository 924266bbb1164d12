"""Base models on the meta device, for predictions: one to read shapes from, others to consume.

A fake step replaces the tensors of a network, which cannot be used afterwards. Creating a base
model takes longer than some fake steps, so the networks that a fake step has not used are kept for
the next.
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
    """Provides meta models of a base model, and the trainable networks built from them.

    Args:
        make: Creates a base model without values.
        build: Builds the trainable networks from a base model.
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
        """Whether no user code builds the trainable networks.

        Only then may frozen networks be unloaded or held in 16 bits.
        """
        return self._build is build_trainable

    @property
    def code(self) -> str:
        """A text that identifies the user code that builds the trainable networks; "" if none."""
        return "" if self.is_usual else described(self._build, learns=True)

    def shown(self, config: RunConfig) -> tuple[BaseModel, Trainable]:
        """Return a base model and its trainable networks, to read sizes, shapes and dtypes from.

        They are shared between calls with equal settings, so callers must not change them.

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
        """Return trainable networks that the caller may change."""
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
        """Return a VAE that the caller may change."""
        if self._with_vae:
            return self._with_vae.pop().vae
        model = self._make()
        self._with_unet.append(model)
        return model.vae
