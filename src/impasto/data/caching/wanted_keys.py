"""What a latent cache would keep of some images, so that the rest can be pruned."""

from __future__ import annotations

from collections.abc import Sequence

from impasto.data.caching.encoding import ARITHMETICS
from impasto.data.caching.latent_cache import LatentCache, latent_source
from impasto.data.caching.latent_keys import KeyTable, LatentKeys, join_keys
from impasto.data.caching.latent_orders import keys_of, portions_of, stamps_of
from impasto.data.caching.npz import SD_ENDINGS
from impasto.data.caching.npz_exchange import import_npz
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.records import PlannedImage
from impasto.progress import Progress


def keys_of_plan(
    planned: Sequence[PlannedImage],
    cache: LatentCache,
    fingerprint: str,
    progress: Progress,
    endings: Sequence[str] = SD_ENDINGS,
) -> KeyTable:
    """What the cache would keep of these images, latents of sd-scripts included.

    All that one VAE makes of them counts, on whatever device.
    """
    table = PlannedTable.of(planned)
    sources = [latent_source(fingerprint, arithmetic) for arithmetic in ARITHMETICS]
    found = []
    for start, end in portions_of(table):
        portion = list(table[start:end])
        digests = cache.hashes.of(stamps_of(portion, endings), progress, tidy=False)
        keys: list[LatentKeys | None] = []
        for source in sources:
            keys = [keys_of(image, digests, source) for image in portion]
            found.append(_table_of(keys))
        import_npz(portion, keys, digests, cache, progress, endings)
        found.append(_table_of(keys))
    cache.hashes.tidy()
    return join_keys(found)


def _table_of(keys: Sequence[LatentKeys | None]) -> KeyTable:
    return KeyTable.of([key for key in keys if key is not None])
