"""Draws the samples that models are measured by, and stores them, so that none is drawn twice.

The name of a model's folder ends in a hash of its weights and of all that affects its images,
except prompts, seeds and sampler settings, whose hash is in the names of files. So an interrupted
evaluation continues where it stopped, and samples with other settings have other names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from impasto import files, presence
from impasto.models.networks.hypernetwork import HypernetworkStack
from impasto.models.networks.loading import load_base_model
from impasto.models.reading.native_size import native_size
from impasto.models.reading.opening import OpenOptions, locate, open_model
from impasto.models.tokenization.tokens import Emphasis
from impasto.progress import Progress, in_mib
from impasto.sampling.drawing import cut_warning, prepare_sampler
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import rescale_advice, save_png

_DRAWING = 3  # increment when the same model, prompt and seed give a different image
_WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".json")
_LONGEST_LABEL = 50  # characters; file names are limited to 255 bytes
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Contestant:
    """A model to evaluate.

    Attributes:
        label: Its unique name in results.
        source: The file, folder, run or Hub id that the user named.
        sha256: The SHA-256 of its files.
        family: Its family and prediction type, for users.
        size: Native width and height in pixels, as far as its files state them.
        options: The options for opening it, from the user or from the run whose base model it is.
        resolution: Pixels per side at which the original models of its family were trained.
        made_of: Properties that affect its images besides its files: its identified family and
            prediction type, its noise schedule, and the SHA-256 of a replacement VAE.
        clip_skip: CLIP's layer, counted from the end, that its run trains with; None for the one
            stated in its file, or the last.
    """

    label: str
    source: str
    sha256: str
    family: str
    size: tuple[int, int]
    options: OpenOptions
    resolution: int = 0
    made_of: Mapping[str, Any] = field(default_factory=dict)
    clip_skip: int | None = None

    def layer(self, settings: DrawSettings) -> int | None:
        """Return CLIP's layer, counted from the end, to draw with; None for the one in its file."""
        return settings.clip_skip or self.clip_skip


@dataclass(frozen=True)
class DrawSettings:
    """The settings for drawing samples, besides their prompts.

    Attributes:
        folder: The folder of all samples, with a subfolder per model.
        clip_skip: CLIP's layer, counted from the end, for all models; None for the one that each
            states.
        device: The device to draw on.
        emphasis: The syntax of emphasis in prompts, such as `(cat:1.2)`.
    """

    folder: Path
    clip_skip: int | None
    device: torch.device
    emphasis: Emphasis = "off"


def open_contestant(
    source: str,
    label: str,
    options: OpenOptions,
    progress: Progress,
    clip_skip: int | None = None,
) -> Contestant:
    """Identify a model for evaluation; its weights are read only to compute their hash.

    Args:
        source: A file, folder, run or Hub id.
        label: Its name in results.
        options: The options for opening the model.
        progress: Reports progress.
        clip_skip: CLIP's layer, counted from the end, if a run sets it for its base model.

    Raises:
        ModelError: The model is missing, damaged, or not a base model.
    """
    contents = open_model(source, options, progress)
    identity = contents.identity
    family = f"{identity.family.name}, predicts {identity.prediction.name}"
    path = locate(source, options, progress)
    digest = _hash_of(path, label, progress)
    vae = None
    if options.vae is not None:
        vae = _hash_of(locate(options.vae, OpenOptions(), progress), "the VAE", progress)
    made_of = {
        "family": identity.family.key,
        "prediction_type": identity.prediction.name,
        "schedule": dict(contents.scheduler_config),
        "vae_sha256": vae,
    }
    return Contestant(
        label, source, digest, family, native_size(contents), options, identity.family.resolution,
        made_of, clip_skip,
    )  # fmt: skip


def _hash_of(path: Path, label: str, progress: Progress) -> str:
    """Return the SHA-256 of a model's file, or of the names and hashes of its folder's files."""
    of_folder = [path] if presence.is_file(path) else _weights_in(path)
    size = sum(file.stat().st_size for file in of_folder)
    found = hashlib.sha256()
    with progress.stage(f"Reading {label} for its hash", size >> 20, "MiB") as advance:
        count = in_mib(advance)
        digests = [files.sha256_of(file, count) for file in of_folder]
    if path in of_folder:
        return digests[0]
    for file, digest in zip(of_folder, digests, strict=True):
        found.update(f"{file.relative_to(path).as_posix()} {digest}\n".encode("utf-8", "replace"))
    return found.hexdigest()


def _weights_in(folder: Path) -> list[Path]:
    listed = sorted(folder.rglob("*"), key=lambda file: file.relative_to(folder).as_posix())
    return [file for file in listed if file.suffix.lower() in _WEIGHTS and file.is_file()]


def draw_samples(
    model: Contestant, prompts: Sequence[Prompt], settings: DrawSettings, progress: Progress
) -> list[Path]:
    """Return the files of a model's samples, one per prompt, after drawing the missing ones.

    The model is loaded only if a sample is missing, and released afterwards.

    Raises:
        ConfigError: A sampler cannot be used with the model.
        ModelError: The model is damaged.
        StorageError: An image cannot be written.
    """
    folder = _folder_of(model, settings)
    paths = [folder / _file_name(prompt) for prompt in prompts]
    wanted = dict(zip(paths, prompts, strict=True))
    missing = [(prompt, file) for file, prompt in wanted.items() if not _is_drawn(file, prompt)]
    if missing:
        if len(missing) < len(wanted):
            progress.note(f"{model.label}: {len(wanted) - len(missing):,} images already exist.")
        _draw(model, missing, settings, progress)
    return paths


def _folder_of(model: Contestant, settings: DrawSettings) -> Path:
    """Return the folder of a model's samples, which need not exist; an earlier label is ignored."""
    key: dict[str, Any] = {
        "version": _DRAWING,
        "model": model.sha256,
        "weights": model.options.weights,
        "variant": model.options.variant,
        "made_of": model.made_of,
        "clip_skip": model.layer(settings),
        "emphasis": settings.emphasis,
    }
    ending = f"-{_hash_of_values(key)}"
    if presence.is_dir(settings.folder):
        for folder in sorted(settings.folder.iterdir()):
            if folder.name.endswith(ending):
                return folder
    return settings.folder / f"{model.label[:_LONGEST_LABEL]}{ending}"


def _file_name(prompt: Prompt) -> str:
    """Return the file name of a sample, which differs for other prompts, sizes or settings."""
    return f"{_hash_of_values(asdict(prompt))}-{prompt.seed}.png"


def _hash_of_values(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _is_drawn(file: Path, prompt: Prompt) -> bool:
    """Return whether a file is an undamaged sample of this prompt, seed and settings.

    The parameters in the file may be followed by settings of the text encoder, which the name of
    the folder covers too.
    """
    if not presence.is_file(file):
        return False
    try:
        with Image.open(file, formats=["PNG"]) as image:
            image.load()
            said, own = str(image.info.get("parameters")), prompt.parameters()
            is_same = said == own or said.startswith(f"{own}, ")
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
    sampler = prepare_sampler(
        base, HypernetworkStack(), settings.device, model.layer(settings), settings.emphasis
    )
    prompts = [prompt for prompt, _ in wanted]
    for said in (
        cut_warning(base, (text for prompt in prompts for text in prompt.texts), settings.emphasis),
        rescale_advice(base.scheduler_config, prompts, "--guidance-rescale 0.7"),
    ):
        if said:
            progress.note(f"{model.label}: {said}")
    with progress.stage(f"Drawing with {model.label}", len(wanted), "images") as advance:
        for prompt, file in wanted:
            image = sampler.draw(prompt)
            save_png(image, file, prompt, sampler.text_settings)
            advance(1)
