"""What can be found wrong at once is said before PyTorch is imported, which takes seconds."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
sys.modules["torch"] = sys.modules["diffusers"] = None  # an import of either would fail
from impasto.cli.main import main
main(sys.argv[1:])
"""

CASES = {
    "unknown setting": (["train", "{file}", "--set", "optimizer.rate=1"], 2, "optimizer.rate"),
    "no settings": (["train", "nowhere.toml"], 2, "nowhere.toml is not there"),
    "no images": (["train", "{file}", "--set", "dataset.image_dir=gone"], 3, "gone is not there"),
    "no images, planned": (["train", "{file}", "--plan", "--set", "dataset.image_dir=gone"], 3, ""),
    "no model": (["train", "{file}", "--set", "model.path=gone.ckpt"], 4, "gone.ckpt is not there"),
    "no VAE": (["train", "{file}", "--set", "model.vae=gone.pt"], 4, "gone.pt is not there"),
    "run taken": (["train", "{file}", "--set", "output_dir={taken}"], 5, "not empty"),
    "nothing to resume": (["resume", "gone"], 5, "not a run directory"),
    "nothing to draw with": (["sample", "gone.safetensors", "x"], 4, "is not there"),
    "unknown sampler": (["sample", "{taken}", "x", "--sampler", "magic"], 2, "no sampler"),
    "nothing to convert": (["convert", "gone.ckpt", "x.safetensors"], 4, "is not there"),
    "nothing to inspect": (["inspect", "gone.ckpt"], 4, "is not there"),
    "no model to encode": (["dataset", "cache", "{taken}", "gone.ckpt"], 4, "is not there"),
    "a folder in the way": (["init", "tiny", "{taken}"], 5, "already there"),
    "no dataset": (["dataset", "scan", "gone"], 3, "is not there"),
    "no tracker": (["train", "{file}", "--set", 'logging.trackers=["wandb"]'], 7, "Install it"),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_named_before_heavy_imports(run_file, tmp_path, case):
    words, code, message = CASES[case]
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "my file.txt").write_text("mine")
    program = PROGRAM
    if case == "no tracker":
        program = program.replace("main(sys", 'sys.modules["wandb"] = None\nmain(sys')
        program = program.replace("import sys\n", "import importlib.util, sys\n", 1)
        program = program.replace(
            "main(sys.argv",
            "find = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda n, *a: None if n == 'wandb' else find(n, *a)\n"
            "main(sys.argv",
        )
    arguments = [word.format(file=run_file(), taken=taken) for word in words]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == code, result.stderr
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
    assert [path.name for path in taken.iterdir()] == ["my file.txt"]
