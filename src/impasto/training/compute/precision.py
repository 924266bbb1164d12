"""Finds the precision that a device computes fast, which `training.mixed_precision = "auto"` uses.

A CPU without matrix instructions for bfloat16 computes it 30 to 100 times slower than float32: its
kernels convert number by number. GPUs from before 2020 emulate bfloat16.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from impasto.config.cases import Facts
from impasto.config.compatibility import require_compatible
from impasto.config.run import RunConfig
from impasto.progress import Progress
from impasto.training.devices import default_device
from impasto.training.optim.mixed_precision import COMPUTED, MixedPrecision, precision_text

CPU_BF16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512"}
"""Name in `torch.cpu.get_capabilities` -> the instructions that multiply bfloat16, which oneDNN
uses. On other CPUs it converts every number (measured on an AMD EPYC with AVX2)."""
SLOW = 1.5  # ratio to the time in float32 above which a warning is given
PATIENCE_S = 0.3  # time limit for measuring one precision


@dataclass(frozen=True)
class NativePrecision:
    """The fastest precision of a device, of those that a run can train in.

    Attributes:
        kind: A value of `training.mixed_precision`.
        reason: The reason, as a clause for messages.
    """

    kind: MixedPrecision
    reason: str

    @property
    def description(self) -> str:
        """The name of the precision for messages."""
        return precision_text(self.kind)


def native_precision(device: torch.device | None = None) -> NativePrecision:
    """Return the fastest precision of a device, by its capabilities; nothing is measured.

    Args:
        device: The device; None means the first GPU, or else the CPU.
    """
    device = device or default_device()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return NativePrecision("bf16", f"{name} computes bf16 natively")
        return NativePrecision("fp16", f"{name} has no native bf16")
    found = torch.cpu.get_capabilities()
    name = found.get("cpu_name") or "this CPU"
    for capability, instructions in CPU_BF16.items():
        if found.get(capability):
            return NativePrecision("bf16", f"{name} computes bf16 natively ({instructions})")
    return NativePrecision(
        "no", f"{name} has no instructions for bf16 (AMX or AVX-512), so float32 is faster"
    )


def computed_kind(config: RunConfig) -> MixedPrecision:
    """Return the precision that a run computes in, with `auto` resolved for this machine.

    `auto` is the dtype of 16-bit weights, or the device's fastest precision for float32 weights.
    """
    training = config.training
    if training.mixed_precision != "auto":
        return training.mixed_precision
    return native_precision().kind if training.weight_dtype == "fp32" else training.weight_dtype


def caches_casts(config: RunConfig) -> bool:
    """Return whether autocast caches its 16-bit copies of weights until the forward pass ends.

    A U-Net uses each weight once per pass, so the cache saves no work. Without checkpointing the
    backward pass needs the copies anyway; with it they would be all that the forward pass leaves in
    memory: 1.6 GiB for SD 1, beside the gradients of earlier passes. Streamed weights must not be
    left in memory either.
    """
    return not (config.training.gradient_checkpointing or config.training.stream_weights)


def resolve_precision(config: RunConfig, progress: Progress) -> RunConfig:
    """Return the settings with `auto` replaced by the precision for this run's device.

    A precision that the CPU computes slowly is used if it was requested, with a warning that says
    how slow it is.

    Args:
        config: The settings of the run.
        progress: Receives a note about the choice, and warnings.

    Raises:
        ConfigError: A setting has no effect with the chosen precision.
    """
    training, kind = config.training, computed_kind(config)
    native = native_precision()
    if training.mixed_precision == "auto":
        reason = (
            native.reason
            if kind == native.kind
            else f"training.weight_dtype is {training.weight_dtype}"
        )
        progress.note(
            f"Computing in {precision_text(kind)} (training.mixed_precision is auto): {reason}."
        )
    require_compatible(config, Facts(precision=kind))
    warn_if_slow(
        kind,
        "set training.mixed_precision to auto or no, and leave training.weight_dtype at fp32",
        progress,
    )
    vae = config.dataset.vae_precision
    warn_if_slow("no" if vae == "fp32" else vae, "set dataset.vae_precision to fp32", progress)
    changed = training.model_copy(update={"mixed_precision": kind})
    asked = set(training.model_fields_set)
    if training.mixed_precision == "auto":
        asked.discard("mixed_precision")  # the resolved value was not set by the user
    changed.__pydantic_fields_set__ = asked
    return config.model_copy(update={"training": changed})


def warn_if_slow(kind: MixedPrecision, otherwise: str, progress: Progress) -> None:
    """Warn if the CPU of this run computes a precision slowly, with the measured ratio.

    Do nothing on a GPU, and for float32 or the CPU's fastest precision.

    Args:
        kind: The precision.
        otherwise: The advice for users who do not want that, as an imperative clause.
        progress: Receives the warning.
    """
    if default_device().type != "cpu" or kind in ("no", native_precision().kind):
        return
    times = slowdown(COMPUTED[kind])
    if times > SLOW:
        progress.note(
            f"Warning: {kind} takes this CPU about {times:.0f} times as long as float32 (measured "
            f"on this machine). To avoid that, {otherwise}."
        )


@functools.cache
def slowdown(dtype: torch.dtype) -> float:
    """Return the time of a convolution on the CPU in `dtype`, relative to float32.

    Forward and backward pass are measured, for less than a second, and once per process. The
    convolution has 64 channels at 32 x 32, which showed the same ratio as those of a full-size
    U-Net.
    """
    convolution = nn.Conv2d(64, 64, 3, padding=1)
    images = torch.ones(1, 64, 32, 32)

    def there_and_back(computed: torch.dtype | None) -> None:
        with torch.autocast("cpu", dtype=computed, enabled=computed is not None):
            output = convolution(images)
        output.float().sum().backward()

    return least_seconds(lambda: there_and_back(dtype)) / least_seconds(
        lambda: there_and_back(None)
    )


def least_seconds(
    work: Callable[[], object], tries: int = 5, patience_s: float = PATIENCE_S
) -> float:
    """Return the seconds of the fastest of a few runs of `work`, after a warm-up run.

    Args:
        work: The function to time; on a GPU it must synchronize at its end.
        tries: Largest number of timed runs, at least one.
        patience_s: Seconds, including the warm-up, after which no further run is started.
    """
    times: list[float] = []
    began = time.perf_counter()
    work()
    while len(times) < tries and (not times or time.perf_counter() - began < patience_s):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
