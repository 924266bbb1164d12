"""Finds settings that fit into the memory of a device, and advice for runs that do not fit.

Rungs of the ladder in `levers.py` are applied from the cheapest on until the run fits; those that
turn out not to be needed are taken back.
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

MARGIN = 0.95  # usable fraction: predictions are off by some per cent, and memory fragments
LARGEST_BATCH = 256


@dataclass(frozen=True)
class MemoryFitter:
    """Finds settings with which a run fits into memory.

    Attributes:
        meter: Predicts footprints.
        device_type: `cpu` or `cuda`.
        group: The dataset and bucket whose batches have the most pixels.
        budget: Bytes that the run may take on the device.
        facts: Facts about the run beside its settings, for the compatibility rules.
        half: The 16-bit type that the device computes fast, `bf16` or `fp16`, or `no` if neither;
            rungs that compute in another are not offered.
        ram: Bytes of RAM that offloaded tensors of a GPU run may take; None means no limit.
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
        """The rungs that this device supports, cheapest first."""
        return [rung for rung in LADDER[self.device_type] if rung.half in (None, self.half)]

    def footprint(self, config: RunConfig, batch: int | None = None) -> Footprint:
        """Return the predicted footprint of a run; `batch` defaults to its largest batch."""
        count = batch or batch_size_of(config, self.group)
        return self.meter.footprint(config, self.group.bucket, count)

    def fits(self, config: RunConfig, batch: int | None = None) -> bool:
        """Return whether a run fits into the budget times `MARGIN`."""
        most = MARGIN * self.budget
        if self.meter.least_bytes(config) > most:
            return False
        return self.footprint(config, batch).total <= most

    def has_ram_for(self, rung: Lever, config: RunConfig) -> bool:
        """Return whether RAM has room for what a rung offloads; True if there is no limit."""
        if self.ram is None:
            return True
        before, after = self.ram_of(config), self.ram_of(with_rungs(config, [rung]))
        return after <= max(before, MARGIN * self.ram)

    def ram_of(self, config: RunConfig) -> int:
        """Return the bytes that a GPU run keeps in RAM; 0 on a CPU."""
        return sum(self.meter.ram(config).values())

    def choose_levers(
        self, config: RunConfig, *, keep_asked: bool
    ) -> tuple[RunConfig, list[Lever]]:
        """Change settings until the run fits or no rung is left; return them and the rungs used.

        Args:
            config: The settings to start from.
            keep_asked: Whether to leave settings alone that the user set explicitly.
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
        """Return whether these rungs are compatible with each other and make the run fit."""
        for rung in rungs:
            if not (offers(rung, config, self.facts) and self.has_ram_for(rung, config)):
                return False
            config = with_rungs(config, [rung])
        return self.fits(config, batch)

    def batch_that_fits(self, config: RunConfig, most: int) -> int:
        """Return the largest batch size from 1 to `most` that fits; 1 even if that does not fit."""
        first, second = (self.footprint(config, batch) for batch in (1, 2))
        each = max(1, second.total - first.total)
        guess = 1 + int((MARGIN * self.budget - first.total) // each)
        least, above = 1, max(1, min(guess, most, LARGEST_BATCH)) + 1
        batch = above - 1
        while above - least > 1:  # the guess first: right where training takes the most memory
            if self.fits(config, batch):
                least = batch
            else:
                above = batch
            batch = (least + above) // 2
        return least

    def require_fit(self, config: RunConfig) -> str | None:
        """Check that a run fits; return a warning if that is uncertain, None if it certainly fits.

        Raises:
            OutOfMemoryError: The run certainly does not fit; the message has the changes that
                would make it fit.
        """
        footprint = self.footprint(config)
        lacking = self._lack_of_ram(config)
        if footprint.total <= MARGIN * self.budget:
            return lacking
        found = (
            f"While {footprint.phase}, this run will take about {gib(footprint.total)} "
            f"({describe_footprint(footprint)}), and {gib(self.budget)} are available."
        )
        if footprint.total <= self.budget / MARGIN:
            close = f"{found} That is close: the run may run out of memory."
            return close if lacking is None else f"{close} {lacking}"
        raise OutOfMemoryError(
            f"{found} The run was not started. {self.advice(config)} To start it anyway, set "
            f"training.fit_check = false."
        )

    def _lack_of_ram(self, config: RunConfig) -> str | None:
        """Return a warning if offloaded tensors may not fit into RAM, None if they certainly fit.

        Raises:
            OutOfMemoryError: They certainly do not fit.
        """
        kept = self.meter.ram(config)
        total = sum(kept.values())
        if self.ram is None or total <= MARGIN * self.ram:
            return None
        kept_text = ", ".join(f"{name} {gib(size)}" for name, size in kept.items())
        found = (
            f"This run will keep about {gib(total)} of GPU data in RAM ({kept_text}), and "
            f"{gib(self.ram)} are free for it."
        )
        if total <= self.ram / MARGIN:
            return f"{found} That is close: close other programs."
        raise OutOfMemoryError(
            f"{found} The run was not started. Close other programs, or turn off the settings that "
            f"keep these in RAM. To start it anyway, set training.fit_check = false."
        )

    def advice(self, config: RunConfig) -> str:
        """Return a sentence with the fewest changes of settings that would make a run fit."""
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
                    f"It would fit with training.gradient_accumulation_steps = 1, which gives each "
                    f"step {waits} times fewer images (use a lower optimizer.lr, and more steps), "
                    f"and {'; '.join(r.text() for r in taken)}."
                )
        return "Use a smaller dataset.resolution: no other setting makes it fit."


def describe_footprint(footprint: Footprint) -> str:
    """Return the non-empty parts of a footprint with their sizes, largest first, as a text."""
    items = sorted(footprint.by_item().items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {gib(size)}" for name, size in items if size)


def gib(size: float) -> str:
    """Format bytes in GiB with one decimal; below 0.1 GiB in whole MiB."""
    if size < 0.1 * 2**30:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / 2**30:.1f} GiB"
