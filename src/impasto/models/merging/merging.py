"""Merges models into one: opens and mixes them, adds LoRAs, writes the result and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from impasto.checkpoints.keymap import ComponentKind
from impasto.checkpoints.pickles import is_read_whole
from impasto.errors import ConfigError
from impasto.models.merging.blocks import BASE, Ratios, listed_ratios
from impasto.models.merging.drawn_as import drawing_text, drawn_as_model, model_drawn_as
from impasto.models.merging.lora_merging import WeightedLora, open_loras, with_loras
from impasto.models.merging.mix_record import hash_model, mixed_info
from impasto.models.merging.mixing import Formula, letter_of, mix, require_mixable, stored_as
from impasto.models.networks.making import needed_tensors
from impasto.models.reading.completeness import require_complete
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.opening import OpenOptions, locate, open_model
from impasto.models.writing.conversion import hash_file
from impasto.models.writing.saving import Form, write_model
from impasto.models.writing.targets import require_free, sources_of
from impasto.progress import Progress, counted, size_text
from impasto.strengths import path_and_strength


@dataclass(frozen=True)
class Mixture:
    """The models of a mixture and how they are mixed.

    Attributes:
        models: Files, folders, Hub ids or runs, in the order of the formula's letters.
        formula: Formula that mixes them; None for one model that LoRAs are added to.
        ratio: The formula's M for all tensors without another ratio; None means the formula's
            default.
        listed: Ratios of all blocks of the U-Net in their order; empty if none are given.
        named: Names of blocks and networks -> their ratios.
        loras: `FILE` or `FILE:STRENGTH`, added to the mixture.
        findings: Facts about how the ratio was found, for the record in the file.
        drawn_as: Index of the model whose sampling settings the mixture takes; None means the model
            with the largest fraction of the mixture.
    """

    models: Sequence[str]
    formula: Formula | None = None
    ratio: float | None = None
    listed: Sequence[float] = ()
    named: Mapping[str, float] = field(default_factory=dict)
    loras: Sequence[str] = ()
    findings: Mapping[str, Any] = field(default_factory=dict)
    drawn_as: int | None = None


@dataclass(frozen=True)
class Output:
    """How a mixture is written.

    Attributes:
        target: Path to write to.
        form: Form of the model.
        dtypes: Kind of network -> its dtype; for others the first model's, but at least 16 bits
            where values change.
        title: Title of the model; None means its file name.
        overwrite: Whether an existing model is replaced.
    """

    target: Path
    form: Form
    dtypes: Mapping[ComponentKind, torch.dtype] = field(default_factory=dict)
    title: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class OpenedMixture:
    """The files of a mixture, opened and checked to be compatible.

    Attributes:
        models: Models in the order of the formula.
        paths: Their local paths.
        loras: LoRAs with their strengths.
        ratios: Ratio of each block and network.
    """

    models: Sequence[ModelContents]
    paths: Sequence[Path]
    loras: Sequence[WeightedLora]
    ratios: Ratios


def merge_models(
    mixture: Mixture, output: Output, options: OpenOptions, progress: Progress | None = None
) -> dict[str, str]:
    """Mix models and write the result; return facts about it to show to the user.

    Raises:
        ConfigError: Something exists at the target already, or a ratio is for no block of the
            models.
        ModelError: A file is not a model or LoRA, is damaged, or does not fit the others.
        StorageError: The target cannot be written.
    """
    require_target(mixture, output, options, progress)
    opened = open_mixture(mixture, options, progress)
    findings = {**mixture.findings, **_opened_with(options)}
    return write_mixture(replace(mixture, findings=findings), opened, output, progress)


def _opened_with(options: OpenOptions) -> dict[str, str]:
    """Return the opening options that affect values; of a path, only the name."""
    vae = None if options.vae is None else options.vae.replace("\\", "/").rstrip("/")
    said = {
        "vae_file": None if vae is None else vae.rpartition("/")[2],
        "weights": None if options.weights == "auto" else options.weights,
        "variant": options.variant,
    }
    return {key: value for key, value in said.items() if value is not None}


def write_mixture(
    mixture: Mixture, opened: OpenedMixture, output: Output, progress: Progress | None = None
) -> dict[str, str]:
    """Mix opened models, write the result with its record, and return facts about it.

    Raises:
        ConfigError: A ratio is for no block of the models.
        ModelError: A value is NaN or infinite, or a LoRA does not fit.
        StorageError: The target cannot be written.
    """
    contents = mixed_contents(mixture, opened)
    first, drawn_as = opened.models[0], mixture.drawn_as
    asked = first.identity.family.by_name(output.dtypes)
    contents = stored_as(contents, first, asked)
    record = _record(mixture, opened, progress)
    if drawn_as is None:
        drawn_as = model_drawn_as(opened.models, mixture.formula, opened.ratios)
    contents = drawn_as_model(contents, opened.models[drawn_as])
    about = mixed_info(opened.models, output.target, output.title, record, drawn_as)
    write_model(contents, output.target, output.form, about, progress)
    drawing = drawing_text(opened.models, drawn_as)
    return _summary(mixture, opened, contents, output, progress) | (
        {"Drawn as": drawing} if drawing else {}
    )


def require_target(
    mixture: Mixture, output: Output, options: OpenOptions, progress: Progress | None = None
) -> None:
    """Check that the target may be written, and that it is none of the source files.

    Raises:
        ConfigError: Something exists at the target already, or a source is there.
        ModelError: A model does not exist.
    """
    loras = [path_and_strength(spec)[0] for spec in mixture.loras]
    require_output_free(mixture.models, output, options, progress, beside=loras)


def require_output_free(
    models: Sequence[str],
    output: Output,
    options: OpenOptions,
    progress: Progress | None = None,
    beside: Sequence[Path] = (),
) -> None:
    """Check that a model to be written replaces none of those that are read.

    Args:
        models: Files, folders, Hub ids or runs.
        output: The model to be written.
        options: Options for opening the models; a replacement VAE is read too.
        progress: Shows the progress of a download.
        beside: Other files that are read.

    Raises:
        ConfigError: Something exists at the target already, or a source is there.
        ModelError: A model does not exist.
    """
    by_folder = output.form == "diffusers"
    for source in (*beside, *sources_of(models, options, progress)):
        require_free(source, output.target, overwrite=output.overwrite, by_folder=by_folder)


def open_mixture(
    mixture: Mixture, options: OpenOptions, progress: Progress | None = None
) -> OpenedMixture:
    """Open all files of a mixture, and check that they are compatible.

    Raises:
        ConfigError: A ratio is for a block that the models do not have.
        ModelError: A file is not a model or LoRA, is damaged, or does not fit the others.
    """
    loras = open_loras(mixture.loras)
    opened = [open_model(source, options, progress) for source in mixture.models]
    models = [require_complete(model, needed_tensors(model)) for model in opened]
    paths = [locate(source, options, progress) for source in mixture.models]
    require_mixable(models)
    listed = listed_ratios(mixture.listed, models[0]) if mixture.listed else {}
    if mixture.ratio is not None and BASE in listed:
        raise ConfigError(
            f"--ratio has no effect: the {len(listed)} numbers of --blocks give a ratio for "
            f"everything, that of text encoders and VAE first. Remove one of the two."
        )
    _warn_of_whole_files(paths, progress)
    usual = 1.0 if mixture.formula is None else mixture.formula.ratio
    ratio = usual if mixture.ratio is None else mixture.ratio
    return OpenedMixture(models, paths, loras, Ratios(ratio, mixture.named, listed))


def _warn_of_whole_files(paths: Sequence[Path], progress: Progress | None) -> None:
    """Warn if several files cannot be read tensor by tensor, and so are in RAM together."""
    whole = [path for path in paths if is_read_whole(path)]
    if progress is not None and len(whole) > 1:
        size = size_text(sum(path.stat().st_size for path in whole))
        progress.note(
            f"Warning: {counted(len(whole), 'files are')} in PyTorch's format before 1.6 or "
            f"compressed, and have to be read whole: together they take {size} of RAM. impasto "
            f"convert turns them into .safetensors, which are read tensor by tensor."
        )


def mixed_contents(mixture: Mixture, opened: OpenedMixture) -> ModelContents:
    """Return the mixture as lazy tensors, in float32 where values change.

    Raises:
        ConfigError: A ratio is for a block that the models do not have.
        ModelError: A LoRA does not fit the models.
    """
    contents = opened.models[0]
    if mixture.formula is not None:
        contents = mix(opened.models, mixture.formula.combine, opened.ratios)
    return with_loras(contents, opened.loras)


def _record(mixture: Mixture, opened: OpenedMixture, progress: Progress | None) -> dict[str, Any]:
    """Return the record of the mixture for its file; of paths it has only the file names."""
    formula = mixture.formula
    ratios = {"ratio": opened.ratios.default, "ratios": opened.ratios.given}
    if BASE in opened.ratios.listed:  # the list covers everything
        del ratios["ratio"]
    return {
        **({"formula": formula.key, "meaning": formula.text} if formula else {}),
        **(ratios if formula and formula.takes_ratio else {}),
        "models": [
            {
                "letter": letter_of(number),
                "file": model.name,
                "sha256": hash_model(path, progress),
            }
            for number, (path, model) in enumerate(zip(opened.paths, opened.models, strict=True))
        ],
        "loras": [
            {
                "file": lora.file.path.name,
                "sha256": hash_file(lora.file.path, progress),
                "strength": lora.strength,
            }
            for lora in opened.loras
        ],
        **mixture.findings,
    }


def _summary(
    mixture: Mixture,
    opened: OpenedMixture,
    contents: ModelContents,
    output: Output,
    progress: Progress | None,
) -> dict[str, str]:
    formula, ratios = mixture.formula, opened.ratios
    rows = {"Wrote": str(output.target), "Family": contents.identity.family.name}
    if formula is not None:
        rows["Formula"] = formula.text
    for number, model in enumerate(opened.models):
        rows[letter_of(number)] = f"{model.source} ({_precision(model)})"
    if formula is not None and formula.takes_ratio:
        rows["M"] = ", ".join(
            [f"{ratios.default:g}", *(f"{name} {value:g}" for name, value in ratios.given.items())]
        )
    if opened.loras:
        rows["LoRA"] = ", ".join(lora.description for lora in opened.loras)
    rows["Precision"] = _precision(contents)
    notes = dict.fromkeys(f"{m.name}: {note}" for m in opened.models for note in m.notes)
    if notes:
        rows["Note"] = "; ".join(notes)
    if output.target.is_file():
        rows["SHA-256"] = hash_file(output.target, progress)
    return rows


def _precision(contents: ModelContents) -> str:
    return ", ".join(f"{component} {dtype}" for component, dtype in contents.dtypes().items())


def require_models(mixture: Mixture) -> None:
    """Check that a formula has the models that it needs, and that there is something to merge.

    Raises:
        ConfigError: There are too few or too many, or nothing would be changed.
    """
    count, formula = len(mixture.models), mixture.formula
    if formula is not None and count != formula.models:
        raise ConfigError(
            f"{formula.key} is {formula.text} and takes {formula.models} models; {count} "
            f"{'was' if count == 1 else 'were'} given. Name them in the order of its letters."
        )
    if formula is None and not mixture.loras:
        raise ConfigError(
            "One model and no --lora: there is nothing to merge. Name a second model, or give "
            "--lora FILE."
        )
