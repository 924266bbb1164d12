"""Errors that can be found at once are reported before PyTorch's import, which takes seconds."""

import json
import subprocess
import sys

import pytest
import tomli_w
from conftest import draw_images
from short_runs import short_run

PROGRAM = """
import contextlib, importlib.util, io, json, sys, traceback
for name in ("torch", "diffusers", "wandb"):
    sys.modules[name] = None  # an import would fail
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "wandb" else find(name, *a)
from impasto.cli.main import main

ends = []
for words in json.load(sys.stdin):
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            main(words)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
    ends.append([code, said.getvalue()])
print(json.dumps(ends))
"""

CASES = {
    "unknown setting": (["train", "{file}", "--set", "optimizer.rate=1"], 2, "optimizer.rate"),
    "no settings": (["train", "nowhere.toml"], 2, "nowhere.toml does not exist"),
    "no images": (["train", "{file}", "--set", "dataset.image_dir=gone"], 3, "gone does not exist"),
    "no images, planned": (["train", "{file}", "--plan", "--set", "dataset.image_dir=gone"], 3, ""),
    "no model": (
        ["train", "{file}", "--set", "model.path=gone.ckpt"],
        4,
        "gone.ckpt does not exist",
    ),
    "no VAE": (["train", "{file}", "--set", "model.vae=gone.pt"], 4, "gone.pt does not exist"),
    "run taken": (["train", "{file}", "--set", "output_dir={taken}"], 5, "not empty"),
    "nothing to resume": (["resume", "gone"], 5, "not a run directory"),
    "nothing to draw with": (["sample", "gone.safetensors", "x"], 4, "does not exist"),
    "unknown sampler": (["sample", "{taken}", "x", "--sampler", "magic"], 2, "no sampler"),
    "nothing to convert": (["convert", "gone.ckpt", "x.safetensors"], 4, "does not exist"),
    "nothing to inspect": (["inspect", "gone.ckpt"], 4, "does not exist"),
    "no model to encode": (["dataset", "cache", "{taken}", "gone.ckpt"], 4, "does not exist"),
    "a folder in the way": (["init", "tiny", "{taken}"], 5, "already exists"),
    "no dataset": (["dataset", "scan", "gone"], 3, "does not exist"),
    "no tracker": (["train", "{file}", "--set", 'logging.trackers=["wandb"]'], 7, "Install it"),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory, nano_model):
    """Return exit code, errors and files of each case, all run in one interpreter."""
    folder = tmp_path_factory.mktemp("early")
    values = short_run(folder, nano_model, draw_images(folder / "pictures", 2))
    file, taken = folder / "run.toml", folder / "taken"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    taken.mkdir()
    (taken / "my file.txt").write_text("mine")
    words = [
        [word.format(file=file, taken=taken) for word in words] for words, *_ in CASES.values()
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(words), capture_output=True, text=True,
        check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in taken.iterdir()] == ["my file.txt"]
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_named_before_heavy_imports(ends, case):
    _, expected, message = CASES[case]
    code, errors = ends[case]
    assert code == expected, errors
    assert message in errors.replace("\n", " ")
    assert "Traceback" not in errors
