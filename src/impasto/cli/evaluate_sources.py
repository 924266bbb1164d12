"""The models of an evaluation, and how runs and their base models are opened."""

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
        given: The model as the user or a run gave it: a file, a folder, a run, a Hub id.
        options: How it is opened; the command line comes before the run.
        clip_skip: CLIP's layer, counted from the end, if a run sets it.
        is_named: Whether the user gave it; otherwise it is the base model of a run.
    """

    given: str
    options: OpenOptions
    clip_skip: int | None = None
    is_named: bool = True


def run_config(source: str) -> RunConfig | None:
    """Load the settings of a run; None if `source` is not a run."""
    from impasto import presence
    from impasto.config.load import load_begun_config
    from impasto.runs.remote.reading import settings_file_of

    file = settings_file_of(source)
    return load_begun_config(file) if presence.is_file(file) else None


def base_models_first(models: Iterable[str], opened: OpenOptions, *, without: bool) -> list[Source]:
    """Return the models to measure: first the base models of runs, then those the user gave.

    A base model that the user gave is not repeated. A base model is opened as its run opens it:
    with the same VAE, family and prediction type. If runs open the same base model in several
    ways, it is measured once per way.

    Args:
        models: The models that the user gave.
        opened: The options of the command line, which override those of runs.
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
        raise ConfigError("--without-base has no effect: no model is a run. Remove it.")
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
    """Return the path of each base model -> the different ways in which runs open it."""
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
    """Build the source for a model that the user gave: a run's base model, a run, or another."""
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
    """Return a label per model: its file name without extension, numbered if not unique."""
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
    """Return the local folders of the training and validation images of runs."""
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
        number: The index of the run among the models.
    """

    size: tuple[int, int]
    number: int


def first_previews(sources: Iterable[Source]) -> Previews | None:
    """Return the preview size of the first run that draws previews, or None if none does."""
    numbered = sorted(enumerate(sources), key=lambda pair: not pair[1].is_named)
    for number, source in numbered:
        config = run_config(source.given)
        if config is not None and (config.previews.prompts or config.previews.prompt_file):
            return Previews((config.previews.width, config.previews.height), number)
    return None


def emphasis_of_captions(sources: Iterable[Source]) -> Emphasis:
    """Return how the first run interprets brackets in captions; "off" without a run."""
    named_first = sorted(sources, key=lambda source: not source.is_named)
    configs = (run_config(source.given) for source in named_first)
    config = next(filter(None, configs), None)
    return "off" if config is None else config.model.caption_emphasis
