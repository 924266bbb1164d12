"""`python -m bench [PART ...]`: run benchmarks on this machine.

Without names, all parts but the large ones run. The large ones use a full-size model: 20 GB of RAM,
15 GB of disk, and ten minutes each on two cores. The exception is `quality`, which trains the tiny
model for half an hour. On a GPU, `step` and `memory` report images per second, the fraction of the
matrix-product rate that is reached, and VRAM; with `--jobs` the rows of `step` compile in parallel
and are timed one at a time.

Results are also written to `bench/results.json`, which git ignores; RESULTS.md holds tables worth
keeping.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from impasto.allocation import tune_allocation

tune_allocation()  # as the command line does, before torch is imported

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from bench import (  # noqa: E402
    convert,
    data,
    engines,
    first_step,
    full,
    memory,
    parts,
    peers,
    pictures,
    quality,
    scale,
    startup,
    step,
    store,
    studio,
    studio_cost,
    tagging,
    training,
)
from impasto.training.lifecycle.environment import describe_environment  # noqa: E402

Measure = Callable[[Path], dict[str, str]]
MEASURES: dict[str, Measure] = {
    "data": data.measure,
    "pictures": pictures.measure,
    "convert": convert.measure,
    "training": training.measure,
    "tagging": tagging.measure,
    "startup": startup.measure,
    "studio": studio.measure,
    "gallery": studio.measure_data,
    "studio-cost": studio_cost.measure,
    "parts": parts.measure,
    "store": store.measure,
}
LARGE: dict[str, Measure] = {
    "convert-sdxl": partial(convert.measure, architecture="sdxl", dtype=torch.float16),
    "first-step": first_step.measure,
    "full": full.measure,
    "step": step.measure,
    "memory": memory.measure,
    "quality": quality.measure,
    "scale": scale.measure,
    "ray": engines.measure,
}
PEERS = ("sd-scripts", "diffusers")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [*MEASURES, *LARGE, "peers"]
    parser.add_argument("parts", nargs="*", metavar="|".join(names))
    parser.add_argument("--scratch", type=Path, help="keep models and images in this folder")
    parser.add_argument(
        "--rows",
        action="append",
        default=[],
        help="for `step`, `quality`: only rows with this in the name; may be given several times "
        "for `step`",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="for `step`: rows prepared in parallel; each is timed alone",
    )
    parser.add_argument(
        "--kernels", type=Path, help="for `step` on a GPU: a folder for tables of kernel times"
    )
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="for `studio`: minutes to monitor its memory for"
    )
    parser.add_argument(
        "--against", type=Path, help="for `first-step`: the `src` folder of another version"
    )
    for peer in PEERS:
        parser.add_argument(f"--{peer}", type=Path, help=f"a checkout of {peer}, for `peers`")
        parser.add_argument(f"--{peer}-python", help="the Python interpreter of its environment")
    parser.add_argument("--peer-model", choices=peers.SIDES, default="sd1", help="for `peers`")
    parser.add_argument(
        "--peer-optimizer", choices=peers.SD_SCRIPTS_OPTIMIZERS, default="adamw", help="for `peers`"
    )
    options = parser.parse_args()
    chosen = options.parts or list(MEASURES)
    if unknown := set(chosen) - set(names):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    measures = {
        **MEASURES,
        **LARGE,
        "first-step": partial(first_step.measure, against=options.against),
        "step": partial(
            step.measure, wanted=options.rows, jobs=options.jobs, kernels=options.kernels
        ),
        "quality": partial(quality.measure, only="".join(options.rows[-1:])),
        "studio": partial(studio.measure, minutes=options.minutes),
        "peers": partial(
            peers.measure, checkouts=_checkouts(options), model=options.peer_model,
            optimizer=options.peer_optimizer,
        ),
    }  # fmt: skip
    console = Console(soft_wrap=True)
    environment = describe_environment()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        scratch = options.scratch or Path(temporary)
        results = {}
        for part in chosen:
            console.print(f"Measuring {part} ...")
            results[part] = measures[part](scratch / part)
    _show(console, environment, results)
    Path(__file__).with_name("results.json").write_text(
        json.dumps({"environment": environment, "results": results}, indent=1), encoding="utf-8"
    )


def _checkouts(options: argparse.Namespace) -> dict[str, tuple[Path, str]]:
    """Return the given checkouts by peer, each with the Python interpreter to run it with."""
    found = {}
    for peer in PEERS:
        checkout = getattr(options, peer.replace("-", "_"))
        python = getattr(options, f"{peer.replace('-', '_')}_python")
        if checkout is not None:
            found[peer] = checkout, python or peers.default_python()
    return found


def _show(
    console: Console, environment: dict[str, Any], results: dict[str, dict[str, str]]
) -> None:
    gpus = environment["gpus"]
    packages = environment["packages"]
    hardware = (
        f"{environment['system']}, {environment['cpu_count']} processors, "
        f"{environment['memory_gib']} GiB, GPUs: {gpus or 'none'}; "
        f"torch {packages['torch']}, diffusers {packages['diffusers']}; "
        f"{datetime.now().astimezone():%Y-%m-%d %H:%M}"
    )
    table = Table("part", "what", "value", title=hardware)
    for part, rows in results.items():
        for name, value in rows.items():
            table.add_row(part, name, value)
    console.print(table)


if __name__ == "__main__":
    main()
