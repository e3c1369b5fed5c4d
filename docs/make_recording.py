"""Run the demo and write what it prints to docs/demo.svg, as a terminal shows it."""

from pathlib import Path

from rich.console import Console

from lct_deploy.demo import run_demo

RECORDING = Path(__file__).with_name("demo.svg")


def main() -> None:
    console = Console(record=True, width=104, force_terminal=True, color_system="truecolor", highlight=False)
    console.print("$ make demo", style="bold")
    run_demo(console)
    console.save_svg(str(RECORDING), title="lct-deploy")


if __name__ == "__main__":
    main()
