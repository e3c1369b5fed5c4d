"""What a section of the report is: how its rows are made, and how a file of them is shown."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.report.sources import Results, Source


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Of one file of rows: Markdown, and SVGs by the title that stands in the place of each."""

    text: str
    plots: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Section:
    """One program's results."""

    kind: str
    title: str
    command: str  # that makes the rows
    about: str
    show: Callable[[Source, Results], Shown]
    packages: tuple[str, ...] = ("onnxruntime",)  # whose versions the figures hang on

    @property
    def anchor(self) -> str:
        """Of its heading, as GitHub makes them."""
        return re.sub(r"[^\w -]", "", self.title.lower()).replace(" ", "-")
