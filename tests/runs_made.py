"""Run directories written without training, for tests that compare and publish them."""

import json

import tomli_w
from PIL import Image, PngImagePlugin

from impasto.runs import RunDirectory, step_name


def made_run(path, /, *, settings=None, losses=(), validation=(), samples=None, **status):
    """Write a run directory; `samples` is step -> file name -> A1111's `parameters` text."""
    path.mkdir(parents=True)
    run = RunDirectory(path)
    values = {
        "output_dir": str(path), "model": {"path": "owner/base@main"},
        "dataset": {"image_dir": "images"}, "training": {"max_steps": 9}, **(settings or {}),
    }  # fmt: skip
    run.config_file.write_text(tomli_w.dumps(values), encoding="utf-8")
    said = {"phase": "finished", "step": 9, "total_steps": 9, **status}
    run.status_file.write_text(json.dumps(said), encoding="utf-8")
    for step, loss in losses:
        run.append_metrics({
            "step": step, "loss": loss, "lr": 1e-4, "images_per_s": 2.0, "memory_mib": 100 + step,
            "samples_seen": step * 4, "time": 1.0,
        })  # fmt: skip
    for step, loss in validation:
        run.append_metrics({"step": step, "validation_loss": loss, "time": 1.0})
    for step, files in (samples or {}).items():
        for name, parameters in files.items():
            sample(run, step, name, parameters)
    return run


def sample(run, step, name, parameters, colour=(200, 30, 30)):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", parameters)
    file = run.samples / step_name(step) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(file, pnginfo=info)
    return file
