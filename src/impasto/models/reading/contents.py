"""A model as tensors and configurations, before networks are built from it and after."""

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
    """The contents of a model's file or folder.

    Attributes:
        source: Path or id that it was opened by.
        form: Form of the file or folder, in words.
        components: Component of the family -> tensors by diffusers' names.
        ldm_only: Tensors by LDM's names that no component uses.
        configs: Component -> configuration.
        scheduler_config: Configuration for samplers; its prediction_type is the identity's.
        identity: Family and prediction, with the evidence.
        tokenizer_files: Tokenizer folder -> file name -> content; empty means the shipped
            vocabulary.
        metadata: Metadata texts of the file.
        notes: Notes for the user: tensors left out, which of several files was used.
        zeroes_empty_text: Whether it states that an empty prompt is zeros instead of the encoded
            empty text.
        vae_source: Path or id of the VAE that replaces its own; None if its own is used.
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
        """The last element of `source`: the only part of it that may be published."""
        return self.source.replace("\\", "/").rstrip("/").rpartition("/")[2]

    def ldm_tensors(self) -> dict[str, LazyTensor]:
        """Return all tensors under a single file's names, with the empty tensors that mark it."""
        tensors = merge_ldm(self.components, self.ldm_only, self.identity.family.layout)
        return tensors | dict.fromkeys(self._marks(), LazyTensor.of(torch.empty(0)))

    def _marks(self) -> list[str]:
        """Return the marks of a single file; without them, other programs sample only noise."""
        generation = self.identity.family.generation
        rows = [row for row in families.FAMILIES if row.generation == generation]
        if not any(row.mark for row in rows):
            return []
        is_zero_snr = bool(self.scheduler_config.get("rescale_betas_zero_snr"))
        predicted = [row for row in rows if row.prediction is self.identity.prediction]
        marks = [row.mark for row in predicted if row.mark is not None]
        return [*marks, *([ZERO_TERMINAL_SNR_MARK] if is_zero_snr else [])]

    def cast(self, dtypes: Mapping[str, Any]) -> ModelContents:
        """Return the model with some components in other dtypes, and the others unchanged."""
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

        ldm_only = {  # not the schedule's buffers: rounding them would change the noise levels
            name: tensor.cast(asked(name)) for name, tensor in self.ldm_only.items()
        }
        return replace(self, components=result, ldm_only=ldm_only)

    def dtypes(self) -> dict[str, str]:
        """Return component -> the dtypes of its floating-point tensors, such as `float16`."""
        return {
            component: "+".join(
                sorted({_dtype_name(t) for t in tensors.values() if t.dtype.is_floating_point})
            )
            for component, tensors in self.components.items()
        }


def _dtype_name(tensor: LazyTensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
