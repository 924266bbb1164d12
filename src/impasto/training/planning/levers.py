"""Changes of settings that take less memory: the rungs of a ladder, by what they cost.

From the one that costs least in speed and exactness to the one that costs most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from impasto.config.cases import SETTINGS_ALONE, Facts
from impasto.config.compatibility import goes_together
from impasto.config.run import RunConfig
from impasto.training.planning.changes import Changes, settings_text, with_changes
from impasto.training.planning.memory_facts import (
    changes_captions,
    has_large_previews,
    offloads_state,
    takes_8bit_adamw,
)


@dataclass(frozen=True)
class Lever:
    """A change of settings that takes less memory.

    Attributes:
        changes: Section -> field -> value.
        why: What it does, and what it costs.
        applies: Whether it would change something; what it goes with is the table of
            `config/compatibility.py` to say.
    """

    changes: Changes
    why: str
    applies: Callable[[RunConfig], bool]

    @property
    def half(self) -> str | None:
        """The 16-bit type that it computes in, if it changes that."""
        kind = self.changes.get("training", {}).get("mixed_precision")
        return None if kind is None else str(kind)

    def text(self) -> str:
        """`section.field = value`, for all it changes."""
        return settings_text(self.changes)

    def replaces(self, other: Lever) -> bool:
        """Whether this lever sets every setting that another one sets."""
        return all(
            fields.keys() <= self.changes.get(section, {}).keys()
            for section, fields in other.changes.items()
        )


def _levels(number: int | None) -> Callable[[RunConfig], bool]:
    def applies(config: RunConfig) -> bool:
        training = config.training
        return not training.gradient_checkpointing or (
            training.checkpointed_levels is not None
            and (number is None or number > training.checkpointed_levels)
        )

    return applies


TEXT_TO_DISK = Lever(
    {"training": {"cache_text_to_disk": True}},
    "the text encoder leaves the memory once captions are encoded; costs nothing",
    lambda c: not c.training.cache_text_to_disk and not changes_captions(c),
)
NO_COPIES = Lever(
    {"training": {"weight_copies": False}},
    "each forward pass makes its own 16-bit copies of the weights and frees them",
    lambda c: c.training.weight_copies,
)
NO_STEP_GRAPHS = Lever(
    {"training": {"cuda_graphs": "off"}},
    "activations are there once, and gradients while a step lasts; fast GPUs wait for the host",
    lambda c: c.training.cuda_graphs == "step",
)
ENCODE_ONE = Lever(
    {"dataset": {"vae_batch_size": 1}},
    "images are encoded one at a time; hardly slower",
    lambda c: c.dataset.vae_batch_size > 1,
)
PREVIEWS_IN_TILES = Lever(
    {"previews": {"vae_tiling": True}},
    "large previews are decoded in tiles of 512 pixels; training is the same",
    lambda c: not c.dataset.vae_tiling and not c.previews.vae_tiling and has_large_previews(c),
)
AVERAGE_ON_CPU = Lever(
    {"training": {"ema_on_cpu": True}},
    "the running average waits in RAM; ema_every says how often it is updated",
    lambda c: c.training.averages > 0 and not c.training.ema_on_cpu,
)
EIGHT_BITS = Lever(
    {"optimizer": {"kind": "adamw8bit"}},
    "the optimizer's state takes a quarter",
    takes_8bit_adamw,
)
COMPUTE_BF16 = Lever(
    {"training": {"mixed_precision": "bf16"}},
    "activations take half, and steps are faster",
    lambda c: c.training.mixed_precision == "no",
)
COMPUTE_FP16 = Lever(
    {"training": {"mixed_precision": "fp16"}},
    "activations take half, and steps are faster; steps whose gradient overflows are skipped",
    lambda c: c.training.mixed_precision == "no",
)
HIGHEST_LEVEL, TWO_LEVELS, ALL_LEVELS = (
    Lever(
        {"training": {"gradient_checkpointing": True, "checkpointed_levels": number}},
        f"activations of {what} are computed again in the backward pass, {cost} slower",
        _levels(number),
    )
    for number, what, cost in (
        (1, "the highest resolution", "a tenth"),
        (2, "the two highest resolutions", "a sixth"),
        (None, "all blocks", "a fifth to a quarter"),
    )
)
IN_BACKWARD = tuple(
    Lever(
        {"training": {"optimizer_in_backward": way}},
        f"gradients are freed one by one; {cost}",
        lambda c: c.training.optimizer_in_backward == "off",
    )
    for way, cost in (
        ("last_norm", "limited by the norm of the step before"),
        ("exact", "the same weights bit for bit"),
    )
)
WEIGHTS_BF16 = Lever(
    {"training": {"mixed_precision": "bf16", "weight_dtype": "bf16"}},
    "weights and gradients take half, rounded up or down by chance",
    lambda c: (
        c.method.kind == "full"  # a hypernetwork's weights are few
        and c.training.weight_dtype == "fp32"
        and c.training.mixed_precision != "fp16"
    ),
)
OFFLOAD = Lever(
    {"training": {"offload_optimizer": True}},
    "the optimizer's state waits in RAM; slower by the transfers",
    lambda c: not offloads_state(c),
)
STREAM = Lever(
    {"training": {"stream_weights": True}},
    "the U-Net's weights wait in RAM and come block by block; slower by the transfers over PCIe",
    lambda c: not c.training.stream_weights,
)
LADDER = {
    "cuda": (
        ENCODE_ONE, TEXT_TO_DISK, NO_COPIES, PREVIEWS_IN_TILES, COMPUTE_BF16,
        NO_STEP_GRAPHS, COMPUTE_FP16, AVERAGE_ON_CPU, EIGHT_BITS, HIGHEST_LEVEL, TWO_LEVELS,
        ALL_LEVELS, *IN_BACKWARD, WEIGHTS_BF16, OFFLOAD, STREAM,
    ),
    "cpu": (
        ENCODE_ONE, TEXT_TO_DISK, NO_COPIES, PREVIEWS_IN_TILES, *IN_BACKWARD, HIGHEST_LEVEL,
        TWO_LEVELS, ALL_LEVELS, EIGHT_BITS, WEIGHTS_BF16,
    ),
}  # fmt: skip
"""Best first, by the device: 8-bit states cost little on a GPU and half the speed on a CPU,
where gradients that are freed at once cost nothing."""


KEPT_WITH = (
    (OFFLOAD, (TEXT_TO_DISK, EIGHT_BITS)),
    (STREAM, (TEXT_TO_DISK, EIGHT_BITS, WEIGHTS_BF16)),
)
"""Rungs that are not taken back beside one that moves data over PCIe: they cost less, and of what
takes half or a quarter, as much less goes there and back."""


def offers(rung: Lever, config: RunConfig, facts: Facts = SETTINGS_ALONE) -> bool:
    """Whether a rung would change something, to settings that go together."""
    return rung.applies(config) and goes_together(with_rungs(config, [rung]), facts)


def with_rungs(config: RunConfig, rungs: Sequence[Lever]) -> RunConfig:
    """The settings with changes, each section checked as any."""
    for rung in rungs:
        config = with_changes(config, rung.changes)
    return config


def touches_asked(rung: Lever, config: RunConfig) -> bool:
    """Whether a rung would change what was set on purpose."""
    return any(
        field in getattr(config, section).model_fields_set
        and getattr(getattr(config, section), field) != value
        for section, fields in rung.changes.items()
        for field, value in fields.items()
    )
