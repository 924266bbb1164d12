"""Networks that make features of images: taggers, and models of transformers (CLIP, DINOv2, ...).

Each is named by what it is and by a hash of its weights: numbers of two networks are not to be
compared, nor those of the same network in another version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from impasto import files, presence
from impasto.annotate.captioners import require_data_only
from impasto.annotate.models import TAGGERS, locate_tagger
from impasto.annotate.onnx_tagger import OnnxTagger
from impasto.annotate.profiles import fit_square
from impasto.annotate.tags import Selection
from impasto.errors import ConfigError, MissingDependencyError, ModelError
from impasto.invocation import install_packages
from impasto.progress import Progress

KNOWN: Mapping[str, str] = {
    "clip": "openai/clip-vit-large-patch14",
    "dinov2": "facebook/dinov2-base",
}
"""Short names of models on the Hub: one that knows words, one that tells images apart."""


@dataclass(frozen=True)
class NetworkFacts:
    """What a network is, for results.

    Attributes:
        name: As it is asked for, without folders.
        kind: What its features are.
        sha256: Of its weights, and of how images are prepared for it.
    """

    name: str
    kind: str
    sha256: str


@dataclass(frozen=True)
class Looked:
    """What a network makes of a few images.

    Attributes:
        features: [N, D] float32; None for a tagger that was loaded for its tags alone.
        tags: Numbers of the tags that it sees in each; None for a network that knows none.
    """

    features: np.ndarray | None
    tags: list[frozenset[int]] | None = None


class Network(Protocol):
    """Makes features of images."""

    facts: NetworkFacts

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image as the network takes it; called in threads."""

    def look(self, prepared: Sequence[np.ndarray]) -> Looked:
        """What it makes of a few prepared images."""

    def of_texts(self, texts: Sequence[str]) -> np.ndarray | None:
        """[N, D] features of texts, to be compared with those of images; None if it reads none."""


class TaggerNetwork:
    """A tagger: its tags, and what its last layer makes them of.

    Attributes:
        facts: What it is.
        table: The tags that it knows.
        tells_tags: Whether its tags are told: those of one tagger are, where there are several.

    Args:
        name: What it is called in results.
        folder: Where it is.
        with_features: Whether its features are wanted besides its tags.
        progress: Is told when memory makes batches smaller.
        provider: What ONNX Runtime computes with, as of `OnnxTagger`; None is the best there is.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        progress: Progress,
        *,
        with_features: bool = True,
        provider: str | None = None,
    ) -> None:
        self._tagger = OnnxTagger(
            folder, provider=provider, progress=progress, with_features=with_features
        )
        self._with_features = with_features
        self.tells_tags = True
        self.table = self._tagger.table
        profile = self._tagger.profile
        self._selection = Selection(by_category=dict(profile.thresholds))
        kind = "the layer before the last of a tagger" if with_features else "tags"
        self.facts = NetworkFacts(name, kind, files.sha256_of(self._tagger.file))

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image as a square, as taggers of this kind want it."""
        profile = self._tagger.profile
        return fit_square(image, profile.side, profile.fit)

    def look(self, prepared: Sequence[np.ndarray]) -> Looked:
        """Features and tags of a few prepared images."""
        if self._with_features:
            scores, features = self._tagger.scores_and_features(prepared)
        else:
            scores, features = self._tagger.scores(prepared), None
        return Looked(features, [self._seen(row) for row in scores] if self.tells_tags else None)

    def of_texts(self, texts: Sequence[str]) -> None:  # noqa: ARG002 - a tagger reads none
        """Nothing: a tagger has no features of texts."""
        return

    def _seen(self, scores: np.ndarray) -> frozenset[int]:
        names = {tag.name for tag in self._selection.of(scores, self.table)}
        return frozenset(n for n, name in enumerate(self.table.names) if name in names)


class TransformersNetwork:
    """A model of transformers that looks at images, and perhaps reads.

    Attributes:
        facts: What it is.

    Args:
        name: What it is called in results.
        source: Its folder, or its id on the Hub.
        device: Where it computes, in float32.
    """

    def __init__(self, name: str, source: str, device: torch.device) -> None:
        require_data_only(Path(source))
        self._device = device
        self._model, self._processor, self._tokenizer, self._has_pool = _load(source)
        kind = f"features of {self._model.config.model_type}"
        self.facts = NetworkFacts(name, kind, _hash_of(self._model, self._processor))
        self._model.to(device).eval()

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image in the size and range that the model was trained with."""
        inputs = self._processor(images=image, return_tensors="pt")
        return np.asarray(inputs["pixel_values"][0].numpy())

    @torch.no_grad()
    def look(self, prepared: Sequence[np.ndarray]) -> Looked:
        """Features of a few prepared images."""
        pixels = torch.from_numpy(np.stack(prepared)).to(self._device)
        if hasattr(self._model, "get_image_features"):
            found = _pooled(self._model.get_image_features(pixel_values=pixels))
        else:
            found = self._of_output(self._model(pixel_values=pixels))
        return Looked(found.float().cpu().numpy())

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> np.ndarray | None:
        """Features of texts, cut where the model stops reading; None where it reads none."""
        if self._tokenizer is None:
            return None
        inputs = self._tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt"
        ).to(self._device)
        found = _pooled(self._model.get_text_features(**inputs))
        return np.asarray(found.float().cpu().numpy())

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


def load_network(
    name: str,
    device: torch.device,
    progress: Progress,
    shipped: Mapping[str, Path],
    provider: str | None = None,
) -> Network:
    """A network by a path, a short name or a Hub id.

    Args:
        name: A short name of `shipped`, of `KNOWN` or of a tagger; the folder or `.onnx` file of a
            tagger; a folder of transformers; or an id on the Hub. A folder that is called as a
            short name is meant by `./name`.
        device: Where it computes.
        progress: Is told of downloads.
        shipped: Short names of taggers that come with the program, with their folders.
        provider: What ONNX Runtime computes with, for a tagger; None is the best there is.

    Raises:
        ConfigError: There is no such name.
        MissingDependencyError: A package that it needs is not there.
        ModelError: It is missing, damaged, or makes no features.
    """
    path = Path(name)
    if name in shipped:
        return TaggerNetwork(name, shipped[name], progress, provider=provider)
    if name not in KNOWN and (name in TAGGERS or _is_tagger(path)):
        folder = locate_tagger(name, progress)
        return TaggerNetwork(_short(name), folder, progress, provider=provider)
    is_there = presence.exists(path)
    if not is_there and name not in KNOWN and (name.count("/") != 1 or path.suffix):
        raise ConfigError(
            f"There is no feature network {name!r}: neither a path that exists, nor a Hub id "
            f"(owner/name), nor one of the short names {', '.join([*shipped, *KNOWN, *TAGGERS])}."
        )
    source = KNOWN.get(name, name)
    with progress.stage(f"Opening {_short(source)}", None, "networks"):
        return TransformersNetwork(_short(source), source, device)


def load_tagger(name: str, progress: Progress, shipped: Mapping[str, Path]) -> TaggerNetwork:
    """A tagger for its tags alone, by a path, a short name or a Hub id.

    Raises:
        ConfigError: There is no such name.
        ModelError: It is missing, damaged, or could not be downloaded.
    """
    folder = shipped[name] if name in shipped else locate_tagger(name, progress)
    label = name if name in shipped else _short(name)
    return TaggerNetwork(label, folder, progress, with_features=False)


def _is_tagger(path: Path) -> bool:
    is_file = path.suffix.lower() == ".onnx"
    return is_file or (presence.is_dir(path) and any(path.glob("*.onnx")))


def _short(name: str) -> str:
    """A name without the folders of this machine; a Hub id stays whole."""
    path = Path(name)
    return path.resolve().name if presence.exists(path) else name


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


def _hash_of(model: nn.Module, processor: Any) -> str:
    """The SHA-256 of a model's tensors, in the order of their names, and of its preprocessing."""
    found = hashlib.sha256(processor.to_json_string().encode("utf-8"))
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
