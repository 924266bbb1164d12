"""A training step on tensors without values: how much memory it would hold at most, and its work.

The network runs forward and backward on fake tensors (`torch._subclasses.FakeTensorMode`), which
have shapes and types and take no memory and almost no time: two seconds for a full-size U-Net. Each
storage that appears is counted until it is freed. No GPU is touched; what a GPU does otherwise,
norms in float32 under autocast, is imitated.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from impasto.data.records import CELL, CHANNELS, Size
from impasto.diffusion.conditioning import Conditioning
from impasto.models.text.conditioning import ConditioningShape
from impasto.training.optim.updates import gradient_hooks

CPU = torch.device("cpu")
ASKS_DEVICE = torch.ops.prim.device.default


@dataclass(frozen=True)
class StepCost:
    """The memory and operations of one step.

    Attributes:
        peak_bytes: The most that it holds at once beside the weights, gradients among it.
        gradient_bytes: The gradients in that phase.
        most_beside: The most that it holds at once beside complete gradients, in another phase.
        flops: Floating-point operations of matrix products and convolutions, a multiply-add as two,
            those included that checkpointing or a second backward pass repeats.
        operations: How many operations PyTorch is asked for, whatever their size.
    """

    peak_bytes: int
    gradient_bytes: int
    most_beside: int
    flops: int
    operations: int


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of storages that appear while it is on, until they are freed.

    Attributes:
        now: Bytes that are there.
        peak: The most that were there.
        gradients: Bytes of complete gradients; to be kept by whoever makes them.
        gradients_at_peak: Those when `peak` was reached.
        most_beside: The most that were there beside complete gradients.
        flops: Floating-point operations so far, by PyTorch's formulas (its own counter of them
            holds on to tensors, which would be counted here).
        operations: Operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.gradients = self.gradients_at_peak = self.flops = 0
        self.most_beside = self.operations = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, so that no operation has to be kept from the compiler."""
        return False

    def leave_out(self, tensors: Any) -> None:
        """Do not count what is there already."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count what comes out of it."""
        del types
        self.operations += 1
        if func is ASKS_DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # as the mode below answers, ten times as often as it works
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=output))
        for item in tree_iter(output):
            if isinstance(item, Tensor):
                self._count(item)
        return output

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients
        self.most_beside = max(self.most_beside, self.now - self.gradients)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class _Inputs:
    latents: Tensor
    t: Tensor
    conditioning: Conditioning

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.latents, self.t)
        yield from self.conditioning.tensors()


@dataclass(frozen=True)
class FakeStep:
    """Runs steps of a network whose tensors may be without values (`meta`).

    Attributes:
        network: The U-Net, or what stands in its place; it is changed and of no use afterwards.
        conditioning: Shapes of what it is told.
        autocast: The type that is computed in, or None for float32.
        as_on_gpu: Whether autocast is that of a GPU.
        frees_gradients: Whether each gradient is freed as soon as it is there.
        has_second_backward: Whether a step goes backward twice, and keeps its graph for that.
        caches_casts: Whether autocast keeps copies of weights that it casts in a training step.
    """

    network: nn.Module
    conditioning: ConditioningShape
    autocast: torch.dtype | None = None
    as_on_gpu: bool = False
    frees_gradients: bool = False
    has_second_backward: bool = False
    caches_casts: bool = True

    def __post_init__(self) -> None:
        if self.as_on_gpu and self.autocast is not None:
            _compute_norms_in_float32(self.network)

    def step(self, size: Size, batch: int) -> StepCost:
        """The cost of a step on images of a size in pixels."""
        with self._tracked(size, batch) as (live, inputs), self._freeing(live):
            output = self._forward(inputs, caches_casts=self.caches_casts)
            loss = (output.float() - inputs.latents).square().mean()
            if self.has_second_backward:
                torch.autograd.backward(loss, retain_graph=True)
            torch.autograd.backward(loss)
        return StepCost(
            live.peak, live.gradients_at_peak, live.most_beside, live.flops, live.operations
        )

    def forward_peak(self, size: Size, batch: int, *, caches_casts: bool = True) -> int:
        """The most bytes that a forward pass without gradients holds beside the weights.

        Args:
            size: Of the images, in pixels.
            batch: How many there are.
            caches_casts: Whether autocast keeps copies of weights that it casts.
        """
        with self._tracked(size, batch) as (live, inputs), torch.no_grad():
            self._forward(inputs, caches_casts=caches_casts)
        return live.peak

    def _forward(self, inputs: _Inputs, *, caches_casts: bool) -> Tensor:
        with torch.autocast(
            "cpu",
            dtype=self.autocast,
            enabled=self.autocast is not None,
            cache_enabled=caches_casts,
        ):
            output: Tensor = self.network(
                inputs.latents, inputs.t, **inputs.conditioning.arguments
            ).sample
        return output

    @contextlib.contextmanager
    def _tracked(self, size: Size, batch: int) -> Iterator[tuple[LiveMemory, _Inputs]]:
        """Inputs without values, and the count of what is made of them."""
        mode = FakeTensorMode()
        _make_fake(self.network, mode)
        inputs = _Inputs(
            _fake(mode, _latents_of(size, batch)),
            _fake(mode, (batch,), torch.int64),
            self.conditioning.stand_in(batch, lambda shape: _fake(mode, shape)),
        )
        live = LiveMemory()
        live.leave_out([*self.network.parameters(), *self.network.buffers(), *inputs.tensors()])
        with mode, live:
            yield live, inputs

    @contextlib.contextmanager
    def _freeing(self, live: LiveMemory) -> Iterator[None]:
        """Count complete gradients, or free them."""

        def complete(parameter: Tensor) -> None:
            if self.frees_gradients:
                parameter.grad = None
            elif parameter.grad is not None:
                live.gradients += parameter.grad.untyped_storage().nbytes()

        learning = [p for p in self.network.parameters() if p.requires_grad]
        with gradient_hooks(learning, complete):
            yield


def decoding_peak(vae: Any, size: Size, batch: int) -> int:
    """The most bytes that a VAE holds beside its weights while it decodes images of a size."""
    return _vae_peak(vae, _latents_of(size, batch), vae.decode)


def encoding_peak(vae: Any, size: Size, batch: int) -> int:
    """The most bytes that a VAE holds beside its weights while it encodes images of a size.

    Args:
        vae: diffusers' AutoencoderKL, in the dtype and with the tiling that it encodes with; it is
            changed and of no use afterwards.
        size: Of the images, in pixels.
        batch: How many go through it at once.
    """

    def moments(pixels: Tensor) -> object:
        posterior = vae.encode(pixels).latent_dist
        return posterior.mean, posterior.logvar

    return _vae_peak(vae, (batch, 3, size.height, size.width), moments)


def _latents_of(size: Size, batch: int) -> tuple[int, ...]:
    return batch, CHANNELS, size.height // CELL, size.width // CELL


def _vae_peak(vae: Any, shape: tuple[int, ...], run: Callable[[Tensor], object]) -> int:
    mode = FakeTensorMode()
    _make_fake(vae, mode)
    dtype = next(vae.parameters()).dtype
    values = _fake(mode, shape, dtype)
    live = LiveMemory()
    live.leave_out([*vae.parameters(), *vae.buffers(), values])
    with mode, live, torch.no_grad():
        run(values)
    return live.peak


def _compute_norms_in_float32(network: nn.Module) -> None:
    """Have norms take and give float32, as autocast on a GPU does."""
    for module in network.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            module.float()
            module.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))


def _make_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors into a module in the place of its own, whatever those are."""

    def convert(tensor: Tensor) -> Tensor:
        meta = torch.empty_like(tensor, device="meta") if tensor.device.type != "meta" else tensor
        return FakeTensor(mode, meta, CPU)

    _replace(module, convert)


def _replace(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> None:
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            fake = nn.Parameter(convert(parameter.detach()), requires_grad=parameter.requires_grad)
            setattr(child, name, fake)
        for name, buffer in child.named_buffers(recurse=False):
            setattr(child, name, convert(buffer))


def _fake(
    mode: FakeTensorMode, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    return FakeTensor(mode, torch.empty(shape, dtype=dtype, device="meta"), CPU)
