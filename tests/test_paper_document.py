"""docs/paper.md says which lines compute the paper's equations: they have to be there."""

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parent.parent / "docs" / "paper.md"
LINES = re.findall(r"\| `([^`]+)` \| \[[\w.]+\]\(([^)]+)\) \|", DOCUMENT.read_text())


@pytest.mark.parametrize(("line", "path"), LINES)
def test_an_equations_line_is_in_its_file(line: str, path: str) -> None:
    lines = [found.strip() for found in (DOCUMENT.parent / path).read_text().splitlines()]
    assert line in lines


def test_all_equations_have_one() -> None:
    assert len(LINES) == 10
    for number in range(1, 6):
        assert f"| ({number}) |" in DOCUMENT.read_text()
