"""Draws the images that models are measured by, and keeps them: what was drawn is not drawn again.

Each model has a folder whose name ends in a hash of its weights and of all that decides its images
but prompts, seeds and settings of the sampler, which the names of files are a hash of. So what was
stopped goes on where it was, and whatever is drawn otherwise has another name.
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

_DRAWING = 3  # raise it when the same model, prompt and seed give another image
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
        options: What the user, or the run that it is the base model of, said of it.
        resolution: Pixels per side that the originals of its family were trained at.
        made_of: What decides its images besides its bytes: what it was identified as, its noise
            schedule, and the SHA-256 of another VAE than its own.
        clip_skip: CLIP's layer from the end that its run trains with; None means what its file
            says, or the last.
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
        """CLIP's layer from the end that it draws with; None means what its file says."""
        return settings.clip_skip or self.clip_skip


@dataclass(frozen=True)
class DrawSettings:
    """How samples are drawn, besides their prompts.

    Attributes:
        folder: Where they are kept, each model's in a separate folder.
        clip_skip: CLIP's layer from the end, of all models; None means what each says of itself.
        device: Where they are drawn.
        emphasis: What `(cat:1.2)` in a prompt does.
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
    """A model by its name, with what identifies it; its weights are read for their hash alone.

    Args:
        source: A file, a folder, a run, a Hub id.
        label: What it is called in results.
        options: How the model is opened.
        progress: Shows how far the work is.
        clip_skip: CLIP's layer from the end, where a run says so of its base model.

    Raises:
        ModelError: It is missing, damaged, or no base model.
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
    """The SHA-256 of a model's file, or of the names and hashes of those in its folder."""
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
    """The files of a model's samples, one for each prompt; drawn as far as they are not there.

    The model is loaded only if something is to be drawn, and released afterwards.

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
            progress.note(f"{model.label}: {len(wanted) - len(missing):,} images are there.")
        _draw(model, missing, settings, progress)
    return paths


def _folder_of(model: Contestant, settings: DrawSettings) -> Path:
    """The folder of what a model draws, there or not: found again under whatever label it had."""
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
    """The name of a sample: other words, sizes, steps or guidance have another one."""
    return f"{_hash_of_values(asdict(prompt))}-{prompt.seed}.png"


def _hash_of_values(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _is_drawn(file: Path, prompt: Prompt) -> bool:
    """Whether a file is a whole image of this prompt, seed and settings.

    How text is read stands after them, in files of this version; the folder's name says it too.
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
