"""A comparison of ways to train the demo's model: style learnt, and content preserved.

Each row is trained from the demo's base model on its images with several seeds, and measured by
`impasto.evaluation` on the twelve held-out things: the validation loss at fixed draws, distances to
the real images, and the tags that a tagger recognises. Differences are taken per seed from
sd-scripts' defaults. Writes `quality.md`, `quality.json` and a sheet into the scratch folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from bench.quality_job import Place, draw_prior, is_done, run_job
from bench.quality_rows import REFERENCE, Row, Setup, rows
from bench.quality_table import as_markdown, at_equal_content, draw_samples, gather, told
from impasto.data.engines.stages import default_workers


def measure(scratch: Path, setup: Setup | None = None, only: str = "") -> dict[str, str]:
    """Train and measure rows with all seeds, and write the table and the sheet.

    Args:
        scratch: Where results are stored; existing ones are reused.
        setup: The settings that all rows share.
        only: A part of the names of the selected rows; the reference row is always among them.
    """
    setup = setup or Setup()
    wanted = [row for row in rows(setup) if only in row.name or row.name == REFERENCE]
    place = Place(scratch, setup)
    for folder in (place.folder, place.folder / "samples"):
        folder.mkdir(parents=True, exist_ok=True)
    if any(row.prior_weight is not None for row in wanted):
        draw_prior(place)
    _run_jobs(place, wanted)
    found = gather(place, wanted)
    (place.folder / "quality.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (place.folder / "quality.md").write_text(as_markdown(found), encoding="utf-8")
    draw_samples(place, list(found)).save(place.folder / "quality.png")
    shown = {name: told(numbers) for name, numbers in found.items()}
    return shown | at_equal_content(place)


def _run_jobs(place: Place, wanted: Sequence[Row]) -> None:
    """Run the missing jobs, one process per core.

    Jobs are ordered by seed, so that one seed is complete before the next one starts.
    """
    jobs = [
        (row, seed) for seed in place.setup.seeds for row in wanted
        if not is_done(place, row, seed)
    ]  # fmt: skip
    if not jobs:
        return
    workers = min(default_workers(), len(jobs))
    if workers == 1:
        for row, seed in jobs:
            run_job(place, row, seed)
        return
    began = time.monotonic()
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = {pool.submit(run_job, place, row, seed): (row, seed) for row, seed in jobs}
        for done, future in enumerate(as_completed(futures), 1):
            row, seed = futures[future]
            took = future.result()
            left = (time.monotonic() - began) / done * (len(jobs) - done)
            print(
                f"{done} of {len(jobs)}: {row.name}, seed {seed}, {took:.0f} s; "
                f"about {left / 60:.0f} min left",
                flush=True,
            )
