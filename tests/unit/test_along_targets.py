"""Mixtures between a run's two models: the files that may be overwritten, and choosing by loss."""

import json
import math
from pathlib import Path

import pytest
import torch
from loras import as_file, tuned
from safetensors.torch import load_file

from impasto.checkpoints.reading import open_tensor_file
from impasto.config.load import dump_toml
from impasto.errors import ConfigError, RunError
from impasto.models.merging.merging import Mixture, Output, merge_models, require_output_free
from impasto.models.merging.mix_record import mixed_info
from impasto.models.merging.mixing import FORMULAS
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.progress import SilentProgress
from impasto.runs import RunDirectory
from impasto.training.analysis.along import MixturePath, Point
from impasto.training.analysis.along_targets import require_previews_free, require_targets


@pytest.fixture
def run(train_config, nano_model, tmp_path):
    """A run directory with settings, an image and a base model, but without a result."""
    for name in ("run", "data/images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/images/00-000.png").touch()
    base = as_file(nano_model, tmp_path / "base.safetensors")
    config = train_config(
        model={"path": str(base)},
        dataset={"image_dir": str(tmp_path / "data" / "images")},
        output_dir=str(tmp_path / "run"),
    )
    (tmp_path / "run" / "config.toml").write_text(dump_toml(config), encoding="utf-8")
    return RunDirectory.open(tmp_path / "run"), config


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        (".", "is or contains"), ("run", "is or contains"), ("data", "is or contains"),
        ("data/images", "is or contains"), ("data/images/new", "is in .*image_dir"),
        ("out", "is or contains"), ("base.safetensors", "is or contains"),
        ("mine", "it also has notes.txt,"), ("inner", "it also has 01-000.png,"),
        ("file.txt", "is a file"),
    ],
)  # fmt: skip
def test_previews_replace_previews_alone(run, tmp_path, folder, words):
    """With the option to overwrite, previews are replaced and all other files stay."""
    (tmp_path / "mine").mkdir()
    for name in ("00-000.png", "notes.txt"):
        (tmp_path / "mine" / name).touch()
    (tmp_path / "inner" / "01-000.png").mkdir(parents=True)
    (tmp_path / "file.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out" / "best.safetensors"
    with pytest.raises(ConfigError, match=words):
        require_previews_free(tmp_path / folder, *run, out, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_earlier_previews_are_replaced_if_asked_for(run, tmp_path):
    folder = tmp_path / "along"
    require_previews_free(folder, *run, overwrite=False)
    folder.mkdir()
    for name in ("00-000.png", "101-1000.png", "sheet.png"):
        (folder / name).touch()
    require_previews_free(folder, *run, overwrite=True)
    with pytest.raises(ConfigError, match="already exists"):
        require_previews_free(folder, *run, overwrite=False)


def test_the_best_does_not_replace_the_base_model(run, tmp_path):
    base = tmp_path / "base.safetensors"
    output = Output(base, "safetensors", overwrite=True)
    with pytest.raises(ConfigError, match="is the source itself"):
        require_targets(run[0], output, None, SilentProgress(), overwrite=True)


def test_another_vae_is_not_replaced_by_what_is_made_with_it(nano_model, tmp_path):
    base = as_file(nano_model, tmp_path / "base.safetensors")
    vae = as_file(nano_model, tmp_path / "vae.safetensors")
    before, options = vae.read_bytes(), OpenOptions(vae=str(vae))
    mixture = Mixture([str(base), str(base)], FORMULAS["weighted-sum"])
    with pytest.raises(ConfigError, match=r"vae\.safetensors is the source itself"):
        merge_models(mixture, Output(vae, "safetensors", overwrite=True), options)
    assert vae.read_bytes() == before
    require_output_free([str(base)], Output(tmp_path / "m.safetensors", "safetensors"), options)


def test_a_loss_that_is_no_number_is_not_the_least(nano_model):
    """NaN is unordered: as the first of a list it would win."""
    points = [Point(0.0, math.nan), Point(0.5, 0.3), Point(0.75, 0.2), Point(1.0, -math.inf)]
    assert MixturePath(None, points).best.ratio == 0.75
    with pytest.raises(
        RunError, match="No validation loss between base model and result is finite"
    ):
        _ = MixturePath(None, [points[0], points[-1]]).best
    with pytest.raises(ValueError, match="JSON compliant"):
        mixed_info([open_model(nano_model)], Path("m"), None, {"loss": math.nan})
    assert (
        json.loads(mixed_info([open_model(nano_model)], Path("m"), None, {}).more["impasto.merge"])
        == {}
    )


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_two_models_of_other_families_are_mixed(family, nano_sd2_model, nano_sdxl_model, tmp_path):
    """0.7 A + 0.3 B in float64, in every tensor of a network; unused tensors are A's."""
    folder = {"sd2": nano_sd2_model, "sdxl": nano_sdxl_model}[family]
    first = as_file(folder, tmp_path / "a.safetensors")
    second, made = tuned(first, tmp_path / "b.safetensors"), tmp_path / "m.safetensors"
    mixture = Mixture([str(first), str(second)], FORMULAS["weighted-sum"], 0.3)
    merge_models(mixture, Output(made, "safetensors"), OpenOptions(vae=str(first)))
    a, b, mixed = map(load_file, (first, second, made))
    changed, unused = 0, open_model(first).ldm_only
    for name, tensor in mixed.items():
        if not tensor.is_floating_point() or name.startswith("first_stage_model."):
            continue
        if name in unused:
            assert torch.equal(a[name], tensor), name
            continue
        wanted = 0.7 * a[name].double() + 0.3 * b[name].double()
        torch.testing.assert_close(tensor.double(), wanted, rtol=2e-6, atol=1e-7)
        changed += not torch.equal(a[name], tensor)
    assert changed > 100
    record = json.loads(open_tensor_file(made).metadata["impasto.merge"])
    assert record["vae_file"] == "a.safetensors"
