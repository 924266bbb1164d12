"""What became of a portion of images that were encoded into the latent cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from impasto.data.caching.encoding import MomentsEncoder
from impasto.data.caching.latent_cache import CachedPlan
from impasto.data.caching.latent_keys import KeyTable, join_keys
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.records import SkippedFile


@dataclass(frozen=True)
class FilledPortion:
    """What became of a portion of images.

    Attributes:
        kept: [images]: which can be trained on.
        keys: The keys of those.
        identities: Their keys as they would be of exact arithmetic.
        encoded: How many were encoded now.
        refused: Latents of sd-scripts that do not fit their images.
    """

    kept: np.ndarray
    keys: KeyTable
    identities: KeyTable
    encoded: int
    refused: tuple[SkippedFile, ...]

    @classmethod
    def joined(cls, portions: Sequence[FilledPortion]) -> FilledPortion:
        """Join the portions of a dataset into one."""
        return cls(
            np.concatenate([portion.kept for portion in portions]),
            join_keys([portion.keys for portion in portions]),
            join_keys([portion.identities for portion in portions]),
            sum(portion.encoded for portion in portions),
            tuple(item for portion in portions for item in portion.refused),
        )

    def plan(
        self, table: PlannedTable, skipped: Sequence[SkippedFile], encoder: MomentsEncoder
    ) -> CachedPlan:
        """The images that can be trained on, with the keys of their latents.

        Args:
            table: The images of the portion.
            skipped: Those that cannot be used, with reasons.
            encoder: What made the latents.
        """
        return CachedPlan(
            table if self.kept.all() else table.select(self.kept),
            self.keys,
            tuple(skipped),
            self.encoded,
            self.refused,
            self.keys if encoder.source == encoder.fingerprint else self.identities,
        )
