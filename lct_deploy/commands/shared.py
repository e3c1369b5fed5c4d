"""What commands do alike: take an extra's imports, name their command line, talk beside their answer."""

import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console, RenderableType

from lct_deploy.errors import RuntimeUnavailableError

_NO_TERMINAL = 10_000  # characters


def announce(message: str) -> None:
    """To stderr: stdout is for the answer."""
    print(message, file=sys.stderr)


def command_line() -> str:
    """What the user typed, for the manifest to say how an artifact was made."""
    return shlex.join(["lct-deploy", *sys.argv[1:]])


def print_wide(printed: RenderableType) -> None:
    """To stdout; where that is no terminal, without folding lines at the 80 characters that rich assumes."""
    console = Console() if sys.stdout.isatty() else Console(width=_NO_TERMINAL)
    console.print(printed)


@contextmanager
def extra(name: str) -> Generator[None]:
    """Imports that the extra called `name` brings; raises RuntimeUnavailableError without it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            f"this command needs the package {error.name}, which is not installed",
            hint=f"pip install 'lct-deploy[{name}]'",
        ) from error
