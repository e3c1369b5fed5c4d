"""Which batch sizes an engine runs, and how any other batch is made of them."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatchRange:
    """An optimization profile: the batches that it takes, and the one that it is fastest at."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Images `start` to `stop` of a batch, run as one of `bucket` images."""

    start: int
    stop: int
    bucket: int


def bucket_sizes(profiles: Sequence[BatchRange]) -> tuple[int, ...]:
    """The batches that run without padding: each profile's own three, and the powers of two between.

    A batch within a profile is thus filled up to less than twice its size.
    """
    return tuple(sorted({size for profile in profiles for size in _sizes(profile)}))


def profile_of(bucket: int, profiles: Sequence[BatchRange]) -> int:
    """The index of the profile whose optimum is nearest to `bucket`, in ratio, of those that take it."""
    taking = [i for i, profile in enumerate(profiles) if profile.min <= bucket <= profile.max]
    return min(taking, key=lambda i: (abs(math.log(profiles[i].opt / bucket)), i))


def split(count: int, buckets: Sequence[int]) -> list[Chunk]:
    """`count` images: chunks of the largest bucket, then the rest in the smallest that holds it."""
    largest = max(buckets)
    starts = range(0, count, largest)
    edges = itertools.pairwise([*starts, count])
    return [
        Chunk(start=start, stop=stop, bucket=min(size for size in buckets if size >= stop - start))
        for start, stop in edges
    ]


def _sizes(profile: BatchRange) -> set[int]:
    powers = (1 << exponent for exponent in range(profile.max.bit_length()))
    return {profile.min, profile.opt, profile.max, *(p for p in powers if profile.min < p < profile.max)}
