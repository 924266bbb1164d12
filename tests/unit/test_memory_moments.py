"""A run's memory beside training steps: encoding, validation, averages, cached texts, libraries."""

import itertools
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from flat_models import bare_architecture

from impasto.data.loading.sampler import Group
from impasto.data.records import Size
from impasto.datasets.batching import validation_batch_size
from impasto.models.networks.vae import encoding_fingerprint, tile
from impasto.models.writing.architectures import find_architecture, meta_model_of_architecture
from impasto.training.optim.ema import WIDENED_AT_ONCE, EmaWeights, lerp_in_float32
from impasto.training.planning.changes import with_fields
from impasto.training.planning.fake_step import encoding_peak
from impasto.training.planning.fitter import MemoryFitter
from impasto.training.planning.levers import LADDER, TEXT_TO_DISK, offers, with_rungs
from impasto.training.planning.memory import FootprintPredictor
from impasto.training.planning.overhead import fragmentation_bytes
from impasto.training.planning.resolve import _resolve_encoding
from impasto.training.planning.workload import Workload

GIB = 2**30
SIZE = Size(128, 128)


def sd1_vae():
    return meta_model_of_architecture(find_architecture("sd1")).vae


@pytest.mark.parametrize(
    ("pixels", "batch", "gib"),
    [(512, 1, 0.625), (512, 4, 2.5), (768, 1, 1.40625), (1024, 1, 2.5)],
)
def test_encoding_takes_what_the_vae_of_sd1_takes_on_a_gpu(pixels, batch, gib):
    """Values from fake `cuda` tensors: memory beside the weights, in float32."""
    found = encoding_peak(sd1_vae(), Size(pixels, pixels), batch)
    assert found / GIB == pytest.approx(gib, rel=0.01)


def test_tiles_and_half_precision_take_less():
    """Less than the previous test's values for whole images in float32."""
    tiled = sd1_vae()
    tile(tiled, tiled=True)
    assert encoding_peak(tiled, Size(1024, 1024), 1) < 0.3 * 2.5 * GIB
    half = encoding_peak(sd1_vae().to(torch.bfloat16), Size(1024, 1024), 1)
    assert half == pytest.approx(2.5 * GIB / 2, rel=0.05)


def test_latents_of_tiles_have_names_of_their_own(nano_model):
    from impasto.models.networks.loading import load_base_model

    vae = load_base_model(nano_model).vae
    plain = encoding_fingerprint(vae)
    tile(vae, tiled=True)
    assert encoding_fingerprint(vae) != plain
    tile(vae, tiled=False)
    assert encoding_fingerprint(vae) == plain


class Told:
    def __init__(self):
        self.notes = []

    def note(self, words):
        self.notes.append(words)


@pytest.fixture
def bare_model(nano_architecture):
    """Return a function that builds meta models whose U-Net has few operations."""
    return partial(meta_model_of_architecture, bare_architecture(nano_architecture))


def fitting(train_config, meta_model, budget, device="cuda", **changes):
    workload = Workload(encoded=Size(512, 512), validation=Group(0, SIZE), captions=10)
    meter = FootprintPredictor(meta_model, device, workload=workload)
    return MemoryFitter(meter, device, Group(0, SIZE), budget), train_config(**changes)


def encoding_phase(ladder, config):
    moments = ladder.meter.all_phases(config, SIZE, 4)
    return next(found for found in moments if found.phase.startswith("encoding"))


def test_a_vae_batch_that_does_not_fit_is_made_smaller(train_config, bare_model):
    ladder, config = fitting(train_config, bare_model, 0)
    four = encoding_phase(ladder, config)
    one = encoding_phase(ladder, with_fields(config, "dataset", {"vae_batch_size": 1}))
    assert four.activations == pytest.approx(4 * one.activations, rel=0.05)
    told = Told()
    roomy = MemoryFitter(ladder.meter, "cuda", ladder.group, 2 * four.total)
    assert _resolve_encoding(config, roomy, told).dataset.vae_batch_size == 4
    assert told.notes == []
    tight = MemoryFitter(ladder.meter, "cuda", ladder.group, int(one.total / 0.95) + 4096)
    changed = _resolve_encoding(config, tight, told)
    assert changed.dataset.vae_batch_size == 1
    assert "vae_batch_size = 1" in told.notes[0]
    asked = train_config(dataset={"vae_batch_size": 4})
    assert _resolve_encoding(asked, tight, told) is asked


def test_encoding_on_a_gpu_has_the_vae_alone(train_config, bare_model):
    ladder, config = fitting(train_config, bare_model, 0)
    found = encoding_phase(ladder, config)
    vae = bare_model().vae
    assert found.weights == sum(p.nbytes for p in vae.parameters())
    assert (found.optimizer, found.average, found.gradients) == (0, 0, 0)


AVERAGED = {"ema_decay": 0.999}


def test_validation_never_takes_more_than_an_update(train_config, bare_model):
    """For every rung: forward passes without gradients, with no more images than a batch.

    At a batch size of 1 weights take most, at 4 activations; larger batches are validated in
    smaller pieces.
    """
    for batch, averaged in itertools.product((1, 4), (False, True)):
        training = {"batch_size": batch, "mixed_precision": "bf16"} | (AVERAGED if averaged else {})
        ladder, config = fitting(
            train_config, bare_model, 0, optimizer={"kind": "adamw"}, training=training
        )
        taken = []
        for rung in LADDER["cuda"]:
            changed = with_rungs(config, taken)
            if rung.half == "fp16" or not offers(rung, changed):
                continue
            taken = [*(other for other in taken if not rung.replaces(other)), rung]
            changed = with_rungs(config, taken)
            moments = ladder.meter.all_phases(changed, SIZE, batch)
            looking = next(m for m in moments if m.phase.startswith("validating"))
            others = [m.total for m in moments if not m.phase.startswith(("valid", "encod"))]
            assert looking.total <= max(others), (batch, averaged, rung.text())


def test_a_validation_batch_is_no_larger_than_a_training_batch(train_config):
    sizes = [
        validation_batch_size(train_config(training={"batch_size": batch}), Group(0, SIZE))
        for batch in (1, 4, 8, 64)
    ]
    assert sizes == [1, 4, 8, 8]


def test_captions_that_change_keep_the_text_encoder_on_the_device(train_config, bare_model):
    """On the CPU it would encode each new caption, tens of times slower."""
    steady = train_config()
    changing = train_config(dataset={"shuffle_caption": True})
    assert TEXT_TO_DISK.applies(steady)
    assert not TEXT_TO_DISK.applies(changing)
    ladder, _ = fitting(train_config, bare_model, 0)

    def weights(config):
        return ladder.meter.all_phases(with_rungs(config, [TEXT_TO_DISK]), SIZE, 4)[0].weights

    text = bare_model().networks["text_encoder"]
    numbers = sum(parameter.numel() for parameter in text.parameters())
    assert weights(changing) - weights(steady) == 4 * numbers


def test_remembered_texts_count_up_to_what_may_be_kept(train_config, bare_model):
    def cache(captions, *, device="cuda", held_out=0, **changes):
        workload = Workload(captions=captions, held_out_captions=held_out)
        meter = FootprintPredictor(bare_model, device, workload=workload)
        return meter.footprint(train_config(**changes), SIZE, 4).text_cache

    width = bare_model().networks["text_encoder"].config.hidden_size
    assert cache(9) == 10 * 77 * width * 4  # and the empty caption
    assert cache(10**9) == 256 << 20
    assert cache(9, dataset={"shuffle_caption": True}) == 256 << 20
    assert cache(9, method={"train_text_encoder": True}) == 0
    assert cache(9, held_out=2) == cache(9, held_out=2, device="cpu") == 12 * 77 * width * 4
    assert cache(10**9, held_out=10**9) == 512 << 20
    assert cache(10**9, held_out=10**9, device="cpu") == 256 << 20  # one cache for all captions


def test_weights_of_16_bits_are_widened_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("impasto.training.optim.ema.WIDENED_AT_ONCE", 100)
    weights = [torch.randn(60).bfloat16() for _ in range(5)]
    averages = [torch.randn(60) for _ in weights]
    expected = [a.lerp(w.float(), 0.25) for a, w in zip(averages, weights, strict=True)]
    widened, plain = [], torch._foreach_lerp_

    def watched(averages, weights, share):
        widened.append(sum(weight.numel() for weight in weights))
        plain(averages, weights, share)

    monkeypatch.setattr("torch._foreach_lerp_", watched)
    lerp_in_float32(averages, weights, 0.25)
    assert all(map(torch.equal, averages, expected))
    assert max(widened) <= 100
    assert sum(widened) == 300


def test_averages_of_16_bit_weights_are_those_of_float32_arithmetic():
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    average = EmaWeights({"w": weight}, 0.5)
    with torch.no_grad():
        weight.fill_(3)
    average.update(100)
    assert torch.equal(average.tensors()["w"], torch.full((3,), 2.0))
    assert WIDENED_AT_ONCE < 32 << 20


def test_a_gpu_has_more_in_pieces_where_activations_are_kept(train_config):
    kept, computed_again = (
        train_config(training={"gradient_checkpointing": on}) for on in (False, True)
    )
    lost = partial(fragmentation_bytes, device_type="cuda", passing=GIB)
    assert lost(kept, expandable=False) > lost(computed_again, expandable=False)
    assert lost(computed_again, expandable=False) > lost(kept, expandable=True)
    assert fragmentation_bytes(kept, "cpu", GIB, expandable=False) == 0


GROWS = (
    "import os; from impasto.allocation import has_expandable_segments, tune_allocation; "
    "tune_allocation(); "
    "print(has_expandable_segments(), os.environ.get('PYTORCH_CUDA_ALLOC_CONF'))"
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PyTorch has them on Linux only")
@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ({}, "True expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "False None"),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"},
            "False expandable_segments:False",
        ),
    ],
    ids=["left open", "set by the new name", "switched off"],
)
def test_segments_may_grow_unless_the_user_has_said_otherwise(given, printed):
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", GROWS],
        env={**plain, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == printed
