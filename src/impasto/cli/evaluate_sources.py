"""Which models an evaluation has, and what runs say of them and of their base models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from impasto.errors import ConfigError

if TYPE_CHECKING:
    from impasto.config.run import RunConfig
    from impasto.models.reading.opening import OpenOptions
    from impasto.models.tokenization.tokens import Emphasis


@dataclass(frozen=True)
class Source:
    """A model that is measured, and how it is opened.

    Attributes:
        given: What the user or a run named: a file, a folder, a run, a Hub id.
        options: How it is opened, by the command line or else by the run.
        clip_skip: CLIP's layer from the end, where a run says so.
        is_named: Whether the user named it; other ones are base models of runs.
    """

    given: str
    options: OpenOptions
    clip_skip: int | None = None
    is_named: bool = True


def run_config(source: str) -> RunConfig | None:
    """The settings of a run; None of what is no run."""
    from impasto import presence
    from impasto.config.load import load_begun_config
    from impasto.runs.remote.reading import settings_file_of

    file = settings_file_of(source)
    return load_begun_config(file) if presence.is_file(file) else None


def base_models_first(models: Iterable[str], opened: OpenOptions, *, without: bool) -> list[Source]:
    """The models that are measured: base models of runs first, unless they are given or unwanted.

    A base model is opened as its run opens it: with its VAE, and as what the run says it is. Where
    runs open the same one in several ways, it is there once for each.

    Args:
        models: What the user named.
        opened: What the command line says of all of them, which goes before what runs say.
        without: Whether base models of runs are left out.

    Raises:
        ConfigError: A model is given twice, or `without` has no effect.
    """
    given = list(models)
    all_resolved = [_resolved(model) for model in given]
    for model, resolved in zip(given, all_resolved, strict=True):
        if all_resolved.count(resolved) > 1:
            raise ConfigError(f"The model {model} is given twice. Give each once.")
    configs = [run_config(model) for model in given]
    if without and not any(configs):
        raise ConfigError("--without-base has no effect: no model is a run. Take it out.")
    bases = _bases_of(configs, opened)
    found = [
        _given(model, config, bases.get(resolved, []), opened)
        for model, resolved, config in zip(given, all_resolved, configs, strict=True)
    ]
    if without:
        return found
    others = [base for resolved, ways in bases.items() for base in ways[resolved in all_resolved :]]
    return [*others, *found]


def _bases_of(configs: Iterable[RunConfig | None], opened: OpenOptions) -> dict[str, list[Source]]:
    """Where a base model of runs is -> the ways in which they open it."""
    found: dict[str, list[Source]] = {}
    for config in filter(None, configs):
        path = str(config.model.path)
        ways = found.setdefault(_resolved(path), [])
        options = _as_its_base(config, opened)
        source = Source(path, options, config.model.clip_skip, is_named=False)
        if not any(replace(source, given=way.given) == way for way in ways):
            ways.append(source)
    return found


def _given(
    model: str, config: RunConfig | None, ways: Sequence[Source], opened: OpenOptions
) -> Source:
    """A model that the user named: the base model of a run, a run, or another one."""
    if ways:
        return replace(ways[0], given=model, is_named=True)
    if config is None:
        return Source(model, opened)
    said = config.model
    options = replace(
        opened,
        family=opened.family or said.family,
        prediction_type=opened.prediction_type or said.prediction_type,
    )
    return Source(model, options, said.clip_skip)


def _as_its_base(config: RunConfig, opened: OpenOptions) -> OpenOptions:
    said = config.model
    return replace(
        opened,
        family=opened.family or said.family,
        prediction_type=opened.prediction_type or said.prediction_type,
        weights=said.weights if opened.weights == "auto" else opened.weights,
        variant=opened.variant or said.variant,
        vae=opened.vae or said.vae,
    )


def _resolved(source: str) -> str:
    from impasto import presence

    path = Path(source).expanduser()
    return str(path.resolve()) if presence.exists(path) else source


def labels_of(sources: Iterable[str]) -> list[str]:
    """What models are called: by their files' names, numbered where several have the same."""
    from impasto import presence
    from impasto.parsing import printable
    from impasto.remote_paths import is_remote

    found: list[str] = []
    for source in sources:
        path = Path(source).expanduser()
        if is_remote(source):
            name = printable(path.name)
        else:
            there = presence.exists(path)
            name = printable(path.resolve().name if there else source.replace("/", "-"))
        for ending in (".safetensors", ".ckpt", ".sft", ".pt"):
            name = name.removesuffix(ending)
        label, number = name, 1
        while label in found:
            number += 1
            label = f"{name}-{number}"
        found.append(label)
    return found


def image_folders(sources: Iterable[Source]) -> list[Path]:
    """The folders of this machine that runs train on or hold out."""
    from impasto.datasets.build import validation_folders
    from impasto.remote_paths import is_remote

    found: list[Path] = []
    for config in filter(None, (run_config(source.given) for source in sources)):
        found += validation_folders(config)
        found += [
            subset.image_dir
            for entry in config.dataset.entries
            for subset in entry.subsets
            if subset.image_dir is not None
        ]
    return [folder for folder in dict.fromkeys(found) if not is_remote(folder)]


@dataclass(frozen=True)
class Previews:
    """The size of a run's previews.

    Attributes:
        size: Width and height in pixels.
        number: Which of the models the run is.
    """

    size: tuple[int, int]
    number: int


def first_previews(sources: Iterable[Source]) -> Previews | None:
    """The size of the previews of the first run that draws any; None without one."""
    numbered = sorted(enumerate(sources), key=lambda pair: not pair[1].is_named)
    for number, source in numbered:
        config = run_config(source.given)
        if config is not None and (config.previews.prompts or config.previews.prompt_file):
            return Previews((config.previews.width, config.previews.height), number)
    return None


def emphasis_of_captions(sources: Iterable[Source]) -> Emphasis:
    """How the first run reads brackets in captions; without a run they are words."""
    named_first = sorted(sources, key=lambda source: not source.is_named)
    configs = (run_config(source.given) for source in named_first)
    config = next(filter(None, configs), None)
    return "off" if config is None else config.model.caption_emphasis
