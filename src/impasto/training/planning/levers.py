"""Changes of settings that save memory: the rungs of a ladder, cheapest first.

The cost of a rung is the speed and the exactness that it loses.
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
    """A change of settings that saves memory.

    Attributes:
        changes: Section -> field -> value.
        why: What the change does and what it costs, for messages.
        applies: Returns whether the change would have an effect on some settings; which settings
            are compatible with it is decided by `config/compatibility.py`.
    """

    changes: Changes
    why: str
    applies: Callable[[RunConfig], bool]

    @property
    def half(self) -> str | None:
        """The 16-bit type that this lever switches mixed precision to; None if it sets none."""
        kind = self.changes.get("training", {}).get("mixed_precision")
        return None if kind is None else str(kind)

    def text(self) -> str:
        """Return `section.field = value` for each setting that the lever changes."""
        return settings_text(self.changes)

    def replaces(self, other: Lever) -> bool:
        """Return whether this lever sets every setting that `other` sets."""
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
    "the text encoder is unloaded once captions are encoded; costs nothing",
    lambda c: not c.training.cache_text_to_disk and not changes_captions(c),
)
NO_COPIES = Lever(
    {"training": {"weight_copies": False}},
    "each forward pass makes its own 16-bit copies of the weights and frees them",
    lambda c: c.training.weight_copies,
)
NO_STEP_GRAPHS = Lever(
    {"training": {"cuda_graphs": "off"}},
    "activations are held once, gradients only during a step; a fast GPU waits for the CPU",
    lambda c: c.training.cuda_graphs == "step",
)
ENCODE_ONE = Lever(
    {"dataset": {"vae_batch_size": 1}},
    "images are encoded one at a time; barely slower",
    lambda c: c.dataset.vae_batch_size > 1,
)
PREVIEWS_IN_TILES = Lever(
    {"previews": {"vae_tiling": True}},
    "large previews are decoded in tiles of 512 pixels; training is unaffected",
    lambda c: not c.dataset.vae_tiling and not c.previews.vae_tiling and has_large_previews(c),
)
AVERAGE_ON_CPU = Lever(
    {"training": {"ema_on_cpu": True}},
    "the running average is kept in RAM; ema_every sets how often it is updated",
    lambda c: c.training.averages > 0 and not c.training.ema_on_cpu,
)
EIGHT_BITS = Lever(
    {"optimizer": {"kind": "adamw8bit"}},
    "the optimizer's state takes a quarter of the memory",
    takes_8bit_adamw,
)
COMPUTE_BF16 = Lever(
    {"training": {"mixed_precision": "bf16"}},
    "activations take half the memory, and steps are faster",
    lambda c: c.training.mixed_precision == "no",
)
COMPUTE_FP16 = Lever(
    {"training": {"mixed_precision": "fp16"}},
    "activations take half the memory, and steps are faster; steps whose gradient overflows are "
    "skipped",
    lambda c: c.training.mixed_precision == "no",
)
HIGHEST_LEVEL, TWO_LEVELS, ALL_LEVELS = (
    Lever(
        {"training": {"gradient_checkpointing": True, "checkpointed_levels": number}},
        f"activations of {what} are recomputed in the backward pass; {cost} slower",
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
        ("last_norm", "clipped by the norm of the previous step"),
        ("exact", "the same weights bit for bit"),
    )
)
WEIGHTS_BF16 = Lever(
    {"training": {"mixed_precision": "bf16", "weight_dtype": "bf16"}},
    "weights and gradients take half the memory; weights are rounded stochastically",
    lambda c: (
        c.method.kind == "full"  # a hypernetwork's weights are few
        and c.training.weight_dtype == "fp32"
        and c.training.mixed_precision != "fp16"
    ),
)
OFFLOAD = Lever(
    {"training": {"offload_optimizer": True}},
    "the optimizer's state is kept in RAM; slower by the transfers",
    lambda c: not offloads_state(c),
)
STREAM = Lever(
    {"training": {"stream_weights": True}},
    "the U-Net's weights are kept in RAM and streamed block by block; slower by the transfers over "
    "PCIe",
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
"""Device type -> its rungs, cheapest first: 8-bit states cost little on a GPU and half the speed on
a CPU, where freeing gradients at once costs nothing."""


KEPT_WITH = (
    (OFFLOAD, (TEXT_TO_DISK, EIGHT_BITS)),
    (STREAM, (TEXT_TO_DISK, EIGHT_BITS, WEIGHTS_BF16)),
)
"""A rung that moves data over PCIe -> rungs that are not taken back beside it: they cost less, and
those that halve or quarter the data shorten its transfers by as much."""


def offers(rung: Lever, config: RunConfig, facts: Facts = SETTINGS_ALONE) -> bool:
    """Return whether a rung would have an effect and result in compatible settings."""
    return rung.applies(config) and goes_together(with_rungs(config, [rung]), facts)


def with_rungs(config: RunConfig, rungs: Sequence[Lever]) -> RunConfig:
    """Return the settings with the changes of `rungs` applied; changed sections are validated."""
    for rung in rungs:
        config = with_changes(config, rung.changes)
    return config


def touches_asked(rung: Lever, config: RunConfig) -> bool:
    """Return whether a rung would change the value of a setting that was set explicitly."""
    return any(
        field in getattr(config, section).model_fields_set
        and getattr(getattr(config, section), field) != value
        for section, fields in rung.changes.items()
        for field, value in fields.items()
    )
