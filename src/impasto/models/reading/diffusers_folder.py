"""Opens the components of a Diffusers folder under current names, whichever version wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.checkpoints.keymap import ComponentKind
from impasto.checkpoints.kinds import EDM_VELOCITY, FLOW, PLAYGROUND, REFINER, Kind
from impasto.checkpoints.links import require_links_inside
from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.scaled import apply_scales
from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.checkpoints.weight_files import (
    NOT_AVERAGED,
    WeightChoice,
    find_weights,
    folder_layout_of,
    networks_in,
    read_weights,
)
from impasto.diffusion.prediction import VELOCITY
from impasto.errors import ModelError
from impasto.models import families
from impasto.models.family import Component
from impasto.models.reading.configs import Configs, require_plain_latents
from impasto.models.reading.pipeline_files import SCHEDULER_FILE
from impasto.parsing import parse_json, read_text

LDM_ONLY_FILE = "ldm_only.safetensors"
METADATA_FILE = "impasto.json"
TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
)  # fmt: skip
"""Files copied into exported folders; other files or links beside them are not."""

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION_NAME = re.compile(r"(mid_block\.attentions\.0\.)(query|key|value|proj_attn)\.")


@dataclass(frozen=True)
class DiffusersFolder:
    """The contents of a Diffusers folder.

    Attributes:
        components: Networks that it holds.
        tensors: Name of each network -> its tensors.
        configs: Name of each network -> its configuration.
        scheduler_config: Configuration of the noise scheduler.
        ldm_only: Tensors that only a single file has.
        tokenizer_files: Tokenizer folder -> file name -> content.
        metadata: Metadata texts.
        notes: Notes for the user.
        index: Content of `model_index.json`.
    """

    components: tuple[Component, ...]
    tensors: Mapping[str, Tensors]
    configs: Configs
    scheduler_config: dict[str, Any]
    ldm_only: Tensors
    tokenizer_files: dict[str, dict[str, bytes]]
    metadata: dict[str, str]
    notes: tuple[str, ...]
    index: Mapping[str, Any]


def open_folder(path: Path, choice: WeightChoice | None = None) -> DiffusersFolder:
    """Open all components of a Diffusers folder.

    Args:
        path: The folder.
        choice: Set of weights to use if a network has several.

    Raises:
        ModelError: It is not a Diffusers folder of Stable Diffusion, or something in it is missing
            or damaged.
    """
    if not presence.is_file(path / "model_index.json"):
        raise ModelError(
            f"{path} is a folder without model_index.json; expected a Diffusers folder, which has "
            f"this file and a folder per network, or the path of one .safetensors or .ckpt file."
        )
    require_links_inside(path)
    index = read_config(path / "model_index.json")
    if index.get("requires_aesthetics_score"):
        raise ModelError(f"{path} is {REFINER.name}, and not SDXL's base model. Give a base model.")
    layout = folder_layout_of(index, families.folder_layouts(index.get("_class_name")))
    if layout is None:
        raise ModelError(
            f"{path} is a {index.get('_class_name')} with {', '.join(sorted(networks_in(index)))}, "
            f"which is not {families.known_as()}. Give a base model of these."
        )
    scheduler_config = read_config(path / SCHEDULER_FILE)
    _require_plain_noise(path, scheduler_config)
    components = families.components_of(layout)
    choice = choice or WeightChoice()
    if choice.variant is not None:
        _require_variant(path, components, choice.variant)
    opened = {p.name: _open_component(path / p.folder, p, choice) for p in components}
    if choice.weights == "ema":
        _require_average(path, components)
    rest = path / LDM_ONLY_FILE
    return DiffusersFolder(
        components,
        {component: found.tensors for component, found in opened.items()},
        {component: found.config for component, found in opened.items()},
        scheduler_config,
        open_tensor_file(rest).tensors if presence.is_file(rest) else {},
        {folder: _read_tokenizer(path / folder) for folder in layout.tokenizers},
        _read_metadata(path / METADATA_FILE),
        tuple(note for found in opened.values() for note in found.notes),
        index,
    )


def _require_plain_noise(path: Path, scheduler_config: Mapping[str, Any]) -> None:
    """Refuse a model whose scheduler adds noise differently from Stable Diffusion's.

    Such a model has the tensors of SD or SDXL, so only the scheduler distinguishes it.

    Raises:
        ModelError: The scheduler is of that kind.
    """
    kind = _kind_by_noise(scheduler_config)
    if kind is not None:
        raise ModelError(
            f"{path} is {kind.name} (its scheduler is {scheduler_config.get('_class_name')}). Give "
            f"a base model of {families.known_as()}."
        )


def _kind_by_noise(scheduler_config: Mapping[str, Any]) -> Kind | None:
    """Return the kind of a model with noise unlike Stable Diffusion's, or None if it is alike.

    Names: diffusers `schedulers/scheduling_edm_euler.py`, `scheduling_edm_dpmsolver_multistep.py`,
    `scheduling_flow_match_euler_discrete.py` and `scheduling_unipc_multistep.py`.
    """
    name, predicted = (str(scheduler_config.get(key)) for key in ("_class_name", "prediction_type"))
    if name.startswith("EDM") or scheduler_config.get("sigma_data") is not None:
        return EDM_VELOCITY if predicted == VELOCITY.name else PLAYGROUND
    has_flow = "Flow" in name or predicted.startswith("flow")
    return FLOW if has_flow or scheduler_config.get("use_flow_sigmas") else None


def _require_average(path: Path, components: Sequence[Component]) -> None:
    averaged = [component for component in components if component.naming.is_averaged]
    if not all(
        NOT_AVERAGED in find_weights(path / component.folder, component.stems)
        for component in averaged
    ):
        raise ModelError(f"{path} has no averaged (EMA) weights. Set model.weights to auto.")


def open_component(
    folder: Path, component: Component
) -> tuple[Tensors, dict[str, Any], tuple[str, ...]]:
    """Open one component by its own folder: its tensors, its configuration, and notes.

    Raises:
        ModelError: It is missing or damaged.
    """
    require_links_inside(folder)
    found = _open_component(folder, component, WeightChoice())
    return found.tensors, found.config, found.notes


def read_config(file: Path) -> dict[str, Any]:
    """Read a JSON file of a Diffusers folder.

    Raises:
        ModelError: It is missing or not a JSON object.
    """
    try:
        config = parse_json(read_text(file))
    except FileNotFoundError as error:
        raise ModelError(
            f"The model is incomplete: {file} is missing. Download or copy it again."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} holds a {type(config).__name__}; expected an object.")
    return config


def encoders_of(folder: DiffusersFolder, path: Path) -> tuple[tuple[str, str], ...]:
    """Return the name and dialect of each text encoder, found by its activation; see `Marks`.

    Raises:
        ModelError: No known family has an encoder with this activation.
    """
    found = []
    for component in folder.components:
        if component.kind is not ComponentKind.TEXT:
            continue
        activation = folder.configs[component.name].get("hidden_act", "quick_gelu")
        dialect = families.dialect_of(component.name, activation)
        if dialect is None:
            raise ModelError(
                f"{path} is not a model of a family that Impasto knows: its {component.name} uses "
                f"{activation!r}, which that of {families.known_as()} does not."
            )
        found.append((component.name, dialect))
    return tuple(found)


@dataclass(frozen=True)
class _Component:
    tensors: Tensors
    config: dict[str, Any]
    notes: tuple[str, ...] = ()


def _open_component(folder: Path, component: Component, choice: WeightChoice) -> _Component:
    config = read_config(folder / "config.json")
    if "quantization_config" in config:
        raise ModelError(
            f"{folder} is quantized (quantization_config in its config.json), and Impasto cannot "
            f"undo that. Use an fp16, bf16 or fp32 version of this model."
        )
    if component.kind is ComponentKind.VAE:
        require_plain_latents(config, str(folder))
    sets = find_weights(folder, component.stems)
    taken = choice.of(sets)
    if taken is None:
        others = f"; it has {', '.join(sorted(map(str, sets)))}" if sets else ""
        raise ModelError(
            f"The model is incomplete: {folder} has no {component.stems.name}.safetensors and no "
            f".bin file{others}. Download or copy it again, or name one of those with --variant."
        )
    name, found = taken
    notes = []
    if lacking := choice.lacking(name):
        notes.append(f"no {lacking} files of the {component.name}: taken from {found.name}")
    elif name is not None:
        notes.append(f"{component.name} from {found.name}")
    if choice.weights == "plain" and component.naming.is_averaged and name != NOT_AVERAGED:
        notes.append(f"no {NOT_AVERAGED} files of the {component.name}: taken from {found.name}")
    raw, metadata = read_weights(found)
    unscaled = apply_scales(raw, metadata, str(found))
    return _Component(
        by_todays_names(unscaled.tensors, component), config, (*notes, *unscaled.notes)
    )


def by_todays_names(tensors: Tensors, component: Component) -> dict[str, LazyTensor]:
    """Return the tensors of one component of a Diffusers folder under current diffusers names."""
    named = {MODERN[component.kind](name): tensor for name, tensor in tensors.items()}
    kept = {n: t for n, t in named.items() if not n.endswith("embeddings.position_ids")}
    return {name: _without_spare_axes(name, tensor) for name, tensor in kept.items()}


def _require_variant(path: Path, components: Sequence[Component], variant: str) -> None:
    """Check that at least one component has files of a variant.

    Raises:
        ModelError: None has; the message names the existing variants.
    """
    sets = [find_weights(path / component.folder, component.stems) for component in components]
    if any(variant in found for found in sets):
        return
    there = sorted({name for found in sets for name in found if name is not None})
    named = f"it has {', '.join(there)}" if there else "it has only the main files"
    plain = " and the main files" if there and any(None in found for found in sets) else ""
    raise ModelError(
        f"{path} has no files of the variant {variant!r}; {named}{plain}. Name an existing one, "
        f"or remove --variant (model.variant)."
    )


def _without_prefix(name: str) -> str:
    """Return a name of CLIP's without transformers 4's prefix."""
    return name.removeprefix("text_model.")


def _renamed_attention(name: str) -> str:
    """Return a name of the VAE's attention as renamed in diffusers 0.17."""
    return _OLD_ATTENTION_NAME.sub(lambda m: f"{m[1]}{_OLD_ATTENTION[m[2]]}.", name)


def _as_it_is(name: str) -> str:
    return name


MODERN: dict[ComponentKind, Callable[[str], str]] = {
    ComponentKind.UNET: _as_it_is,
    ComponentKind.VAE: _renamed_attention,
    ComponentKind.TEXT: _without_prefix,
}
"""Kind of network -> function that gives the current diffusers name of a tensor."""


def _without_spare_axes(name: str, tensor: LazyTensor) -> LazyTensor:
    """Reshape attention weights of the VAE that early folders store as 1x1 convolutions."""
    is_attention = "mid_block.attentions.0.to_" in name and len(tensor.shape) == 4
    return tensor.reshaped(tensor.shape[:2]) if is_attention else tensor


def _read_tokenizer(folder: Path) -> dict[str, bytes]:
    if not presence.is_dir(folder):
        return {}
    found = (folder / name for name in TOKENIZER_FILES)
    return {path.name: path.read_bytes() for path in found if presence.is_file(path)}


def _read_metadata(file: Path) -> dict[str, str]:
    if not presence.is_file(file):
        return {}
    return {key: text for key, text in read_config(file).items() if isinstance(text, str)}
