"""`lct-deploy demo`."""


def demo_command() -> None:
    """Run the whole pipeline on the shipped checkpoint."""
    from rich.console import Console

    from lct_deploy.demo import run_demo

    run_demo(Console(highlight=False, soft_wrap=True))
