"""Measures several models in one go: draws, looks, compares, and says what it came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from impasto.errors import DatasetError, ModelError, StorageError
from impasto.evaluation.distances import frechet_draws
from impasto.evaluation.looking import Looks, Picture, look_at
from impasto.evaluation.measures import (
    OF_FEATURES,
    OF_IMAGES,
    Material,
    compare_training,
    measure,
    real_measures,
)
from impasto.evaluation.networks import Network, TaggerNetwork
from impasto.evaluation.obedience import PromptTags
from impasto.evaluation.resampling import LEVEL
from impasto.evaluation.results import (
    VERSION,
    Outcome,
    model_values,
    notes_of,
    number,
    unusable,
)
from impasto.evaluation.samples import Contestant, DrawSettings, draw_samples
from impasto.progress import Progress, counted, none_of
from impasto.sampling.prompts import Prompt


@dataclass(frozen=True)
class RealImages:
    """Real images that models are measured by.

    Attributes:
        place: What they are called in results.
        pictures: The images.
        name_of: The name of an image in results.
    """

    place: str
    pictures: Sequence[Picture]
    name_of: Callable[[Path], str]


@dataclass(frozen=True)
class Question:
    """What is to be measured.

    Attributes:
        images: The real images.
        training: The training images; None where they are not known. Where they are the same as
            `images`, it is the same object.
        prompts: What is drawn, with the place of the image in `images` whose caption it is.
        per_prompt: Images of each prompt.
        prompts_of: The prompts of a model, with seeds and sizes: `per_prompt` for each of
            `prompts`, one prompt after the other.
        networks: What looks at images; the first that is a tagger tells tags.
        replicates: Draws of the bootstrap.
        seed: Of those draws.
    """

    images: RealImages
    training: RealImages | None
    prompts: Sequence[tuple[str, int | None]]
    per_prompt: int
    prompts_of: Callable[[Contestant], Sequence[Prompt]]
    networks: tuple[Network, ...]
    replicates: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """What an evaluation came to.

    Attributes:
        values: All of it as JSON has it.
        real: Name in `values` -> the real image.
        training: Name in `values` -> the training image.
    """

    values: dict[str, Any]
    real: dict[str, Picture]
    training: dict[str, Picture]


def evaluate(
    question: Question,
    models: Sequence[Contestant],
    settings: DrawSettings,
    progress: Progress,
    release: Callable[[torch.device], None],
) -> Answer:
    """Measure models, each drawn with the same prompts and seeds.

    Args:
        question: What is measured.
        models: The models; differences are told against the first.
        settings: How and where samples are drawn.
        progress: Is told how far it is.
        release: Gives memory that is not used any more back to the device.

    Raises:
        DatasetError: Not one real image can be read.
        ModelError: A model is damaged, or draws nothing but images of one colour.
        OutOfMemoryError: Memory ran out.
        StorageError: An image cannot be written.
    """
    files = []
    for model in models:
        files.append(draw_samples(model, question.prompts_of(model), settings, progress))
        release(settings.device)
    material = _material(question, progress)
    outcomes = []
    for model, drawn in zip(models, files, strict=True):
        seen = _look_at_samples(model, drawn, question.networks, progress)
        outcomes.append(_outcome(model, question, seen, material, progress))
    values = {
        "version": VERSION,
        "level": LEVEL,
        "images": _place_values(question.images, material.real),
        "training": None
        if question.training is None or material.training is None
        else _place_values(question.training, material.training),
        "prompts": len(question.prompts),
        "images_per_prompt": question.per_prompt,
        "bootstrap_draws": question.replicates,
        "features": [_network_values(n, material) for n in question.networks],
        "measures": [asdict(m) for m in (*OF_FEATURES, *OF_IMAGES)],
        "models": [model_values(outcome, outcomes[0]) for outcome in outcomes],
        "references": _reference_values(material),
        "notes": notes_of(material, outcomes),
        "pairs": _pairs(question, material, outcomes, files, settings.folder),
    }
    return Answer(
        values,
        _by_name(question.images),
        {} if question.training is None else _by_name(question.training),
    )


def _by_name(images: RealImages) -> dict[str, Picture]:
    return {images.name_of(picture.path): picture for picture in images.pictures}


def _material(question: Question, progress: Progress) -> Material:
    """Look at the real images and those trained on."""
    networks = question.networks
    real = look_at(question.images.pictures, networks, "the real images", progress)
    _require_some(real, question.images, progress)
    training: Looks | None = real if question.training is question.images else None
    if question.training is not None and training is None:
        training = look_at(question.training.pictures, networks, "the training images", progress)
        _require_some(training, question.training, progress)
    place_of = {picture: place for place, picture in enumerate(real.pictures)}
    linked = (
        None if link is None else place_of.get(question.images.pictures[link])
        for _, link in question.prompts
    )
    tagger = next((n for n in networks if isinstance(n, TaggerNetwork) and n.tells_tags), None)
    return Material(
        real,
        training,
        _share_files(real, training),
        tuple(text for text, _ in question.prompts),
        tuple(linked),
        question.per_prompt,
        networks,
        PromptTags(tagger.table) if tagger else None,
        question.replicates,
        question.seed,
        compare_training(training, progress),
    )


def _share_files(real: Looks, training: Looks | None) -> bool:
    if training is None:
        return False
    trained = {picture.path.resolve() for picture in training.pictures}
    return any(picture.path.resolve() in trained for picture in real.pictures)


def _require_some(looks: Looks, images: RealImages, progress: Progress) -> None:
    """Say which images could not be read.

    Raises:
        DatasetError: None could.
    """
    if not looks.unread:
        return
    first = looks.unread[0]
    if not looks.pictures:
        raise DatasetError(
            f"{none_of(len(looks.unread), 'images')} of {images.place} can be read; the first is "
            f"{first.path.name}: {first.reason}."
        )
    progress.note(
        f"{images.place}: {counted(len(looks.unread), 'images')} left out that cannot be read; "
        f"the first is {first.path.name}: {first.reason}."
    )


def _look_at_samples(
    model: Contestant, files: Sequence[Path], networks: tuple[Network, ...], progress: Progress
) -> Looks:
    """Look at what a model drew.

    Raises:
        ModelError: It is all of one colour.
        StorageError: An image is gone that was there.
    """
    pictures = [Picture(file) for file in files]
    looks = look_at(pictures, networks, f"the images of {model.label}", progress)
    if looks.unread:
        first = looks.unread[0]
        raise StorageError(
            f"The sample {first.path} cannot be read: {first.reason}. Remove it, and give the same "
            f"command again: it is drawn anew."
        )
    if looks.flat.all() and len(files) > 1:
        raise ModelError(
            f"{model.label} draws nothing but images of one colour: its numbers became NaN or "
            f"infinite on the way, or its weights are ruined. Look at {files[0]}."
        )
    return looks


def _outcome(
    model: Contestant, question: Question, looks: Looks, material: Material, progress: Progress
) -> Outcome:
    sizes = {(p.width, p.height) for p in question.prompts_of(model)}
    rows = len(looks.pictures)
    total = sum(
        frechet_draws(rows, len(material.real.pictures), f.shape[1], material.replicates)
        for f in looks.features.values()
    )
    with progress.stage(f"Measuring {model.label}", total, "draws") as advance:
        measured = measure(looks, material, advance)
    for key in unusable(measured.estimates):
        del measured.estimates[key]
    size = sizes.pop() if len(sizes) == 1 else None
    return Outcome(model, size, int(looks.flat.sum()), measured)


def _place_values(images: RealImages, looks: Looks) -> dict[str, Any]:
    return {
        "place": images.place,
        "images": len(looks.pictures),
        "unreadable": len(looks.unread),
        "with_captions": sum(bool(picture.caption) for picture in looks.pictures),
    }


def _network_values(network: Network, material: Material) -> dict[str, Any]:
    features = material.real.features.get(network.facts.name)
    return {**asdict(network.facts), "width": None if features is None else features.shape[1]}


def _reference_values(material: Material) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "measures": [
                {"measure": key, "features": features or None, "value": number(value)}
                for (key, features), value in row.items()
            ],
        }
        for name, row in real_measures(material).items()
    ]


def _pairs(
    question: Question,
    material: Material,
    outcomes: Sequence[Outcome],
    files: Sequence[Sequence[Path]],
    folder: Path,
) -> list[dict[str, Any]]:
    """Each prompt with its real image and its samples, and what is nearest to these."""
    found = []
    for place, (text, _) in enumerate(question.prompts):
        link = material.linked[place]
        real = None if link is None else material.real.pictures[link].path
        samples = [
            _sample_values(outcome, drawn[n], n, question, material, folder)
            for outcome, drawn in zip(outcomes, files, strict=True)
            for n in range(place * question.per_prompt, (place + 1) * question.per_prompt)
        ]
        name = None if real is None else question.images.name_of(real)
        found.append({"prompt": text, "image": name, "samples": samples})
    return found


def _sample_values(
    outcome: Outcome, file: Path, place: int, question: Question, material: Material, folder: Path
) -> dict[str, Any]:
    measured = outcome.measured
    similarity = measured.similarity[place] if measured.similarity else None
    values: dict[str, Any] = {
        "model": outcome.model.label,
        "file": file.relative_to(folder.parent).as_posix(),
        "similarity": None if similarity is None else number(similarity),
    }
    copying = measured.copying
    if copying is not None and material.training is not None and question.training is not None:
        nearest = material.training.pictures[int(copying.nearest.index[place])]
        values |= {
            "nearest": question.training.name_of(nearest.path),
            "nearest_distance": number(float(copying.nearest.distance[place])),
            "is_copy": bool(copying.is_copy[place]),
        }
    return values
