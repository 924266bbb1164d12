"""The error message for exhausted memory: the work that failed, and the settings that help most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from impasto.config.compatibility import goes_together
from impasto.config.method import TEXT_ENCODER_SETTINGS, FullMethod
from impasto.config.run import RunConfig
from impasto.errors import OutOfMemoryError
from impasto.training.builders.processes import facts_of, planned_processes
from impasto.training.compute.precision import native_precision
from impasto.training.devices import default_device, exhausted_memory
from impasto.training.fingerprints.fingerprint import differences, settings_fingerprint
from impasto.training.planning.changes import Changes, settings_text, with_changes
from impasto.training.planning.memory_facts import changes_captions, takes_8bit_adamw

ADVICE = 3


@dataclass(frozen=True)
class MemorySaving:
    """A way to save memory.

    Attributes:
        text: The change to make, and why it helps.
        is_resumable: Whether a run can be resumed from its state after this change.
    """

    text: str
    is_resumable: bool = False


def out_of_memory(
    error: BaseException,
    config: RunConfig,
    doing: str,
    then: str,
    device: torch.device,
    resume: str | None = None,
    *,
    has_state: bool = False,
) -> OutOfMemoryError:
    """Build the error that explains that memory ran out, with advice.

    Args:
        error: The allocator's error, which shows whether RAM or VRAM ran out.
        config: The settings of the run.
        doing: The work that failed, as it follows "while": `"training on ..."`.
        then: A sentence about the outcome, such as whether a state was saved.
        device: The device that the run computes on.
        resume: The command that continues the run; None if there is no run to continue.
        has_state: Whether the run can be resumed from a state, which most settings cannot be
            changed for.
    """
    has_gpu = device.type == "cuda"
    if has_gpu and exhausted_memory(error) == "VRAM":
        free, total = torch.cuda.mem_get_info(device)
        found = ways(config, doing)
        start = f"VRAM ({total / 2**30:.1f} GiB, {free / 2**30:.1f} free) ran out"
    else:
        found = ways_beside_a_gpu(config) if has_gpu else ways(config, doing)
        start = "RAM ran out"
    helps = _what_helps(found, resume, has_state=has_state)
    return OutOfMemoryError(f"{start} while {doing}. {then} {helps}")


def _what_helps(found: Sequence[MemorySaving], resume: str | None, *, has_state: bool) -> str:
    """Return the advice and the command to continue with.

    With a state, changes that a resumed run accepts are listed apart from those that need a new
    run.
    """
    if not has_state:
        again = (
            f" Set it in the run's config.toml, and begin again with: {resume}" if resume else ""
        )
        return f"What would help most: {_listed(found)}.{again}"
    now = [way for way in found if way.is_resumable]
    others = _listed([way for way in found if not way.is_resumable])
    if not now:
        more = f" With more memory free, continue with: {resume}" if resume else ""
        return f"The changes that would help most need a new run: {others}.{more}"
    begun_again = f"What would help in a new run: {others}. " if others else ""
    more = f" Set it in the run's config.toml, and continue with: {resume}" if resume else ""
    return (
        f"{begun_again}What would help most and may be changed before the run is resumed: "
        f"{_listed(now)}.{more}"
    )


def _listed(found: Sequence[MemorySaving]) -> str:
    return "; ".join(way.text for way in found[:ADVICE])


def ways(config: RunConfig, doing: str) -> list[MemorySaving]:
    """Return ways to save memory, those first that help most with the work in `doing`."""
    return [*_on_other_work(config, doing), *_on_training(config)]


def ways_beside_a_gpu(config: RunConfig) -> list[MemorySaving]:
    """Return ways to save RAM in a run on a GPU, those first that help most."""
    training = config.training
    changes: list[_Change] = [
        (
            training.stream_weights,
            {"training": {"stream_weights": False}},
            "the U-Net's weights stay in VRAM",
        ),
        (
            training.offload_optimizer,
            {"training": {"offload_optimizer": False}},
            "the optimizer's state stays in VRAM",
        ),
        (
            training.ema_on_cpu,
            {"training": {"ema_on_cpu": False}},
            "the average stays in VRAM",
        ),
        (
            config.dataset.decode_workers not in (0, 1),
            {"dataset": {"decode_workers": 1}},
            "each process that decodes images takes RAM",
        ),
    ]
    return [*_applying(config, changes), MemorySaving("closing other programs", is_resumable=True)]


def _on_other_work(config: RunConfig, doing: str) -> list[MemorySaving]:
    found = []
    if "encoding" in doing and config.dataset.vae_batch_size > 1:
        found.append(f"dataset.vae_batch_size = 1 (now {config.dataset.vae_batch_size})")
    if "preview" in doing:
        sides = f"{config.previews.width}x{config.previews.height}"
        found.append(f"smaller previews.width and previews.height (now {sides})")
    return [MemorySaving(text, is_resumable=True) for text in found]


def _on_training(config: RunConfig) -> list[MemorySaving]:
    """Return ways that apply to training, ordered by their savings for SD 1.x at 512 pixels."""
    found = [
        *_applying(config, _ways_to_compute_less(config)),
        *_smaller_own_batches(config),
        *_applying(config, _ways_to_keep_less(config)),
    ]
    return [*found, *_resting_text_encoder(config), MemorySaving("a smaller dataset.resolution")]


def _resting_text_encoder(config: RunConfig) -> list[MemorySaving]:
    """Return the advice to freeze the text encoder, and to remove the settings only it uses.

    An empty list if it is frozen already, or if the changed settings would be incompatible.
    """
    method = config.method
    if method.kind != "full" or not method.train_text_encoder:
        return []
    usual = {name: FullMethod.model_fields[name] for name in TEXT_ENCODER_SETTINGS}
    without = {
        name: field.get_default(call_default_factory=True)
        for name, field in usual.items()
        if getattr(method, name)
    }
    changed = with_changes(config, {"method": {"train_text_encoder": False, **without}})
    if not goes_together(changed, facts_of(config, planned_processes())):
        return []
    names = " and ".join(f"method.{name}" for name in without)
    text = "method.train_text_encoder = false"
    return [MemorySaving(f"{text} (and remove {names})" if names else text)]


_Change = tuple[bool, Changes, str]
"""Whether a change would help, the change, and why it does."""


def _applying(config: RunConfig, changes_of: Sequence[_Change]) -> list[MemorySaving]:
    """Return the changes that would help and are compatible with the other settings."""
    facts, before = facts_of(config, planned_processes()), settings_fingerprint(config)
    found = []
    for applies, changes, why in changes_of:
        changed = with_changes(config, changes)
        if applies and goes_together(changed, facts):
            is_resumable = not differences(before, settings_fingerprint(changed))
            found.append(MemorySaving(f"{settings_text(changes)} ({why})", is_resumable))
    return found


def _batches(config: RunConfig) -> tuple[int, int]:
    """Return the largest batch size, now and with `training.batch_size` set to half of it."""
    largest = max(config.batch_sizes.values())
    half = with_changes(config, {"training": {"batch_size": max(1, largest // 2)}})
    return largest, max(half.batch_sizes.values())


def _smaller_own_batches(config: RunConfig) -> list[MemorySaving]:
    """Return the advice to lower a dataset's own batch size.

    An empty list unless lowering `training.batch_size` alone leaves the largest batch unchanged.
    """
    largest, after = _batches(config)
    if largest == 1 or after < largest:
        return []
    return [MemorySaving(f"a smaller batch_size of the dataset that sets its own (now {largest})")]


def _ways_to_compute_less(config: RunConfig) -> list[_Change]:
    training = config.training
    largest, after = _batches(config)
    half = max(1, largest // 2)
    pieces = -(-largest // half)
    accumulated = training.gradient_accumulation_steps * pieces
    has_own = any(entry.batch_size for entry in config.dataset.entries)
    is_same = half * pieces == largest and not has_own and not training.batch_by_pixels
    return [
        (
            not training.gradient_checkpointing,
            {"training": {"gradient_checkpointing": True}},
            "activations are recomputed instead of kept",
        ),
        (
            after < largest,
            {"training": {"batch_size": half, "gradient_accumulation_steps": accumulated}},
            "the same training, in smaller batches"
            if is_same
            else "smaller batches, and about as many images a step",
        ),
        (
            after < largest and training.optimizer_in_backward != "off",
            {"training": {"batch_size": half}},
            "fewer images a step",
        ),
    ]


def _ways_to_keep_less(config: RunConfig) -> list[_Change]:
    training, on_gpu = config.training, default_device().type == "cuda"
    return [
        (
            training.cuda_graphs == "step",
            {"training": {"cuda_graphs": "off"}},
            "no second set of activations for recorded graphs",
        ),
        (
            takes_8bit_adamw(config),
            {"optimizer": {"kind": "adamw8bit"}},
            "a quarter of the optimizer's memory",
        ),
        (
            training.weight_dtype == "fp32" and native_precision().kind == "bf16",
            {"training": {"mixed_precision": "bf16", "weight_dtype": "bf16"}},
            "half the memory for weights and gradients",
        ),
        (
            on_gpu and not training.offload_optimizer,
            {"training": {"offload_optimizer": True}},
            "the optimizer's state is kept in RAM",
        ),
        (
            on_gpu and not training.stream_weights,
            {"training": {"stream_weights": True}},
            "the U-Net's weights are kept in RAM",
        ),
        (
            training.weight_copies,
            {"training": {"weight_copies": False}},
            "saves 2 bytes per weight",
        ),
        (
            training.averages > 0 and not training.ema_on_cpu and on_gpu,
            {"training": {"ema_on_cpu": True}},
            "the average is kept in RAM",
        ),
        (
            not training.cache_text_to_disk and not changes_captions(config),
            {"training": {"cache_text_to_disk": True}},
            "the text encoder is unloaded from the device",
        ),
    ]
