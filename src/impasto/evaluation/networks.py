"""Feature networks for images: taggers, and transformers models (CLIP, DINOv2, ...).

Results name a network together with a hash of its weights, since values from two networks, or from
two versions of one network, must not be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from impasto import files, presence
from impasto.annotate.models import TAGGERS, locate_tagger
from impasto.annotate.onnx_tagger import OnnxTagger
from impasto.annotate.profiles import fit_square
from impasto.annotate.tags import Selection
from impasto.errors import ConfigError
from impasto.evaluation.network_facts import NetworkFacts, NetworkOutput
from impasto.evaluation.transformers_network import TransformersNetwork
from impasto.progress import Progress

KNOWN: Mapping[str, str] = {
    "clip": "openai/clip-vit-large-patch14",
    "dinov2": "facebook/dinov2-base",
}
"""Short names of models on the Hub: one for images and texts, one for distinguishing images."""


class Network(Protocol):
    """A network that computes features of images."""

    facts: NetworkFacts

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Convert an RGB image to the network's input; called in threads."""

    def look(self, prepared: Sequence[np.ndarray]) -> NetworkOutput:
        """Compute features, tags or both of a few prepared images."""

    def of_texts(self, texts: Sequence[str]) -> np.ndarray | None:
        """Return [N, D] features of texts, comparable with those of images; None if it has none."""


class TaggerNetwork:
    """A tagger, used for its tags and for the input of its last layer as features.

    Attributes:
        facts: Its identity.
        table: The tags that it knows.
        tells_tags: Whether it reports tags; with several taggers, only one does.

    Args:
        name: Its name in results.
        folder: Its folder.
        with_features: Whether to compute features in addition to tags.
        progress: Receives a note when batches are made smaller because memory ran out.
        provider: The execution provider of ONNX Runtime, as for `OnnxTagger`; None for the best one
            available.
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
        kind = "the penultimate layer of a tagger" if with_features else "tags"
        self.facts = NetworkFacts(name, kind, files.sha256_of(self._tagger.file))

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Convert an RGB image to the square that this kind of tagger expects."""
        profile = self._tagger.profile
        return fit_square(image, profile.side, profile.fit)

    def look(self, prepared: Sequence[np.ndarray]) -> NetworkOutput:
        """Compute features and tags of a few prepared images."""
        if self._with_features:
            scores, features = self._tagger.scores_and_features(prepared)
        else:
            scores, features = self._tagger.scores(prepared), None
        return NetworkOutput(
            features, [self._seen(row) for row in scores] if self.tells_tags else None
        )

    def of_texts(self, texts: Sequence[str]) -> None:  # noqa: ARG002 - a tagger has no text features
        """Return None, since a tagger has no features of texts."""
        return

    def _seen(self, scores: np.ndarray) -> frozenset[int]:
        names = {tag.name for tag in self._selection.of(scores, self.table)}
        return frozenset(n for n, name in enumerate(self.table.names) if name in names)


def load_network(
    name: str,
    device: torch.device,
    progress: Progress,
    shipped: Mapping[str, Path],
    provider: str | None = None,
) -> Network:
    """Load a network by a path, a short name or a Hub id.

    Args:
        name: A short name in `shipped` or `KNOWN` or of a tagger; the folder or `.onnx` file of a
            tagger; the folder of a transformers model; or an id on the Hub. A folder with the name
            of a short name must be given as `./name`.
        device: The device that a transformers model runs on.
        progress: Reports downloads.
        shipped: Short names of taggers included in Impasto, with their folders.
        provider: The execution provider of ONNX Runtime for a tagger; None for the best one
            available.

    Raises:
        ConfigError: There is no network with this name.
        MissingDependencyError: A package that it needs is not installed.
        ModelError: The network is missing or damaged, or has no features.
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
    """Load a tagger only for its tags, by a path, a short name or a Hub id.

    Raises:
        ConfigError: There is no tagger with this name.
        ModelError: The tagger is missing or damaged, or cannot be downloaded.
    """
    folder = shipped[name] if name in shipped else locate_tagger(name, progress)
    label = name if name in shipped else _short(name)
    return TaggerNetwork(label, folder, progress, with_features=False)


def _is_tagger(path: Path) -> bool:
    is_file = path.suffix.lower() == ".onnx"
    return is_file or (presence.is_dir(path) and any(path.glob("*.onnx")))


def _short(name: str) -> str:
    """Return a name without the folders of this machine; a Hub id is unchanged."""
    path = Path(name)
    return path.resolve().name if presence.exists(path) else name
