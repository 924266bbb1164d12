"""Other programs' own scripts against the trainer, as processes, on the same model and images.

They are given by the paths of their checkouts: `--sd-scripts PATH` and `--diffusers PATH`, with
`--sd-scripts-python` and `--diffusers-python` for the Python interpreters of the environments that
they are installed in. Nothing is downloaded: model, images and tokenizer are made here, and the
programs run in offline mode. Optimizer steps are timed by PyTorch's hooks (`step_clock.py`).

Settings of the comparison: the U-Net in float32, batch 1, latents cached where the program can.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.full_size import changed, make_images, make_model, run_command, run_to_end, settings

STEPS = 6
CLOCK = Path(__file__).with_name("step_clock.py")
SIDES = {"sd1": 256, "tiny": 128}
"""The side in pixels of the images for each model."""
SD_SCRIPTS_OPTIMIZERS = {
    "adamw": ["--optimizer_type=AdamW"],
    "adafactor": [
        "--optimizer_type=Adafactor",
        "--optimizer_args", "scale_parameter=False", "relative_step=False", "warmup_init=False",
        "--lr_scheduler=constant",
    ],
}  # fmt: skip
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
}


@dataclass(frozen=True)
class Setup:
    """The training that all programs run.

    Attributes:
        scratch: Where models and outputs are written.
        model: A key of `SIDES`; sd-scripts takes full-size models only.
        optimizer: `adamw`, or `adafactor`, whose state takes 7 GB less at full size.
    """

    scratch: Path
    model: str = "sd1"
    optimizer: str = "adamw"

    @property
    def side(self) -> int:
        """The side of the model's images in pixels."""
        return SIDES[self.model]

    @property
    def file(self) -> Path:
        """The path of the model as a single file, written on first use."""
        return make_model(self.scratch, architecture=self.model)

    @property
    def folder(self) -> Path:
        """The path of the same model as a Diffusers folder."""
        return self.file.with_name(self.model)

    @property
    def pictures(self) -> Path:
        """The folder of images, written on first use."""
        return make_images(self.scratch, self.side)


def measure(
    scratch: Path,
    checkouts: dict[str, tuple[Path, str]],
    model: str = "sd1",
    optimizer: str = "adamw",
) -> dict[str, str]:
    """Run each program in turn, and compare its whole run and its steps with the trainer's.

    Args:
        scratch: Where models and outputs are written.
        checkouts: `sd-scripts` and `diffusers` -> checkout and Python interpreter.
        model: `sd1` for full size, or `tiny`.
        optimizer: `adamw` or `adafactor`.
    """
    setup = Setup(scratch, model, optimizer)
    changes = {"training": {"max_steps": STEPS}, "optimizer": {"kind": optimizer, "lr": 1e-5}}
    values = changed(settings(scratch, side=setup.side, architecture=model), changes)
    ours = run_to_end(values, scratch)
    shown = f"{model}, {setup.side} px, {optimizer}"
    unit = "s a step, median (least to most); s in all; GiB at most"
    rows = {f"{shown}: ours: {unit}": _told(ours.update_s, ours.seconds, ours.peak_bytes)}
    lean = changed(values, {"training": {"optimizer_in_backward": "last_norm"}})
    lean_run = run_to_end(lean, scratch)
    rows["ours, steps in the backward pass"] = _told(
        lean_run.update_s, lean_run.seconds, lean_run.peak_bytes
    )
    for name, (checkout, python) in checkouts.items():
        reason = _refused(name, setup)
        if reason:
            rows[name] = f"not run: {reason}"
            continue
        theirs, seconds, peak = _run(name, checkout, python, setup)
        rows[name] = _told(theirs, seconds, peak)
        rows[f"ours against {name}: a step; in all; memory"] = ", ".join(
            f"{mine / other:.2f}"
            for mine, other in (
                (statistics.median(ours.update_s), statistics.median(theirs)),
                (ours.seconds, seconds),
                (ours.peak_bytes, peak),
            )
        )
    return rows


def _refused(name: str, setup: Setup) -> str:
    """Return why a program cannot take part in this comparison; an empty string if it can."""
    if name == "sd-scripts" and setup.model != "sd1":
        return "its U-Net has the sizes of Stable Diffusion hard-coded"
    if name == "diffusers" and setup.optimizer != "adamw":
        return "its script has AdamW only"
    return ""


def _run(name: str, checkout: Path, python: str, setup: Setup) -> tuple[list[float], float, int]:
    """Return the seconds of each step except the first, the seconds in all, and the peak memory."""
    script, words = {"sd-scripts": _sd_scripts, "diffusers": _diffusers}[name](checkout, setup)
    log, times = setup.scratch / f"{name}.txt", setup.scratch / f"{name}-steps.txt"
    command = [python, str(CLOCK), str(times), str(script), *words]
    peak, seconds = run_command(command, log, checkout, {**os.environ, **OFFLINE})
    ends = [float(line) for line in times.read_text(encoding="utf-8").split()]
    if len(ends) != STEPS:
        raise RuntimeError(f"{name} made {len(ends)} optimizer steps, not {STEPS}; see {log}")
    return [after - before for before, after in itertools.pairwise(ends)], seconds, peak


def _told(update_s: list[float], seconds: float, peak: int) -> str:
    each = f"{statistics.median(update_s):.3g} ({min(update_s):.3g} to {max(update_s):.3g})"
    return f"{each}; {seconds:.0f}; {peak / 2**30:.1f}"


def _sd_scripts(checkout: Path, setup: Setup) -> tuple[Path, list[str]]:
    metadata = setup.scratch / "meta.json"
    entries = {
        str(p): {"caption": p.with_suffix(".txt").read_text(encoding="utf-8"),
                 "train_resolution": [setup.side, setup.side]}
        for p in sorted(setup.pictures.glob("*.jpg"))
    }  # fmt: skip
    metadata.write_text(json.dumps(entries), encoding="utf-8")
    return checkout / "fine_tune.py", [
        f"--pretrained_model_name_or_path={setup.file}", f"--in_json={metadata}",
        f"--train_data_dir={setup.pictures}", f"--output_dir={setup.scratch / 'sd-scripts-out'}",
        "--output_name=model", "--save_model_as=safetensors", f"--resolution={setup.side}",
        "--train_batch_size=1", "--learning_rate=1e-5", f"--max_train_steps={STEPS}",
        "--cache_latents", "--max_data_loader_n_workers=0", "--seed=42", "--mixed_precision=no",
        f"--tokenizer_cache_dir={_tokenizers(setup)}", *SD_SCRIPTS_OPTIMIZERS[setup.optimizer],
    ]  # fmt: skip


def _tokenizers(setup: Setup) -> Path:
    """Return a folder with CLIP's tokenizer, which sd-scripts reads instead of the Hub."""
    folder = setup.scratch / "tokenizers"
    place = folder / "openai_clip-vit-large-patch14"
    if not place.is_dir():
        shutil.copytree(setup.folder / "tokenizer", place)
    return folder


def _diffusers(checkout: Path, setup: Setup) -> tuple[Path, list[str]]:
    lines = [
        json.dumps({"file_name": p.name,
                    "text": p.with_suffix(".txt").read_text(encoding="utf-8")})
        for p in sorted(setup.pictures.glob("*.jpg"))
    ]  # fmt: skip
    (setup.pictures / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return checkout / "examples" / "text_to_image" / "train_text_to_image.py", [
        f"--pretrained_model_name_or_path={setup.folder}", f"--train_data_dir={setup.pictures}",
        f"--cache_dir={setup.scratch / 'datasets'}",
        f"--output_dir={setup.scratch / 'diffusers-out'}", f"--resolution={setup.side}",
        "--center_crop", "--train_batch_size=1", "--learning_rate=1e-5",
        f"--max_train_steps={STEPS}", "--seed=42",
    ]  # fmt: skip


def default_python() -> str:
    return sys.executable
