"""Prefetching batches to a device: in order, one ahead, with their captions encoded."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from impasto.data.records import Batch, Geometry, Size
from impasto.diffusion.prediction import PREDICTIONS
from impasto.diffusion.randomness import PerSampleRandomness
from impasto.diffusion.schedule import NoiseSchedule
from impasto.models.text.conditioning import unet_conditioning
from impasto.training.step import StepRecipe, training_step
from impasto.training.steps.prefetch import Prefetcher, build_prefetcher

CPU = torch.device("cpu")


def batch_of(number: int) -> Batch:
    randomness = PerSampleRandomness(7, number, (0, 1), 2)
    whole = Geometry.whole(Size(64, 64))
    return Batch(
        torch.randn(2, 4, 8, 8),
        (f"first {number}", "second"),
        torch.ones(2),
        randomness,
        (whole,) * 2,
    )


def states_of(captions, geometry):
    assert [g.target for g in geometry] == [Size(64, 64)] * 2
    values = torch.tensor([float(len(caption)) for caption in captions])
    return unet_conditioning(values.view(-1, 1, 1))


def test_each_batch_begins_while_the_one_before_is_trained_on():
    encoded = []

    def encode(captions, geometry):
        encoded.append(captions[0])
        return states_of(captions, geometry)

    coming = [(number, batch_of(number)) for number in range(3)]
    for number, (update, batch) in enumerate(Prefetcher(CPU, encode)(iter(coming))):
        assert update == number
        assert len(encoded) == min(number + 2, 3)
        assert torch.equal(batch.latents, coming[number][1].latents)
        expected = states_of(batch.captions, batch.geometry).arguments
        assert torch.equal(
            batch.conditioning.arguments["encoder_hidden_states"], expected["encoder_hidden_states"]
        )
    assert encoded == ["first 0", "first 1", "first 2"]


def test_what_was_drawn_ahead_comes_along():
    batch = batch_of(0)
    batch.randomness.generate_ahead((4, 8, 8), "noise")
    ((_, fed),) = Prefetcher(CPU, None)(iter([(0, batch)]))
    expected = PerSampleRandomness(7, 0, (0, 1), 2).normal((4, 8, 8), "noise")
    assert torch.equal(fed.randomness.ahead["noise"], expected)


def test_a_step_is_the_same_with_captions_encoded_ahead():
    schedule = NoiseSchedule.scaled_linear()
    recipe = StepRecipe(schedule, PREDICTIONS["epsilon"])
    batch = batch_of(0)

    def unet(x_t, t, encoder_hidden_states):
        return SimpleNamespace(sample=x_t * encoder_hidden_states.unsqueeze(-1))

    def refuses(captions, geometry):
        raise AssertionError(captions)

    plain = training_step(unet, states_of, batch, recipe)
    ahead = replace(batch, conditioning=states_of(batch.captions, batch.geometry))
    assert torch.equal(training_step(unet, refuses, ahead, recipe).losses, plain.losses)
    with pytest.raises(AssertionError, match="first 0"):
        training_step(unet, refuses, batch, recipe)


def test_a_processor_is_fed_as_batches_come():
    assert build_prefetcher(CPU, states_of) is iter
