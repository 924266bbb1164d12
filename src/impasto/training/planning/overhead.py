"""What PyTorch and its libraries take on a device beside the tensors of a run.

Numbers that follow from PyTorch's source are marked so; the others are estimates until a card has
measured them (`python -m bench memory`).
"""

from __future__ import annotations

import torch

from impasto.config.run import RunConfig
from impasto.training.optim.graph_recorder import MOST_GRAPHS

RUNTIME = {"cpu": 570 << 20, "cuda": 850 << 20}
"""Bytes of Python, PyTorch and its libraries; on a GPU of CUDA's context and cuDNN's workspaces
(that number is an estimate). Measured on a CPU with torch 2.13, diffusers, bitsandbytes."""

_WORKSPACE = 4096 * 2 * 1024 + 16 * 8 * 1024
_WORKSPACE_HOPPER = 4096 * 8 * 1024
"""Bytes of a cuBLAS workspace before and from compute capability 9.0 on: the defaults of PyTorch
(aten/src/ATen/cuda/CublasHandlePool.cpp, `parseChosenWorkspaceSize`)."""

HANDLES = 3
"""Workspaces that a run has: PyTorch keeps one for each pair of a thread's handle and a stream. The
main thread works on the training stream and on the one that encodes captions, autograd's thread on
the first."""

COMPILED = 256 << 20
"""Bytes of a compiled U-Net's kernels, and of inputs that autotuning makes. An estimate."""

GRAPH_FRACTION = 0.25
"""Of the activations: what the private pool of CUDA graphs cannot lend to eager kernels, and static
copies of inputs, with `training.cuda_graphs` network. An estimate."""

GRAPH = 8 << 20
"""Bytes of a graph itself, with `training.cuda_graphs` step: a node for each of some thousand
kernels, with its arguments. An estimate: it differs by driver and card."""

HANDLES_RECORDING = 2
"""Further workspaces of a run with such graphs: of the main thread and of autograd's on the stream
that records."""

PIECES_KEPT, PIECES_CHECKPOINTED, PIECES_EXPANDABLE = 0.15, 0.10, 0.04
"""Of gradients and activations: what the caching allocator holds in pieces that nothing fits into,
with kept activations, with checkpointing, and in segments that can grow. Published peaks of SD 1.5
on a T4 (ShivamShrirao/diffusers, the DreamBooth example's README), which had no such segments, are
3 to 12 % above the sum of the tensors, most without checkpointing."""


def workspace_bytes(config: RunConfig, device_type: str, buckets: int = 1) -> int:
    """What the libraries take, whatever is computed.

    Args:
        config: The settings.
        device_type: `cpu` or `cuda`.
        buckets: Pairs of a dataset and a bucket; each has graphs of its own where steps are
            recorded.
    """
    if device_type != "cuda":
        return RUNTIME[device_type]
    compiled = COMPILED if config.training.compile != "off" else 0
    handles, graphs = HANDLES, 0
    if config.training.cuda_graphs == "step":
        handles, graphs = HANDLES + HANDLES_RECORDING, _graphs(config, buckets) * GRAPH
    return RUNTIME["cuda"] + handles * _cublas_workspace() + compiled + graphs


def _graphs(config: RunConfig, buckets: int) -> int:
    """How many a run may record: one for each bucket and length of captions, and the update's."""
    return min(MOST_GRAPHS, buckets * config.model.caption_lengths) + 1


def fragmentation_bytes(
    config: RunConfig, device_type: str, passing: int, *, expandable: bool
) -> int:
    """What PyTorch's allocator holds on a GPU without using it.

    Args:
        config: The settings.
        device_type: `cpu` or `cuda`.
        passing: Bytes of tensors that come and go: gradients and activations.
        expandable: Whether segments can grow; see `allocation.py`.
    """
    if device_type != "cuda":
        return 0
    fraction = PIECES_CHECKPOINTED if config.training.gradient_checkpointing else PIECES_KEPT
    if expandable:
        fraction = PIECES_EXPANDABLE
    if config.training.cuda_graphs == "network":
        fraction += GRAPH_FRACTION
    return int(fraction * passing)


def _cublas_workspace() -> int:
    has_card = torch.cuda.is_available()
    is_hopper = has_card and torch.cuda.get_device_capability() >= (9, 0)
    return _WORKSPACE_HOPPER if is_hopper else _WORKSPACE
