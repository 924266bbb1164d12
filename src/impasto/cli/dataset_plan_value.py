"""The JSON of `impasto dataset plan --json`: each image's bucket and SDXL size conditioning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from impasto.member_paths import plain

if TYPE_CHECKING:
    from impasto.data.planning.plan import Plan
    from impasto.data.records import PlannedImage
    from impasto.data.scanning.scan import Scan
    from impasto.models.family import SizeConditioning


def plan_value(
    scan: Scan, plan: Plan, sizes: SizeConditioning, held_out: int = 0
) -> dict[str, Any]:
    """Return the plan of a dataset as plain values; sizes are width and height in pixels.

    Args:
        scan: The scan of the dataset.
        plan: The bucket and crop of each image.
        sizes: The size conditioning of the U-Net.
        held_out: Number of images held out for validation; these are not in the plan.
    """
    return {
        "images": [_image(image, sizes) for image in plan.images],
        "buckets": {str(size): count for size, count in plan.bucket_counts.items()},
        "mean_cropped_fraction": round(plan.mean_cropped_fraction, 6),
        "enlarged": plan.enlarged,
        "held_out": held_out,
        "skipped": [{"path": plain(a.path), "reason": a.reason} for a in scan.skipped],
    }


def _image(image: PlannedImage, sizes: SizeConditioning) -> dict[str, Any]:
    record = image.record
    change = record.subset.augmentation
    unmirrored = image.geometry()
    found = {
        "path": plain(record.path),
        "original": list(unmirrored.original.wh),
        "resized": list(image.resized.wh),
        "crop": list(image.crop.ltrb),
        "target": list(image.bucket.wh),
        "dataset": record.subset.dataset,
        "regularisation": record.subset.is_reg,
        "repeats": record.repeats,
        "size_conditioning": list(sizes.numbers(unmirrored)),
        "crop_varies": bool(change and (change.random_crop or change.face_crop_range)),
    }
    if record.subset.may_flip(record.caption_text):
        found["size_conditioning_mirrored"] = list(sizes.numbers(image.geometry(mirrored=True)))
    return found
