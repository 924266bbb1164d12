"""Which precision a device computes fast, and what `training.mixed_precision = "auto"` stands for.

A CPU without matrix instructions for bfloat16 computes it 30 to 100 times slower than
float32: its kernels convert number by number. A GPU from before 2020 emulates bfloat16.
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
"""Instructions that multiply bfloat16, by the names of `torch.cpu.get_capabilities`; oneDNN uses
them. On other CPUs it converts every number (measured on an AMD EPYC with AVX2)."""
SLOW = 1.5  # times as long as in float32: what is warned of
PATIENCE_S = 0.3  # for measuring one precision


@dataclass(frozen=True)
class NativePrecision:
    """What a device computes fastest in, of what a run can be trained in.

    Attributes:
        kind: A value of `training.mixed_precision`.
        reason: Why, as half a sentence.
    """

    kind: MixedPrecision
    reason: str

    @property
    def description(self) -> str:
        """The name of the precision in sentences."""
        return precision_text(self.kind)


def native_precision(device: torch.device | None = None) -> NativePrecision:
    """The fastest precision of a device, by its capabilities; nothing is measured.

    Args:
        device: The first GPU or else the CPU, unless another is given.
    """
    device = device or default_device()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return NativePrecision("bf16", f"{name} computes bf16 natively")
        return NativePrecision("fp16", f"{name} has no bf16 of its own")
    found = torch.cpu.get_capabilities()
    name = found.get("cpu_name") or "this CPU"
    for capability, instructions in CPU_BF16.items():
        if found.get(capability):
            return NativePrecision("bf16", f"{name} computes bf16 natively ({instructions})")
    return NativePrecision(
        "no", f"{name} has no instructions for bf16 (AMX or AVX-512), so float32 is faster"
    )


def computed_kind(config: RunConfig) -> MixedPrecision:
    """What a run computes in; what `auto` stands for is that of this machine's device.

    16-bit weights are computed in their own type.
    """
    training = config.training
    if training.mixed_precision != "auto":
        return training.mixed_precision
    return native_precision().kind if training.weight_dtype == "fp32" else training.weight_dtype


def caches_casts(config: RunConfig) -> bool:
    """Whether autocast keeps the 16-bit copies of float32 weights until a forward pass has ended.

    A U-Net uses each weight once in it, so they spare no work. Without checkpointing the backward
    pass needs them anyway; with it they would be all that the forward pass leaves: 1.6 GiB of
    SD 1, beside the gradients of the passes before. Streamed weights leave nothing behind either.
    """
    return not (config.training.gradient_checkpointing or config.training.stream_weights)


def resolve_precision(config: RunConfig, progress: Progress) -> RunConfig:
    """The settings with the precision that `auto` stands for on the device of this run.

    A precision that was asked for and that the CPU computes slowly is used, with a warning that
    says how slowly.

    Args:
        config: The settings.
        progress: Receives notes of what was chosen, and warnings.

    Raises:
        ConfigError: A setting has no effect with what was chosen.
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
        asked.discard("mixed_precision")  # what it stands for was not asked for
    changed.__pydantic_fields_set__ = asked
    return config.model_copy(update={"training": changed})


def warn_if_slow(kind: MixedPrecision, otherwise: str, progress: Progress) -> None:
    """Say so if the CPU of this run computes a precision slowly, and how slowly.

    Args:
        kind: The precision.
        otherwise: What to do unless that is wanted.
        progress: Is given the warning.
    """
    if default_device().type != "cpu" or kind in ("no", native_precision().kind):
        return
    times = slowdown(COMPUTED[kind])
    if times > SLOW:
        progress.note(
            f"Warning: {kind} takes this CPU about {times:.0f} times as long as float32 (measured "
            f"here). Unless that is wanted, {otherwise}."
        )


@functools.cache
def slowdown(dtype: torch.dtype) -> float:
    """How many times as long the CPU takes for a convolution, there and back, as in float32.

    Measures for less than a second, once in a process: it is the same CPU from then on. The
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
    """The shortest of a few tries, after one to warm up; fewer tries of what takes long.

    Args:
        work: What to time; on a GPU it has to wait for its end.
        tries: How often, if there is time.
        patience_s: After so many seconds no further try is begun.
    """
    times: list[float] = []
    began = time.perf_counter()
    work()
    while len(times) < tries and (not times or time.perf_counter() - began < patience_s):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
