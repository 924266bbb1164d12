"""Estimates how long a run will take, from its arithmetic and the measured speed of the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from impasto.config.run import RunConfig
from impasto.data.records import PlannedImage
from impasto.datasets.batching import batch_size_of, showings_by_group
from impasto.models.trainable import TrainedModule
from impasto.models.writing.saving import DTYPES
from impasto.optimizer_table import row_of
from impasto.training.compute.precision import computed_kind, least_seconds, slowdown
from impasto.training.optim.chunked import ChunkRules
from impasto.training.optim.mixed_precision import COMPUTED
from impasto.training.optim.optimizers import build_optimizer
from impasto.training.optim.rounding import build_rounding
from impasto.training.planning.fake_step import LiveMemory
from impasto.training.planning.memory import Footprint
from impasto.training.planning.transfers import Transfers

UTILIZATION = {"cpu": 0.6, "cuda": 0.16}
"""The fraction of the speed of large matrix products that a U-Net's step reaches: measured by
`python -m bench` on a CPU, and on an H200 with 32 images of SD 2 (bench/RESULTS.md). Small batches
on a fast GPU reach less: launching kernels takes longer than running them."""
COMPILED_UTILIZATION = 0.31
"""The same fraction for a U-Net that is compiled as a whole, on the H200."""
_LAYERS = 64
SAMPLE = 4 << 20  # weights that the optimizer is timed with


def seconds_per_step(
    config: RunConfig,
    footprint: Footprint,
    images: Sequence[PlannedImage],
    modules: Sequence[TrainedModule],
    device: torch.device,
    transfers: Transfers | None = None,
) -> float:
    """Return the estimated seconds of an optimizer step; measures the device briefly.

    Args:
        config: The settings of the run.
        footprint: The footprint of the batch with the most pixels, with its operations.
        images: All images: most batches have fewer or smaller ones than the largest.
        modules: The trained networks.
        device: The device that the run computes on.
        transfers: Copies of streamed weights, which overlap with the arithmetic; None if the
            weights are not streamed.
    """
    flops = footprint.flops * _mean_batch_fraction(config, images)
    dtype = COMPUTED[computed_kind(config)]
    is_compiled = device.type == "cuda" and config.training.compile == "full"
    utilization = COMPILED_UTILIZATION if is_compiled else UTILIZATION[device.type]
    forward_backward = flops / (utilization * training_rate(device, dtype))
    if not (is_compiled or (device.type == "cuda" and config.training.cuda_graphs != "off")):
        asking = footprint.operations * seconds_per_operation(device)
        both = (forward_backward, asking)  # a GPU computes while further kernels are launched
        forward_backward = max(both) if device.type == "cuda" else sum(both)
    if transfers is not None:
        at_once = row_of(config.optimizer.kind).module.startswith("bitsandbytes")
        ways = (forward_backward, transfers.seconds)  # bitsandbytes' step waits for all GPU work
        forward_backward = sum(ways) if at_once else max(ways)
    stepping = seconds_per_weight(config, device) * sum(trained.count() for trained in modules)
    return forward_backward * config.training.gradient_accumulation_steps + stepping


def _mean_batch_fraction(config: RunConfig, images: Sequence[PlannedImage]) -> float:
    """Return the mean pixels per batch as a fraction of the largest batch's pixels.

    Batches differ by bucket, and the last one of a bucket is often not full.
    """
    pixels, batches, most = 0, 0, 0
    for group, showings in showings_by_group(images).items():
        size = batch_size_of(config, group)
        pixels += showings * group.bucket.area
        batches += -(-showings // size)
        most = max(most, size * group.bucket.area)
    return pixels / batches / most


def training_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the measured floating-point operations per second of training in `dtype`.

    On a CPU this is the rate of float32 divided by how much slower convolutions are in `dtype`:
    where a CPU has no instructions for a type, bare matrix products slow down even more than a
    network's layers do.
    """
    if device.type == "cpu" and dtype != torch.float32:
        return matmul_rate(device, torch.float32) / slowdown(dtype)
    return matmul_rate(device, dtype)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the measured FLOP per second of square matrix products; a multiply-add is two."""
    side = 8192 if device.type == "cuda" else 1024
    one, other = (torch.ones((side, side), device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: one @ other, device)


def float8_rate(device: torch.device) -> float:
    """Return the measured FLOP per second of float8 matrix products, without scaling."""
    side = 8192
    one, other = (torch.ones((side, side), device=device).to(torch.float8_e4m3fn) for _ in range(2))
    scale = torch.ones((), device=device)

    def work() -> None:
        torch._scaled_mm(one, other.t(), scale, scale, out_dtype=torch.bfloat16)

    return 2 * side**3 / _seconds(work, device)


def seconds_per_operation(device: torch.device) -> float:
    """Return the measured seconds of launching an operation on tiny tensors, backward included.

    Measured on modules, as networks call them: most of the time is Python's.
    """
    layers = nn.Sequential(*(nn.Linear(8, 8, device=device) for _ in range(_LAYERS)))
    numbers = torch.ones((1, 8), device=device)

    def work() -> None:
        layers(numbers).sum().backward()

    with LiveMemory() as counted:
        work()
    each: float = _seconds(work, device) / counted.operations
    return each


def seconds_per_weight(config: RunConfig, device: torch.device) -> float:
    """Return the seconds that the optimizer takes per weight, measured on `SAMPLE` weights."""
    dtype = DTYPES[config.training.weight_dtype]
    weight = nn.Parameter(torch.zeros(SAMPLE, device=device, dtype=dtype))
    module = nn.ParameterList([weight])
    rounding = None
    if dtype != torch.float32:
        rounding = build_rounding(config.training.rounding or "stochastic", device)
    trained = TrainedModule("sample", module, config.optimizer.lr)
    optimizer = build_optimizer([trained], config.optimizer, ChunkRules(rounding))

    def step() -> None:
        weight.grad = torch.ones_like(weight)
        optimizer.step()

    return _seconds(step, device) / SAMPLE


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of a few runs of `work`, including the device's part."""

    def whole() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return least_seconds(whole)
