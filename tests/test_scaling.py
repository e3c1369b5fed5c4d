"""How cost grows: the exponent, and one dimension measured."""

from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.growth import exponent


@pytest.mark.parametrize(("power", "fixed", "expected"), [(1, 0, 1), (2, 0, 2), (0.5, 0, 0.5), (0, 3, 0)])
def test_the_exponent_is_the_slope_of_the_logarithms(power: float, fixed: float, expected: float) -> None:
    work = [1.0, 10.0, 100.0, 1000.0]
    found = exponent(work, [0.1 * one**power + fixed for one in work])
    assert found == pytest.approx(expected, abs=0.15 if fixed else 1e-9)


def test_a_dimension_is_measured(monkeypatch: pytest.MonkeyPatch, demo_bundle: Path) -> None:
    class OfTheSameNetwork:
        def bundle(self, precision: str) -> Path:
            return demo_bundle

    def prepared(arch: str, precision: str, *, size: int) -> OfTheSameNetwork:
        return OfTheSameNetwork()

    monkeypatch.setattr(scaling, "prepare_bundle", prepared)
    monkeypatch.setattr(scaling, "CALLERS", (1, 2))
    found = list(scaling._callers(0.5))
    assert [row.work for row in found] == [1, 2]
    assert all(row.milliseconds > 0 and row.per_second > 0 and row.stable for row in found)
