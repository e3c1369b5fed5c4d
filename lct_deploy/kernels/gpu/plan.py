"""How a tensor is divided among programs: by the spec alone, so that it can be tested without a GPU.

One pass: a program keeps the whole images of some groups' channels in its registers, so that X is read
once. Two passes, where that does not fit: sums of pixel ranges first, then the gate and Y; X is read twice.
A program works on tiles of `tile` pixels × `width` channels, of which it goes through `tiles`.
"""

from dataclasses import dataclass
from typing import Literal

from lct_deploy.kernels.gpu.spec import KernelSpec

WARP = 32
MAX_WARPS = 32
VECTOR_BYTES = 16  # the widest load of a thread
SECTOR_BYTES = 32  # what the memory delivers at the least
# A row of channels so wide is fetched without waste even where neighbouring programs run apart in time.
ROW_BYTES = 64
# X in half of an SM's registers: addresses and sums need the rest.
ON_CHIP_BYTES = 128 * 1024
# Two programs share an SM up to here: one stores while the other loads.
SHARED_SM_BYTES = 64 * 1024
REGISTERS_FOR_X = 32  # of a thread, each of four bytes
# A program of the two-pass form goes through so much, or more where there would be too many ranges.
RANGE_BYTES = 64 * 1024
MAX_RANGES = 32
MAX_TILES = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`span` channels, whole groups, share their statistics; `width` of them stand in a tile.

    In one pass `width` covers the span. In two passes a single group wider than a tile is cut into
    `parts`. `width` and `tile` are powers of two: what exceeds the span or the image is masked.
    """

    form: Literal["one-pass", "two-pass"]
    span: int
    width: int
    parts: int
    tile: int
    tiles: int
    ranges: int
    warps: int

    def programs_per_sample(self, spec: KernelSpec) -> int:
        return spec.channels // self.span * self.parts * self.ranges

    def workspace_bytes_per_sample(self, spec: KernelSpec) -> int:
        """A float32 sum for each channel and pixel range."""
        return 4 * spec.channels * self.ranges if self.form == "two-pass" else 0

    def bytes_moved(self, spec: KernelSpec, samples: int) -> int:
        """What is asked of the memory: the floor, and for two passes X and the sums once more."""
        moved = spec.bytes_floor(samples)
        if self.form == "two-pass":
            moved += samples * spec.channels * spec.pixels * spec.item_bytes
            moved += 2 * samples * self.workspace_bytes_per_sample(spec)
        return moved


def plan(spec: KernelSpec) -> Plan:
    """One pass where the channels of a program are wide enough in memory and fit on chip."""
    return _one_pass(spec) or _two_passes(spec)


def _one_pass(spec: KernelSpec) -> Plan | None:
    """The narrowest slab that reads whole rows, else the narrowest that reads whole sectors."""
    for row, limit in ((ROW_BYTES, SHARED_SM_BYTES), (SECTOR_BYTES, ON_CHIP_BYTES)):
        slab = _slab(spec, _span(spec, row))
        if _slab_bytes(spec, slab) <= limit:
            return slab
    return None


def _slab(spec: KernelSpec, span: int) -> Plan:
    width = _power_of_two(span)
    tile, tiles = _tiling(spec, width)
    registers = tile * tiles * width * spec.item_bytes // 4
    return Plan(
        form="one-pass",
        span=span,
        width=width,
        parts=1,
        tile=tile,
        tiles=tiles,
        ranges=1,
        warps=min(MAX_WARPS, _power_of_two(_ceil(registers, WARP * REGISTERS_FOR_X))),
    )


def _slab_bytes(spec: KernelSpec, slab: Plan) -> int:
    return slab.tile * slab.tiles * slab.width * spec.item_bytes


def _tiling(spec: KernelSpec, width: int) -> tuple[int, int]:
    """Tiles that waste the fewest registers on pixels outside the image; of equals the largest."""
    smallest = _smallest_tile(spec, width)
    tile = max(smallest, _power_of_two(_ceil(spec.pixels, MAX_TILES)))
    choices = [(tile, _ceil(spec.pixels, tile))]
    while tile < spec.pixels:
        tile *= 2
        choices.append((tile, _ceil(spec.pixels, tile)))
    return min(choices, key=lambda choice: (choice[0] * choice[1], -choice[0]))


def _smallest_tile(spec: KernelSpec, width: int) -> int:
    """Gives every thread of a warp a vector, and in NCHW neighbouring threads neighbouring pixels."""
    vectors = WARP * VECTOR_BYTES // spec.item_bytes // width
    return max(1, vectors, WARP if spec.layout == "nchw" else 1)


def _two_passes(spec: KernelSpec) -> Plan:
    row = 2 * ROW_BYTES
    span = _span(spec, row)
    width = _power_of_two(span)
    if span == spec.group_size:
        width = min(width, max(SECTOR_BYTES, row // spec.item_bytes))
    elements = 8 * WARP * 2 * VECTOR_BYTES // spec.item_bytes  # two vectors for each thread of 8 warps
    tile = max(1, elements // width)
    range_pixels = max(RANGE_BYTES // spec.item_bytes // width, _ceil(spec.pixels, MAX_RANGES))
    tiles = min(_ceil(range_pixels, tile), _ceil(spec.pixels, tile))
    return Plan(
        form="two-pass",
        span=span,
        width=width,
        parts=_ceil(span, width),
        tile=tile,
        tiles=tiles,
        ranges=_ceil(spec.pixels, tile * tiles),
        warps=8,
    )


def _span(spec: KernelSpec, row_bytes: int) -> int:
    """Channels of the fewest whole groups that stand in a row of so many bytes.

    In NCHW a row is one channel's pixels: a single group always does.
    """
    if spec.layout == "nchw":
        return spec.group_size
    return next(
        count * spec.group_size
        for count in range(1, spec.groups + 1)
        if spec.groups % count == 0
        and (count * spec.group_size * spec.item_bytes >= row_bytes or count == spec.groups)
    )


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _power_of_two(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
