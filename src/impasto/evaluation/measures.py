"""What is measured of a model, and the numbers of each measure, with draws of the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from impasto.evaluation.copying import Copying, copies_of
from impasto.evaluation.distances import frechet_draws, frechet_estimate, kernel_estimate
from impasto.evaluation.looking import Looks
from impasto.evaluation.neighbours import (
    Nearest,
    authentic,
    nearest_by_features,
    normalised,
)
from impasto.evaluation.networks import Network
from impasto.evaluation.obedience import PromptTags, seen_shares
from impasto.evaluation.resampling import Estimate, draw_real, draw_weights, mean_estimate
from impasto.models.tokenization.emphasis import parse_emphasis
from impasto.models.tokenization.tokens import Emphasis
from impasto.progress import Progress

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Measure:
    """Something that is measured.

    Attributes:
        key: Its name in results.
        title: Its name for people.
        better: Which way is better.
    """

    key: str
    title: str
    better: Better


FRECHET = Measure("frechet_distance", "Fréchet distance to the real images", "lower")
KERNEL = Measure("kernel_distance", "kernel distance to the real images", "lower")
IMAGE = Measure("image_similarity", "similarity to the real image of the same caption", "higher")
TEXT = Measure("text_similarity", "similarity of image and prompt", "higher")
NEAREST = Measure("nearest_training", "similarity to the nearest training image", "neither")
AUTHENTIC = Measure("authentic", "share of authentic images", "neither")
COPIES = Measure("copies", "share of copies of training images", "lower")
TAGS = Measure("prompt_tags", "share of the prompt's tags that are seen", "higher")
OF_FEATURES = (FRECHET, KERNEL, IMAGE, TEXT, NEAREST, AUTHENTIC)
OF_IMAGES = (COPIES, TAGS)


@dataclass(frozen=True)
class Material:
    """What all models are measured against.

    Attributes:
        real: The real images.
        training: The training images; None where they are not known.
        is_shared: Whether a real image is among them, or among those of a run.
        prompts: [P] texts.
        linked: [P] the index in `real` of the image whose caption a prompt is; None for a prompt
            that is no caption of theirs.
        per_prompt: How many images each prompt has. Images come prompt by prompt.
        networks: What looks at images.
        prompt_tags: What finds tags in prompts; None without a tagger.
        replicates: Draws of the bootstrap.
        seed: Of the draws.
        among_training: As `compare_training` gives it.
        shared_by: Runs that were trained on a real image.
        emphasis: How brackets in prompts are read; of none but `off` they are words.
    """

    real: Looks
    training: Looks | None
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
        """[N] the prompt of each sample."""
        return np.repeat(np.arange(len(self.prompts)), self.per_prompt)

    @property
    def is_linked(self) -> bool:
        """Whether a prompt is the caption of a real image that models are compared with."""
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
        """[P] what prompts ask for, without what gives their words weights."""
        if self.emphasis == "off":
            return list(self.prompts)
        return ["".join(piece for piece, _ in parse_emphasis(text)) for text in self.prompts]

    @cached_property
    def wanted_tags(self) -> list[frozenset[int]]:
        """[P] the tags that each prompt names; none of them without a tagger."""
        finder = self.prompt_tags
        return [finder.of(text) if finder else frozenset() for text in self.plain_prompts]

    @cached_property
    def texts(self) -> dict[str, np.ndarray]:
        """Name of a network that reads -> [P, D] features of the prompts, of length 1."""
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


def compare_training(training: Looks | None, progress: Progress) -> dict[str, Nearest]:
    """Name of a network -> the nearest other training image of each training image.

    Nothing where there are less than two.
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
    """The numbers of a model.

    Attributes:
        estimates: (Key of a measure, name of the network or nothing) -> its number.
        copying: What is near to each sample; None where training images are not known.
        similarity: [N] of each sample to the real image of its caption, by the first network;
            None where a prompt is no caption.
    """

    estimates: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    copying: Copying | None = None
    similarity: list[float | None] = field(default_factory=list)


def measure(looks: Looks, material: Material, told: Callable[[int], None]) -> Measured:
    """Measure a model by what it drew.

    Args:
        looks: Its samples, prompt by prompt.
        material: What they are measured against.
        told: Is told of each draw of the bootstrap that takes time.
    """
    found = Measured()
    for name in looks.features:
        _measure_features(name, looks, material, found, told)
    if material.training is not None and len(material.training.images):
        copying = copies_of(looks, material.training, material.among_training)
        shares = [float(copy) for copy in copying.is_copy]
        found.copying = copying
        found.estimates[COPIES.key, ""] = mean_estimate(shares, material.groups, material.draws)
    if looks.tags is not None:
        wanted = [material.wanted_tags[group] for group in material.groups]
        found.estimates[TAGS.key, ""] = mean_estimate(
            seen_shares(wanted, looks.tags), material.groups, material.draws
        )
    return found


def _measure_features(
    name: str, looks: Looks, material: Material, found: Measured, told: Callable[[int], None]
) -> None:
    """The measures of one network."""
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
    """[N] the cosine of each sample and the real image of its caption; None without one.

    Args:
        unit: [N, D] features of samples, of length 1.
        real: [M, D] those of real images.
        links: [N] the index of that image in `real`.
    """
    return [
        None if link is None else float(sample @ real[link])
        for sample, link in zip(unit, links, strict=True)
    ]


def real_measures(material: Material) -> dict[str, dict[tuple[str, str], float]]:
    """What the same measures say of real images, to read the others by.

    Returns:
        Whose they are -> measure and network -> the number.
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
        shares = seen_shares(
            [material.wanted_tags[prompt] for prompt, _ in links],
            [real.tags[index] for _, index in links],
        )
        known = [share for share in shares if share is not None]
        if known:
            found[TAGS.key, ""] = float(np.mean(known))
    found |= _real_against_training(material)
    rows = {"the real images": found, "other real images": others}
    return {name: row for name, row in rows.items() if row}


def mean_similarity(unit: np.ndarray) -> float:
    """The mean cosine of two different rows of features of length 1: the sum is that of squares."""
    count = len(unit)
    whole = float((unit.astype(np.float64).sum(0) ** 2).sum())
    return (whole - count) / (count * (count - 1))


def _real_against_training(material: Material) -> dict[tuple[str, str], float]:
    """What measures of memory say of real images that were not trained on."""
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
    """All measures, those of each network first, in the order in which they are shown."""
    return [(m, name) for name in names for m in OF_FEATURES] + [(m, "") for m in OF_IMAGES]
