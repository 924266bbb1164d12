"""The outcome of encoding a portion of a dataset's images into the latent cache."""

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
    """The outcome of encoding a portion of images.

    Attributes:
        kept: [images]: whether each image can be trained on.
        keys: The keys of those that can.
        identities: Their keys as exact arithmetic would have them.
        encoded: Number of images encoded in this run.
        refused: Latent files of sd-scripts that do not fit their images.
    """

    kept: np.ndarray
    keys: KeyTable
    identities: KeyTable
    encoded: int
    refused: tuple[SkippedFile, ...]

    @classmethod
    def joined(cls, portions: Sequence[FilledPortion]) -> FilledPortion:
        """Return the outcomes of a dataset's portions as one."""
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
        """Return the images that can be trained on, with the keys of their latents.

        Args:
            table: The images of the portion.
            skipped: Images that cannot be used, with reasons.
            encoder: The encoder that made the latents.
        """
        return CachedPlan(
            table if self.kept.all() else table.select(self.kept),
            self.keys,
            tuple(skipped),
            self.encoded,
            self.refused,
            self.keys if encoder.source == encoder.fingerprint else self.identities,
        )
