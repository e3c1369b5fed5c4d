"""`lct-deploy models`."""

from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
from typing import TYPE_CHECKING, Annotated

import typer

from lct_deploy.commands.options import JsonOption, parse_sizes
from lct_deploy.errors import UsageError

if TYPE_CHECKING:
    from lct_deploy.cost import BackboneRow, CostRow


def models_command(
    backbone: Annotated[
        bool, typer.Option("--backbone", help="What a detector takes: no classifier (the paper's Table 6).")
    ] = False,
    size: Annotated[
        str | None, typer.Option(help="With --backbone: width and height; default 1024x1024, Table 6's.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the architectures with parameters and multiply-adds (the paper's Tables 1 and 6)."""
    from lct_deploy.cost import DETECTION_SIZE, backbone_table, cost_table

    if size is not None and not backbone:
        raise UsageError("--size is for --backbone: classifiers are counted at their own size")
    if backbone:
        _print_backbones(backbone_table(_parse_size(size) if size else DETECTION_SIZE), json=json)
    else:
        _print_classifiers(cost_table(), json=json)


def _parse_size(text: str) -> tuple[int, int]:
    """Height and width of WIDTHxHEIGHT."""
    (width, height), *others = parse_sizes(text)
    if others:
        raise UsageError(f"{text!r} is several sizes, give one such as 1024x1024")
    return height, width


def _print_classifiers(rows: "Sequence[CostRow]", *, json: bool) -> None:
    if json:
        print(dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{'architecture':<20} {'image':>5} {'parameters':>12} {'multiply-adds':>14}")
    for row in rows:
        cost = f"{row.parameters / 1e6:>11.2f}M {row.multiply_adds / 1e9:>13.3f}G"
        print(f"{row.arch:<20} {row.image_size:>5} {cost}")


def _print_backbones(rows: "Sequence[BackboneRow]", *, json: bool) -> None:
    if json:
        print(dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{'architecture':<20} {'image':>9} {'parameters':>12} {'Δ':>9} {'multiply-adds':>14} {'Δ':>9}")
    for row in rows:
        image = f"{row.width}x{row.height}"
        parameters = f"{row.parameters / 1e6:>11.2f}M {row.added_parameters / 1e6:>+8.3f}M"
        cost = f"{row.multiply_adds / 1e9:>13.3f}G {row.added_multiply_adds / 1e9:>+8.3f}G"
        print(f"{row.arch:<20} {image:>9} {parameters} {cost}")
