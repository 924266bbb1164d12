"""Merges models into one: opens them, mixes them, adds LoRAs, writes the result and its record."""

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
from impasto.models.merging.lora_merging import StrongLora, open_loras, with_loras
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
    """What is mixed, and how.

    Attributes:
        models: Files, folders, Hub ids or runs, in the order of the formula's letters.
        formula: How they are mixed; None for one model that LoRAs are added to.
        ratio: The formula's M of all that no other ratio is for; None is what is usual with it.
        listed: Ratios of all blocks of the U-Net in their order, or none.
        named: Names of blocks and networks -> their ratios.
        loras: `FILE` or `FILE:STRENGTH`, added to the mixture.
        findings: What is known of how the ratio was found, for the record in the file.
        drawn_as: The index of the model that the mixture is drawn as, if that is known; None is
            the one of which there is most in it.
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
        target: Where.
        form: As what.
        dtypes: Kind of network -> its precision; what is not named has the first model's, but no
            less than 16 bits where values change.
        title: Its name; None is that of the file.
        overwrite: Whether a model that is there is replaced.
    """

    target: Path
    form: Form
    dtypes: Mapping[ComponentKind, torch.dtype] = field(default_factory=dict)
    title: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Opened:
    """The files of a mixture, opened and found to fit each other.

    Attributes:
        models: In the order of the formula.
        paths: Where they are.
        loras: With their strengths.
        ratios: The ratio of each block and network.
    """

    models: Sequence[ModelContents]
    paths: Sequence[Path]
    loras: Sequence[StrongLora]
    ratios: Ratios


def merge_models(
    mixture: Mixture, output: Output, options: OpenOptions, progress: Progress | None = None
) -> dict[str, str]:
    """Mix models and write the result; what a person may want to know of it comes back.

    Raises:
        ConfigError: Something is at the target already, or a ratio is for no block of the models.
        ModelError: A file is no model or no LoRA, is damaged, or does not fit the others.
        StorageError: The target cannot be written.
    """
    require_target(mixture, output, options, progress)
    opened = open_mixture(mixture, options, progress)
    findings = {**mixture.findings, **_opened_with(options)}
    return write_mixture(replace(mixture, findings=findings), opened, output, progress)


def _opened_with(options: OpenOptions) -> dict[str, str]:
    """The options by which models were opened and that decide values; of a path only the name."""
    vae = None if options.vae is None else options.vae.replace("\\", "/").rstrip("/")
    said = {
        "vae_file": None if vae is None else vae.rpartition("/")[2],
        "weights": None if options.weights == "auto" else options.weights,
        "variant": options.variant,
    }
    return {key: value for key, value in said.items() if value is not None}


def write_mixture(
    mixture: Mixture, opened: Opened, output: Output, progress: Progress | None = None
) -> dict[str, str]:
    """Mix models that are open, and write the result with its record.

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
    """Make sure that the target may be written, and that none of the files read is there.

    Raises:
        ConfigError: Something is at the target already, or a source is.
        ModelError: There is no model of a name.
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
    """Make sure that a model that is written replaces none of those that are read.

    Args:
        models: Files, folders, Hub ids or runs.
        output: What is written.
        options: How they are opened; another VAE is read too.
        progress: Shows how far a download is.
        beside: Other files that are read.

    Raises:
        ConfigError: Something is at the target already, or a source is.
        ModelError: There is no model of a name.
    """
    by_folder = output.form == "diffusers"
    for source in (*beside, *sources_of(models, options, progress)):
        require_free(source, output.target, overwrite=output.overwrite, by_folder=by_folder)


def open_mixture(
    mixture: Mixture, options: OpenOptions, progress: Progress | None = None
) -> Opened:
    """Open all files, and make sure that they fit each other.

    Raises:
        ConfigError: A ratio is for a block that the models do not have.
        ModelError: A file is no model or no LoRA, is damaged, or does not fit the others.
    """
    loras = open_loras(mixture.loras)
    opened = [open_model(source, options, progress) for source in mixture.models]
    models = [require_complete(model, needed_tensors(model)) for model in opened]
    paths = [locate(source, options, progress) for source in mixture.models]
    require_mixable(models)
    listed = listed_ratios(mixture.listed, models[0]) if mixture.listed else {}
    if mixture.ratio is not None and BASE in listed:
        raise ConfigError(
            f"--ratio has no effect: the {len(listed)} numbers of --blocks name a ratio for "
            f"everything, that of text encoders and VAE first. Take one of the two out."
        )
    _warn_of_whole_files(paths, progress)
    usual = 1.0 if mixture.formula is None else mixture.formula.ratio
    ratio = usual if mixture.ratio is None else mixture.ratio
    return Opened(models, paths, loras, Ratios(ratio, mixture.named, listed))


def _warn_of_whole_files(paths: Sequence[Path], progress: Progress | None) -> None:
    """Say so where several files cannot be read tensor by tensor, and are in RAM together."""
    whole = [path for path in paths if is_read_whole(path)]
    if progress is not None and len(whole) > 1:
        size = size_text(sum(path.stat().st_size for path in whole))
        progress.note(
            f"Warning: {counted(len(whole), 'files are')} of PyTorch's form before 1.6 or "
            f"compressed, which are read as a whole: together they take {size} of RAM. impasto "
            f"convert makes .safetensors of them, which are read tensor by tensor."
        )


def mixed_contents(mixture: Mixture, opened: Opened) -> ModelContents:
    """The mixture as lazy tensors, in float32 where values change.

    Raises:
        ConfigError: A ratio is for a block that the models do not have.
        ModelError: A LoRA does not fit the models.
    """
    contents = opened.models[0]
    if mixture.formula is not None:
        contents = mix(opened.models, mixture.formula.combine, opened.ratios)
    return with_loras(contents, opened.loras)


def _record(mixture: Mixture, opened: Opened, progress: Progress | None) -> dict[str, Any]:
    """What was mixed, as the file says it; of paths only the names of files are told."""
    formula = mixture.formula
    ratios = {"ratio": opened.ratios.default, "ratios": opened.ratios.given}
    if BASE in opened.ratios.listed:  # which leaves nothing to the other
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
    opened: Opened,
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
    """Make sure that a formula has the models it needs, and that something is done to them.

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
