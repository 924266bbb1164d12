"""Evaluates several models: draws their samples, computes features, and compares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from impasto.errors import DatasetError, ModelError, StorageError
from impasto.evaluation.answer_values import (
    image_values,
    network_values,
    pairs,
    reference_values,
)
from impasto.evaluation.distances import frechet_draws
from impasto.evaluation.image_features import CaptionedImage, ImageFeatures, features_of
from impasto.evaluation.measures import (
    OF_FEATURES,
    OF_IMAGES,
    Material,
    compare_training,
    measure,
)
from impasto.evaluation.networks import Network, TaggerNetwork
from impasto.evaluation.obedience import PromptTags
from impasto.evaluation.question import Answer, Question, RealImages
from impasto.evaluation.resampling import LEVEL
from impasto.evaluation.results import (
    VERSION,
    Outcome,
    model_values,
    notes_of,
    unusable,
)
from impasto.evaluation.samples import Contestant, DrawSettings, draw_samples
from impasto.progress import Progress, counted, none_of


def evaluate(
    question: Question,
    models: Sequence[Contestant],
    settings: DrawSettings,
    progress: Progress,
    release: Callable[[torch.device], None],
) -> Answer:
    """Draw samples with models and measure them, by `draw_all` and `measure_all`."""
    files = draw_all(question, models, settings, progress, release)
    return measure_all(question, models, files, settings.folder, progress)


def draw_all(
    question: Question,
    models: Sequence[Contestant],
    settings: DrawSettings,
    progress: Progress,
    release: Callable[[torch.device], None],
) -> list[list[Path]]:
    """Draw the samples of each model, all with the same prompts and seeds, and return their files.

    Args:
        question: The prompts, images and networks of the evaluation.
        models: The models.
        settings: The folder, device and other settings for drawing.
        progress: Reports progress.
        release: Called with the device after each model, to free unused memory.

    Raises:
        ModelError: A model is damaged.
        StorageError: An image cannot be written.
    """
    files = []
    for model in models:
        files.append(draw_samples(model, question.prompts_of(model), settings, progress))
        release(settings.device)
    return files


def measure_all(
    question: Question,
    models: Sequence[Contestant],
    files: Sequence[Sequence[Path]],
    folder: Path,
    progress: Progress,
) -> Answer:
    """Measure models by their samples.

    Args:
        question: The prompts, images and networks of the evaluation.
        models: The models; the others are compared with the first.
        files: The sample files of each model.
        folder: The folder of all samples.
        progress: Reports progress.

    Raises:
        DatasetError: None of the real images can be read.
        ModelError: All samples of a model are images of a single colour.
        OutOfMemoryError: Memory is too small for a single image in a network.
        StorageError: A sample cannot be read.
    """
    material = _material(question, progress)
    outcomes = []
    for model, drawn in zip(models, files, strict=True):
        seen = _look_at_samples(model, drawn, question.networks, progress)
        outcomes.append(_outcome(model, question, seen, material, progress))
    values = {
        "version": VERSION,
        "level": LEVEL,
        "images": image_values(question.images, material.real),
        "training": None
        if question.training is None or material.training is None
        else image_values(question.training, material.training),
        "prompts": len(question.prompts),
        "images_per_prompt": question.per_prompt,
        "bootstrap_draws": question.replicates,
        "features": [network_values(n, material) for n in question.networks],
        "measures": [asdict(m) for m in (*OF_FEATURES, *OF_IMAGES)],
        "models": [model_values(outcome, outcomes[0]) for outcome in outcomes],
        "references": reference_values(material),
        "notes": notes_of(material, outcomes),
        "pairs": pairs(question, material, outcomes, files, folder),
    }
    return Answer(
        values,
        _by_name(question.images),
        {} if question.training is None else _by_name(question.training),
    )


def _by_name(images: RealImages) -> dict[str, CaptionedImage]:
    return {images.name_of(image.path): image for image in images.entries}


def _material(question: Question, progress: Progress) -> Material:
    """Compute the features of the real images and the training images."""
    networks = question.networks
    real = features_of(question.images.entries, networks, "the real images", progress)
    _require_some(real, question.images, progress)
    training: ImageFeatures | None = real if question.training is question.images else None
    if question.training is not None and training is None:
        training = features_of(question.training.entries, networks, "the training images", progress)
        _require_some(training, question.training, progress)
    index_of = {image: index for index, image in enumerate(real.images)}
    linked = (
        None if link is None else index_of.get(question.images.entries[link])
        for _, link in question.prompts
    )
    shared_by = _sharing_runs(real, question.trained_on)
    tagger = next((n for n in networks if isinstance(n, TaggerNetwork) and n.tells_tags), None)
    return Material(
        real,
        training,
        bool(shared_by) or _have_common_files(real, training),
        tuple(text for text, _ in question.prompts),
        tuple(linked),
        question.per_prompt,
        networks,
        PromptTags(tagger.table) if tagger else None,
        question.replicates,
        question.seed,
        compare_training(training, progress),
        shared_by,
        question.emphasis,
    )


def _have_common_files(real: ImageFeatures, training: ImageFeatures | None) -> bool:
    trained = [] if training is None else [image.path for image in training.images]
    return bool(_sharing_runs(real, {"": trained}))


def _sharing_runs(real: ImageFeatures, trained_on: Mapping[str, Sequence[Path]]) -> tuple[str, ...]:
    """Return the runs that were trained on one of the real images."""
    own = {image.path.resolve() for image in real.images}
    return tuple(
        run for run, paths in trained_on.items() if any(path.resolve() in own for path in paths)
    )


def _require_some(looks: ImageFeatures, images: RealImages, progress: Progress) -> None:
    """Report images that could not be read.

    Raises:
        DatasetError: None of the images could be read.
    """
    if not looks.unread:
        return
    first = looks.unread[0]
    if not looks.images:
        raise DatasetError(
            f"{none_of(len(looks.unread), 'images')} of {images.source} can be read; the first is "
            f"{first.path.name}: {first.reason}."
        )
    progress.note(
        f"{images.source}: {counted(len(looks.unread), 'unreadable images')} left out; the first "
        f"is {first.path.name}: {first.reason}."
    )


def _look_at_samples(
    model: Contestant, files: Sequence[Path], networks: tuple[Network, ...], progress: Progress
) -> ImageFeatures:
    """Compute the features of a model's samples.

    Raises:
        ModelError: All samples are of a single colour.
        StorageError: A sample cannot be read.
    """
    images = [CaptionedImage(file) for file in files]
    looks = features_of(images, networks, f"the images of {model.label}", progress)
    if looks.unread:
        first = looks.unread[0]
        raise StorageError(
            f"The sample {first.path} cannot be read: {first.reason}. Remove it, and repeat the "
            f"command: it will be drawn again."
        )
    if looks.flat.all() and len(files) > 1:
        raise ModelError(
            f"{model.label} draws only images of a single colour: values became NaN or infinite "
            f"while drawing, or its weights are damaged. See {files[0]}."
        )
    return looks


def _outcome(
    model: Contestant,
    question: Question,
    looks: ImageFeatures,
    material: Material,
    progress: Progress,
) -> Outcome:
    sizes = {(p.width, p.height) for p in question.prompts_of(model)}
    rows = len(looks.images)
    total = sum(
        frechet_draws(rows, len(material.real.images), f.shape[1], material.replicates)
        for f in looks.features.values()
    )
    with progress.stage(f"Measuring {model.label}", total, "draws") as advance:
        measured = measure(looks, material, advance)
    for key in unusable(measured.estimates):
        del measured.estimates[key]
    size = sizes.pop() if len(sizes) == 1 else None
    return Outcome(model, size, int(looks.flat.sum()), measured)
