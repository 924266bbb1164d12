"""Other programs' own scripts beside the trainer, as processes, on the same model and pictures.

Given by the paths of their checkouts: `--sd-scripts PATH` and `--diffusers PATH`, with
`--sd-scripts-python` and `--diffusers-python` for the interpreters of the environments that they
are installed in. Settings of the comparison: the U-Net in float32, AdamW, batch 1, 256 px.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path

from bench.full_size import changed, make_model, make_pictures, run_command, run_to_end, settings

STEPS = 6
_RATE = re.compile(r"\|\s*(\d+)/\d+ \[(\d+):(\d+)<")


def measure(scratch: Path, checkouts: dict[str, tuple[Path, str]]) -> dict[str, str]:
    """Whole runs of each program, one after another.

    Args:
        scratch: Where models and outputs go.
        checkouts: `sd-scripts` and `diffusers` -> checkout and interpreter.
    """
    values = changed(settings(scratch), {"training": {"max_steps": STEPS}})
    ours = run_to_end(values, scratch)
    rows = {"ours: an update; whole run, s; at most, GiB": _told(ours.update_s, ours.seconds,
                                                                ours.peak_bytes)}  # fmt: skip
    lean = changed(values, {"training": {"optimizer_in_backward": "last_norm"}})
    ours = run_to_end(lean, scratch)
    rows["ours, steps in the backward pass"] = _told(ours.update_s, ours.seconds, ours.peak_bytes)
    commands = {"sd-scripts": _sd_scripts, "diffusers": _diffusers}
    for name, (checkout, python) in checkouts.items():
        log = scratch / f"{name}.txt"
        peak, seconds = run_command(commands[name](checkout, python, scratch), log, checkout)
        rows[name] = _told(_step_times(log), seconds, peak)
    return rows


def _told(update_s: list[float], seconds: float, peak: int) -> str:
    each = f"{sorted(update_s)[len(update_s) // 2]:.1f}" if update_s else "not found in its output"
    return f"{each}; {seconds:.0f}; {peak / 2**30:.1f}"


def _sd_scripts(checkout: Path, python: str, scratch: Path) -> list[str]:
    pictures = make_pictures(scratch)
    metadata = scratch / "meta.json"
    entries = {
        str(p): {"caption": p.with_suffix(".txt").read_text(encoding="utf-8"),
                 "train_resolution": [256, 256]}
        for p in sorted(pictures.glob("*.jpg"))
    }  # fmt: skip
    metadata.write_text(json.dumps(entries), encoding="utf-8")
    return [
        python, str(checkout / "fine_tune.py"),
        f"--pretrained_model_name_or_path={make_model(scratch)}", f"--in_json={metadata}",
        f"--train_data_dir={pictures}", f"--output_dir={scratch / 'sd-scripts-out'}",
        "--output_name=model", "--save_model_as=safetensors", "--resolution=256",
        "--train_batch_size=1", "--learning_rate=1e-5", f"--max_train_steps={STEPS}",
        "--cache_latents", "--max_data_loader_n_workers=0", "--seed=42",
    ]  # fmt: skip


def _diffusers(checkout: Path, python: str, scratch: Path) -> list[str]:
    pictures = make_pictures(scratch)
    lines = [
        json.dumps({"file_name": p.name,
                    "text": p.with_suffix(".txt").read_text(encoding="utf-8")})
        for p in sorted(pictures.glob("*.jpg"))
    ]  # fmt: skip
    (pictures / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [
        python, str(checkout / "examples" / "text_to_image" / "train_text_to_image.py"),
        f"--pretrained_model_name_or_path={scratch / 'sd1'}", f"--train_data_dir={pictures}",
        f"--output_dir={scratch / 'diffusers-out'}", "--resolution=256", "--center_crop",
        "--train_batch_size=1", "--learning_rate=1e-5", f"--max_train_steps={STEPS}", "--seed=42",
    ]  # fmt: skip


def _step_times(log: Path) -> list[float]:
    """Seconds between the steps that a tqdm bar shows, after the first."""
    text = log.read_text(encoding="utf-8", errors="replace")
    seen = {int(n): 60 * int(m) + int(s) for n, m, s in _RATE.findall(text)}
    steps = sorted(n for n in seen if n > 0)
    return [float(seen[b] - seen[a]) for a, b in itertools.pairwise(steps) if b == a + 1]


def default_python() -> str:
    return sys.executable
