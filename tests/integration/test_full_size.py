"""Round trips of full-size models with random weights; minutes long and 13 GB of disk.

Run with `pytest -m slow tests/integration/test_full_size.py`.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import impasto
from safetensors import safe_open

from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.writing import write_safetensors
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.writing.conversion import convert_model

pytestmark = pytest.mark.slow


def random_file(recorded, file, metadata):
    """Write a file with every key of the original layout, in float32."""

    def lazy(number, shape):
        def draw():
            generator = torch.Generator().manual_seed(number)
            return torch.randn(shape, generator=generator) * 0.02

        return LazyTensor(tuple(shape), torch.float32, draw)

    tensors = {name: lazy(n, row["shape"]) for n, (name, row) in enumerate(recorded.items())}
    write_safetensors(file, tensors, metadata)
    return file


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("recorded", "metadata", "family"),
    [
        ("sd15_map.json", {}, "sd1"),
        ("sd21_map.json", {"modelspec.prediction_type": "v"}, "sd2-v"),
    ],
)
def test_there_and_back_is_bit_identical(golden, tmp_path, recorded, metadata, family):
    first = random_file(golden(recorded), tmp_path / "first.safetensors", metadata)
    assert open_model(first).identity.family.key == family
    between, second = tmp_path / "between", tmp_path / "second.safetensors"
    convert_model(str(first), between, "diffusers", {}, OpenOptions())
    convert_model(str(between), second, "safetensors", {}, OpenOptions())
    before, after = open_tensor_file(first).tensors, open_tensor_file(second).tensors
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.read(), after[name].read()), name


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extra", [[], ["--full_bf16"]], ids=["guide", "weights in bf16"])
def test_the_command_of_the_guide_on_a_full_size_model(tmp_path, pictures, extra):
    """sd-scripts' command, except for fewer steps, smaller images and bf16."""
    folder, file = tmp_path / "model", tmp_path / "model.safetensors"
    assert impasto("init", "sd1", folder, "--dtype", "fp16").returncode == 0
    assert impasto("convert", folder, file, timeout=600).returncode == 0
    (tmp_path / "dataset.toml").write_text(
        f"[[datasets]]\nresolution = 256\nenable_bucket = true\n"
        f"[[datasets.subsets]]\nimage_dir = '{pictures}'\ncaption_extension = '.txt'\n",
        encoding="utf-8",
    )
    script = Path(__file__).parents[2] / "fine_tune.py"
    launcher = ["-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "2"]
    flags = [
        f"--pretrained_model_name_or_path={file}", f"--output_dir={tmp_path / 'out'}",
        "--output_name=mine", f"--dataset_config={tmp_path / 'dataset.toml'}",
        "--save_model_as=safetensors", "--learning_rate=5e-6", "--max_train_steps=2",
        "--use_8bit_adam", "--xformers", "--gradient_checkpointing", "--mixed_precision=bf16",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *flags, *extra],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = (
        safe_open(f, framework="pt") for f in (file, tmp_path / "out" / "mine.safetensors")
    )
    names = set(before.keys())
    assert names == set(after.keys())
    changed = [n for n in names if not torch.equal(before.get_tensor(n), after.get_tensor(n))]
    unet = [n for n in names if n.startswith("model.diffusion_model.")]
    assert set(changed) <= set(unet)
    assert len(changed) > 0.9 * len(unet)
