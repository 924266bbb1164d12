"""Weights that are kept in RAM and streamed to the device a few blocks at a time.

A block is copied to the device before it computes, while the previous one computes. In the backward
pass, where its activations are recomputed and its weights stepped, the stepped weights are copied
back. So a model can be trained whose weights, gradients and activations do not fit on the device
together: the idea of ZeRO-Infinity (Rajbhandari et al. 2021, arXiv:2104.07857), for one GPU and
checkpointed blocks.

Every weight remains one `Parameter`, whose `data` is in RAM or on the device. A copy is a whole
block, in buffers that are reused, so the memory is known in advance and nothing is allocated later.
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
"""Number of blocks on the device: one computing, one being loaded, one being stored."""

ALIGNMENT = 256
"""Alignment in bytes of tensors in a buffer, as in CUDA's allocator."""

ARENA = 1 << 30
"""Bytes of RAM pinned at a time. PyTorch's allocator rounds up to powers of two."""


class Block:
    """The weights of one module, and their place in RAM.

    Attributes:
        module: The module.
        parameters: The module's weights.
        size: Bytes that the weights take in a buffer, with alignment.
        learns: Whether some of the weights are trained.
        home: The bytes of the weights in RAM; empty before `move_home`.
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
        """Copy the weights into `home`, bytes of RAM, which store them from now on."""
        self.home, self._at_home = home, self.tensors_in(home)
        for parameter, tensor in zip(self.parameters, self._at_home, strict=True):
            tensor.copy_(parameter.detach())
        self.go_home()

    def tensors_in(self, buffer: Tensor) -> list[Tensor]:
        """Return the weights as tensors that are views of a buffer, in their memory layouts."""
        return [
            buffer[offset : offset + parameter.nbytes]
            .view(parameter.dtype)
            .as_strided(parameter.size(), parameter.stride())
            for offset, parameter in zip(self._offsets, self.parameters, strict=True)
        ]

    def go_home(self) -> None:
        """Make the parameters refer to the weights in RAM."""
        self._be(self._at_home)

    def go_to(self, buffer: Tensor) -> None:
        """Make the parameters refer to the weights in a buffer on the device."""
        self._be(self.tensors_in(buffer))

    def _be(self, tensors: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor


class _Buffer:
    """A buffer on the device, and the block that it holds.

    Attributes:
        bytes: The buffer's memory, as uint8.
        content: The block whose weights are in the buffer, or being loaded; None if it is free.
        ready: The mark at which the weights have been loaded.
        free: The marks at which the previous content is no longer used, and stored.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.bytes = torch.empty(size, dtype=torch.uint8, device=device)
        self.content: Block | None = None
        self.ready: Mark = None
        self.free: list[Mark] = []


class WeightStream:
    """Copies blocks of a network to the device when they compute, and stepped ones back to RAM.

    Args:
        network: The network with the blocks; its other weights stay on the device.
        modules: The blocks; their activations must be recomputed in the backward pass.
        device: The device that they compute on.
        copies: Makes the copies; None chooses it by device.
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
        """Move the blocks to RAM and other weights to the device, and install hooks that stream.

        Return the network.

        Raises:
            OutOfMemoryError: The system cannot pin more RAM.
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
            new.free = [self._copies.mark()]  # earlier work may still use the buffer's memory
        self._network.register_forward_pre_hook(self._begin)
        for module in self._blocks:
            module.register_forward_pre_hook(self._arrive)
            module.register_forward_hook(self._leave_forward, always_call=True)
        return self._network

    @contextlib.contextmanager
    def backward(self, *, changes: bool) -> Iterator[None]:
        """Within the context, stream blocks for a backward pass.

        Args:
            changes: Whether weights are stepped in the pass, so that they are copied back to RAM.
        """
        self._in_backward, self._changes = True, changes
        try:
            yield
            if self._open is not None:
                self._leave_backward(self._open)
        finally:
            if changes:
                self._copies.finish()  # the weights in RAM may be read or replaced from here on
            self._in_backward = False
            self._forget()

    def _homes(self, blocks: Sequence[Block]) -> Iterator[Tensor]:
        """Yield RAM for each block, from large pinned arenas that blocks share."""
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
        """Before a forward pass of the network, discard the buffers, whose weights may be stale."""
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
        """Before a block computes, load it and start loading the next.

        In a backward pass, where a block is recomputed, finish the block before it first.
        """
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
        """After a block has computed or failed, release its buffer once the device is done with it.

        The buffer still holds the block, in case the backward pass needs it.
        """
        block = self._blocks[module]
        buffer = self._buffer_of(block)
        if not self._in_backward and buffer is not None:
            buffer.free = [self._copies.mark()]
            block.go_home()

    def _leave_backward(self, block: Block) -> None:
        """After a block's backward pass, store its weights if they were stepped, and free it."""
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
        """Return the buffer that holds a block; if there is none, start loading it into one."""
        there = self._buffer_of(block)
        if there is not None:
            return there
        buffer = next(buffer for buffer in self._buffers if buffer.content is not self._open)
        self._buffers.remove(buffer)  # to the end of the list, to be reused last
        self._buffers.append(buffer)
        free, buffer.content, buffer.free = buffer.free, block, []
        buffer.ready = self._copies.load(buffer.bytes[: block.size], block.home, free)
        return buffer


@contextlib.contextmanager
def streamed_backward(stream: WeightStream | None, *, changes: bool) -> Iterator[None]:
    """Within the context, stream blocks for a backward pass; do nothing if `stream` is None."""
    if stream is None:
        yield
        return
    with stream.backward(changes=changes):
        yield
