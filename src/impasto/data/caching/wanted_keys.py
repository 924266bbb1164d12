"""What a latent cache would keep of some images, so that the rest can be pruned."""

from __future__ import annotations

from collections.abc import Sequence

from impasto.data.caching.encoding import ARITHMETICS
from impasto.data.caching.latent_cache import LatentCache, LatentKeys, latent_source
from impasto.data.caching.latent_orders import keys_of, stamps_of
from impasto.data.caching.npz import SD_ENDINGS
from impasto.data.caching.npz_exchange import import_npz
from impasto.data.records import PlannedImage
from impasto.progress import Progress


def keys_of_plan(
    planned: Sequence[PlannedImage],
    cache: LatentCache,
    fingerprint: str,
    progress: Progress,
    endings: Sequence[str] = SD_ENDINGS,
) -> list[LatentKeys]:
    """What the cache would keep of these images, latents of sd-scripts included.

    All that one VAE makes of them counts, on whatever device.
    """
    digests = cache.hashes.of(stamps_of(planned, endings), progress)
    sources = [latent_source(fingerprint, arithmetic) for arithmetic in ARITHMETICS]
    named = [[keys_of(image, digests, source) for image in planned] for source in sources]
    keys = named[0]
    found = [key for of_source in named for key in of_source if key is not None]
    import_npz(planned, keys, digests, cache, progress, endings)
    return found + [key for key in keys if key is not None]
