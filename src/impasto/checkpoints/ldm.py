"""Splits LDM files into named components, and merges those into LDM files again.

Tensors that the file format has but no component uses (SD 2's last text layer and projection, SD
1's position ids, the schedule's buffers) are retained separately, so that converting back loses
nothing. Averaged weights (`model_ema.*`) are read on request and never written: they would be
stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from impasto.checkpoints.keymap import ComponentMap, FileLayout, NamedComponent, ema_name
from impasto.checkpoints.tensors import LazyTensor, Tensors, joined

MOST_POSITIONS = 4096
SCHEDULE_BUFFERS = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "logvar", "lvlb_weights",
}  # fmt: skip
VELOCITY_MARK, ZERO_TERMINAL_SNR_MARK = "v_pred", "ztsnr"
"""Empty tensors by which some trainers mark a file's type; ComfyUI `comfy/supported_models.py`
reads them."""


@dataclass(frozen=True)
class LdmModel:
    """The contents of a single file, sorted by network.

    Attributes:
        components: Component -> tensors by our names.
        ldm_only: Tensors by LDM's names that the format has and no component uses.
        ema: The averaged U-Net by our names; empty if the file has none.
        foreign: Names that belong to nothing known.
        stale: Names that are never written again.
        marks: Which of `v_pred` and `ztsnr` it has.
        notes: Sentences about corrections.
    """

    components: Mapping[str, Tensors]
    ldm_only: Tensors
    ema: Tensors
    foreign: tuple[str, ...]
    stale: tuple[str, ...]
    marks: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def split_ldm(
    tensors: Tensors, layout: FileLayout, layers: Mapping[str, int] | None = None
) -> LdmModel:
    """Sort a file's tensors into components.

    Args:
        tensors: All tensors of the file by its names.
        layout: How it names the networks of its family; see `keymap.layout_of`.
        layers: Component -> its number of layers, if the file states it.
    """
    tensors = {layout.modern(name): tensor for name, tensor in tensors.items()}
    sorted_out = _Sorting(layout, tensors, layers or {})
    for name, tensor in tensors.items():
        sorted_out.take(name, tensor)
    return sorted_out.model(tensors)


def merge_ldm(
    components: Mapping[str, Tensors], ldm_only: Tensors, layout: FileLayout
) -> dict[str, LazyTensor]:
    """Return all tensors of a single file by name.

    Unused tensors of the format (SD 2's last text layer, projection and logit scale) are added if
    they are missing, as in sd-scripts, since some programs load strictly.

    Args:
        components: Component -> tensors by our names.
        ldm_only: Unused tensors from `split_ldm`.
        layout: How the file names them.
    """
    result: dict[str, LazyTensor] = {}
    for component in layout.components:
        if component.name in components:
            own = _in_file(component, components[component.name])
            result |= {**own, **_tail(component, own)}
    return {**result, **ldm_only}


class _Sorting:
    """Sorts the tensors of a file into components."""

    def __init__(self, layout: FileLayout, tensors: Tensors, layers: Mapping[str, int]) -> None:
        self._components = layout.components
        self._maps = {
            component.name: component.naming.map_of_file(tensors) for component in layout.components
        }
        self._used = {
            component.name: component.naming.layers_used(tensors, layers.get(component.name))
            for component in layout.components
        }
        roots = [p.naming.root + stale for p in layout.components for stale in p.naming.stale]
        self._stale = ("model_ema.", *roots)
        self._found: dict[str, dict[str, LazyTensor]] = {
            component.name: {} for component in layout.components
        }
        self._ldm_only: dict[str, LazyTensor] = {}
        self._foreign: list[str] = []
        self._stale_names: list[str] = []
        self._notes: list[str] = []
        self._marks: set[str] = set()

    def take(self, name: str, tensor: LazyTensor) -> None:
        """Assign a tensor to its network, to the tensors beside them, or to the unknown ones."""
        component = next((p for p in self._components if name.startswith(p.naming.prefix)), None)
        if name.startswith(self._stale):
            self._stale_names.append(name)
        elif name in SCHEDULE_BUFFERS:
            self._ldm_only[name] = tensor
        elif component is None and name in (VELOCITY_MARK, ZERO_TERMINAL_SNR_MARK):
            self._marks.add(name)
        elif component is None:
            self._foreign.append(name)
        elif component.naming.is_beside(name, self._used[component.name]):
            self._keep_beside(component, name, tensor)
        else:
            self._found[component.name].update(
                _to_diffusers(self._maps[component.name], name, tensor)
            )

    def _keep_beside(self, component: NamedComponent, name: str, tensor: LazyTensor) -> None:
        if name.removeprefix(component.naming.prefix) == component.naming.counted:
            tensor, repaired = _whole_positions(tensor)
            self._notes += repaired
        self._ldm_only[name] = tensor

    def model(self, tensors: Tensors) -> LdmModel:
        """Return the model found, once all tensors are sorted."""
        averaged = next(component for component in self._components if component.naming.is_averaged)
        return LdmModel(
            {component: names for component, names in self._found.items() if names},
            self._ldm_only,
            _averaged(tensors, self._maps[averaged.name]),
            tuple(self._foreign),
            tuple(self._stale_names),
            frozenset(self._marks),
            tuple(self._notes),
        )


def _whole_positions(tensor: LazyTensor) -> tuple[LazyTensor, list[str]]:
    """Return SD 1's position ids as integers, and a note if they were corrected.

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
    state = f"{wrong} of {count} wrong" if wrong else f"{tensor.dtype} instead of integers"
    return LazyTensor.of(right), [f"the text encoder's position ids were {state}: corrected"]


def _to_diffusers(
    component_map: ComponentMap, name: str, tensor: LazyTensor
) -> dict[str, LazyTensor]:
    naming, names = component_map.naming, component_map.to_diffusers(name)
    if len(names) > 1:
        return {own: tensor.third(number) for number, own in enumerate(names)}
    if naming.convolved and naming.convolved.search(name) and len(tensor.shape) == 4:
        tensor = tensor.reshaped(tensor.shape[:2])
    if name.removeprefix(naming.prefix) in naming.turned and len(tensor.shape) == 2:
        tensor = tensor.transposed()
    return {names[0]: tensor}


def _in_file(component: NamedComponent, tensors: Tensors) -> dict[str, LazyTensor]:
    """Return a network's tensors as in files."""
    naming = component.naming
    component_map = naming.map_of_ours(tensors.keys())
    result = {}
    for name, tensor in tensors.items():
        ldm = component_map.to_ldm(name)
        names = component_map.to_diffusers(ldm)
        if len(names) > 1:
            result[ldm] = joined(tuple(tensors[n] for n in names))
        elif naming.convolved and naming.convolved.search(ldm):
            result[ldm] = tensor.reshaped((*tensor.shape[:2], 1, 1))
        elif ldm.removeprefix(naming.prefix) in naming.turned:
            result[ldm] = tensor.transposed()
        else:
            result[ldm] = tensor
    return result


def _tail(component: NamedComponent, tensors: Tensors) -> dict[str, LazyTensor]:
    """Return a text encoder's tensors in a file after the layers that are used."""
    naming, tail = component.naming, component.naming.tail
    if naming.layers is None:
        return {}
    blocks = naming.prefix + naming.layers
    last = naming.layers_in(tensors.keys()) - 1
    copied = {
        name.replace(f"{blocks}{last}.", f"{blocks}{last + number}."): tensor
        for number in range(1, tail.spare + 1)
        for name, tensor in tensors.items()
        if name.startswith(f"{blocks}{last}.")
    }
    width = tensors[naming.prefix + "ln_final.weight"].shape[0]
    ones = {
        naming.prefix + name: LazyTensor.of(torch.ones((width,) * dimensions))
        for name, dimensions in tail.ones
    }
    return {**copied, **ones}


def _averaged(tensors: Tensors, component_map: ComponentMap) -> Tensors:
    """Return the averaged copies of the U-Net's tensors; empty if the file has none."""
    averaged = {}
    for name in tensors:
        if name.startswith(component_map.prefix) and ema_name(name) in tensors:
            averaged[component_map.to_diffusers(name)[0]] = tensors[ema_name(name)]
    return averaged
