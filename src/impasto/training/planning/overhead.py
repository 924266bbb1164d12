"""Memory that PyTorch and its libraries take on a device beside the tensors of a run.

Numbers that follow from PyTorch's source are marked as such; the others are estimates until
`python -m bench memory` has measured them on a card.
"""

from __future__ import annotations

import torch

from impasto.config.run import RunConfig
from impasto.training.optim.graph_recorder import MOST_GRAPHS

RUNTIME = {"cpu": 570 << 20, "cuda": 850 << 20}
"""Bytes of Python, PyTorch and its libraries on a CPU, measured with torch 2.13, diffusers and
bitsandbytes; on a GPU of CUDA's context and cuDNN's workspaces, an estimate."""

_WORKSPACE = 4096 * 2 * 1024 + 16 * 8 * 1024
_WORKSPACE_HOPPER = 4096 * 8 * 1024
"""Bytes of a cuBLAS workspace below compute capability 9.0, and from 9.0 on: PyTorch's defaults
(aten/src/ATen/cuda/CublasHandlePool.cpp, `parseChosenWorkspaceSize`)."""

HANDLES = 3
"""Number of cuBLAS workspaces of a run: PyTorch keeps one per pair of a thread's handle and a
stream. The main thread uses the training stream and the stream that encodes captions, autograd's
thread only the training stream."""

COMPILED = 256 << 20
"""Bytes of a compiled U-Net's kernels, and of the inputs that autotuning allocates. An estimate."""

GRAPH_FRACTION = 0.25
"""The fraction of activations that the private pool of CUDA graphs withholds from eager kernels,
with static copies of inputs, under `training.cuda_graphs` = "network". An estimate."""

GRAPH = 8 << 20
"""Bytes of a graph itself under `training.cuda_graphs` = "step": a node for each of some thousand
kernels, with its arguments. An estimate: it differs by driver and card."""

HANDLES_RECORDING = 2
"""Additional cuBLAS workspaces of a run with such graphs: those of the main thread and autograd's
thread on the stream that records."""

PIECES_KEPT, PIECES_CHECKPOINTED, PIECES_EXPANDABLE = 0.15, 0.10, 0.04
"""The fraction of gradients and activations that the caching allocator loses to fragmentation: with
kept activations, with checkpointing, and with expandable segments. Published peaks of SD 1.5 on a
T4 (ShivamShrirao/diffusers, the DreamBooth example's README), without expandable segments, are 3 to
12 % above the sum of the tensors, with the largest excess without checkpointing."""


def workspace_bytes(config: RunConfig, device_type: str, buckets: int = 1) -> int:
    """Return the bytes that PyTorch and its libraries take regardless of the batch.

    Args:
        config: The settings of the run.
        device_type: `cpu` or `cuda`.
        buckets: Number of pairs of a dataset and a bucket; each has separate graphs where steps are
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
    """Return how many graphs a run may record, at most `MOST_GRAPHS` and one for the update.

    One per bucket and caption length.
    """
    return min(MOST_GRAPHS, buckets * config.model.caption_lengths) + 1


def fragmentation_bytes(
    config: RunConfig, device_type: str, passing: int, *, expandable: bool
) -> int:
    """Return the bytes that PyTorch's allocator holds on a GPU without using them; 0 on a CPU.

    Args:
        config: The settings of the run.
        device_type: `cpu` or `cuda`.
        passing: Bytes of temporary tensors: gradients and activations.
        expandable: Whether the allocator has expandable segments; see `allocation.py`.
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
