"""The fingerprint of a run's data: images, captions, masks and weights of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from impasto.data.caching.latent_cache import CachedPlan
from impasto.data.folders.masks import mask_file
from impasto.data.pixels.content_hashes import stamp_of
from impasto.data.records import FileStamp


def data_fingerprint(
    plan: CachedPlan, digests: Callable[[Mapping[Path, FileStamp]], Mapping[Path, str]]
) -> str:
    """Return a hash of a plan's images, captions, masks and weights, in their order.

    An image that is encoded before training is identified by its cache key. For one that is encoded
    each time it is shown, the key does not cover the content, so that the hashes of the image and
    mask files are added.

    Args:
        plan: The images of the run.
        digests: Returns the content hashes of files, of those that can be read.
    """
    masks: dict[Path, Path] = {}
    stamps: dict[Path, FileStamp] = {}
    for index in () if plan.encoded_ahead else range(len(plan.images)):
        image = plan.images[index]
        if not plan.keys[index].plain:
            path = image.record.path
            stamps[path] = image.record.stamp
            mask = mask_file(image.record)
            stamp = stamp_of(mask) if mask is not None else None
            if mask is not None and stamp is not None:
                masks[path], stamps[mask] = mask, stamp
    known = digests(stamps) if stamps else {}
    digest, records = hashlib.sha256(), plan.table.records
    is_reg, repeats = records.per_use(lambda use: use.subset.is_reg), records.repeats
    of_each = zip(plan.identities or plan.keys, records.names_and_captions(), strict=True)
    for index, (key, (name, text)) in enumerate(of_each):
        digest.update(f"{key}{name}{text}\n".encode())
        if is_reg[index]:  # its weight in the loss is a setting
            digest.update(f"regularisation, {repeats[index]} times\n".encode())
        if not key.plain:
            record = records[index]
            digest.update(known.get(record.path, "").encode())
            if record.path in masks:
                digest.update(f"mask {known.get(masks[record.path], '')}".encode())
            if record.cut:
                digest.update(f"of {record.cut.box}".encode())
    return digest.hexdigest()[:16]
