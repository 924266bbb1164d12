"""Latents that overflow in half precision: encoded again in float32, counted, never stored.

The stand-in's half precision is infinite for images with more red than blue.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from impasto.data.caching.encoding import MomentsEncoder
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import CachedPlan, LatentCache, LatentKeys
from impasto.data.loading.dataset import TrainingData
from impasto.data.loading.sampler import MicroBatch, OptimizerStep, Sample
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import scan_folder
from impasto.data.subsets import Augmentation, Subset
from impasto.models.networks.vae import moments_encoder
from impasto.progress import SilentProgress
from impasto.training.monitoring.recorder import Recorder

RED, BLUE = (200, 20, 20), (20, 20, 200)


class Notes(SilentProgress):
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


def exact(pixels):
    mean = pixels[:, :1, ::8, ::8].repeat(1, 4, 1, 1)
    return mean, torch.full_like(mean, -6.0)


def half(pixels, value=torch.inf):
    mean, logvar = exact(pixels)
    mean[pixels[:, 0].mean((1, 2)) > pixels[:, 2].mean((1, 2))] = value
    return mean, logvar


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, color in {"a": BLUE, "b": RED, "c": (30, 30, 210)}.items():
        Image.new("RGB", (64, 64), color).save(folder / f"{name}.png")
    return folder


def plan_of(folder, **rules):
    records = scan_folder(folder, subset=Subset(root=folder, **rules)).records
    return plan_images(records, Size(64, 64), rules=BucketRules(enable_bucket=False)).images


def filled(images, tmp_path, encoder):
    cache, notes = LatentCache(tmp_path / "latents"), Notes()
    return cache, cache_latents(images, cache, encoder, notes, workers=0), notes.lines


@pytest.mark.parametrize("flips", [False, True])
def test_what_overflows_is_counted_once_per_image_and_kept_as_float32_makes_it(
    folder, tmp_path, flips
):
    images = plan_of(folder, flips=flips)
    encoder = MomentsEncoder(half, "vae", 2, exact)
    cache, cached, notes = filled(images, tmp_path, encoder)
    (said,) = [line for line in notes if "float32" in line]
    assert said.startswith("1 of 3 images had latents that were NaN or infinite")
    assert "dataset.vae_precision to fp32" in said
    _, whole, silent = filled(images, tmp_path / "exact", MomentsEncoder(exact, "vae", 2))
    assert silent == []
    other = LatentCache(tmp_path / "exact" / "latents")
    for key, same in zip(cached.keys, whole.keys, strict=True):
        for mine, theirs in ((key.plain, same.plain), (key.flipped, same.flipped)):
            if mine:
                assert torch.equal(cache.read([mine])[0], other.read([theirs])[0])


def test_what_float32_does_not_help_is_skipped_and_not_counted(folder, tmp_path):
    encoder = MomentsEncoder(half, "vae", 2, half)
    _, cached, notes = filled(plan_of(folder), tmp_path, encoder)
    assert [item.path.name for item in cached.skipped] == ["b.png"]
    assert len(cached.keys) == 2
    assert not [line for line in notes if "float32" in line]


def batch_of(folder, encoder):
    images = plan_of(folder, augmentation=Augmentation(random_crop=True))
    keys = tuple(LatentKeys() for _ in images)
    data = TrainingData(CachedPlan(images, keys, (), 0), None, 0.5, 7, 1, encoder)
    micro_batch = MicroBatch(tuple(Sample(i, 0) for i in range(3)), (0, 1, 2))
    return data, data.batch(data.load(OptimizerStep(0, 0, (micro_batch,), 3), micro_batch))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_is_encoded_while_training_is_made_again_too(folder, size):
    data, batch = batch_of(folder, MomentsEncoder(half, "vae", size, exact))
    _, expected = batch_of(folder, MomentsEncoder(exact, "vae", size))
    assert torch.equal(batch.latents, expected.latents)
    assert batch.weights.tolist() == [1, 1, 1]
    assert {path.name for path in data.remade} == {"b.png"}
    assert not data.lost


def test_what_stays_infinite_while_training_is_named_and_has_no_weight(folder):
    data, batch = batch_of(folder, MomentsEncoder(half, "vae", 2, half))
    assert torch.isfinite(batch.latents).all()
    assert batch.weights.tolist() == [1, 0, 1]
    assert {path.name: why for path, why in data.lost.items()} == {
        "b.png": "the VAE encodes it to NaN or infinite latents"
    }
    assert not data.remade


def test_a_run_says_it_once(tmp_path):
    notes, remade = Notes(), set()
    recorder = object.__new__(Recorder)
    recorder._of = SimpleNamespace(remade=remade, number_of_images=3)
    recorder._events, recorder._told_of_remade = notes, False
    recorder._note_remade()
    assert notes.lines == []
    for name in ("b.png", "d.png"):
        remade.add(tmp_path / name)
        recorder._note_remade()
    assert len(notes.lines) == 1
    assert notes.lines[0].startswith("1 of 3 images")


class OverflowingVae(torch.nn.Module):
    """A VAE that overflows in half precision for bright images, above 1."""

    use_tiling = False

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(50_000.0))

    @property
    def dtype(self):
        return self.scale.dtype

    @property
    def device(self):
        return self.scale.device

    def encode(self, pixels):
        large = (pixels[:, :1, ::8, ::8] + 1) * self.scale / self.scale.new_tensor(50_000.0)
        large = (large * self.scale).repeat(1, 4, 1, 1) / self.scale
        moments = SimpleNamespace(mean=large, logvar=torch.zeros_like(large))
        return SimpleNamespace(latent_dist=moments)


def test_the_vae_itself_is_brought_to_float32_for_that_and_back(folder, tmp_path):
    vae = OverflowingVae().half()
    cache, cached, notes = filled(plan_of(folder), tmp_path, moments_encoder(vae, batch_size=3))
    assert vae.dtype == torch.float16
    assert any(line.startswith("1 of 3 images") for line in notes)
    means = cache.read([key.plain for key in cached.keys])[0].float().numpy()
    reds = np.array([20, 200, 30]) / 127.5
    assert np.allclose(means[:, 0, 0, 0], reds, atol=2e-3)
