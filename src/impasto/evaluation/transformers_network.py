"""Features of images and texts by models of transformers: CLIP, DINOv2, SigLIP, ViT."""

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
from impasto.evaluation.network_facts import Looked, NetworkFacts
from impasto.invocation import install_packages


class TransformersNetwork:
    """A model of transformers that looks at images, and perhaps reads.

    Attributes:
        facts: What it is.

    Args:
        name: What it is called in results.
        source: Its folder, or its id on the Hub.
        device: Where it computes, in float32. It comes there when it is first shown an image, so
            that it takes no memory from models that draw.

    Raises:
        ModelError: It cannot be loaded, or does not take an image or a text.
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
        """An RGB image in the size and range that the model was trained with."""
        inputs = self._processor(images=image, return_tensors="pt")
        return np.asarray(inputs["pixel_values"][0].numpy())

    @torch.no_grad()
    def look(self, prepared: Sequence[np.ndarray]) -> Looked:
        """Features of a few prepared images."""
        self._model.to(self._device)
        return Looked(self._features_of(prepared))

    def _features_of(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack(prepared)).to(self._model.device)
        if hasattr(self._model, "get_image_features"):
            found = _pooled(self._model.get_image_features(pixel_values=pixels))
        else:
            found = self._of_output(self._model(pixel_values=pixels))
        return np.asarray(found.float().cpu().numpy())

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> np.ndarray | None:
        """Features of texts, cut where the model stops reading; None where it reads none."""
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
        """Show it a grey image and a long text, before hours are spent on drawing for it.

        Raises:
            ModelError: It does not take them.
        """
        try:
            found = self._features_of([self.prepare(Image.new("RGB", (64, 64), (128, 128, 128)))])
            if self._tokenizer is not None:
                self._features_of_texts(["a cat", "a cat " * self._longest])
        except (ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
            raise ModelError(
                f"The feature network {source} does not take a plain image and a text "
                f"({_first_line(error)}). Give another one, such as clip or dinov2."
            ) from error
        if found.ndim != 2:
            raise ModelError(
                f"The feature network {source} gives {list(found.shape[1:])} of an image; expected "
                f"a list of numbers. Give another one, such as clip or dinov2."
            )

    def _of_output(self, output: Any) -> Tensor:
        """One list of numbers for each image, of whatever a vision model gives."""
        if self._has_pool and getattr(output, "pooler_output", None) is not None:
            return torch.flatten(output.pooler_output, 1)
        states: Tensor = output.last_hidden_state
        return states.mean((2, 3)) if states.ndim == 4 else states[:, 0]


def _pooled(found: Any) -> Tensor:
    """The features in what a model with two towers gives, by any version of transformers."""
    pooled: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return pooled


def _load(source: str) -> tuple[Any, Any, Any, bool]:
    """A model, what prepares images, what reads texts or None, and whether its pooling is its own.

    Raises:
        MissingDependencyError: transformers lacks something that it needs.
        ModelError: It cannot be loaded, or its weights are not whole.
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
            f"The feature network {source} lacks {missing[0]} and perhaps more of its weights; "
            f"they would be random. Take a whole copy of it."
        )
    return model, processor, tokenizer, not said["missing_keys"]


def _longest_text(model: nn.Module, tokenizer: Any) -> int:
    """How many tokens a model reads; 0 of one that does not read.

    Files of tokenizers may say nothing of it, in whose place transformers has a number of 31
    digits, so the configuration of the network is asked too.
    """
    if tokenizer is None:
        return 0
    config = getattr(model.config, "text_config", model.config)
    stated = getattr(config, "max_position_embeddings", None)
    said = int(tokenizer.model_max_length)
    return min(said, int(stated or said))


def _hash_of(model: nn.Module, processor: Any) -> str:
    """The SHA-256 of a model's tensors, in the order of their names, and of its preprocessing."""
    found = hashlib.sha256(processor.to_json_string().encode("utf-8"))
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
