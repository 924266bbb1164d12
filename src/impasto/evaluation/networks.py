"""Networks that make features of images: taggers, and models of transformers (CLIP, DINOv2, ...).

Each is named by what it is and by a hash of its weights: numbers of two networks are not to be
compared, nor those of the same network in another version.
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
from impasto.evaluation.network_facts import Looked, NetworkFacts
from impasto.evaluation.transformers_network import TransformersNetwork
from impasto.progress import Progress

KNOWN: Mapping[str, str] = {
    "clip": "openai/clip-vit-large-patch14",
    "dinov2": "facebook/dinov2-base",
}
"""Short names of models on the Hub: one that knows words, one that tells images apart."""


class Network(Protocol):
    """Makes features of images."""

    facts: NetworkFacts

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image as the network takes it; called in threads."""

    def look(self, prepared: Sequence[np.ndarray]) -> Looked:
        """Run the network on a few prepared images."""

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
        """Return no features: a tagger has none of texts."""
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
