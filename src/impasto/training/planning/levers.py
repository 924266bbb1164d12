"""Chooses settings that fit into some memory, and says which would make a run fit that does not.

Rungs of a ladder are climbed from the one that costs least in speed and exactness to the one that
costs most, until the run fits; those that turn out not to be needed are taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from impasto.config.cases import SETTINGS_ALONE, Facts
from impasto.config.compatibility import goes_together
from impasto.config.run import RunConfig
from impasto.data.sampler import Group
from impasto.datasets.batching import batch_size_of
from impasto.errors import OutOfMemoryError
from impasto.training.optim.mixed_precision import MixedPrecision
from impasto.training.planning.changes import Changes, in_words, with_changes
from impasto.training.planning.memory import Footprint, FootprintPredictor
from impasto.training.planning.memory_facts import (
    changes_words,
    has_large_previews,
    offloads_state,
    takes_8bit_adamw,
)

MARGIN = 0.95  # of the memory that is used: predictions are off by some per cent, memory in pieces
LARGEST_BATCH = 256


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

    def words(self) -> str:
        """`section.field = value`, for all it changes."""
        return in_words(self.changes)

    def replaces(self, other: Lever) -> bool:
        """Whether it sets all that another one sets."""
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
    lambda c: not c.training.cache_text_to_disk and not changes_words(c),
)
NO_COPIES = Lever(
    {"training": {"weight_copies": False}},
    "each forward pass makes its own 16-bit copies of the weights and frees them",
    lambda c: c.training.weight_copies,
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
    "the running average waits in RAM; ema_every says how often it is moved on",
    lambda c: c.training.ema_decay is not None and not c.training.ema_on_cpu,
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
    "activations take half, and steps are faster; steps whose gradient overflows are passed over",
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
    "the optimizer's state waits in RAM; slower by the way there and back",
    lambda c: not offloads_state(c),
)
LADDER = {
    "cuda": (
        ENCODE_ONE, TEXT_TO_DISK, NO_COPIES, PREVIEWS_IN_TILES, COMPUTE_BF16, COMPUTE_FP16,
        AVERAGE_ON_CPU, EIGHT_BITS, HIGHEST_LEVEL, TWO_LEVELS, ALL_LEVELS, *IN_BACKWARD,
        WEIGHTS_BF16, OFFLOAD,
    ),
    "cpu": (
        ENCODE_ONE, TEXT_TO_DISK, NO_COPIES, PREVIEWS_IN_TILES, *IN_BACKWARD, HIGHEST_LEVEL,
        TWO_LEVELS, ALL_LEVELS, EIGHT_BITS, WEIGHTS_BF16,
    ),
}  # fmt: skip
"""Best first, by the device: 8-bit states cost little on a GPU and half the speed on a processor,
where gradients that are freed at once cost nothing."""


@dataclass(frozen=True)
class MemoryFitter:
    """Finds settings whose run fits.

    Attributes:
        meter: Measures footprints.
        device_type: `cpu` or `cuda`.
        group: The images whose batches have most pixels.
        budget: Bytes that the run may take.
        facts: What is known of the run beside its settings.
        half: The 16-bit type that the device computes fast, `bf16` or `fp16`, or `no`; the other
            is not offered.
    """

    meter: FootprintPredictor
    device_type: str
    group: Group
    budget: int
    facts: Facts = SETTINGS_ALONE
    half: MixedPrecision = "bf16"

    @property
    def ladder(self) -> list[Lever]:
        """The rungs that are possible here, best first."""
        return [rung for rung in LADDER[self.device_type] if rung.half in (None, self.half)]

    def footprint(self, config: RunConfig, batch: int | None = None) -> Footprint:
        """What a run takes, at its largest batch unless another is given."""
        count = batch or batch_size_of(config, self.group)
        return self.meter.footprint(config, self.group.bucket, count)

    def fits(self, config: RunConfig, batch: int | None = None) -> bool:
        """Whether a run fits with some room left."""
        return self.footprint(config, batch).total <= MARGIN * self.budget

    def choose_levers(
        self, config: RunConfig, *, keep_asked: bool
    ) -> tuple[RunConfig, list[Lever]]:
        """Change settings until the run fits, or nothing is left to change.

        Args:
            config: The settings.
            keep_asked: Whether what was set on purpose stays as it is.
        """
        taken: list[Lever] = []
        batch = 1 if config.training.batch_size == "auto" else None
        for rung in self.ladder:
            changed = with_rungs(config, taken)
            if self.fits(changed, batch):
                break
            if offers(rung, changed, self.facts) and not (
                keep_asked and touches_asked(rung, config)
            ):
                taken = [*(other for other in taken if not rung.replaces(other)), rung]
        for rung in list(taken[:-1]):
            if OFFLOAD in taken and rung in (TEXT_TO_DISK, EIGHT_BITS):
                continue  # these cost less, and of 8 bits a quarter goes there and back
            rest = [other for other in taken if other is not rung]
            if self._works_without(config, rest, batch):
                taken = rest
        return with_rungs(config, taken), taken

    def _works_without(self, config: RunConfig, rungs: Sequence[Lever], batch: int | None) -> bool:
        """Whether these rungs alone go together and are enough."""
        for rung in rungs:
            if not offers(rung, config, self.facts):
                return False
            config = with_rungs(config, [rung])
        return self.fits(config, batch)

    def batch_that_fits(self, config: RunConfig, most: int) -> int:
        """The largest batch that fits, between 1 and `most`."""
        first, second = (self.footprint(config, batch) for batch in (1, 2))
        each = max(1, second.total - first.total)
        guess = 1 + int((MARGIN * self.budget - first.total) // each)
        least, above = 1, max(1, min(guess, most, LARGEST_BATCH)) + 1
        batch = above - 1
        while above - least > 1:  # the guess first, which is right where training is the fullest
            if self.fits(config, batch):
                least = batch
            else:
                above = batch
            batch = (least + above) // 2
        return least

    def require_fit(self, config: RunConfig) -> str | None:
        """Make sure that a run fits; a sentence where that is not certain.

        Raises:
            OutOfMemoryError: It certainly does not; with the changes that would make it fit.
        """
        footprint = self.footprint(config)
        if footprint.total <= MARGIN * self.budget:
            return None
        found = (
            f"While {footprint.moment}, this run will take about {gib(footprint.total)} "
            f"({describe_footprint(footprint)}), and {gib(self.budget)} are there."
        )
        if footprint.total <= self.budget / MARGIN:
            return f"{found} That is close: it may run out of memory."
        raise OutOfMemoryError(
            f"{found} Nothing was begun. {self.advice(config)} training.fit_check = false lets it "
            f"begin all the same."
        )

    def advice(self, config: RunConfig) -> str:
        """The fewest changes that would make a run fit, in a sentence."""
        for rung in self.ladder:
            if offers(rung, config, self.facts) and self.fits(with_rungs(config, [rung])):
                return f"This would make it fit: {rung.words()} ({rung.why})."
        changed, taken = self.choose_levers(config, keep_asked=False)
        if self.fits(changed):
            return f"Together these would make it fit: {'; '.join(r.words() for r in taken)}."
        if batch_size_of(config, self.group) > 1 and self.fits(changed, 1):
            return (
                f"It would fit with training.batch_size = 1 and "
                f"{'; '.join(r.words() for r in taken)}."
            )
        return "Take a smaller dataset.resolution: no other setting makes it fit."


def offers(rung: Lever, config: RunConfig, facts: Facts = SETTINGS_ALONE) -> bool:
    """Whether a rung would change something, to settings that go together."""
    return rung.applies(config) and goes_together(with_rungs(config, [rung]), facts)


def with_rungs(config: RunConfig, rungs: Sequence[Lever]) -> RunConfig:
    """The settings with changes, each section checked as any."""
    for rung in rungs:
        config = with_changes(config, rung.changes)
    return config


def describe_footprint(footprint: Footprint) -> str:
    """The parts that take something, largest first."""
    parts = sorted(footprint.by_part().items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {gib(size)}" for name, size in parts if size)


def gib(size: float) -> str:
    """Bytes as a person reads them; what GiB would show as 0.0 is in MiB."""
    if size < 0.1 * 2**30:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / 2**30:.1f} GiB"


def touches_asked(rung: Lever, config: RunConfig) -> bool:
    """Whether a rung would change what was set on purpose."""
    return any(
        field in getattr(config, section).model_fields_set
        and getattr(getattr(config, section), field) != value
        for section, fields in rung.changes.items()
        for field, value in fields.items()
    )
