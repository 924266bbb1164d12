"""Print what `training.memory` chooses for graphics cards: the tables of docs/guide/gpu.md.

The predictions are of full fine-tuning, from shapes only: no weights and no GPU are needed. Each
run validates, and draws previews at its training size.

    python3 scripts/predict_cards.py [bf16|fp16] [PIXELS] [sd1|sdxl|...]

It takes minutes. The environment variable RECORD names a file that stores results for later calls.
"""

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault(
    "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"
)  # as in the command line

import torch

from impasto.config.load import build_run_config
from impasto.config.run import RunConfig
from impasto.data.loading.sampler import Group
from impasto.data.records import Size
from impasto.models.writing.architectures import find_architecture, meta_model_of_architecture
from impasto.training.planning.fitter import MemoryFitter, describe_footprint, gib
from impasto.training.planning.memory import FootprintPredictor
from impasto.training.planning.workload import Workload

GPU_MEMORY_GIB = (4, 6, 8, 12, 16, 24, 48, 80)
MOST = 64  # images per batch


def settings(folder: Path, pixels: int) -> RunConfig:
    """Return the settings of a run that draws previews at its training size."""
    return build_run_config(
        {
            "output_dir": str(folder / "run"),
            "model": {"path": "model.safetensors"},
            "dataset": {"image_dir": str(folder), "resolution": pixels},
            "training": {"max_steps": 1000, "batch_size": 1},
            "previews": {"prompts": ["a photograph"], "width": pixels, "height": pixels},
        },
        source="predict_cards",
    )


def main() -> None:
    usual = ["bf16", "512", "sd1"]
    half, pixels, family = (sys.argv[1:] + usual[len(sys.argv) - 1 :])[:3]
    size = Size(int(pixels), int(pixels))
    group = Group(0, size)
    workload = Workload(encoded=size, validation=group, captions=1000, held_out_captions=50)
    stored = torch.float16  # the dtype of nearly all model files
    meta_model = partial(meta_model_of_architecture, find_architecture(family), stored)
    with tempfile.TemporaryDirectory() as name:
        config = settings(Path(name), int(pixels))
        record = Path(os.environ["RECORD"]) if "RECORD" in os.environ else None
        meter = FootprintPredictor(meta_model, "cuda", record, workload=workload)
        for card in GPU_MEMORY_GIB:
            fitting = MemoryFitter(meter, "cuda", group, card << 30, half=half)
            chosen, rungs = fitting.choose_levers(config, keep_asked=True)
            print(f"{card} GiB, {half}, {size}, {family}:")
            for rung in rungs:
                print(f"    {rung.text()}")
            if not fitting.fits(chosen):
                found = fitting.footprint(chosen)
                print(f"    does not fit: {gib(found.total)} while {found.moment}")
                continue
            batch = fitting.batch_that_fits(chosen, MOST)
            for number in sorted({1, batch}):
                found = fitting.footprint(chosen, number)
                print(
                    f"    batch {number}: {gib(found.total)} while {found.moment} "
                    f"({describe_footprint(found)})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
