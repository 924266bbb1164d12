"""The measures of a model's samples, computed with bootstrap draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from impasto.evaluation.copying import Copying, copies_of
from impasto.evaluation.distances import frechet_draws, frechet_estimate, kernel_estimate
from impasto.evaluation.image_features import ImageFeatures
from impasto.evaluation.neighbours import (
    Nearest,
    authentic,
    nearest_by_features,
    normalised,
)
from impasto.evaluation.networks import Network
from impasto.evaluation.obedience import PromptTags, seen_fractions
from impasto.evaluation.resampling import Estimate, draw_real, draw_weights, mean_estimate
from impasto.models.tokenization.emphasis import parse_emphasis
from impasto.models.tokenization.tokens import Emphasis
from impasto.progress import Progress

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Measure:
    """A quantity by which models are compared, such as the Fréchet distance.

    Attributes:
        key: Its name in results.
        title: Its name for users.
        better: Whether lower or higher values are better.
    """

    key: str
    title: str
    better: Better


FRECHET = Measure("frechet_distance", "Fréchet distance to the real images", "lower")
KERNEL = Measure("kernel_distance", "kernel distance to the real images", "lower")
IMAGE = Measure("image_similarity", "similarity to the real image of the same caption", "higher")
TEXT = Measure("text_similarity", "similarity of image and prompt", "higher")
NEAREST = Measure("nearest_training", "similarity to the nearest training image", "neither")
AUTHENTIC = Measure("authentic", "fraction of authentic images", "neither")
COPIES = Measure("copies", "fraction of copies of training images", "lower")
TAGS = Measure("prompt_tags", "fraction of the prompt's tags found", "higher")
OF_FEATURES = (FRECHET, KERNEL, IMAGE, TEXT, NEAREST, AUTHENTIC)
OF_IMAGES = (COPIES, TAGS)


@dataclass(frozen=True)
class Material:
    """The images, prompts and draws that all models are measured with.

    Attributes:
        real: The real images.
        training: The training images; None if they are unknown.
        is_shared: Whether a real image is among the training images, or among those of a run.
        prompts: [P] texts.
        linked: [P] the index in `real` of the image whose caption is the prompt; None if there is
            none.
        per_prompt: Number of samples per prompt. Samples are ordered by prompt.
        networks: The networks that compute features.
        prompt_tags: Finds tags in prompts; None without a tagger.
        replicates: Number of bootstrap draws.
        seed: Seed of the draws.
        among_training: The result of `compare_training`.
        shared_by: Runs that were trained on a real image.
        emphasis: The syntax of emphasis in prompts; with `off`, brackets are ordinary characters.
    """

    real: ImageFeatures
    training: ImageFeatures | None
    is_shared: bool
    prompts: tuple[str, ...]
    linked: tuple[int | None, ...]
    per_prompt: int
    networks: tuple[Network, ...]
    prompt_tags: PromptTags | None
    replicates: int
    seed: int
    among_training: Mapping[str, Nearest]
    shared_by: tuple[str, ...] = ()
    emphasis: Emphasis = "off"

    @cached_property
    def groups(self) -> np.ndarray:
        """[N] the index of each sample's prompt."""
        return np.repeat(np.arange(len(self.prompts)), self.per_prompt)

    @property
    def is_linked(self) -> bool:
        """Whether any prompt is the caption of a real image."""
        return any(index is not None for index in self.linked)

    @cached_property
    def draws(self) -> np.ndarray:
        """[R, P] how often each prompt was drawn; the same for all models."""
        return draw_weights(len(self.prompts), self.replicates, self.seed)

    @cached_property
    def real_draws(self) -> np.ndarray:
        """[R, M] how often each real image was drawn."""
        return draw_real(len(self.real.images), self.linked, self.draws, self.seed + 1)

    @cached_property
    def plain_prompts(self) -> list[str]:
        """[P] the prompts without the syntax of emphasis."""
        if self.emphasis == "off":
            return list(self.prompts)
        return ["".join(piece for piece, _ in parse_emphasis(text)) for text in self.prompts]

    @cached_property
    def wanted_tags(self) -> list[frozenset[int]]:
        """[P] the numbers of the tags in each prompt; empty sets without a tagger."""
        finder = self.prompt_tags
        return [finder.of(text) if finder else frozenset() for text in self.plain_prompts]

    @cached_property
    def texts(self) -> dict[str, np.ndarray]:
        """Name of a network with a text encoder -> [P, D] features of the prompts, of length 1."""
        found = {}
        for network in self.networks:
            features = [
                network.of_texts(self.plain_prompts[start : start + 32])
                for start in range(0, len(self.plain_prompts), 32)
            ]
            known = [values for values in features if values is not None]
            if known:
                found[network.facts.name] = normalised(np.concatenate(known))
        return found


def compare_training(training: ImageFeatures | None, progress: Progress) -> dict[str, Nearest]:
    """Find the nearest other training image of each training image, for each network.

    Returns:
        Name of a network -> the nearest images; empty with fewer than two training images.
    """
    if training is None or len(training.images) < 2:
        return {}
    found = {}
    for name, features in training.features.items():
        count = len(features)
        with progress.stage(f"Comparing training images by {name}", count, "images") as advance:
            found[name] = nearest_by_features(normalised(features), told=advance)
    return found


@dataclass
class Measured:
    """The measures of a model.

    Attributes:
        estimates: (Key of a measure, name of the network or an empty text) -> its estimate.
        copying: The nearest training image of each sample; None if training images are unknown.
        similarity: [N] similarity of each sample to the real image with its caption, by the first
            network; None if the prompt is not a caption.
    """

    estimates: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    copying: Copying | None = None
    similarity: list[float | None] = field(default_factory=list)


def measure(looks: ImageFeatures, material: Material, told: Callable[[int], None]) -> Measured:
    """Measure a model by its samples.

    Args:
        looks: Its samples, ordered by prompt.
        material: The images, prompts and draws to measure with.
        told: Called with 1 after each slow bootstrap draw.
    """
    found = Measured()
    for name in looks.features:
        _measure_features(name, looks, material, found, told)
    if material.training is not None and len(material.training.images):
        copying = copies_of(looks, material.training, material.among_training)
        fractions = [float(copy) for copy in copying.is_copy]
        found.copying = copying
        found.estimates[COPIES.key, ""] = mean_estimate(fractions, material.groups, material.draws)
    if looks.tags is not None:
        wanted = [material.wanted_tags[group] for group in material.groups]
        found.estimates[TAGS.key, ""] = mean_estimate(
            seen_fractions(wanted, looks.tags), material.groups, material.draws
        )
    return found


def _measure_features(
    name: str,
    looks: ImageFeatures,
    material: Material,
    found: Measured,
    told: Callable[[int], None],
) -> None:
    """Add the measures of one network to `found`."""
    x, y, groups, draws = looks.features[name], material.real.features[name], material.groups, (
        material.draws
    )  # fmt: skip
    count = frechet_draws(len(x), len(y), x.shape[1], material.replicates)
    distance = frechet_estimate(x, groups, y, draws[:count], material.real_draws[:count], told)
    found.estimates[FRECHET.key, name] = replace(distance, is_dependent=material.is_linked)
    found.estimates[KERNEL.key, name] = kernel_estimate(
        x, groups, y, draws, material.real_draws, material.linked
    )
    unit, real = normalised(x), normalised(y)
    similar = similarity_to(unit, real, [material.linked[group] for group in groups])
    found.similarity = found.similarity or similar
    found.estimates[IMAGE.key, name] = mean_estimate(similar, groups, draws)
    if name in material.texts:
        alike = (unit * material.texts[name][groups]).sum(1)
        found.estimates[TEXT.key, name] = mean_estimate(alike.tolist(), groups, draws)
    if name in material.among_training and material.training is not None:
        near = nearest_by_features(unit, normalised(material.training.features[name]))
        own = authentic(near, material.among_training[name]).astype(np.float64)
        found.estimates[NEAREST.key, name] = mean_estimate(
            (1 - near.distance).tolist(), groups, draws
        )
        found.estimates[AUTHENTIC.key, name] = mean_estimate(own.tolist(), groups, draws)


def similarity_to(
    unit: np.ndarray, real: np.ndarray, links: Sequence[int | None]
) -> list[float | None]:
    """Return [N] the cosine of each sample and the real image with its caption; None without one.

    Args:
        unit: [N, D] features of samples, of length 1.
        real: [M, D] features of real images, of length 1.
        links: [N] the index of that image in `real`, or None.
    """
    return [
        None if link is None else float(sample @ real[link])
        for sample, link in zip(unit, links, strict=True)
    ]


def real_measures(material: Material) -> dict[str, dict[tuple[str, str], float]]:
    """Compute the same measures for real images, as references.

    Returns:
        Name of the reference -> (key of a measure, name of the network) -> value.
    """
    real, found = material.real, dict[tuple[str, str], float]()
    links = [(prompt, link) for prompt, link in enumerate(material.linked) if link is not None]
    others: dict[tuple[str, str], float] = {}
    for name, features in real.features.items():
        unit = normalised(features)
        if len(unit) > 1:
            others[IMAGE.key, name] = mean_similarity(unit)
        if name in material.texts and links:
            prompts, indices = (np.array(column) for column in zip(*links, strict=True))
            alike = (unit[indices] * material.texts[name][prompts]).sum(1)
            found[TEXT.key, name] = float(alike.mean())
    if real.tags is not None and links:
        fractions = seen_fractions(
            [material.wanted_tags[prompt] for prompt, _ in links],
            [real.tags[index] for _, index in links],
        )
        known = [fraction for fraction in fractions if fraction is not None]
        if known:
            found[TAGS.key, ""] = float(np.mean(known))
    found |= _real_against_training(material)
    rows = {"the real images": found, "other real images": others}
    return {name: row for name, row in rows.items() if row}


def mean_similarity(unit: np.ndarray) -> float:
    """Return the mean cosine of two different rows of features of length 1, from their sum."""
    count = len(unit)
    whole = float((unit.astype(np.float64).sum(0) ** 2).sum())
    return (whole - count) / (count * (count - 1))


def _real_against_training(material: Material) -> dict[tuple[str, str], float]:
    """Compute the measures of memorisation for real images, if these were not trained on."""
    training, real = material.training, material.real
    if training is None or material.is_shared or not len(training.images):
        return {}
    copying = copies_of(real, training, material.among_training)
    found = {(COPIES.key, ""): float(copying.is_copy.mean())}
    for name, among in material.among_training.items():
        near = nearest_by_features(
            normalised(real.features[name]), normalised(training.features[name])
        )
        found[NEAREST.key, name] = float(1 - near.distance.mean())
        found[AUTHENTIC.key, name] = float(authentic(near, among).mean())
    return found


def measures_of(names: Sequence[str]) -> list[tuple[Measure, str]]:
    """Return all measures with their networks in the order shown, those of networks first."""
    return [(m, name) for name in names for m in OF_FEATURES] + [(m, "") for m in OF_IMAGES]
