"""Features of images and texts from transformers models: CLIP, DINOv2, SigLIP, ViT."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from impasto.annotate.captioners import require_data_only
from impasto.errors import MissingDependencyError, ModelError
from impasto.evaluation.network_facts import NetworkFacts, NetworkOutput
from impasto.invocation import install_packages


class TransformersNetwork:
    """A transformers model with an image encoder, and possibly a text encoder.

    Attributes:
        facts: Its identity.

    Args:
        name: Its name in results.
        source: Its folder, or its id on the Hub.
        device: The device that it runs on, in float32. It is moved there on first use, so that it
            takes no memory from the models that draw before.

    Raises:
        ModelError: The model cannot be loaded, or fails on an image or a text.
    """

    def __init__(self, name: str, source: str, device: torch.device) -> None:
        require_data_only(Path(source))
        self._device = device
        self._model, self._processor, self._tokenizer, self._has_pool = _load(source)
        self._longest = _longest_text(self._model, self._tokenizer)
        kind = f"features of {self._model.config.model_type}"
        self.facts = NetworkFacts(name, kind, _hash_of(self._model, self._processor))
        self._model.eval()
        self._require_works(source)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Convert an RGB image to the size and value range that the model was trained with."""
        inputs = self._processor(images=image, return_tensors="pt")
        return np.asarray(inputs["pixel_values"][0].numpy())

    @torch.no_grad()
    def look(self, prepared: Sequence[np.ndarray]) -> NetworkOutput:
        """Compute features of a few prepared images."""
        self._model.to(self._device)
        return NetworkOutput(self._features_of(prepared))

    def _features_of(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack(prepared)).to(self._model.device)
        if hasattr(self._model, "get_image_features"):
            found = _pooled(self._model.get_image_features(pixel_values=pixels))
        else:
            found = self._of_output(self._model(pixel_values=pixels))
        return np.asarray(found.float().cpu().numpy())

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> np.ndarray | None:
        """Return features of texts, truncated to the model's limit; None without a text encoder."""
        if self._tokenizer is None:
            return None
        self._model.to(self._device)
        return self._features_of_texts(texts)

    def _features_of_texts(self, texts: Sequence[str]) -> np.ndarray:
        inputs = self._tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        ).to(self._model.device)
        found = _pooled(self._model.get_text_features(**inputs))
        return np.asarray(found.float().cpu().numpy())

    @torch.no_grad()
    def _require_works(self, source: str) -> None:
        """Try the model on a grey image and a long text, before hours are spent on drawing.

        Raises:
            ModelError: The model fails on them.
        """
        try:
            found = self._features_of([self.prepare(Image.new("RGB", (64, 64), (128, 128, 128)))])
            if self._tokenizer is not None:
                self._features_of_texts(["a cat", "a cat " * self._longest])
        except (ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
            raise ModelError(
                f"The feature network {source} fails on a plain image or a text "
                f"({_first_line(error)}). Give another one, such as clip or dinov2."
            ) from error
        if found.ndim != 2:
            raise ModelError(
                f"The feature network {source} gives an output of shape {list(found.shape[1:])} "
                f"per image; expected a vector. Give another one, such as clip or dinov2."
            )

    def _of_output(self, output: Any) -> Tensor:
        """Return one feature vector per image from the output of a vision model."""
        if self._has_pool and getattr(output, "pooler_output", None) is not None:
            return torch.flatten(output.pooler_output, 1)
        states: Tensor = output.last_hidden_state
        return states.mean((2, 3)) if states.ndim == 4 else states[:, 0]


def _pooled(found: Any) -> Tensor:
    """Return the features in the output of a two-tower model, for any version of transformers."""
    pooled: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return pooled


def _load(source: str) -> tuple[Any, Any, Any, bool]:
    """Load a model.

    Returns:
        The model, its image processor, its tokenizer or None, and whether its pooling layer is in
        its weights.

    Raises:
        MissingDependencyError: A package that the model needs is not installed.
        ModelError: The model cannot be loaded, or weights are missing.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        model, said = AutoModel.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=False, use_safetensors=True,
            output_loading_info=True,
        )  # fmt: skip
        reads = hasattr(model, "get_text_features")
        tokenizer = (
            AutoTokenizer.from_pretrained(source, trust_remote_code=False) if reads else None
        )
    except ImportError as error:
        raise MissingDependencyError(
            f"The feature network {source} needs a package that is not installed "
            f"({_first_line(error)}). Packages are installed with: {install_packages('NAME')}"
        ) from error
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"The feature network {source} cannot be loaded ({_first_line(error)}). Give the "
            f"folder of a model that transformers knows, such as CLIP or DINOv2, with its weights "
            f"as .safetensors and its preprocessor_config.json, or its Hub id."
        ) from error
    missing = [key for key in said["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise ModelError(
            f"The feature network {source} lacks the weights {missing[0]} and perhaps others, "
            f"which would be random. Use a complete copy of it."
        )
    return model, processor, tokenizer, not said["missing_keys"]


def _longest_text(model: nn.Module, tokenizer: Any) -> int:
    """Return the maximum number of tokens of a model's texts; 0 without a text encoder.

    The limit may be missing in the tokenizer's files, for which transformers uses a number of 31
    digits, so the configuration of the network is considered too.
    """
    if tokenizer is None:
        return 0
    config = getattr(model.config, "text_config", model.config)
    stated = getattr(config, "max_position_embeddings", None)
    said = int(tokenizer.model_max_length)
    return min(said, int(stated or said))


def _hash_of(model: nn.Module, processor: Any) -> str:
    """Return the SHA-256 of a model's preprocessing and of its tensors in the order of names."""
    found = hashlib.sha256(processor.to_json_string().encode("utf-8"))
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
