"""The programs of this package: an error that a user can mend is a sentence, not a traceback."""

import sys
from collections.abc import Callable

import typer

from lct_deploy.errors import LctDeployError


def run_command(main: Callable[..., None]) -> None:
    """Exit 0 done, 1 failed, 2 wrong use."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """A program of several commands; the same."""
    try:
        app()
    except LctDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
