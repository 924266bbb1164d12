"""Finds settings that fit into some memory, and says which would make a run fit that does not.

Rungs of the ladder are climbed from the one that costs least until the run fits; those that turn
out not to be needed are taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from impasto.config.cases import SETTINGS_ALONE, Facts
from impasto.config.run import RunConfig
from impasto.data.loading.sampler import Group
from impasto.datasets.batching import batch_size_of
from impasto.errors import OutOfMemoryError
from impasto.training.optim.mixed_precision import MixedPrecision
from impasto.training.planning.changes import with_changes
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
        ram: Bytes of RAM that may be taken by what is kept there beside a GPU; None is no limit.
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
        """Whether a run fits into the device's memory with some room left."""
        most = MARGIN * self.budget
        if self.meter.least_bytes(config) > most:
            return False
        return self.footprint(config, batch).total <= most

    def has_ram_for(self, rung: Lever, config: RunConfig) -> bool:
        """Whether what a rung moves into RAM fits there."""
        if self.ram is None:
            return True
        before, after = self.ram_of(config), self.ram_of(with_rungs(config, [rung]))
        return after <= max(before, MARGIN * self.ram)

    def ram_of(self, config: RunConfig) -> int:
        """Bytes that a run keeps in RAM beside a GPU."""
        return sum(self.meter.ram(config).values())

    def choose_levers(
        self, config: RunConfig, *, keep_asked: bool
    ) -> tuple[RunConfig, list[Lever]]:
        """Change settings until the run fits, or nothing is left to change.

        Args:
            config: The settings.
            keep_asked: Whether what was set on purpose stays as it is.
        """
        taken: list[Lever] = []
        has_own = config.dataset.entries[self.group.dataset].batch_size is not None
        batch = 1 if config.training.batch_size == "auto" and not has_own else None
        for rung in self.ladder:
            changed = with_rungs(config, taken)
            if self.fits(changed, batch):
                break
            if (
                offers(rung, changed, self.facts)
                and self.has_ram_for(rung, changed)
                and not (keep_asked and touches_asked(rung, config))
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
            if not (offers(rung, config, self.facts) and self.has_ram_for(rung, config)):
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
        lacking = self._lack_of_ram(config)
        if footprint.total <= MARGIN * self.budget:
            return lacking
        found = (
            f"While {footprint.phase}, this run will take about {gib(footprint.total)} "
            f"({describe_footprint(footprint)}), and {gib(self.budget)} are there."
        )
        if footprint.total <= self.budget / MARGIN:
            close = f"{found} That is close: it may run out of memory."
            return close if lacking is None else f"{close} {lacking}"
        raise OutOfMemoryError(
            f"{found} Nothing was begun. {self.advice(config)} training.fit_check = false lets it "
            f"begin all the same."
        )

    def _lack_of_ram(self, config: RunConfig) -> str | None:
        """A sentence where what is kept in RAM may not fit there.

        Raises:
            OutOfMemoryError: It certainly does not.
        """
        kept = self.meter.ram(config)
        total = sum(kept.values())
        if self.ram is None or total <= MARGIN * self.ram:
            return None
        kept_text = ", ".join(f"{name} {gib(size)}" for name, size in kept.items())
        found = (
            f"This run will keep about {gib(total)} in RAM beside the GPU ({kept_text}), and "
            f"{gib(self.ram)} are free for it."
        )
        if total <= self.ram / MARGIN:
            return f"{found} That is close: close other programs."
        raise OutOfMemoryError(
            f"{found} Nothing was begun. Close other programs, or take out what keeps them there. "
            f"training.fit_check = false lets it begin all the same."
        )

    def advice(self, config: RunConfig) -> str:
        """The fewest changes that would make a run fit, in a sentence."""
        for rung in self.ladder:
            changed = with_rungs(config, [rung])
            possible = offers(rung, config, self.facts) and self.has_ram_for(rung, config)
            if possible and self.fits(changed):
                return f"This would make it fit: {rung.text()} ({rung.why})."
        changed, taken = self.choose_levers(config, keep_asked=False)
        if self.fits(changed):
            return f"Together these would make it fit: {'; '.join(r.text() for r in taken)}."
        if batch_size_of(config, self.group) > 1 and self.fits(changed, 1):
            return (
                f"It would fit with training.batch_size = 1 and "
                f"{'; '.join(r.text() for r in taken)}."
            )
        waits = config.training.gradient_accumulation_steps
        if waits > 1:
            alone = with_changes(config, {"training": {"gradient_accumulation_steps": 1}})
            changed, taken = self.choose_levers(alone, keep_asked=False)
            if self.fits(changed):
                return (
                    f"It would fit with training.gradient_accumulation_steps = 1, which makes each "
                    f"step one of {waits} times fewer images (take a lower optimizer.lr, and more "
                    f"steps), and {'; '.join(r.text() for r in taken)}."
                )
        return "Take a smaller dataset.resolution: no other setting makes it fit."


def describe_footprint(footprint: Footprint) -> str:
    """The parts that take something, largest first."""
    items = sorted(footprint.by_item().items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {gib(size)}" for name, size in items if size)


def gib(size: float) -> str:
    """Bytes as a person reads them; what GiB would show as 0.0 is in MiB."""
    if size < 0.1 * 2**30:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / 2**30:.1f} GiB"
