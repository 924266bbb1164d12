"""LDM files taken apart into named parts, and put together again.

What a part does not use but the file format has (SD 2's last text layer and projection, SD 1's
position ids, the schedule's buffers) is kept beside the parts, so that nothing is lost on the way
back. Averaged weights (`model_ema.*`) are read when asked for and never written: they would be
stale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from impasto.checkpoints import keymap
from impasto.checkpoints.keymap import (
    CLIP_PREFIX,
    CONVOLVED,
    OPEN_CLIP_PREFIX,
    TEXT_ENCODER,
    UNET,
    UNET_PREFIX,
    VAE,
    VAE_PREFIX,
    PartMap,
    UNetLayout,
    VaeLayout,
)
from impasto.checkpoints.tensors import LazyTensor, Tensors, joined

MOST_POSITIONS = 4096
OPEN_CLIP_LAYERS = 23  # that SD 2 uses, of 24: stablediffusion's `layer: penultimate`
SCHEDULE_BUFFERS = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "logvar", "lvlb_weights",
}  # fmt: skip
_OPEN_CLIP_REST = {"text_projection", "logit_scale", "attn_mask"}
_CLIP_BEFORE_TEXT_MODEL = re.compile(
    r"cond_stage_model\.transformer\.(?=embeddings|encoder|final_layer_norm)"
)
_POSITION_IDS = CLIP_PREFIX + "embeddings.position_ids"
VELOCITY_MARK, ZERO_TERMINAL_SNR_MARK = "v_pred", "ztsnr"
"""Empty tensors by which some trainers mark what a file is; ComfyUI `comfy/supported_models.py`
reads them."""


@dataclass(frozen=True)
class LdmModel:
    """An LDM file by parts.

    Attributes:
        parts: Part -> tensors by our names.
        ldm_only: Tensors by LDM's names that the format has and no part uses.
        ema: The averaged U-Net by our names; empty if the file has none.
        foreign: Names that belong to nothing known.
        stale: Names that are never written again.
        marks: Which of `v_pred` and `ztsnr` it has.
        notes: What was put right, in sentences.
    """

    parts: Mapping[str, Tensors]
    ldm_only: Tensors
    ema: Tensors
    foreign: tuple[str, ...]
    stale: tuple[str, ...]
    marks: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def split_ldm(tensors: Tensors, *, text_layers: int | None = None) -> LdmModel:
    """Sort a file's tensors into parts.

    Args:
        tensors: All tensors of the file by LDM's names.
        text_layers: How many layers SD 2's text encoder uses; None means 23 of 24, or all of fewer.
    """
    tensors = {_modern(name): tensor for name, tensor in tensors.items()}
    maps = _maps_of_ldm(tensors, text_layers)
    parts: dict[str, dict[str, LazyTensor]] = {part_map.part: {} for part_map in maps}
    ldm_only, foreign, stale, notes = {}, [], [], []
    marks: set[str] = set()
    for name, tensor in tensors.items():
        part_map = next((m for m in maps if name.startswith(m.prefix)), None)
        if name.startswith(("model_ema.", "first_stage_model.loss.")):
            stale.append(name)
        elif name == _POSITION_IDS:
            ldm_only[name], repaired = _whole_positions(tensor)
            notes += repaired
        elif _is_ldm_only(name, text_layers_used(tensors, text_layers)):
            ldm_only[name] = tensor
        elif part_map is None and name in (VELOCITY_MARK, ZERO_TERMINAL_SNR_MARK):
            marks.add(name)
        elif part_map is None:
            foreign.append(name)
        else:
            parts[part_map.part].update(_ours(part_map, name, tensor))
    return LdmModel(
        {part: names for part, names in parts.items() if names},
        ldm_only,
        _averaged(tensors, maps),
        tuple(foreign),
        tuple(stale),
        frozenset(marks),
        tuple(notes),
    )


def merge_ldm(
    parts: Mapping[str, Tensors], ldm_only: Tensors, *, open_clip: bool
) -> dict[str, LazyTensor]:
    """All tensors of an LDM file by name.

    SD 2's unused last text layer, projection and logit scale are filled in where they are not at
    hand, as sd-scripts does, so that programs that load strictly are content.

    Args:
        parts: Part -> tensors by our names.
        ldm_only: What `split_ldm` kept beside the parts.
        open_clip: Whether the text encoder is SD 2's, which LDM files name as open_clip does.
    """
    result: dict[str, LazyTensor] = {}
    for part, tensors in parts.items():
        part_map = _map_of_ours(part, tensors, open_clip=open_clip)
        for name, tensor in tensors.items():
            ldm = part_map.to_ldm(name)
            names = part_map.to_ours(ldm)
            if len(names) > 1:
                result[ldm] = joined(tuple(tensors[n] for n in names))
            elif part == VAE and CONVOLVED.search(ldm):
                result[ldm] = tensor.reshaped((*tensor.shape[:2], 1, 1))
            else:
                result[ldm] = tensor
    has_tail_to_fill = open_clip and TEXT_ENCODER in parts
    filled = _open_clip_tail(result) if has_tail_to_fill else {}
    return {**result, **filled, **ldm_only}


def text_layers_used(tensors: Tensors, text_layers: int | None = None) -> int:
    """Layers of SD 2's text encoder that are used, of those in the file."""
    found = _count_layers(tensors, OPEN_CLIP_PREFIX + "transformer.resblocks.")
    return text_layers or min(found, OPEN_CLIP_LAYERS)


def _whole_positions(tensor: LazyTensor) -> tuple[LazyTensor, list[str]]:
    """SD 1's position ids as whole numbers.

    They are 0 to 76 in every model. Programs that merge or cast models rounded them: A1111, which
    loads them, then reads some positions twice.
    """
    count = tensor.shape[-1] if tensor.shape else 0
    if not 0 < count <= MOST_POSITIONS:
        return tensor, []
    right = torch.arange(count).expand(tensor.shape).clone()
    found = tensor.read()
    if not tensor.dtype.is_floating_point and torch.equal(found.long(), right):
        return tensor, []
    wrong = int((found.double() != right).sum())
    state = f"{wrong} of {count} wrong" if wrong else f"{tensor.dtype} instead of whole numbers"
    return LazyTensor.of(right), [f"the text encoder's position ids were {state}: put right"]


def _modern(name: str) -> str:
    """Early SD 1 files lack `text_model.` in the text encoder's names."""
    return _CLIP_BEFORE_TEXT_MODEL.sub(CLIP_PREFIX, name)


def _ours(part_map: PartMap, name: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
    names = part_map.to_ours(name)
    if len(names) > 1:
        return {own: tensor.third(number) for number, own in enumerate(names)}
    if CONVOLVED.search(name) and len(tensor.shape) == 4:
        tensor = tensor.reshaped(tensor.shape[:2])
    return {names[0]: tensor}


def _maps_of_ldm(tensors: Tensors, text_layers: int | None) -> tuple[PartMap, ...]:
    def inner(prefix: str) -> set[str]:
        return {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}

    maps = [
        keymap.unet_map(UNetLayout.of_ldm(inner(UNET_PREFIX))),
        keymap.vae_map(VaeLayout.of_ldm(inner(VAE_PREFIX))),
    ]
    if any(name.startswith(OPEN_CLIP_PREFIX) for name in tensors):
        maps.append(keymap.open_clip_map(text_layers_used(tensors, text_layers)))
    else:
        maps.append(keymap.clip_map())
    return tuple(maps)


def _map_of_ours(part: str, tensors: Tensors, *, open_clip: bool) -> PartMap:
    if part == UNET:
        return keymap.unet_map(UNetLayout.of_diffusers(tensors.keys()))
    if part == VAE:
        return keymap.vae_map(VaeLayout.of_diffusers(tensors.keys()))
    return (
        keymap.open_clip_map(_count_layers(tensors, "encoder.layers."))
        if open_clip
        else (keymap.clip_map())
    )


def _count_layers(names: Tensors, prefix: str) -> int:
    found = {n[len(prefix) :].partition(".")[0] for n in names if n.startswith(prefix)}
    return sum(number.isdigit() for number in found)


def _is_ldm_only(name: str, text_layers: int) -> bool:
    if name in SCHEDULE_BUFFERS or name == _POSITION_IDS:
        return True
    inner = name.removeprefix(OPEN_CLIP_PREFIX)
    if inner == name:
        return False
    block = re.match(r"transformer\.resblocks\.(\d+)\.", inner)
    return inner in _OPEN_CLIP_REST or (block is not None and int(block[1]) >= text_layers)


def _averaged(tensors: Tensors, maps: tuple[PartMap, ...]) -> Tensors:
    """The averaged copies of the U-Net's tensors, if the file has them."""
    averaged = {}
    for name in tensors:
        if name.startswith(UNET_PREFIX) and keymap.ema_name(name) in tensors:
            own = maps[0].to_ours(name)[0]
            averaged[own] = tensors[keymap.ema_name(name)]
    return averaged


def _open_clip_tail(tensors: Tensors) -> dict[str, LazyTensor]:
    """What open_clip's text tower has after the layer that SD 2 uses."""
    blocks = OPEN_CLIP_PREFIX + "transformer.resblocks."
    last = _count_layers(tensors, blocks) - 1
    copied = {
        name.replace(f"{blocks}{last}.", f"{blocks}{last + 1}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{blocks}{last}.")
    }
    norm = tensors[OPEN_CLIP_PREFIX + "ln_final.weight"]
    width = norm.shape[0]
    return {
        **copied,
        OPEN_CLIP_PREFIX + "text_projection": LazyTensor.of(torch.ones(width, width)),
        OPEN_CLIP_PREFIX + "logit_scale": LazyTensor.of(torch.tensor(1.0)),
    }
