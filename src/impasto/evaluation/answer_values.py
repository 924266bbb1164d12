"""Parts of an evaluation's JSON content: images, networks, references, and pairs to inspect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from impasto.evaluation.distances import frechet_draws
from impasto.evaluation.image_features import ImageFeatures
from impasto.evaluation.measures import Material, real_measures
from impasto.evaluation.networks import Network
from impasto.evaluation.question import Question, RealImages
from impasto.evaluation.results import Outcome, number


def image_values(images: RealImages, looks: ImageFeatures) -> dict[str, Any]:
    """Return the counts of real or training images."""
    return {
        "place": images.source,
        "images": len(looks.images),
        "unreadable": len(looks.unread),
        "with_captions": sum(bool(image.caption) for image in looks.images),
    }


def network_values(network: Network, material: Material) -> dict[str, Any]:
    """Return the facts of a network, and the number of draws for its Fréchet distance."""
    features = material.real.features.get(network.facts.name)
    if features is None:
        return {**asdict(network.facts), "width": None, "frechet_draws": None}
    samples, (real, width) = len(material.groups), features.shape
    return {
        **asdict(network.facts),
        "width": width,
        "frechet_draws": frechet_draws(samples, real, width, material.replicates),
    }


def reference_values(material: Material) -> list[dict[str, Any]]:
    """Return the measures of real images, as references for those of models."""
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


def pairs(
    question: Question,
    material: Material,
    outcomes: Sequence[Outcome],
    files: Sequence[Sequence[Path]],
    folder: Path,
) -> list[dict[str, Any]]:
    """Return each prompt with its real image, its samples, and their nearest training images."""
    found = []
    for index, (text, _) in enumerate(question.prompts):
        link = material.linked[index]
        real = None if link is None else material.real.images[link].path
        samples = [
            _sample_values(outcome, drawn[n], n, question, material, folder)
            for outcome, drawn in zip(outcomes, files, strict=True)
            for n in range(index * question.per_prompt, (index + 1) * question.per_prompt)
        ]
        name = None if real is None else question.images.name_of(real)
        found.append({"prompt": text, "image": name, "samples": samples})
    return found


def _sample_values(
    outcome: Outcome, file: Path, index: int, question: Question, material: Material, folder: Path
) -> dict[str, Any]:
    measured = outcome.measured
    similarity = measured.similarity[index] if measured.similarity else None
    values: dict[str, Any] = {
        "model": outcome.model.label,
        "file": file.relative_to(folder.parent).as_posix(),
        "similarity": None if similarity is None else number(similarity),
    }
    copying = measured.copying
    if copying is not None and material.training is not None and question.training is not None:
        nearest = material.training.images[int(copying.nearest.index[index])]
        values |= {
            "nearest": question.training.name_of(nearest.path),
            "nearest_distance": number(float(copying.nearest.distance[index])),
            "is_copy": bool(copying.is_copy[index]),
        }
    return values
