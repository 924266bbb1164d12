"""Checks of `impasto doctor --gpu`: kernels at a full-size model's shapes, and short demo runs.

Each check reports its finding in one line and, if needed, recommends a setting. A check that
fails is reported, and the others still run.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from impasto.config.run import RunConfig
from impasto.datasets.build import survey
from impasto.demo.recipe import demo_config
from impasto.errors import ConfigError, ImpastoError, MissingDependencyError
from impasto.progress import Progress, SilentProgress
from impasto.runs import RunDirectory
from impasto.training.compute.float8 import has_float8
from impasto.training.compute.precision import native_precision
from impasto.training.devices import set_arithmetic
from impasto.training.events import SilentEvents
from impasto.training.optim.mixed_precision import COMPUTED
from impasto.training.planning.duration import float8_rate, matmul_rate
from impasto.training.planning.fitter import gib
from impasto.training.planning.resolve import predict
from impasto.training.trainer import resume, train

ATTENTION_SHAPE = (1, 8, 4096, 40)
"""[B, heads, N, d] of the highest resolution's self-attention in SD 1.x at 512 pixels."""

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "plain": SDPBackend.MATH,
}
WRONG = 0.02
"""The largest error of an attention kernel, as a fraction of the norm of the float32 output.
A few bf16 roundings, of 2^-9 each, stay far below it."""

LOSS_TOLERANCE = 0.02
"""The largest relative difference between losses of compiled and plain kernels, in 16 bits."""

MEMORY_TOLERANCE = 0.15
"""The fraction by which measured peak memory may exceed the prediction before advice is given."""

_UPDATES = 6
_ATTENTION_TIMES = 9


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check of the GPU.

    Attributes:
        found: The finding, in one line.
        advice: The recommended action, as a sentence; empty if none is needed.
    """

    found: str
    advice: str = ""


class _Losses(SilentEvents):
    """Records the losses of a run, and can end it after a step as a crash would.

    Args:
        ends_after: The step to end the run at; None lets it finish.
    """

    def __init__(self, ends_after: int | None = None) -> None:
        self.losses: list[float] = []
        self._ends_after = ends_after

    def stepped(self, step: int) -> None:
        if step == self._ends_after:
            raise _CrashedError

    def measured(self, record: Any) -> None:
        if "loss" in record:
            self.losses.append(record["loss"])


class _CrashedError(Exception):
    """Simulates the crash of a run that is resumed afterwards."""


def check_gpu(
    device: torch.device, scratch: Path, progress: Progress
) -> Iterator[tuple[str, CheckResult]]:
    """Run all checks, and yield the name and result of each.

    Args:
        device: The GPU to check. A CPU is accepted too, but its results lead to no advice.
        scratch: A folder for the runs; it may be deleted afterwards.
        progress: Shows the progress of the checks.
    """
    runs = _Runs(device, scratch)
    checks: dict[str, Callable[[], CheckResult]] = {
        "Precisions": lambda: precisions(device),
        "Attention": lambda: attention(device),
        "Resume": runs.resumes,
        "Compile": runs.compiles,
        "Memory": runs.memory,
    }
    try:
        for name, check in checks.items():
            with progress.stage(f"Checking the GPU: {name.lower()}", None, "checks"):
                outcome = _outcome_of(check)
            yield name, outcome
    finally:
        set_arithmetic(tf32=True)


def _outcome_of(check: Callable[[], CheckResult]) -> CheckResult:
    try:
        return check()
    except ImpastoError as error:
        return CheckResult("did not complete", str(error))
    except RuntimeError as error:  # raised by drivers and kernels
        said = str(error).splitlines() or [type(error).__name__]
        return CheckResult("did not complete", f"It failed with: {said[0]}")


def precisions(device: torch.device) -> CheckResult:
    """Measure the speed of matrix products in each precision, and report which one "auto" uses."""
    rates = {}
    set_arithmetic(tf32=False)
    rates["float32"] = matmul_rate(device, torch.float32)
    if device.type == "cuda":
        set_arithmetic(tf32=True)
        rates["TF32"] = matmul_rate(device, torch.float32)
    for kind in ("bf16", "fp16"):
        rates[kind] = matmul_rate(device, COMPUTED[kind])
    in_float8 = f", float8 {float8_rate(device) / 1e12:.3g}" if has_float8(device) else ""
    native = native_precision(device)
    fastest = max(rates, key=lambda name: rates[name])
    found = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates.items())
    advice = ""
    if native.kind in rates and rates[native.kind] < 0.8 * rates[fastest]:
        advice = (
            f'training.mixed_precision = "auto" uses {native.kind} here ({native.reason}), but '
            f"{fastest} was faster just now: try it."
        )
    return CheckResult(f"{found}{in_float8} TFLOP/s; auto uses {native.description}", advice)


def attention(
    device: torch.device, shape: tuple[int, int, int, int] = ATTENTION_SHAPE
) -> CheckResult:
    """Check each attention kernel that runs here: its forward and backward time and its accuracy.

    The reference is plain attention in float32 on the same inputs of `shape`, [B, heads, N, d].
    """
    native = native_precision(device)
    dtype = COMPUTED[native.kind]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)
    )
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        exact = scaled_dot_product_attention(query.float(), key.float(), value.float())
    lines, wrong, is_lean = [], [], False
    for name, backend in KERNELS.items():
        try:
            output, seconds = _attention_by(backend, query, key, value)
        except RuntimeError:
            continue  # the kernel does not support this GPU, dtype or size
        lines.append(f"{name} {1000 * seconds:.1f} ms")
        is_lean |= name != "plain"
        if not (output.float() - exact).norm() <= WRONG * exact.norm():  # also true of NaN
            wrong.append(name)
    advice = ""
    if wrong:
        advice = (
            f"The attention kernel {' and '.join(wrong)} computes wrong numbers: update PyTorch "
            "and the driver before you train."
        )
    elif not is_lean:
        advice = (
            "Only plain attention runs here, whose memory grows with the square of the image's "
            "area: set training.gradient_checkpointing = true."
        )
    return CheckResult(f"{', '.join(lines)} forward and backward, in {native.description}", advice)


def _attention_by(
    backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, float]:
    """Return a kernel's output, and the median time of its forward and backward pass in seconds."""
    for tensor in (query, key, value):
        tensor.requires_grad_()
    seconds = []
    with sdpa_kernel(backend):
        for _ in range(1 + _ATTENTION_TIMES):  # the first also loads the kernel
            began = time.perf_counter()
            output = scaled_dot_product_attention(query, key, value)
            torch.autograd.backward(output.sum())
            if output.device.type == "cuda":
                torch.cuda.synchronize(output.device)
            seconds.append(time.perf_counter() - began)
    return output.detach(), statistics.median(seconds[1:])


class _Runs:
    """Short runs of the trainer on the demo's model and images."""

    def __init__(self, device: torch.device, scratch: Path) -> None:
        self._device, self._scratch = device, scratch

    def resumes(self) -> CheckResult:
        """Check that a run which crashes halfway and is resumed ends with the same weights."""
        whole = self._config("whole", ["training.deterministic=true"])
        weights = _weights_of(train(whole))
        ended = self._config("ended", ["training.deterministic=true"])
        try:
            train(ended, _Losses(ends_after=_UPDATES // 2))
        except _CrashedError:
            again = _weights_of(resume(ended.output_dir, SilentEvents()))
        largest = max(float((weights[n] - again[n]).abs().max()) for n in weights)
        if largest == 0:
            return CheckResult("the same weights, bit for bit, with training.deterministic")
        return CheckResult(
            f"weights differ by up to {largest:.2g} even with training.deterministic",
            "Resumed runs continue correctly here, but not bit for bit.",
        )

    def compiles(self) -> CheckResult:
        """Check that compiled blocks give the same losses as uncompiled ones."""
        one_size = ["dataset.buckets=[[128, 128]]", "training.max_steps=2"]
        plain, compiled = _Losses(), _Losses()
        train(self._config("plain", one_size), plain)
        began = time.perf_counter()
        try:
            train(self._config("compiled", [*one_size, "training.compile=blocks"]), compiled)
        except (ConfigError, MissingDependencyError) as error:  # an old GPU, or no compiler
            return CheckResult("not possible here", str(error))
        seconds = time.perf_counter() - began
        pairs = zip(compiled.losses, plain.losses, strict=True)
        apart = max(abs(one - other) / other for one, other in pairs)
        if apart > LOSS_TOLERANCE:
            return CheckResult(
                f"losses are {100 * apart:.1f} % off", 'Leave training.compile at "off".'
            )
        return CheckResult(f"works, in {seconds:.0f} s; losses within {100 * apart:.2g} %")

    def memory(self) -> CheckResult:
        """Compare the predicted peak memory of tensors with the measured one, at 512x512 pixels."""
        large = [
            "dataset.resolution=512", "dataset.min_bucket_reso=256", "training.batch_size=4",
            "dataset.max_bucket_reso=1024", "dataset.bucket_reso_steps=64",
            "training.max_steps=3",
        ]  # fmt: skip
        config = self._config("large", large)
        predicted = predict(config, survey(config, SilentProgress()))
        tensors = predicted.total - predicted.workspace
        if self._device.type != "cuda":
            train(config)
            return CheckResult(f"{gib(tensors)} predicted; measured on GPUs only")
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        train(config)
        measured = torch.cuda.max_memory_reserved(self._device) - before
        return compared(tensors, measured)

    def _config(self, name: str, overrides: list[str]) -> RunConfig:
        derived = json.dumps((self._scratch / "derived").as_posix())
        return demo_config(
            self._scratch / name,
            [
                f"dataset.cache_dir={derived}", f"training.max_steps={_UPDATES}",
                "training.mixed_precision=auto", "training.channels_last=false",
                f"saving.state_every_steps={_UPDATES // 2}", "previews.prompts=[]",
                "logging.every_steps=1", "validation.every_steps=1000", "validation.timesteps=1",
                *overrides,
            ],
        )  # fmt: skip


def compared(predicted: int, measured: int) -> CheckResult:
    """Compare predicted with measured bytes; advise if more than the tolerance was used."""
    found = f"{gib(predicted)} of tensors predicted, {gib(measured)} measured"
    if measured <= (1 + MEMORY_TOLERANCE) * predicted:
        return CheckResult(found)
    excess = 100 * (measured / predicted - 1)
    return CheckResult(
        found,
        f"Runs use {excess:.0f} % more memory here than predicted: set training.memory that much "
        f"below the memory of the GPU.",
    )


def _weights_of(run: RunDirectory) -> dict[str, Tensor]:
    """Load the tensors of a finished run's model as float32, keyed by name."""
    return {
        name: tensor.float()
        for file in sorted(run.export.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
