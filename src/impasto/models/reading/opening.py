"""Opens a base model in any of its forms, without reading its weights yet.

A form is a single LDM file (`.safetensors`, `.ckpt`), a Diffusers folder, a Hub id, or a run that
exported one of these. The result has one type for all: `ModelContents`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from impasto import presence
from impasto.checkpoints import hub
from impasto.checkpoints.hub_listing import SIDECAR
from impasto.checkpoints.keymap import ComponentKind, FileLayout, layout_of
from impasto.checkpoints.kinds import BASE_MODEL, COMPONENT_OF_SDXL, HYPERNETWORK, kind_of, lacking
from impasto.checkpoints.ldm import ZERO_TERMINAL_SNR_MARK, LdmModel, split_ldm
from impasto.checkpoints.modelspec import says_zero_terminal_snr
from impasto.checkpoints.reading import TensorFile, open_tensor_file
from impasto.checkpoints.scaled import apply_scales
from impasto.checkpoints.tensors import Tensors
from impasto.checkpoints.untrusted import untrusted
from impasto.checkpoints.weight_files import WeightChoice
from impasto.errors import ModelError
from impasto.invocation import command
from impasto.models import families
from impasto.models.reading import diffusers_folder
from impasto.models.reading.configs import Configs, configs_from, configs_in
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.identity import Clues, Identity, identify
from impasto.models.reading.ldm_notes import notes_on
from impasto.models.reading.other_vae import open_vae, with_vae
from impasto.models.reading.pipeline_files import ZERO_TERMINAL_SNR, scheduler_config
from impasto.models.reading.stored_schedule import stores_zero_terminal_snr
from impasto.models.tokenization.text_metadata import EMPTY_TEXT_KEY, ZEROS
from impasto.parsing import read_text
from impasto.progress import Progress
from impasto.remote_paths import is_remote, shown
from impasto.runs import RunDirectory
from impasto.runs.given_code import how_to_resume
from impasto.runs.remote.fetching import fetch_model

Weights = Literal["auto", "plain", "ema"]


@dataclass(frozen=True)
class OpenOptions:
    """The user's options for opening a model.

    Attributes:
        family: Key of the family table; it must be compatible with the tensors.
        prediction_type: `epsilon` or `v_prediction`; overrides everything that the files state.
        weights: U-Net to use of a model that has two: `plain`, the averaged `ema`, or `auto`: the
            plain one of a single file (it trains better, the average only samples better); the main
            file of a Diffusers folder, which is the average if `non_ema` weights are beside it.
        variant: Set of files of a Diffusers folder, such as `fp16`.
        vae: Another VAE: a Diffusers folder or id, a bare VAE file, or a full model.
    """

    family: str | None = None
    prediction_type: str | None = None
    weights: Weights = "auto"
    variant: str | None = None
    vae: str | None = None

    @property
    def choice(self) -> WeightChoice:
        """The set of files to use of a Diffusers folder, local or on the Hub."""
        return WeightChoice(self.weights, self.variant)


def open_model(
    source: str | Path, options: OpenOptions | None = None, progress: Progress | None = None
) -> ModelContents:
    """Open a base model.

    Raises:
        ModelError: It is missing, damaged, refused, of another kind, or cannot be identified.
    """
    options = options or OpenOptions()
    path = locate(str(source), options, progress)
    with named_by(str(source), path):
        if presence.is_file(path):
            return contents_of(open_tensor_file(path), str(source), options, progress)
        with untrusted(source):
            contents = _open_folder(path, str(source), options)
        return _with_asked_vae(contents, options, progress)


@contextlib.contextmanager
def named_by(source: str | Path, path: Path) -> Iterator[None]:
    """Replace the path of a local copy in errors by the URL of the source in an object store."""
    try:
        yield
    except ModelError as error:
        if not is_remote(source) or str(path) not in str(error):
            raise
        raise ModelError(str(error).replace(str(path), shown(source))) from error


def contents_of(
    file: TensorFile, source: str, options: OpenOptions, progress: Progress | None = None
) -> ModelContents:
    """Return the base model in a file that is open already.

    Raises:
        ModelError: As for `open_model`.
    """
    with untrusted(source):
        contents = _open_file(file, source, options, progress)
    return _with_asked_vae(contents, options, progress)


def _with_asked_vae(
    contents: ModelContents, options: OpenOptions, progress: Progress | None
) -> ModelContents:
    if options.vae is None:
        return contents
    return with_vae(contents, options.vae, locate(options.vae, OpenOptions(), progress))


def locate(source: str, options: OpenOptions, progress: Progress | None = None) -> Path:
    """Return the local path of a source: a run gives its exported model, a Hub id is downloaded.

    A source in an object store is fetched whole into the folder for copies.

    Raises:
        ModelError: The source does not exist, or the run has not exported a model.
        StorageError: A store cannot be used.
    """
    named = Path(source)
    if is_remote(source):
        hub.require_source(source)
        path = fetch_model(named, progress)
    else:
        path = named.expanduser()
    run = RunDirectory(path, location=named if is_remote(source) else None)
    if presence.is_file(run.config_file):
        return _exported_by(run)
    if presence.exists(path):
        return path
    hub.require_source(source)
    layouts = families.folder_layouts()
    return hub.download(source, layouts, progress, options.choice)


def local_file(path: Path, progress: Progress | None = None) -> Path:
    """Return the local path of a file used with a model, such as a LoRA; one in a store is fetched.

    Raises:
        ModelError: The store has no such file, or the URL is not allowed.
        StorageError: The store cannot be used.
    """
    if not is_remote(path):
        return path
    hub.require_source(shown(path))
    found = fetch_model(path, progress)
    if not presence.is_file(found):
        raise ModelError(f"{shown(path)} is a folder; expected a file.")
    return found


def _exported_by(run: RunDirectory) -> Path:
    exported = run.exported_model()
    if exported is None:
        raise ModelError(
            f"{run.address} is a run that has not exported a model yet. Finish it with: "
            f"{how_to_resume(run.path, run.address)}"
        )
    return exported


def _open_folder(path: Path, source: str, options: OpenOptions) -> ModelContents:
    folder = diffusers_folder.open_folder(path, options.choice)
    unet = next(
        component for component in folder.components if component.kind is ComponentKind.UNET
    )
    identity = identify(
        Clues(
            source,
            folder.tensors[unet.name],
            diffusers_folder.encoders_of(folder, path),
            scheduler_config=folder.scheduler_config,
            family_key=options.family,
            prediction_name=options.prediction_type,
        )
    )
    upcast = {"upcast_attention": identity.family.upcast_attention}
    return ModelContents(
        source=source,
        form="Diffusers folder",
        components=folder.tensors,
        ldm_only=folder.ldm_only,
        configs={**folder.configs, unet.name: {**upcast, **folder.configs[unet.name]}},
        scheduler_config=_with_prediction(folder.scheduler_config, identity),
        identity=identity,
        tokenizer_files=folder.tokenizer_files,
        metadata=folder.metadata,
        notes=folder.notes,
        zeroes_empty_text=identity.family.pipeline.zeroes_empty_text(folder.index),
    )


def _open_file(
    file: TensorFile, source: str, options: OpenOptions, progress: Progress | None
) -> ModelContents:
    kind = kind_of(file, families.file_layouts())
    if kind is HYPERNETWORK:
        raise ModelError(
            f"{source} is a hypernetwork, which is used with a base model. Generate images with it "
            f"like this: "
            f"{command('sample', 'BASE-MODEL', 'PROMPT', '--hypernetwork', file.path)}"
        )
    missing = lacking(file, families.file_layouts()) if kind is COMPONENT_OF_SDXL else ()
    if missing:
        raise ModelError(
            f"{source} is {kind.name}: it has no {' and no '.join(missing)}. Give the whole model, "
            f"with everything in one file or in a Diffusers folder."
        )
    if kind is not BASE_MODEL:
        raise ModelError(f"{source} is {kind.name}, not {BASE_MODEL.name}. {kind.advice}")
    if options.variant is not None:
        raise ModelError(
            f"{source} is one file and has no variants; {options.variant!r} is for Diffusers "
            f"folders, which may have several sets of files. Remove --variant (model.variant)."
        )
    layout = layout_of(file.tensors, families.file_layouts())
    stated = configs_in(file.metadata, [component.name for component in layout.components], source)
    unscaled = apply_scales(file.tensors, file.metadata, source)
    ldm = split_ldm(unscaled.tensors, layout, _layers_stated(stated or {}))
    components = _whole(ldm, layout, source, options, progress)
    identity = identify(_clues_of(file, layout, ldm, components, source, options))
    is_said = (
        says_zero_terminal_snr(file.metadata)
        or ZERO_TERMINAL_SNR_MARK in ldm.marks
        or stores_zero_terminal_snr(ldm.ldm_only)
    )
    is_zero_snr = is_said and identity.prediction.begins_in_noise  # else samplers do not use it
    return ModelContents(
        source=source,
        form=f"LDM file ({file.form})",
        components=components,
        ldm_only=ldm.ldm_only,
        configs=stated or configs_from(components, identity.family, source),
        scheduler_config=scheduler_config(identity.prediction.name)
        | (ZERO_TERMINAL_SNR if is_zero_snr else {}),
        identity=identity,
        metadata=file.metadata,
        notes=(*unscaled.notes, *notes_on(ldm, zero_terminal_snr=is_zero_snr)),
        zeroes_empty_text=file.metadata.get(EMPTY_TEXT_KEY) == ZEROS,
    )


def _layers_stated(configs: Configs) -> dict[str, int]:
    """Return component -> its number of layers, if its configuration states it."""
    said = {component: config.get("num_hidden_layers") for component, config in configs.items()}
    return {component: number for component, number in said.items() if isinstance(number, int)}


def _whole(
    ldm: LdmModel,
    layout: FileLayout,
    source: str,
    options: OpenOptions,
    progress: Progress | None,
) -> dict[str, Tensors]:
    """Return all components of a file, with the requested weights and VAE.

    Raises:
        ModelError: A component is missing.
    """
    (unet,), (vae,) = layout.of_kind(ComponentKind.UNET), layout.of_kind(ComponentKind.VAE)
    components = _with_chosen_weights(ldm, unet.name, source, options.weights)
    if vae.name not in components and options.vae is not None:  # some files have none
        components[vae.name] = open_vae(locate(options.vae, OpenOptions(), progress)).tensors
    missing = sorted({component.name for component in layout.components} - components.keys())
    if missing:
        hint = " Give one with model.vae." if missing == [vae.name] else ""
        raise ModelError(f"{source} is incomplete: it has no {' and no '.join(missing)}.{hint}")
    return components


def _clues_of(
    file: TensorFile,
    layout: FileLayout,
    ldm: LdmModel,
    components: Mapping[str, Tensors],
    source: str,
    options: OpenOptions,
) -> Clues:
    (unet,) = layout.of_kind(ComponentKind.UNET)
    return Clues(
        source,
        components[unet.name],
        tuple(
            (component.name, component.naming.dialect)
            for component in layout.of_kind(ComponentKind.TEXT)
        ),
        metadata=file.metadata,
        counters=file.counters,
        sidecar=_read_sidecar(file.path),
        marks=ldm.marks,
        family_key=options.family,
        prediction_name=options.prediction_type,
    )


def _with_chosen_weights(
    ldm: LdmModel, unet: str, source: str, weights: Weights
) -> dict[str, Tensors]:
    plain = ldm.components.get(unet, {})
    if weights != "ema":
        return dict(ldm.components)
    if set(ldm.ema) != set(plain):
        raise ModelError(
            f"{source} has no averaged (EMA) weights for the whole U-Net: {len(ldm.ema)} of "
            f"{len(plain)} tensors. Set model.weights (--weights on a command line) to plain or "
            f"auto."
        )
    return {**ldm.components, unet: ldm.ema}


def _read_sidecar(path: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """Return the path and content of the original programs' `.yaml` of the same name, or None."""
    sidecar = path.with_suffix(SIDECAR)
    if not presence.is_file(sidecar):
        return None
    try:
        content = yaml.safe_load(read_text(sidecar))
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).strip() or type(error).__name__
        raise ModelError(f"{sidecar} cannot be read as YAML: {reason}.") from error
    return (sidecar, content) if isinstance(content, Mapping) else None


def _with_prediction(config: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    return {**config, "prediction_type": identity.prediction.name}
