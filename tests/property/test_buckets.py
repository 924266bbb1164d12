"""Buckets: tables equal to sd-scripts', and a selection that never crops more than theirs."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from impasto.data.planning.bucket_assignment import (
    ASSIGNMENTS,
    Limits,
    assign_native,
    cover_size,
    kept_fraction,
)
from impasto.data.planning.buckets import make_bucket_sizes, novelai_bucket_sizes
from impasto.data.planning.plan import plan_images
from impasto.data.records import FileStamp, ImageRecord, Size
from impasto.errors import ConfigError

BUCKETS = make_bucket_sizes(Size(512, 512), 256, 1024, 64)
LIMITS = Limits(tuple(BUCKETS), 512 * 512, 256, 1024, 64)
SIZES = st.builds(Size, st.integers(1, 6000), st.integers(1, 6000))


def native(size):
    return assign_native([size], LIMITS)[0]


def test_tables_equal_the_recorded_ones(golden):
    cases = golden("bucket_resos.json")
    assert len(cases) == 90
    for case in cases:
        area = Size(*case["max_reso"])
        expected = [tuple(size) for size in case["resos"]]
        try:
            found = make_bucket_sizes(area, case["min_size"], case["max_size"], case["divisible"])
        except ConfigError:
            found = []
        assert [(size.width, size.height) for size in found] == expected, case


def limits_of(case) -> Limits:
    area = Size(*case["max_reso"])
    bounds = case["min_size"], case["max_size"], case["reso_steps"]
    return Limits(tuple(make_bucket_sizes(area, *bounds)), area.area, *bounds)


def test_kohya_selection_equals_the_recorded_one(golden):
    """16 configurations, half of them no-upscale; where sd-scripts fails, ours uses a step."""
    compared = repaired = 0
    for case in golden("bucket_select.json"):
        limits, assign = limits_of(case), ASSIGNMENTS["kohya", case["no_upscale"]]
        for width, height, bucket_w, bucket_h, resized_w, resized_h in case["rows"]:
            bucket, resized = assign([Size(width, height)], limits)[0]
            if not bucket_w or not bucket_h:
                assert case["no_upscale"]
                assert min(bucket.width, bucket.height) == limits.step
                repaired += 1
                continue
            assert (bucket.width, bucket.height) == (bucket_w, bucket_h), (case["max_reso"], width)
            assert (resized.width, resized.height) == (resized_w, resized_h)
            compared += 1
    assert compared > 1500
    assert repaired > 20


@pytest.mark.parametrize("no_upscale", [False, True])
def test_native_never_crops_more_than_the_recorded_choice(golden, no_upscale):
    """Compared by cropped pixels; without upscaling, also where sd-scripts fails."""
    compared = 0
    for case in golden("bucket_select.json"):
        if case["no_upscale"] != no_upscale:
            continue
        limits = limits_of(case)
        for width, height, bucket_w, bucket_h, resized_w, resized_h in case["rows"]:
            if not bucket_w or not bucket_h:
                continue
            size, theirs = Size(width, height), Size(bucket_w, bucket_h)
            ours, resized = ASSIGNMENTS["native", no_upscale]([size], limits)[0]
            if no_upscale:
                lost = 1 - theirs.area / (resized_w * resized_h)
                assert 1 - ours.area / resized.area <= lost + 1e-9, (width, height)
            else:
                assert kept_fraction(size, ours) >= min(kept_fraction(size, theirs), 1.0) - 1e-12
            compared += 1
    assert compared > 600


@given(SIZES, st.sampled_from([512, 640, 768]), st.sampled_from([8, 32, 64]))
@example(Size(685, 965), 512, 8)
@example(Size(1035, 1307), 512, 8)
def test_without_enlarging_buckets_stay_within_limits_and_picture(size, side, step):
    area = Size(side, side)
    limits = Limits(tuple(make_bucket_sizes(area, 256, 1024, step)), area.area, 256, 1024, step)
    bucket, resized = ASSIGNMENTS["native", True]([size], limits)[0]
    theirs, _ = ASSIGNMENTS["kohya", True]([size], limits)[0]
    is_within = theirs.width in range(256, 1025) and theirs.height in range(256, 1025)
    if is_within and theirs.area > limits.area:
        width, height = theirs.wh
        shorter = [Size(width - step, height), Size(width, height - step)]
        fitting = [one for one in shorter if one.area <= limits.area]
        theirs = max(fitting, key=lambda one: kept_fraction(size, one))
    if is_within:
        assert kept_fraction(size, bucket) >= kept_fraction(size, theirs) - 1e-12
        assert bucket.area >= theirs.area, "an unneeded downscale"
    beyond = max(theirs.wh) > 1024 or min(theirs.wh) < 256
    for own, theirs_side in ((bucket.width, size.width), (bucket.height, size.height)):
        assert own % step == 0
        assert step <= own
        assert beyond or own <= 1024
        assert beyond or own >= min(256, theirs_side // step * step)
        assert own <= max(theirs_side, step)
    if min(size.width, size.height) >= 256 and max(size.width, size.height) <= 1024:
        assert bucket.area <= limits.area
    if min(size.width, size.height) >= step:
        assert resized.area <= size.area
    assert resized.width >= bucket.width
    assert resized.height >= bucket.height


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1050, 1080, (512, 512)), (3072, 3000, (512, 512)), (300, 300, (256, 256)),
     (300, 200, (256, 192)), (60, 300, (64, 256)), (40, 40, (64, 64)), (512, 512, (512, 512))],
)  # fmt: skip
def test_small_and_nearly_square_pictures(width, height, expected):
    """Sizes that sd-scripts' users reported: no 448x448, and no bucket of width 0."""
    limits = Limits(tuple(BUCKETS), 512 * 512, 256, 1024, 64)
    bucket, _ = ASSIGNMENTS["native", True]([Size(width, height)], limits)[0]
    assert (bucket.width, bucket.height) == expected


def test_novelais_table():
    table = {(size.width, size.height) for size in novelai_bucket_sizes()}
    tall = {(256, 1024), (320, 1024), (384, 1024), (384, 960), (384, 896), (448, 832), (512, 768),
            (512, 704), (576, 640)}  # fmt: skip
    assert table == tall | {(h, w) for w, h in tall} | {(512, 512)}
    assert len(table) == 19


@given(SIZES)
def test_the_choice_keeps_the_most(size):
    chosen = kept_fraction(size, native(size)[0])
    assert all(chosen >= kept_fraction(size, bucket) for bucket in BUCKETS)


@given(SIZES)
def test_the_resized_picture_covers_its_bucket_and_the_crop_is_inside(size):
    record = ImageRecord(Path("x.png"), size, FileStamp(1, 1))
    planned = plan_images([record], Size(512, 512)).images[0]
    bucket, resized, crop = planned.bucket, planned.resized, planned.crop
    assert (bucket, resized) == native(size)
    assert crop.size == bucket
    left, top, right, bottom = crop.ltrb
    assert 0 <= left <= right <= resized.width
    assert 0 <= top <= bottom <= resized.height
    assert resized.width == bucket.width or resized.height == bucket.height


@given(st.sampled_from(BUCKETS))
def test_a_picture_of_a_buckets_size_is_left_alone(bucket):
    assert native(bucket) == (bucket, bucket)
    assert ASSIGNMENTS["kohya", False]([bucket], LIMITS) == [(bucket, bucket)]


@given(st.lists(SIZES, min_size=1, max_size=30), st.sampled_from(sorted(ASSIGNMENTS)))
def test_many_are_placed_as_each_alone(sizes, way):
    assign = ASSIGNMENTS[way]
    assert assign(sizes, LIMITS) == [assign([size], LIMITS)[0] for size in sizes]


@given(SIZES)
def test_the_covering_size_is_the_same_for_one_and_for_many(size):
    bucket, resized = native(size)
    assert resized == cover_size(size, bucket)


@given(st.integers(64, 1024), st.integers(64, 1024), st.sampled_from([8, 32, 64]))
def test_buckets_stay_within_area_and_step(width, height, step):
    area = Size(width, height)
    for size in make_bucket_sizes(area, step, 2048, step):
        assert size.area <= area.area
        assert size.width % step == 0
        assert size.height % step == 0


def test_bounds_that_no_bucket_fits_are_explained():
    with pytest.raises(ConfigError, match="No aspect-ratio bucket fits"):
        make_bucket_sizes(Size(32, 32), 256, 1024, 64)


@given(SIZES, st.sampled_from([512, 768]), st.sampled_from([32, 64]))
def test_without_enlarging_the_choice_is_the_best_of_all_buckets(size, side, step):
    """Trying every bucket finds the same: the largest that crops no more than sd-scripts' would."""
    limits = Limits((), side * side, 256, 1024, step)

    def sides(pixels):
        longest = max(step, min(1024, pixels) // step * step)
        return range(min(longest, 256), longest + 1, step)

    every = [
        Size(width, height)
        for width in sides(size.width)
        for height in sides(size.height)
        if width * height <= limits.area
    ]
    theirs, shrunk = ASSIGNMENTS["kohya", True]([size], limits)[0]
    wanted = min(kept_fraction(size, theirs), max(kept_fraction(size, bucket) for bucket in every))
    best = max(bucket.area for bucket in every if kept_fraction(size, bucket) >= wanted)
    bucket, resized = ASSIGNMENTS["native", True]([size], limits)[0]
    assert 1 - bucket.area / resized.area <= 1 - theirs.area / shrunk.area + 1e-9
    if bucket in every and bucket != theirs:
        assert bucket.area == best
    elif bucket not in every:
        assert max(theirs.wh) > 1024 or min(theirs.wh) < 256, "only if sd-scripts' is outside"
