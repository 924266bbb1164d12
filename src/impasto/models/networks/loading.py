"""Builds networks from a base model's tensors; every tensor must be present and have its shape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from impasto.checkpoints.keymap import ComponentKind
from impasto.checkpoints.tensors import LazyTensor, Tensors, total_bytes
from impasto.checkpoints.writing import is_finite
from impasto.data.engines.stages import default_workers
from impasto.diffusion.schedule import NoiseSchedule
from impasto.errors import ModelError
from impasto.models.family import Family
from impasto.models.networks.attention import use_upcast_attention
from impasto.models.networks.keeping import Keep, leave_without_values, not_finite
from impasto.models.networks.making import empty_networks
from impasto.models.networks.schedules import schedule_of
from impasto.models.networks.tokenizers import build_tokenizer
from impasto.models.reading.completeness import compare, named_as_in, require_complete
from impasto.models.reading.configs import stated_scaling
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.identity import Identity
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.reading.opening_ahead import OpenedAhead
from impasto.progress import Advance, Progress, SilentProgress, in_mib

TypeOf = Callable[[torch.dtype], torch.dtype]
"""Stored dtype of a tensor -> dtype in which it is read."""

READERS = 4
"""Threads that read a network's tensors."""

READ_TOGETHER = 4 << 20
"""Bytes of small tensors that a thread reads at once."""


@dataclass(frozen=True)
class BaseModel:
    """The components of a Stable Diffusion model, frozen and on the CPU.

    They are in float32 unless other dtypes were requested. Some may be offloaded until they are
    needed (`models/networks/offload.py`): their tensors are retained in their stored dtypes.
    Nothing depends on the files any more: they may be moved or replaced.

    Attributes:
        contents: Everything else that the files held; `contents.components` are the networks' own
            tensors.
        stored: Component -> the dtype of each tensor in the files, for writing it back in that
            dtype.
        networks: Component of the family -> the network.
        tokenizers: Text encoder -> transformers' CLIPTokenizer.
        schedule: Noise schedule that the model was trained with.
        scaling_factor: Factor by which the VAE's latents are multiplied to get scaled latents.
    """

    contents: ModelContents
    stored: Mapping[str, Mapping[str, torch.dtype]]
    networks: Mapping[str, Any]
    tokenizers: Mapping[str, Any]
    schedule: NoiseSchedule
    scaling_factor: float

    @property
    def identity(self) -> Identity:
        """The family and prediction of the model, with the evidence."""
        return self.contents.identity

    @property
    def family(self) -> Family:
        """The family that the model belongs to."""
        return self.contents.identity.family

    @property
    def unet(self) -> Any:
        """The network that predicts noise or velocity, diffusers' `UNet2DConditionModel`."""
        return self.networks[self.family.unet.name]

    @property
    def vae(self) -> Any:
        """The network that encodes pixels and decodes latents: diffusers' AutoencoderKL."""
        return self.networks[self.family.vae.name]

    @property
    def text_encoders(self) -> dict[str, Any]:
        """The text encoders by name, in the order of the family's table."""
        return {
            component.name: self.networks[component.name] for component in self.family.text_encoders
        }

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The configuration of the noise scheduler, for samplers."""
        return self.contents.scheduler_config


def load_base_model(
    source: str | Path | OpenedAhead,
    options: OpenOptions | None = None,
    progress: Progress | None = None,
    dtypes: Mapping[ComponentKind, torch.dtype] | None = None,
    exact: Collection[str] = (),
    waiting: Callable[[Family], Mapping[str, Keep]] | None = None,
    changed: Callable[[ModelContents], ModelContents] | None = None,
    loaded: Callable[[str, nn.Module], object] | None = None,
) -> BaseModel:
    """Load a base model: a single file, a Diffusers folder, or a Hub id.

    Args:
        source: File, folder or Hub id, or a model opened earlier.
        options: Options for opening it; ignored if it was opened earlier.
        progress: Shows the progress.
        dtypes: Kind of network -> its dtype, if that is not float32.
        exact: Names of networks that stay in float32 all the same, so that they can be written
            again bit for bit.
        waiting: Returns, for the model's family, the names of networks that start offloaded, each
            with the function that stores its tensors.
        changed: Changes the contents before networks are built of them, for example to add LoRAs.
        loaded: Called with the name of each network and the network as soon as it has its values
            or, after those, as soon as it is offloaded.

    Raises:
        ModelError: A file is missing, damaged or refused; a tensor is missing, of a wrong shape or
            NaN; or the model belongs to no known family.
    """
    progress = progress or SilentProgress()
    if isinstance(source, OpenedAhead):
        contents = source.current(progress)
    else:
        contents = open_model(source, options, progress)
    networks = empty_networks(contents)
    contents = require_complete(contents, {n: m.state_dict() for n, m in networks.items()})
    contents = contents if changed is None else changed(contents)
    for note in contents.notes:
        progress.note(f"{contents.name}: {note}.")
    by_name = contents.identity.family.by_name(dtypes or {})
    asked = {name: dtype for name, dtype in by_name.items() if name not in exact}
    size = sum(total_bytes(tensors) for tensors in contents.components.values())
    keepers = waiting(contents.identity.family) if waiting else {}
    kept: dict[str, Tensors] = {}
    with progress.stage("Reading the model", size >> 20, "MiB") as advance:
        count = in_mib(advance)
        for name in sorted(contents.components, key=lambda name: name in keepers):
            tensors, read_from = contents.components[name], f"{contents.source} ({name})"
            if name in keepers:
                kept[name] = leave_without_values(networks[name], tensors, read_from, keepers[name])
                count(total_bytes(tensors))
            else:
                _filled(networks[name], tensors, read_from, count, asked.get(name, torch.float32))
            if loaded is not None:
                loaded(name, networks[name])
    ldm_only = {n: LazyTensor.of(t.read().clone()) for n, t in contents.ldm_only.items()}
    components = {**state_dicts({n: m for n, m in networks.items() if n not in kept}), **kept}
    own = replace(contents, components=components, ldm_only=ldm_only)
    return _assembled(own, networks, stored=contents)


def _assembled(
    contents: ModelContents, modules: Mapping[str, Any], stored: ModelContents | None = None
) -> BaseModel:
    """Return the base model of these networks; `stored` has the files' dtypes if given."""
    family, configs, source = contents.identity.family, contents.configs, contents.source
    if configs[family.unet.name].get("upcast_attention"):
        use_upcast_attention(modules[family.unet.name])
    components = (stored or contents).components
    return BaseModel(
        contents=contents,
        stored={p: {n: t.dtype for n, t in tensors.items()} for p, tensors in components.items()},
        networks={name: modules[name] for name in family.names},
        tokenizers={
            component.name: build_tokenizer(contents, component)
            for component in family.text_encoders
        },
        schedule=schedule_of(contents.scheduler_config, source),
        scaling_factor=stated_scaling(configs[family.vae.name], source) or family.scaling_factor,
    )


def load_meta_model(
    source: str | Path, options: OpenOptions | None = None, progress: Progress | None = None
) -> BaseModel:
    """Load a base model whose networks have shapes and dtypes but no values, for planning.

    Raises:
        ModelError: As for `load_base_model`, except that values are not checked.
    """
    return meta_model_of(open_model(source, options, progress))


def meta_model_of(contents: ModelContents) -> BaseModel:
    """Build a base model without values from contents that are open already.

    Raises:
        ModelError: Tensors are missing or do not fit.
    """
    modules = empty_networks(contents)
    contents = require_complete(contents, {n: m.state_dict() for n, m in modules.items()})
    for module in modules.values():
        module.requires_grad_(requires_grad=False).eval()
    return _assembled(contents, modules)


def load_text_encoders(model: BaseModel, progress: Progress) -> None:
    """Give the text encoders of a model without values their values, in float32.

    Args:
        model: A model of `load_meta_model`; its other networks stay without values.
        progress: Shows how far the reading is.

    Raises:
        ModelError: A tensor holds NaN or infinite values.
    """
    contents = model.contents
    tensors = {name: contents.components[name] for name in model.text_encoders}
    size = sum(total_bytes(each) for each in tensors.values())
    with progress.stage("Reading the text encoders", size >> 20, "MiB") as advance:
        count = in_mib(advance)
        for name, encoder in model.text_encoders.items():
            _filled(encoder, tensors[name], f"{contents.source} ({name})", count, torch.float32)


def _filled(
    module: nn.Module, tensors: Tensors, source: str, advance: Advance, dtype: torch.dtype
) -> None:
    fill(module, tensors, source, advance, dtype)
    materialise_buffers(module)
    module.requires_grad_(requires_grad=False).eval()


def fill(
    module: nn.Module,
    tensors: Tensors,
    source: str,
    advance: Advance,
    dtype: torch.dtype | TypeOf,
) -> None:
    """Copy tensors into a network; every name and every shape must match.

    Each value is copied once, so that training never depends on the file.

    Args:
        module: The network.
        tensors: Its tensors by name.
        source: Source of the tensors, for messages.
        advance: Called with the number of bytes read.
        dtype: Dtype to convert all tensors to, or a function of the stored dtype.

    Raises:
        ModelError: Tensors are missing, unknown, of another shape, or not finite; the message names
            them.
    """
    expected = dict(module.state_dict())
    tensors = {named_as_in(expected, name): tensor for name, tensor in tensors.items()}
    fit = compare(expected, tensors)
    if fit.faults:
        raise ModelError(
            f"{source} does not fit its configuration: {'; '.join(fit.faults)}. The file is "
            f"damaged or belongs to another model."
        )
    values = dict(zip(tensors, _read(tensors, source, advance, dtype), strict=True))
    module.load_state_dict(values, strict=False, assign=True)


def _read(
    tensors: Tensors, source: str, advance: Advance, dtype: torch.dtype | TypeOf
) -> Iterator[Tensor]:
    """Yield copies of tensors in their order, read and converted on a few threads at once.

    Most of the time is spent on first touching memory, which the operating system has to provide.
    """

    def read(names: Sequence[str]) -> list[Tensor]:
        return [read_one(name, tensors[name]) for name in names]

    def read_one(name: str, lazy: LazyTensor) -> Tensor:
        values = lazy.read_as(dtype if isinstance(dtype, torch.dtype) else dtype(lazy.dtype))
        if not is_finite(values):
            raise not_finite(name, source)
        return values

    together = list(_together(tensors))
    pool = ThreadPoolExecutor(min(READERS, default_workers(), max(1, len(together))))
    try:
        for names, read_now in zip(together, pool.map(read, together), strict=True):
            yield from read_now
            advance(sum(tensors[name].size_bytes for name in names))
    finally:
        pool.shutdown(cancel_futures=True)


def _together(tensors: Tensors) -> Iterator[list[str]]:
    """Yield names of tensors in order, small ones in groups: handing one to a thread is costly."""
    names: list[str] = []
    size = 0
    for name, lazy in tensors.items():
        names.append(name)
        size += lazy.size_bytes
        if size >= READ_TOGETHER:
            yield names
            names, size = [], 0
    if names:
        yield names


def state_dicts(modules: Mapping[str, nn.Module]) -> dict[str, Tensors]:
    """Return the tensors of networks by current names; each has the value at the time it is read.

    The tensors are not held in memory: a component in training moves between devices, and may
    change its dtype.
    """
    return {name: tensors_of(module) for name, module in modules.items()}


def tensors_of(module: nn.Module) -> dict[str, LazyTensor]:
    """Return a network's state by name, without transformers 4's prefix and position ids."""
    return {
        name.removeprefix("text_model."): LazyTensor(
            tuple(tensor.shape), tensor.dtype, partial(_now, module, name)
        )
        for name, tensor in module.state_dict().items()
        if not name.endswith("embeddings.position_ids")
    }


def _now(module: nn.Module, name: str) -> Tensor:
    tensor: Tensor = attrgetter(name)(module)
    return tensor.detach().cpu()


def materialise_buffers(module: nn.Module) -> None:
    """Recreate the one buffer that is computed instead of stored: CLIP's position ids."""
    for child in module.modules():
        for name, buffer in list(child.named_buffers(recurse=False)):
            if buffer.is_meta:
                values = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
                child.register_buffer(name, values, persistent=False)
