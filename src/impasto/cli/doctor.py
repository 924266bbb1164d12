"""`impasto doctor`: hardware and software of this machine, missing parts, and advice."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from impasto.errors import MissingDependencyError
from impasto.invocation import cuda_build

MINIMUM_FREE_DISK_GIB = 10
MINIMUM_FREE_MEMORY_GIB = 8
MINIMUM_GPU_GIB = 12


@click.command()
@click.option(
    "--gpu",
    is_flag=True,
    help="Test on the GPU what a run does; takes some minutes and a gigabyte of disk.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for programs.")
def doctor(*, gpu: bool, as_json: bool) -> None:
    """Show hardware, versions, free memory and disk space, and what is missing."""
    if gpu and as_json:
        raise click.UsageError("--gpu prints no JSON. Give either --gpu or --json.")
    if gpu:
        _check_gpu()
        return
    from impasto.cli.console import Console

    found = _examined()
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=True))
        return
    console, facts = Console(), found["facts"]
    console.table(
        {
            "Python": f"{facts['python']} ({sys.executable})",
            "System": f"{facts['system']}, {facts['machine']}, {facts['cpu_count']} CPUs",
            "Memory": f"{facts['memory_gib']} GiB, {found['free_memory_gib']:.1f} GiB free",
            "Disk here": f"{found['free_disk_gib']:.1f} GiB free",
            "GPU": "; ".join(
                f"{g['name']}, {g['memory_gib']} GiB, {g['free_gib']} GiB free"
                for g in facts["gpus"]
            )
            or "none that PyTorch can use",
            "CUDA of PyTorch": facts["cuda"] or "none: a CPU build",
            **facts["packages"],
        }
    )
    console.heading("All is well." if not found["advice"] else "What to do")
    for line in found["advice"]:
        console.paragraph(f"- {line}")


def _examined() -> dict[str, Any]:
    """Return the facts about this machine and the advice on it, as plain values for JSON."""
    import shutil
    from pathlib import Path

    from impasto import ram
    from impasto.training.lifecycle.environment import describe_environment

    facts = describe_environment()
    free_disk = shutil.disk_usage(Path.cwd()).free / 2**30
    free_memory = ram.free_bytes() / 2**30
    gpus = facts["gpus"]
    return {
        "facts": facts,
        "free_disk_gib": round(free_disk, 1),
        "free_memory_gib": round(free_memory, 1),
        "advice": [*_gpu_advice(gpus, facts["cuda"]), *_advice(gpus, free_disk, free_memory)],
    }


def _check_gpu() -> None:
    """Run the GPU checks, and print their findings and the recommended settings.

    Raises:
        MissingDependencyError: PyTorch uses no GPU.
    """
    import tempfile
    from pathlib import Path

    import torch

    from impasto.cli.card_check import check_gpu
    from impasto.cli.console import Console
    from impasto.training.devices import default_device
    from impasto.training.lifecycle.preflight import require_kernels

    device = default_device()
    if device.type != "cuda":
        raise MissingDependencyError(
            f"There is no GPU to test. {_gpu_advice([], torch.version.cuda)[0]}"
        )
    require_kernels(device)
    console = Console()
    console.heading(torch.cuda.get_device_name(device))
    advice = []
    with tempfile.TemporaryDirectory(prefix="impasto-", ignore_cleanup_errors=True) as scratch:
        for name, outcome in check_gpu(device, Path(scratch), console):
            console.table({name: outcome.found})
            if outcome.advice:
                advice.append(outcome.advice)
    console.heading("All is well." if not advice else "What to do")
    for line in advice:
        console.paragraph(f"- {line}")


def _gpu_advice(gpus: list[dict[str, float]], cuda: str | None) -> list[str]:
    """Return advice if PyTorch does not use the GPU, or finds none; empty if it uses one."""
    from impasto.training.lifecycle.preflight import unused_gpu, why_gpu_unused

    card = unused_gpu()
    if card is not None:
        return [f"{card} is present but not used: {why_gpu_unused()}"]
    if gpus:
        return []
    if cuda is None:
        return [
            "This PyTorch is a CPU build: the demo runs, but a full-size model trains very slowly. "
            "If the machine has an NVIDIA GPU, install its driver, and then PyTorch's CUDA build: "
            f"{cuda_build()}"
        ]
    return ["PyTorch is built for CUDA but finds no GPU: install or update the NVIDIA driver."]


def _advice(gpus: list[dict[str, float]], free_disk: float, free_memory: float) -> list[str]:
    advice = []
    advice += [
        f"{gpu['name']} has {gpu['memory_gib']} GiB; a full-size model needs {MINIMUM_GPU_GIB}: "
        f'training.memory = "auto" chooses settings that need less.'
        for gpu in gpus
        if gpu["memory_gib"] < MINIMUM_GPU_GIB
    ]
    if free_disk < MINIMUM_FREE_DISK_GIB:
        advice.append(
            f"Only {free_disk:.1f} GiB of disk space are free here; a full-size run saves states "
            f"of about 10 GiB each. Free some space, or put output_dir on another disk."
        )
    if free_memory < MINIMUM_FREE_MEMORY_GIB:
        advice.append(
            f"Only {free_memory:.1f} GiB of RAM are free; loading a full-size model needs about 5 "
            f"GiB. Close other programs."
        )
    return advice
