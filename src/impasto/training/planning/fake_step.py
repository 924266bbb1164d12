"""Training steps on tensors without values, which measure a step's peak memory and operations.

The network runs forward and backward on fake tensors (`torch._subclasses.FakeTensorMode`), which
have shapes and dtypes and take no memory and almost no time: two seconds for a full-size U-Net.
Each storage that is allocated is counted until it is freed. No GPU is used; the one difference of
a GPU, norms in float32 under autocast, is imitated.
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
    """The memory and operations of one training step.

    Attributes:
        peak_bytes: Most bytes held at once beside the weights, including gradients.
        gradient_bytes: Bytes of complete gradients at that peak.
        most_beside: Most bytes held at once beside complete gradients, possibly at another moment.
        flops: Floating-point operations of matrix products and convolutions, a multiply-add as two,
            including those that checkpointing or a second backward pass repeats.
        operations: Number of PyTorch operations, regardless of their size.
    """

    peak_bytes: int
    gradient_bytes: int
    most_beside: int
    flops: int
    operations: int


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of storages allocated while the mode is active, until they are freed.

    Attributes:
        now: Bytes currently allocated.
        peak: Most bytes allocated at once.
        gradients: Bytes of complete gradients; updated by the caller.
        gradients_at_peak: `gradients` when `peak` was reached.
        most_beside: Most bytes allocated at once beside complete gradients.
        flops: Floating-point operations so far, by PyTorch's formulas (PyTorch's own FLOP counter
            keeps references to tensors, which would be counted here).
        operations: Operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.gradients = self.gradients_at_peak = self.flops = 0
        self.most_beside = self.operations = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing is compiled here, so no operation must be hidden from Dynamo."""
        return False

    def leave_out(self, tensors: Any) -> None:
        """Exclude the storages of tensors that already exist from the count."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count its work and the storages of its outputs."""
        del types
        self.operations += 1
        if func is ASKS_DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # FakeTensorMode's answer; asked 10 times per operation
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
    """Runs training steps and forward passes of a network on fake tensors.

    Attributes:
        network: The U-Net, or a network that takes its place; its tensors may be on `meta`. It is
            changed and cannot be used afterwards.
        conditioning: Shapes of the text embeddings and other conditioning.
        autocast: The dtype of autocast, or None for float32 without autocast.
        as_on_gpu: Whether to imitate the autocast of a GPU, which computes norms in float32.
        frees_gradients: Whether each gradient is freed as soon as it is complete.
        has_second_backward: Whether a step runs its backward pass twice and retains the graph.
        caches_casts: Whether autocast caches the weights that it casts in a training step.
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
        """Return the cost of a training step on `batch` images of `size` pixels."""
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
        """Return the peak bytes of a forward pass without gradients, beside the weights.

        Args:
            size: Size of the images in pixels.
            batch: Number of images.
            caches_casts: Whether autocast caches the weights that it casts.
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
        """Yield a memory counter and fake inputs, with the network's tensors replaced by fake ones.

        The network and the inputs are not counted.
        """
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
        """Within the context, free each complete gradient or add it to the counted gradients."""

        def complete(parameter: Tensor) -> None:
            if self.frees_gradients:
                parameter.grad = None
            elif parameter.grad is not None:
                live.gradients += parameter.grad.untyped_storage().nbytes()

        learning = [p for p in self.network.parameters() if p.requires_grad]
        with gradient_hooks(learning, complete):
            yield


def decoding_peak(vae: Any, size: Size, batch: int) -> int:
    """Return the peak bytes, beside its weights, of a VAE decoding `batch` images of `size` pixels.

    The VAE is changed and cannot be used afterwards.
    """
    return _vae_peak(vae, _latents_of(size, batch), vae.decode)


def encoding_peak(vae: Any, size: Size, batch: int) -> int:
    """Return the peak bytes, beside its weights, of a VAE encoding images.

    Args:
        vae: diffusers' AutoencoderKL, in the dtype and with the tiling that it encodes with; it is
            changed and cannot be used afterwards.
        size: Size of the images in pixels.
        batch: Number of images encoded at once.
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
    """Make norms compute in float32 and return it, as autocast on a GPU does."""
    for module in network.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            module.float()
            module.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))


def _make_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace all parameters and buffers of a module by fake CPU tensors like them."""

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
