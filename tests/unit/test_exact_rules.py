"""Small rules checked exactly: by closed forms, exhaustive search, or another implementation.

A wrong sign, a bound off by one, or a swapped flag changes what is learned without an error.
"""

import contextlib
import itertools
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_wsd_schedule

from impasto.checkpoints.keymap import clip_naming, open_clip_naming, unet_naming
from impasto.data.captions import CaptionRules, TrainingPosition
from impasto.data.loading.sampler import EpochSampler, Group
from impasto.data.planning.bucket_assignment import (
    _ROUNDING,
    Limits,
    _kohya_no_upscale,
    assign_native_no_upscale,
    cover_size,
    kept_fraction,
)
from impasto.data.planning.buckets import make_bucket_sizes
from impasto.data.records import Box, FileStamp, ImageRecord, PlannedImage, Size
from impasto.diffusion.noise import NoiseRecipe
from impasto.diffusion.randomness import PerSampleRandomness
from impasto.errors import ConfigError
from impasto.models.families import SD1
from impasto.models.networks.tokenizers import tokenizer_of
from impasto.models.tokenization.tokens import CHUNK, EOS_ID, JOINS, TextLayout, TextTokens
from impasto.models.tokenization.vocabulary import EOS
from impasto.training.optim.lr_schedules import warmup_stable_decay
from impasto.training.optim.rounding import stochastically_rounded

SIDES = st.integers(20, 900)
LATENTS = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def kohya_tokens(length):
    return TextTokens(tokenizer_of({}, EOS), TextLayout(length, "kohya", "plain", "off"), EOS_ID)


@given(SIDES, SIDES, st.integers(40, 300), st.sampled_from([32, 64]))
def test_no_bucket_of_the_table_is_out_of_bounds(width, height, least, step):
    """The longest side may be one less than a multiple of the step."""
    for most in (least + 3 * step - 1, least + 3 * step):
        with contextlib.suppress(ConfigError):  # no bucket fits
            table = make_bucket_sizes(Size(width + 200, height + 200), least, most, step)
            assert_in_bounds(table, Size(width + 200, height + 200), least, most, step)


def assert_in_bounds(table, area, least, most, step):
    square = step * (math.isqrt(area.area) // step)
    for size in table:
        assert size == Size(square, square) or (min(size.wh) >= least and max(size.wh) <= most)


def by_search(size, limits):
    """Implement `assign_native_no_upscale` by trying every possible bucket."""
    theirs, resized = _kohya_no_upscale(size, limits)
    most = 1 - theirs.area / resized.area + _ROUNDING
    for bounds in (limits, replace(limits, min_side=limits.step, max_side=max(size.wh))):
        sides = [
            [
                side
                for side in range(limits.step, max(pixels, limits.step) + 1, limits.step)
                if side <= max(bounds.max_side, limits.step) and side <= max(pixels, limits.step)
            ]
            for pixels in size.wh
        ]
        wide, tall = ([s for s in side if s >= bounds.min_side] or side[-1:] for side in sides)
        found = [Size(w, h) for w, h in itertools.product(wide, tall) if w * h <= limits.area]
        found = found or [Size(wide[0], tall[0])]
        wanted = min(kept_fraction(size, theirs), max(kept_fraction(size, b) for b in found))
        good = [b for b in found if kept_fraction(size, b) >= wanted]
        bucket = max(good, key=lambda b: (b.area, kept_fraction(size, b)))
        if size.width * bucket.height > size.height * bucket.width:
            exact = Fraction(size.width * bucket.height, size.height)
            squeezed = Size(max(bucket.width, math.floor(exact)), bucket.height)
        else:
            exact = Fraction(size.height * bucket.width, size.width)
            squeezed = Size(bucket.width, max(bucket.height, math.floor(exact)))
        for way in (cover_size(size, bucket), squeezed):
            if 1 - bucket.area / way.area <= most:
                return bucket, way
    return theirs, resized


@given(SIDES, SIDES, st.sampled_from([128, 256]), st.sampled_from([64, 200]))
@settings(max_examples=200, deadline=None)
def test_without_enlarging_the_choice_is_that_of_an_exhaustive_search(width, height, side, least):
    limits = Limits([], side * side, least, 512, 64)
    ((bucket, resized),) = assign_native_no_upscale([Size(width, height)], limits)
    expected, covering = by_search(Size(width, height), limits)
    assert (bucket.area, 1 - bucket.area / resized.area) == pytest.approx(
        (expected.area, 1 - expected.area / covering.area), abs=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_by_chance_hits_only_the_two_neighbours(dtype):
    """Checked for normal numbers, subnormal numbers, and around their boundary."""
    info = torch.finfo(dtype)
    subnormal = info.smallest_normal * info.eps  # the spacing of subnormal numbers
    generator = torch.Generator().manual_seed(1)
    for base, distance in (
        (1.0, info.eps),
        (info.smallest_normal, subnormal),
        (info.smallest_normal / 2, subnormal),
        (3 * subnormal, subnormal),
        (0.0, subnormal),
    ):
        share = 0.25
        value = torch.full((4000,), base + share * distance, dtype=torch.float64).float()
        found = stochastically_rounded(value, dtype, generator).double()
        below, above = base, base + distance
        assert set(found.unique().tolist()) == {below, above}, (base, dtype)
        assert float((found == above).double().mean()) == pytest.approx(share, abs=0.03)
        exact = torch.full((100,), base, dtype=torch.float64).float()
        assert set(stochastically_rounded(exact, dtype, generator).double().tolist()) == {base}


def test_offset_and_perturbation_are_added():
    """The result is noise + strength x a draw, with the sign of the draw."""
    chance, strength = PerSampleRandomness(7, 3, tuple(range(8)), 8), 0.25
    plain = chance.normal((4, 16, 16), "noise")
    shift = chance.normal((4, 1, 1), "noise_offset")
    found = NoiseRecipe(offset=strength).noise(LATENTS, chance)
    torch.testing.assert_close(found, plain + strength * shift)
    extra = chance.normal((4, 16, 16), "input_perturbation")
    found = NoiseRecipe(perturbation=strength).on_input(plain, chance)
    torch.testing.assert_close(found, plain + strength * extra)


@pytest.mark.parametrize("least", [0.0, 0.1])
def test_warmup_stable_decay_is_that_of_transformers(least):
    total, warmup, decay = 40, 6, 11
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = get_wsd_schedule(
        optimizer, warmup, decay, num_training_steps=total, min_lr_ratio=least, num_cycles=0.5
    )
    ours = warmup_stable_decay(lambda _: warmup, lambda _: decay, least, 1)
    for step in range(total):
        assert ours(step, total) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        theirs.step()


def test_the_mean_of_what_is_cropped_is_a_mean():
    from impasto.data.planning.plan import Plan

    record = ImageRecord(Path("a.png"), Size(100, 100), FileStamp(1, 1))

    def image(kept):
        bucket = Size(kept, 100)
        return PlannedImage(record, bucket, Size(100, 100), Box(0, 0, bucket))

    plan = Plan((image(90), image(70), image(20)))
    assert plan.mean_cropped_fraction == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("steps", "step", "shown"),
    [(0, 0, 5), (0, 9, 5), (10, 0, 1), (10, 5, 3), (10, 10, 5), (10, 99, 5), (0.5, 25, 3)],
)
def test_tags_are_warmed_up_in_so_many_steps(steps, step, shown):
    """The count is floor(step x (count - least) / steps) + least, and all tags from `steps` on."""
    rules = CaptionRules(warmup_steps=steps, warmup_min=1, normalizes=True)
    text = rules.write("a, b, c, d, e", TrainingPosition(0, step, 100), 1, 1)
    assert len(text.split(", ")) == shown


@pytest.mark.parametrize("every", [1, 2, 3])
def test_captions_are_dropped_in_each_nth_epoch(every):
    rules = CaptionRules(dropout_every_n_epochs=every)
    empty = [
        epoch for epoch in range(1, 13) if not rules.write("a", TrainingPosition(epoch, 0, 9), 1, 1)
    ]
    assert empty == list(range(every, 13, every))


def test_a_rate_of_one_per_cent_is_chance_too():
    assert not CaptionRules().is_random
    assert CaptionRules(dropout_rate=0.01).is_random
    assert CaptionRules(tag_dropout_rate=0.01).is_random
    assert CaptionRules(tag_dropout_rate=1.0).is_random
    assert CaptionRules(dropout_rate=1.0).is_random


def test_joins_are_those_of_the_two_programs():
    """sd-scripts pads to the full length, has no BREAK, and takes SD 2's `!` for padding."""
    kohya, a1111 = JOINS["kohya"], JOINS["a1111"]
    assert (kohya.fixed_length, kohya.reads_break, kohya.pads_with_token) == (True, False, True)
    assert (a1111.fixed_length, a1111.reads_break, a1111.pads_with_token) == (False, True, False)
    tokenizer, pad = tokenizer_of({}, EOS), SD1.text_encoders[0].text.pad_id
    chunks = {
        join: [
            TextTokens(tokenizer, TextLayout(225, join, split, "no_norm"), pad)("cat BREAK dog")
            for split in ("plain", "comma")
        ]
        for join in ("kohya", "a1111")
    }
    assert [len(text.ids) for text in chunks["kohya"]] == [3, 3]
    assert [len(text.ids) for text in chunks["a1111"]] == [2, 2]


@pytest.mark.parametrize("tokens", [0, 1, 74, 75, 76, 149, 150, 151, 224, 225, 226])
def test_the_line_of_sd_scripts_is_cut_into_chunks_of_75(tokens):
    """The result is three times [BOS, 75 tokens, EOS], for SD 1, where nothing is repaired."""
    text = kohya_tokens(225)(" ".join(["cat"] * tokens))
    assert [len(chunk) for chunk in text.ids] == [CHUNK + 2] * 3
    line = [i for chunk in text.ids for i in chunk[1:-1]]
    kept = min(tokens, 225)
    assert line[:kept] == [2368] * kept
    assert set(line[kept:]) <= {EOS_ID}
    assert text.lost == tokens - kept


def test_a_comma_at_the_very_beginning_is_a_place_to_cut():
    """A1111 goes back to the last comma, even if it is the first token of the chunk."""
    tokens = TextTokens(tokenizer_of({}, EOS), TextLayout(225, "a1111", "comma", "off"), EOS_ID)
    comma = tokens(",").ids[0][1]
    for place in (0, 55, 60, 74):
        words = ["cat"] * 76
        words[place] = ","
        first = [i for i in tokens(" ".join(words)).ids[0][1:-1] if i != EOS_ID]
        cut = CHUNK - place <= 20
        assert len(first) == (place + 1 if cut else CHUNK), place
        assert (first[-1] == comma) == cut


def test_a_place_without_images_has_a_stand_in_within_the_batch():
    group = Group(0, Size(64, 64))
    sampler = EpochSampler(
        [group] * 5, batch_sizes={group: 2}, seed=1, accumulation=1, num_processes=2
    )
    found = []
    for step in range(4):
        for rank in range(2):
            optimizer_step = sampler.optimizer_step(step, rank)
            for micro_batch in optimizer_step.micro_batches:
                if micro_batch.is_padding:
                    found.append(micro_batch.positions)
                assert len(micro_batch.positions) == len(micro_batch.samples)
                assert max(micro_batch.positions) < optimizer_step.size
    assert set(found) == {(0,)}


def test_what_open_clip_files_hold_besides():
    """SD 2 files contain a projection and a scale that it does not use; SDXL's second encoder
    does."""
    plain, projecting = open_clip_naming("a.", used=23), open_clip_naming("b.", projects=True)
    assert dict(plain.tail.ones) == {"text_projection": 2, "logit_scale": 0}
    assert dict(projecting.tail.ones) == {"logit_scale": 0}
    assert plain.turned == frozenset()
    assert projecting.turned == {"text_projection"}
    assert (plain.tail.used, plain.tail.spare) == (23, 1)
    assert (projecting.tail.used, projecting.tail.spare) == (None, 0)


def test_layers_are_counted_where_a_network_has_counted_ones():
    names = {f"c.model.transformer.resblocks.{n}.ln_1.weight" for n in range(12)}
    assert open_clip_naming("c.").layers_in(names) == 12
    assert clip_naming("c.").layers_in(names) == 0
    assert unet_naming("model.diffusion_model.").layers_in(names) == 0
