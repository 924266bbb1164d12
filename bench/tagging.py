"""The speed of tagging against a bare loop over ONNX Runtime with the same model, and its memory.

The model is a convolutional one with random weights and WD14's input, slow enough (tens of
milliseconds an image) that decoding beside it matters; the bare loop decodes, prepares and runs
one batch after the other in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from bench.pictures import draw_photographs, peak_mib
from impasto.annotate.annotation import ImageReading, TagAnnotator, annotate
from impasto.annotate.caption_targets import Journal, Sidecars
from impasto.annotate.onnx_tagger import OnnxTagger
from impasto.annotate.profiles import PrepareImages
from impasto.annotate.tags import Selection, Spelling
from impasto.data.records import FileStamp, ImageRecord, Size
from impasto.data.scanning.scan import scan_folder
from impasto.progress import SilentProgress

PICTURES, BATCH, ROUNDS, MANY, TAGS = 160, 8, 3, 100_000, 9083


def measure(scratch: Path) -> dict[str, str]:
    scratch.mkdir(parents=True, exist_ok=True)
    write_model(scratch / "tagger")
    draw_photographs(scratch / "pictures", (1200, 900), PICTURES)
    records = scan_folder(scratch / "pictures").records
    tagger = OnnxTagger(scratch / "tagger")
    scores = tagger.scores(PrepareImages(tagger.profile)([records[0].path]))
    threshold = float(np.quantile(scores, 1 - 30 / TAGS))  # some 30 tags an image, as is usual
    ours, bare = [], []
    for _ in range(ROUNDS):
        bare.append(bare_loop(scratch / "tagger", records, threshold))
        ours.append(with_impasto(scratch, records, threshold))
    ratios = sorted(b / a for a, b in zip(ours, bare, strict=True))
    return {
        "bare loop, 1200x900 JPEGs, pictures/s": f"{PICTURES / statistics.median(bare):.1f}",
        "impasto dataset tag, pictures/s": f"{PICTURES / statistics.median(ours):.1f}",
        "the same: speed against the bare loop, median": f"{statistics.median(ratios):.2f}x",
        "memory that 100,000 images add, MiB": f"{memory(scratch):.0f}",
    }


def write_model(folder: Path) -> None:
    """Write a network of a few layers, and the table of a WD14 tagger's 9,083 tags."""
    folder.mkdir(parents=True)
    network = nn.Sequential(
        nn.Conv2d(3, 48, 7, 4, 3), nn.ReLU(), nn.Conv2d(48, 128, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(128, 256, 3, 2, 1), nn.ReLU(), nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, TAGS), nn.Sigmoid(),
    )  # fmt: skip

    class Wd14(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x.permute(0, 3, 1, 2) / 255)

    torch.onnx.export(
        Wd14(), (torch.zeros(1, 448, 448, 3),), str(folder / "model.onnx"), dynamo=False,
        input_names=["input"], output_names=["output"],
        dynamic_axes={"input": {0: "N"}, "output": {0: "N"}},
    )  # fmt: skip
    rows = "".join(f"{n},tag_{n},0,1\n" for n in range(TAGS))
    (folder / "selected_tags.csv").write_text("tag_id,name,category,count\n" + rows)


def bare_loop(folder: Path, records: Sequence[ImageRecord], threshold: float) -> float:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    prepare = PrepareImages(OnnxTagger(folder).profile)
    began = time.perf_counter()
    for start in range(0, len(records), BATCH):
        pixels = prepare([record.path for record in records[start : start + BATCH]])
        batch = np.stack(pixels).astype(np.float32)[..., ::-1]
        (scores,) = session.run(None, {"input": np.ascontiguousarray(batch)})
        for row in scores:
            np.flatnonzero(row >= threshold)
    return time.perf_counter() - began


def with_impasto(scratch: Path, records: Sequence[ImageRecord], threshold: float) -> float:
    tagging = TagAnnotator(OnnxTagger(scratch / "tagger"), Selection(threshold), Spelling())
    target = Sidecars(".txt", "overwrite", lambda _, new: new)
    began = time.perf_counter()
    with Journal(scratch / "journal", "bench") as journal:
        annotate(
            records,
            tagging,
            target,
            journal,
            SilentProgress(),
            reading=ImageReading(batch_size=BATCH),
        )
    return time.perf_counter() - began


class Nothing:
    """An annotator that prepares a small array per path and gives every image the same tags."""

    def prepare(self, paths: Sequence[Path]) -> list[np.ndarray]:
        """Return a black square for each path."""
        return [np.zeros((448, 448, 3), dtype=np.uint8) for _ in paths]

    def annotate(self, prepared: Sequence[np.ndarray], records: Sequence[ImageRecord]) -> list[str]:
        """Return the same tags for each image."""
        del records
        return ["one, two, three" for _ in prepared]


def memory(scratch: Path) -> float:
    """Return the MiB added between the first thousand images and all 100,000, without records."""
    stamp, size = FileStamp(1, 1), Size(448, 448)
    records = [ImageRecord(scratch / f"{n}.png", size, stamp) for n in range(MANY)]
    target = Sidecars(".txt", "overwrite", lambda _, new: new)
    annotate(
        records[:1000],
        Nothing(),
        target,
        None,
        SilentProgress(),
        reading=ImageReading(batch_size=32),
    )
    before = peak_mib()
    annotate(
        records, Nothing(), target, None, SilentProgress(), reading=ImageReading(batch_size=32)
    )
    return peak_mib() - before
