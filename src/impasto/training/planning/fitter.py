"""Finds settings that fit into some memory, and says which would make a run fit that does not.

Rungs of the ladder are climbed from the one that costs least until the run fits; those that turn
out not to be needed are taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from impasto.config.cases import SETTINGS_ALONE, Facts
from impasto.config.run import RunConfig
from impasto.data.sampler import Group
from impasto.datasets.batching import batch_size_of
from impasto.errors import OutOfMemoryError
from impasto.training.optim.mixed_precision import MixedPrecision
from impasto.training.planning.levers import (
    KEPT_WITH,
    LADDER,
    Lever,
    offers,
    touches_asked,
    with_rungs,
)
from impasto.training.planning.memory import Footprint, FootprintPredictor

MARGIN = 0.95  # of the memory that is used: predictions are off by some per cent, memory in pieces
LARGEST_BATCH = 256


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
        ram: Bytes of RAM that are free for what is kept there beside a GPU; None asks nobody.
    """

    meter: FootprintPredictor
    device_type: str
    group: Group
    budget: int
    facts: Facts = SETTINGS_ALONE
    half: MixedPrecision = "bf16"
    ram: int | None = None

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
        in_memory = self.footprint(config, batch).total <= MARGIN * self.budget
        return in_memory and self._lacking_ram(config) == 0

    def _lacking_ram(self, config: RunConfig) -> int:
        """Bytes of RAM that a run keeps and that are not free; 0 if it fits."""
        kept = sum(self.meter.ram(config).values())
        return 0 if self.ram is None or kept <= MARGIN * self.ram else kept - self.ram

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
            if any(away in taken and rung in cheaper for away, cheaper in KEPT_WITH):
                continue
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
        if self._lacking_ram(config):
            raise OutOfMemoryError(self._too_much_ram(config))
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

    def _too_much_ram(self, config: RunConfig) -> str:
        kept = self.meter.ram(config)
        parts = ", ".join(f"{name} {gib(size)}" for name, size in kept.items())
        return (
            f"This run will keep about {gib(sum(kept.values()))} in RAM beside the GPU ({parts}), "
            f"and {gib(self.ram or 0)} are free. Nothing was begun. Close other programs, or take "
            f'out what keeps them there; optimizer.kind = "adamw8bit" and training.weight_dtype = '
            f'"bf16" make it less. training.fit_check = false lets it begin all the same.'
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


def describe_footprint(footprint: Footprint) -> str:
    """The parts that take something, largest first."""
    parts = sorted(footprint.by_part().items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {gib(size)}" for name, size in parts if size)


def gib(size: float) -> str:
    """Bytes as a person reads them; what GiB would show as 0.0 is in MiB."""
    if size < 0.1 * 2**30:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / 2**30:.1f} GiB"
