"""Buckets: tables equal to sd-scripts', and a choice that never crops more than theirs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impasto.data.buckets import fit_into, make_bucket_sizes, select_bucket
from impasto.data.records import Size
from impasto.errors import ConfigError

BUCKETS = make_bucket_sizes(Size(512, 512), 256, 1024, 64)
SIZES = st.builds(Size, st.integers(1, 6000), st.integers(1, 6000))


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


@pytest.mark.parametrize("case_index", [0, 1, 2])
def test_never_crops_more_than_the_recorded_choice(golden, case_index):
    case = golden("bucket_select.json")[case_index]
    area = Size(*case["max_reso"])
    buckets = make_bucket_sizes(area, case["min_size"], case["max_size"], case["reso_steps"])
    compared = 0
    for width, height, bucket_w, bucket_h, *_ in case["rows"]:
        if not bucket_w or not bucket_h:
            continue
        size = Size(width, height)
        ours = kept_share(size, select_bucket(size, buckets))
        assert ours >= kept_share(size, Size(bucket_w, bucket_h)) - 1e-12
        compared += 1
    assert compared > 100


def kept_share(size: Size, bucket: Size) -> float:
    return min(size.aspect / bucket.aspect, bucket.aspect / size.aspect)


@given(SIZES)
def test_the_choice_keeps_the_most(size):
    chosen = kept_share(size, select_bucket(size, BUCKETS))
    assert all(chosen >= kept_share(size, bucket) for bucket in BUCKETS)


@given(SIZES)
def test_the_resized_picture_covers_its_bucket_and_the_crop_is_inside(size):
    bucket = select_bucket(size, BUCKETS)
    resized, crop = fit_into(size, bucket)
    assert crop.size == bucket
    left, top, right, bottom = crop.ltrb
    assert 0 <= left <= right <= resized.width
    assert 0 <= top <= bottom <= resized.height
    assert resized.width == bucket.width or resized.height == bucket.height


@given(st.sampled_from(BUCKETS))
def test_a_picture_of_a_buckets_size_is_left_alone(bucket):
    assert select_bucket(bucket, BUCKETS) == bucket
    assert fit_into(bucket, bucket)[0] == bucket


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
