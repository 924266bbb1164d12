"""The conditioning of a U-Net: one object with nested tensors."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from impasto.data.caching.latent_cache import CachedPlan, LatentKeys
from impasto.data.loading.dataset import TrainingData
from impasto.data.loading.sampler import MicroBatch, OptimizerStep, Sample
from impasto.data.pixels.rendering import render
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Box, Geometry, Size
from impasto.data.scanning.scan import scan_folder
from impasto.data.subsets import Augmentation, Subset
from impasto.diffusion.conditioning import Conditioning
from impasto.models.text.conditioning import ConditioningShape, unet_conditioning


def test_a_batch_of_it_is_cut_moved_and_counted_whole():
    states, pooled, sizes = torch.randn(3, 77, 8), torch.randn(3, 5), torch.randn(3, 6)
    whole = unet_conditioning(states, pooled, sizes)
    assert len(whole) == 3
    assert [id(tensor) for tensor in whole.tensors()] == [id(states), id(pooled), id(sizes)]
    cut = whole[1:]
    assert torch.equal(cut.arguments["encoder_hidden_states"], states[1:])
    added = cut.arguments["added_cond_kwargs"]
    assert torch.equal(added["text_embeds"], pooled[1:])
    assert torch.equal(added["time_ids"], sizes[1:])
    away = whole.to(torch.device("meta"))
    assert [tensor.device.type for tensor in away.tensors()] == ["meta"] * 3
    assert [tensor.shape for tensor in away.tensors()] == [t.shape for t in whole.tensors()]


def test_each_tensor_of_it_is_kept_for_a_stream():
    kept = []

    class Tensor(torch.Tensor):
        def record_stream(self, stream):
            kept.append((self.shape, stream))

    def tensor(*shape):
        return torch.zeros(shape).as_subclass(Tensor)

    stream = Mock(spec=torch.cuda.Stream)
    Conditioning({"a": tensor(1, 2), "b": {"c": {"d": tensor(1, 3)}}}).record_stream(stream)
    assert kept == [((1, 2), stream), ((1, 3), stream)]


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (ConditioningShape(77, 16), {"encoder_hidden_states"}),
        (ConditioningShape(227, 16, 5, 6), {"encoder_hidden_states", "added_cond_kwargs"}),
    ],
)
def test_a_stand_in_has_the_shapes_and_names_of_the_real_one(shape, names):
    found = shape.stand_in(4, torch.zeros)
    assert set(found.arguments) == names
    shapes = [tuple(tensor.shape) for tensor in found.tensors()]
    assert shapes == [(4, shape.positions, 16), (4, 5), (4, 6)][: len(shapes)]


def gradient(folder, width=256, height=64):
    """An image whose red value is the column."""
    red = np.arange(width, dtype=np.uint8)[None, :].repeat(height, 0)
    pixels = np.stack([red, np.zeros_like(red), np.zeros_like(red)], axis=-1)
    Image.fromarray(pixels).save(folder / "a.png")


def plan_of(folder, subset):
    records = scan_folder(folder, subset=subset).records
    return plan_images(records, Size(64, 64), rules=BucketRules(enable_bucket=False)).images


def test_a_mirrored_image_tells_the_crop_of_its_mirror_image(tmp_path):
    gradient(tmp_path, width=250)
    (image,) = plan_of(tmp_path, Subset(root=tmp_path))
    plain, mirrored = image.geometry(), image.geometry(mirrored=True)
    assert plain == Geometry(Size(250, 64), image.crop)
    assert plain.target == Size(64, 64)
    whole = Image.open(tmp_path / "a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = render(image).pixels[:, ::-1]
    assert np.array_equal(np.asarray(whole.crop(mirrored.crop.ltrb)), expected)


def test_what_is_cropped_anew_each_time_tells_where_it_was_cropped(tmp_path):
    gradient(tmp_path)
    subset = Subset(root=tmp_path, augmentation=Augmentation(random_crop=True), flips=True)
    images = plan_of(tmp_path, subset)
    data = TrainingData(CachedPlan(images, (LatentKeys(),), (), 0), None, 1.0, 7, 1)
    seen = set()
    for epoch in range(40):
        micro_batch = MicroBatch((Sample(0, 0),), (0,))
        loaded = data.load(OptimizerStep(epoch, epoch, (micro_batch,), 1), micro_batch)
        (geometry,) = loaded.geometry
        reds = loaded.pixels[0][0, :, 0].astype(int)
        mirrored = reds[0] > reds[-1]
        left = 255 - reds[0] if mirrored else reds[0]
        assert geometry == Geometry(Size(256, 64), Box(left, 0, Size(64, 64)))
        seen.add((bool(mirrored), int(left)))
    assert {mirrored for mirrored, _ in seen} == {True, False}
    assert len(seen) > 20
