"""Weights in RAM, of which a few blocks at a time are on the device.

A block comes before it computes, the next one while it does, and in the backward pass, where its
activations are computed again and its weights stepped, it goes back with them. So a model is
trained whose weights, gradients and activations never are on the device together: the idea of
ZeRO-Infinity (Rajbhandari et al. 2021, arXiv:2104.07857), for one GPU and blocks that are
computed again.

Every weight stays one `Parameter`, whose `data` is in RAM or on the device. Copies are as long as a
block, in buffers that are used again, so the memory is known beforehand and nothing is allocated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from impasto.training.optim.copies import Copies, Mark, build_copies
from impasto.training.optim.pinned_memory import pinned_bytes

BUFFERS = 3
"""Blocks on the device: one that computes, one that comes, one that goes."""

ALIGNMENT = 256
"""Bytes that tensors in a buffer begin at multiples of, as those of CUDA's allocator do."""

ARENA = 1 << 30
"""Bytes of RAM that are pinned at a time. PyTorch's allocator rounds up to powers of two."""


class Block:
    """The weights of one module, and where they are in RAM.

    Attributes:
        module: It.
        parameters: Its weights.
        size: Bytes that it takes in a buffer.
        learns: Whether some of them are trained.
        home: Its bytes in RAM, once it is placed.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.parameters = module, list(module.parameters())
        self._offsets, self.size = [], 0
        for parameter in self.parameters:
            self._offsets.append(self.size)
            self.size += -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
        self.learns = any(parameter.requires_grad for parameter in self.parameters)
        self.home = torch.empty(0, dtype=torch.uint8)
        self._at_home: list[Tensor] = []

    def move_home(self, home: Tensor) -> None:
        """Take the weights over into bytes of RAM, where they stay from now on."""
        self.home, self._at_home = home, self.tensors_in(home)
        for parameter, tensor in zip(self.parameters, self._at_home, strict=True):
            tensor.copy_(parameter.detach())
        self.go_home()

    def tensors_in(self, buffer: Tensor) -> list[Tensor]:
        """The weights as tensors over the bytes of a buffer, in their own memory layout."""
        return [
            buffer[offset : offset + parameter.nbytes]
            .view(parameter.dtype)
            .as_strided(parameter.size(), parameter.stride())
            for offset, parameter in zip(self._offsets, self.parameters, strict=True)
        ]

    def go_home(self) -> None:
        """Have the weights be those in RAM."""
        self._be(self._at_home)

    def go_to(self, buffer: Tensor) -> None:
        """Have the weights be those in a buffer."""
        self._be(self.tensors_in(buffer))

    def _be(self, tensors: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor


class _Buffer:
    """Bytes on the device, and whose weights they are.

    Attributes:
        content: The block whose weights are in it, or on their way; None for none.
        ready: When they have arrived.
        free: When what was in it is no longer used, and stored.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.bytes = torch.empty(size, dtype=torch.uint8, device=device)
        self.content: Block | None = None
        self.ready: Mark = None
        self.free: list[Mark] = []


class WeightStream:
    """Brings blocks of a network to the device for their work, and takes them back.

    Args:
        network: Has the blocks; what is in none of them stays on the device.
        modules: The blocks; their activations have to be computed again in the backward pass.
        device: Where they compute.
        copies: How they are brought there; None takes those of the device.
    """

    def __init__(
        self,
        network: nn.Module,
        modules: Sequence[nn.Module],
        device: torch.device,
        copies: Copies | None = None,
    ) -> None:
        self._network, self._device = network, device
        self._copies = build_copies(device) if copies is None else copies
        self._blocks = {module: Block(module) for module in modules}
        self._buffers: list[_Buffer] = []
        self._open: Block | None = None
        self._before: dict[Block, Block] = {}
        self._after: dict[Block, Block] = {}
        self._in_backward, self._changes = False, False

    @property
    def host_bytes(self) -> int:
        """Bytes of all blocks in RAM."""
        return sum(block.size for block in self._blocks.values())

    def allocate(self) -> nn.Module:
        """Put the blocks into RAM and the rest on the device; the network, which streams them.

        Raises:
            OutOfMemoryError: The system pins no more RAM.
        """
        blocks = list(self._blocks.values())
        streamed = {parameter for block in blocks for parameter in block.parameters}
        for home, block in zip(self._homes(blocks), blocks, strict=True):
            block.move_home(home)
        for parameter in self._network.parameters():
            if parameter not in streamed:
                parameter.data = parameter.data.to(self._device)
        for module in self._network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self._device))
        largest = max((block.size for block in blocks), default=0)
        self._buffers = [_Buffer(largest, self._device) for _ in range(BUFFERS)]
        for new in self._buffers:
            new.free = [self._copies.mark()]  # what had its memory before may still be at work
        self._network.register_forward_pre_hook(self._begin)
        for module in self._blocks:
            module.register_forward_pre_hook(self._arrive)
            module.register_forward_hook(self._leave_forward, always_call=True)
        return self._network

    @contextlib.contextmanager
    def backward(self, *, changes: bool) -> Iterator[None]:
        """Within this, have blocks of weights come to the device for a backward pass.

        Args:
            changes: Whether weights are stepped in it, and have to be taken back.
        """
        self._in_backward, self._changes = True, changes
        try:
            yield
            if self._open is not None:
                self._leave_backward(self._open)
        finally:
            if changes:
                self._copies.finish()  # what is in RAM may be read and loaded from here on
            self._in_backward = False
            self._forget()

    def _homes(self, blocks: Sequence[Block]) -> Iterator[Tensor]:
        """RAM for each block, of arenas that as many as possible share."""
        remaining = sum(block.size for block in blocks)
        arena, used = torch.empty(0, dtype=torch.uint8), 0
        for block in blocks:
            if used + block.size > arena.numel():
                largest = 1 << (min(ARENA, remaining).bit_length() - 1) if remaining else 0
                arena, used = self._arena(max(largest, block.size)), 0
            yield arena[used : used + block.size]
            used += block.size
            remaining -= block.size

    def _arena(self, size: int) -> Tensor:
        on_gpu = self._device.type == "cuda"
        return pinned_bytes(size, "training.stream_weights", pinned=on_gpu)

    def _begin(self, *_: Any) -> None:
        """A forward pass of the whole network: what buffers have may be old."""
        self._forget()

    def _forget(self) -> None:
        if self._open is not None:
            self._open.go_home()
            self._open = None
        for buffer in self._buffers:
            if buffer.content is not None:
                buffer.content.go_home()
                buffer.free.append(self._copies.mark())
                if buffer.ready is not None:
                    buffer.free.append(buffer.ready)
                buffer.content = None

    def _arrive(self, module: nn.Module, _: Any) -> None:
        """A block is about to compute; for the second time, in a backward pass."""
        block, before = self._blocks[module], self._open
        if self._in_backward:
            if before is not None and before is not block:
                self._leave_backward(before)
        elif before is not None:
            self._after[before], self._before[block] = block, before
        self._open = block
        buffer = self._brought(block)
        self._copies.wait(buffer.ready)
        block.go_to(buffer.bytes)
        following = (self._before if self._in_backward else self._after).get(block)
        if following is not None:
            self._brought(following)

    def _leave_forward(self, module: nn.Module, *_: Any) -> None:
        """A block has computed, or failed to; the backward pass may ask for its weights again."""
        block = self._blocks[module]
        buffer = self._buffer_of(block)
        if not self._in_backward and buffer is not None:
            buffer.free = [self._copies.mark()]
            block.go_home()

    def _leave_backward(self, block: Block) -> None:
        """All gradients of a block are computed, and its weights stepped."""
        buffer = self._buffer_of(block)
        assert buffer is not None  # noqa: S101 - it has computed
        used = self._copies.mark()
        buffer.free = [used]
        if self._changes and block.learns:
            there = buffer.bytes[: block.size]
            buffer.free.append(self._copies.store(block.home, there, [used]))
        block.go_home()
        buffer.content = None
        self._open = None

    def _buffer_of(self, block: Block) -> _Buffer | None:
        return next((buffer for buffer in self._buffers if buffer.content is block), None)

    def _brought(self, block: Block) -> _Buffer:
        """The buffer that a block is in, or begins to come to."""
        there = self._buffer_of(block)
        if there is not None:
            return there
        buffer = next(buffer for buffer in self._buffers if buffer.content is not self._open)
        self._buffers.remove(buffer)  # to the end: it is the last to be taken again
        self._buffers.append(buffer)
        free, buffer.content, buffer.free = buffer.free, block, []
        buffer.ready = self._copies.load(buffer.bytes[: block.size], block.home, free)
        return buffer


@contextlib.contextmanager
def streamed_backward(stream: WeightStream | None, *, changes: bool) -> Iterator[None]:
    """A backward pass of weights that may be streamed, or not."""
    if stream is None:
        yield
        return
    with stream.backward(changes=changes):
        yield
