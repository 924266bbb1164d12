"""Draws the images that models are measured by, and keeps them: what was drawn is not drawn again.

Each model has a folder that is named by a hash of its weights and of all that decides its images
but words and seeds, which are in the files. So a run that was stopped goes on where it was, and a
model that changed has another folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from impasto import files, presence
from impasto.models.hypernetwork import HypernetworkStack
from impasto.models.loading import load_base_model
from impasto.models.native_size import native_size
from impasto.models.opening import OpenOptions, locate, open_model
from impasto.progress import Progress, in_mib
from impasto.sampling.drawing import cut_warning, prepare_sampler
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import rescale_advice, save_png

_DRAWING = 1  # raise it when the same model, prompt and seed give another image
_WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".json")
_LONGEST_LABEL = 50  # characters: systems have names of 255 bytes
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Contestant:
    """A model that is measured.

    Attributes:
        label: What it is called in results; each has another.
        source: What the user named: a file, a folder, a run, a Hub id.
        sha256: Of its files.
        family: What it is, for people.
        size: Width and height in pixels that it was trained at, as far as its files tell.
        options: What the user said of it.
    """

    label: str
    source: str
    sha256: str
    family: str
    size: tuple[int, int]
    options: OpenOptions


@dataclass(frozen=True)
class DrawSettings:
    """How samples are drawn, besides their prompts.

    Attributes:
        folder: Where they are kept, each model's in a folder of its own.
        clip_skip: CLIP's layer from the end; None means what each model's file says, or the last.
        device: Where they are drawn.
    """

    folder: Path
    clip_skip: int | None
    device: torch.device


def open_contestant(
    source: str, label: str, options: OpenOptions, progress: Progress
) -> Contestant:
    """A model by its name, with what identifies it; its weights are read for their hash alone.

    Raises:
        ModelError: It is missing, damaged, or no base model.
    """
    contents = open_model(source, options, progress)
    identity = contents.identity
    family = f"{identity.family.name}, predicts {identity.prediction.name}"
    place = locate(source, options, progress)
    digest = _hash_of(place, label, progress)
    return Contestant(label, source, digest, family, native_size(contents), options)


def _hash_of(place: Path, label: str, progress: Progress) -> str:
    """The SHA-256 of a model's file, or of the names and hashes of those in its folder."""
    of_folder = [place] if presence.is_file(place) else _weights_in(place)
    size = sum(file.stat().st_size for file in of_folder)
    found = hashlib.sha256()
    with progress.stage(f"Reading {label} for its hash", size >> 20, "MiB") as advance:
        count = in_mib(advance)
        digests = [files.sha256_of(file, count) for file in of_folder]
    if place in of_folder:
        return digests[0]
    for file, digest in zip(of_folder, digests, strict=True):
        found.update(f"{file.relative_to(place).as_posix()} {digest}\n".encode("utf-8", "replace"))
    return found.hexdigest()


def _weights_in(folder: Path) -> list[Path]:
    listed = sorted(folder.rglob("*"), key=lambda file: file.relative_to(folder).as_posix())
    return [file for file in listed if file.suffix.lower() in _WEIGHTS and file.is_file()]


def draw_samples(
    model: Contestant, prompts: Sequence[Prompt], settings: DrawSettings, progress: Progress
) -> list[Path]:
    """The files of a model's samples, one for each prompt; drawn as far as they are not there.

    The model is loaded only if something is to be drawn, and let go afterwards.

    Raises:
        ConfigError: A sampler cannot be used with the model.
        ModelError: The model is damaged.
        StorageError: An image cannot be written.
    """
    folder = settings.folder / _folder_name(model, settings)
    places = [folder / f"{n:05d}-{prompt.seed}.png" for n, prompt in enumerate(prompts)]
    missing = [(p, f) for p, f in zip(prompts, places, strict=True) if not _is_drawn(f, p)]
    if missing:
        if len(missing) < len(prompts):
            progress.note(f"{model.label}: {len(prompts) - len(missing):,} images are there.")
        _draw(model, missing, settings, progress)
    return places


def _folder_name(model: Contestant, settings: DrawSettings) -> str:
    options = model.options
    key: dict[str, Any] = {
        "version": _DRAWING,
        "model": model.sha256,
        "options": [
            options.family,
            options.prediction_type,
            options.weights,
            options.variant,
            options.vae,
        ],
        "clip_skip": settings.clip_skip,
    }
    text = json.dumps(key, sort_keys=True, ensure_ascii=True)
    return f"{model.label[:_LONGEST_LABEL]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _is_drawn(file: Path, prompt: Prompt) -> bool:
    """Whether a file is a whole image of this prompt, seed and settings."""
    if not presence.is_file(file):
        return False
    try:
        with Image.open(file, formats=["PNG"]) as image:
            image.load()
            is_same = image.info.get("parameters") == prompt.parameters()
            return is_same and image.size == (prompt.width, prompt.height)
    except _DAMAGE:
        return False


def _draw(
    model: Contestant,
    wanted: Sequence[tuple[Prompt, Path]],
    settings: DrawSettings,
    progress: Progress,
) -> None:
    base = load_base_model(model.source, model.options, progress)
    sampler = prepare_sampler(base, HypernetworkStack(), settings.device, settings.clip_skip)
    prompts = [prompt for prompt, _ in wanted]
    for said in (
        cut_warning(base, (text for prompt in prompts for text in prompt.texts)),
        rescale_advice(base.scheduler_config, prompts, "--guidance-rescale 0.7"),
    ):
        if said:
            progress.note(f"{model.label}: {said}")
    with progress.stage(f"Drawing with {model.label}", len(wanted), "images") as advance:
        for prompt, file in wanted:
            image = sampler.draw(prompt)
            save_png(image, file, prompt)
            advance(1)
