"""A model as tensors and configurations, before networks are made of it and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from impasto.checkpoints.ldm import ZERO_TERMINAL_SNR_MARK, merge_ldm
from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.models import families
from impasto.models.reading.configs import Configs
from impasto.models.reading.identity import Identity


@dataclass(frozen=True)
class ModelContents:
    """Everything that a model's file or folder holds.

    Attributes:
        source: The path or id it was opened by.
        form: What sort of file or folder that is, in words.
        components: Component of the family -> tensors by diffusers' names.
        ldm_only: Tensors by LDM's names that no component uses.
        configs: Part -> configuration.
        scheduler_config: For samplers; its prediction_type is the identity's.
        identity: Family and prediction, with the evidence.
        tokenizer_files: Folder of a tokenizer -> file name -> content; none means the shipped
            vocabulary.
        metadata: Texts in the file.
        notes: What a person should know: tensors left out, which of several files was taken.
        zeroes_empty_text: Whether it says that an empty prompt is zeros instead of the encoded
            empty text.
        vae_source: The path or id of the VAE that stands in the place of its own, if one does.
    """

    source: str
    form: str
    components: Mapping[str, Tensors]
    ldm_only: Tensors
    configs: Configs
    scheduler_config: Mapping[str, Any]
    identity: Identity
    tokenizer_files: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    zeroes_empty_text: bool = False
    vae_source: str | None = None

    @property
    def name(self) -> str:
        """The last element of `source`: what may be published of it."""
        return self.source.replace("\\", "/").rstrip("/").rpartition("/")[2]

    def ldm_tensors(self) -> dict[str, LazyTensor]:
        """All tensors under the names of a single file, with what marks it."""
        tensors = merge_ldm(self.components, self.ldm_only, self.identity.family.layout)
        return tensors | dict.fromkeys(self._marks(), LazyTensor.of(torch.empty(0)))

    def _marks(self) -> list[str]:
        """The marks of a single file; without them, programs draw noise with such a model."""
        generation = self.identity.family.generation
        rows = [row for row in families.FAMILIES if row.generation == generation]
        if not any(row.mark for row in rows):
            return []
        is_zero_snr = bool(self.scheduler_config.get("rescale_betas_zero_snr"))
        predicted = [row for row in rows if row.prediction is self.identity.prediction]
        marks = [row.mark for row in predicted if row.mark is not None]
        return [*marks, *([ZERO_TERMINAL_SNR_MARK] if is_zero_snr else [])]

    def cast(self, dtypes: Mapping[str, Any]) -> ModelContents:
        """A model with some components in another type; those that are not named stay."""
        result = {
            component: {
                name: tensor.cast(dtypes.get(component)) for name, tensor in tensors.items()
            }
            for component, tensors in self.components.items()
        }
        components = self.identity.family.components
        roots = {component.naming.root: dtypes.get(component.name) for component in components}

        def asked(name: str) -> Any:
            return next((dtype for root, dtype in roots.items() if name.startswith(root)), None)

        ldm_only = {  # buffers of the schedule: rounded, they would be other noise levels
            name: tensor.cast(asked(name)) for name, tensor in self.ldm_only.items()
        }
        return replace(self, components=result, ldm_only=ldm_only)

    def dtypes(self) -> dict[str, str]:
        """Part -> the types of its floating-point tensors, such as `float16`."""
        return {
            component: "+".join(
                sorted({_dtype_name(t) for t in tensors.values() if t.dtype.is_floating_point})
            )
            for component, tensors in self.components.items()
        }


def _dtype_name(tensor: LazyTensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
