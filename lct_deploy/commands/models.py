"""`lct-deploy models`."""

from dataclasses import asdict
from json import dumps

from lct_deploy.commands.options import JsonOption


def models_command(json: JsonOption = False) -> None:
    """List the architectures with parameters and multiply-adds (the paper's Table 1)."""
    from lct_deploy.cost import cost_table

    rows = cost_table()
    if json:
        print(dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{'architecture':<20} {'image':>5} {'parameters':>12} {'multiply-adds':>14}")
    for row in rows:
        cost = f"{row.parameters / 1e6:>11.2f}M {row.multiply_adds / 1e9:>13.3f}G"
        print(f"{row.arch:<20} {row.image_size:>5} {cost}")
