"""Fixtures that all tests share: shape checks at run time, a nano model, a small image folder."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"
os.fsync = os.fstat  # no test cuts the power: written data survives a kill without it

import shape_checks

shape_checks.install()

import gc
import json
import random
import subprocess
from functools import partial
from pathlib import Path

import hypothesis
import pytest
from PIL import Image, ImageDraw
from short_runs import settings, short_run
from support.warm import running

pytest_plugins = ("browsing", "object_stores", "studios")

GOLDEN = Path(__file__).parent / "golden" / "data"
hypothesis.settings.register_profile("without deadlines", deadline=None)
hypothesis.settings.load_profile("without deadlines")  # a busy machine is not a failure

COLOURS = {"red": (210, 40, 40), "green": (40, 160, 70), "blue": (50, 80, 200)}


LONGEST = ("test_pretended_gpu.py", "test_sharing.py", "test_cuda_shapes.py")


def pytest_collection_modifyitems(items) -> None:
    """Run the longest tests first, so that no process waits minutes for another one's last test.

    pytest-xdist gives each process a stretch of the list to begin with (`worksteal`): long tests
    are put at the heads of these stretches.
    """
    long = [[item for item in items if item.path.name == name] for name in LONGEST]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    stretch = len(items) // workers
    items[:] = [item for item in items if item.path.name not in LONGEST]
    for number, group in enumerate(long):
        head = number % workers * stretch
        items[head:head] = group


def pytest_collection_finish() -> None:
    leave_out_of_collections()


def leave_out_of_collections() -> None:
    """Exempt all existing objects, such as the libraries', from Python's garbage collector.

    Otherwise each full collection visits a million objects, for a third of a second; and what they
    refer to stays alive anyway. Later objects are collected less often than by default, which would
    take a tenth of the tests' time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)


@pytest.fixture(scope="session")
def golden():
    """Return a function that reads a recorded golden file."""
    return lambda name: json.loads((GOLDEN / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def nano_architecture():
    """An architecture with all parts of the model and a fraction of the parameters.

    Its U-Net has every kind of layer once on the way down and once on the way up: the cost of tests
    with whole runs is the number of operations, not their size.
    """
    from impasto.models.writing.architectures import ARCHITECTURES, Architecture

    tiny = ARCHITECTURES["tiny"]
    unet, vae, text_encoder = tiny.configs
    return Architecture(
        tiny.family,
        (
            {
                **unet,
                "block_out_channels": [8, 16],
                "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
                "cross_attention_dim": 16,
            },
            {**vae, "block_out_channels": [8, 8, 8, 8]},
            {
                **text_encoder,
                "hidden_size": 16,
                "intermediate_size": 32,
                "projection_dim": 16,
                "num_hidden_layers": 3,
            },
        ),
    )


@pytest.fixture(scope="session")
def nano_model(tmp_path_factory, nano_architecture) -> Path:
    """Write a Diffusers folder with random weights.

    Read-only by agreement: copy it to change it.
    """
    import torch

    from impasto.models.writing.architectures import write_random_model

    folder = tmp_path_factory.mktemp("models") / "nano"
    write_random_model(nano_architecture, folder, seed=0, dtype=torch.float32)
    leave_out_of_collections()  # modules imported while writing it
    return folder


@pytest.fixture(scope="session")
def deeper_model(tmp_path_factory, nano_architecture) -> Path:
    """Write the nano model with a third level: the golden losses were recorded with it.

    Also for behaviour that only shows with more layers. Read-only by agreement.
    """
    import torch

    from impasto.models.writing.architectures import Architecture, write_random_model

    unet, vae, text_encoder = nano_architecture.configs
    deeper = {
        **unet,
        "block_out_channels": [8, 16, 16],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
        "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    }
    folder = tmp_path_factory.mktemp("models") / "nano"
    architecture = Architecture(nano_architecture.family, (deeper, vae, text_encoder))
    write_random_model(architecture, folder, seed=0, dtype=torch.float32)
    return folder


def draw_half_masks(pictures, folder):
    """Draw a mask per image, whose left half is trained on; return their folder."""
    folder.mkdir()
    for image in pictures.glob("*.png"):
        with Image.open(image) as opened:
            mask = Image.new("L", opened.size)
            mask.paste(255, (0, 0, opened.width // 2, opened.height))
        mask.save(folder / image.name)
    return folder


def draw_images(folder: Path, count: int, *, seed: int = 0, captions: bool = True) -> Path:
    """Draw simple coloured shapes in several aspect ratios, with captions; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    sizes = [(64, 64), (96, 64), (64, 96)]
    for index in range(count):
        colour = list(COLOURS)[index % 3]
        width, height = sizes[index % len(sizes)]
        image = Image.new("RGB", (width, height), (255, 255, 255))
        left, top = rng.randrange(width // 3), rng.randrange(height // 3)
        shape = (left, top, left + width // 2, top + height // 2)
        ImageDraw.Draw(image).ellipse(shape, fill=COLOURS[colour])
        image.save(folder / f"{index:03d}.png")
        if captions:
            (folder / f"{index:03d}.txt").write_text(f"a {colour} ball", encoding="utf-8")
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of thirteen images in three buckets: batches of 4 leave short ones."""
    return draw_images(tmp_path / "pictures", 13)


@pytest.fixture
def run_values(tmp_path, nano_model, pictures):
    """Settings of a short run on the nano model, as a nested dict that tests may change."""
    return short_run(tmp_path, nano_model, pictures)


@pytest.fixture(scope="session")
def encoded_before(tmp_path_factory) -> Path:
    """A folder whose cached latents and text encodings are shared by all tests."""
    return tmp_path_factory.mktemp("encoded")


@pytest.fixture
def encoded_once(run_values, encoded_before) -> None:
    """Use the shared cache, so that a test's runs find the encodings of the same images."""
    run_values["dataset"]["cache_dir"] = str(encoded_before)


@pytest.fixture
def run_file(tmp_path, run_values):
    """Return a function that writes `run_values` as a TOML file, with changes by section."""
    import tomli_w

    def write(**changes) -> Path:
        values = {
            key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value
            for key, value in {**{k: {} for k in changes}, **run_values}.items()
        }
        values |= {k: v for k, v in changes.items() if not isinstance(v, dict)}
        path = tmp_path / "run.toml"
        path.write_text(tomli_w.dumps(values), encoding="utf-8")
        return path

    return write


def impasto(*words: object, timeout: float = 300, **kwargs) -> subprocess.CompletedProcess[str]:
    """Run the real command line as a user would, in a separate process."""
    return running.run("-m", "impasto", *words, timeout=timeout, **kwargs)


@pytest.fixture
def train_config(run_values):
    """Return a function that builds validated settings, with changes by section."""
    return partial(settings, run_values)


@pytest.fixture(scope="module")
def shared_config(tmp_path_factory, nano_model):
    """Like `train_config`, for runs that the tests of a file share: read-only by agreement."""
    folder = tmp_path_factory.mktemp("shared")
    pictures = draw_images(folder / "pictures", 13)
    return partial(settings, short_run(folder, nano_model, pictures))


@pytest.fixture
def fresh_accelerate():
    """Reset accelerate's state, which otherwise lasts for the whole process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def nano_sd2_architecture(nano_architecture):
    """SD 2's nano architecture: linear projections, heads of one width, OpenCLIP's activation."""
    from impasto.models.families import SD2_BASE
    from impasto.models.writing.architectures import Architecture

    unet, vae, text_encoder = nano_architecture.configs
    return Architecture(
        SD2_BASE,
        (
            {**unet, "use_linear_projection": True, "attention_head_dim": [2, 4]},
            vae,
            {**text_encoder, "hidden_act": "gelu", "pad_token_id": 0},
        ),
    )


@pytest.fixture(scope="session")
def nano_sd2_model(tmp_path_factory, nano_sd2_architecture) -> Path:
    """Write an SD 2 Diffusers folder with random weights. Read-only by agreement."""
    import torch

    from impasto.models.writing.architectures import write_random_model

    folder = tmp_path_factory.mktemp("models") / "nano-sd2"
    write_random_model(nano_sd2_architecture, folder, seed=0, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def nano_sdxl_model(tmp_path_factory, nano_architecture) -> Path:
    """Write an SDXL Diffusers folder with random weights. Read-only by agreement."""
    from two_encoders import write_model

    from impasto.models.families import SDXL

    return write_model(nano_architecture, tmp_path_factory.mktemp("models") / "nano-sdxl", SDXL)


@pytest.fixture(scope="session", params=["sd1", "sd2"])
def either_model(request, nano_model, nano_sd2_model) -> Path:
    """The nano models of both families, one after the other."""
    return {"sd1": nano_model, "sd2": nano_sd2_model}[request.param]


@pytest.fixture
def ldm_file(tmp_path):
    """Return a function that writes a model's folder as one float32 file and returns its path."""

    def write(folder: Path, name: str = "model.safetensors") -> Path:
        from impasto.models.reading.opening import OpenOptions
        from impasto.models.writing.conversion import convert_model, form_of

        target = tmp_path / name
        convert_model(str(folder), target, form_of(target, None), {}, OpenOptions())
        return target

    return write
