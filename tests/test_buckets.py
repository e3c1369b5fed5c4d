"""Batches to buckets to profiles: the arithmetic that decides what an engine is asked to run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lct_deploy.runtime.buckets import BatchRange, bucket_sizes, profile_of, split


@st.composite
def ranges(draw: st.DrawFn) -> BatchRange:
    low, best, high = sorted(draw(st.tuples(*[st.integers(1, 256)] * 3)))
    return BatchRange(min=low, opt=best, max=high)


PROFILES = st.lists(ranges(), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("profiles", "sizes"),
    [
        ([(1, 1, 1)], (1,)),
        ([(1, 8, 64)], (1, 2, 4, 8, 16, 32, 64)),
        ([(1, 5, 12)], (1, 2, 4, 5, 8, 12)),
        ([(8, 8, 8)], (8,)),
        ([(1, 1, 1), (2, 32, 48)], (1, 2, 4, 8, 16, 32, 48)),
        ([(3, 3, 6), (1, 2, 2)], (1, 2, 3, 4, 6)),
    ],
)
def test_buckets_by_hand(profiles: list[tuple[int, int, int]], sizes: tuple[int, ...]) -> None:
    assert bucket_sizes([BatchRange(min=a, opt=b, max=c) for a, b, c in profiles]) == sizes


@pytest.mark.parametrize(("bucket", "profile"), [(1, 0), (2, 0), (4, 1), (5, 1), (12, 2), (64, 2)])
def test_the_profile_is_the_one_whose_optimum_is_nearest(bucket: int, profile: int) -> None:
    profiles = [
        BatchRange(min=1, opt=1, max=2),
        BatchRange(min=1, opt=4, max=16),
        BatchRange(min=8, opt=32, max=64),
    ]
    assert profile_of(bucket, profiles) == profile


@given(PROFILES)
def test_every_bucket_has_a_profile_that_takes_it(profiles: list[BatchRange]) -> None:
    for bucket in bucket_sizes(profiles):
        chosen = profiles[profile_of(bucket, profiles)]
        assert chosen.min <= bucket <= chosen.max
        assert bucket not in {p.opt for p in profiles} or chosen.opt == bucket


@given(PROFILES, st.integers(1, 1000))
def test_a_batch_is_split_without_gap_and_filled_up_at_its_end_only(
    profiles: list[BatchRange], count: int
) -> None:
    buckets = bucket_sizes(profiles)
    chunks = split(count, buckets)
    assert [c.start for c in chunks] == [0, *(c.stop for c in chunks[:-1])]
    assert chunks[-1].stop == count
    assert all(c.bucket in buckets and c.stop - c.start == c.bucket for c in chunks[:-1])
    last = chunks[-1].stop - chunks[-1].start
    assert 0 < last <= chunks[-1].bucket


@given(ranges(), st.integers(1, 256))
def test_a_batch_within_a_profile_is_filled_up_to_less_than_twice_its_size(
    profile: BatchRange, count: int
) -> None:
    if profile.min <= count <= profile.max:
        (chunk,) = split(count, bucket_sizes([profile]))
        assert chunk.bucket < 2 * count
