"""What commands do alike: take an extra's imports, name their command line, talk beside their answer."""

import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager

from lct_deploy.errors import RuntimeUnavailableError


def announce(message: str) -> None:
    """To stderr: stdout is for the answer."""
    print(message, file=sys.stderr)


def command_line() -> str:
    """What the user typed, for the manifest to say how an artifact was made."""
    return shlex.join(["lct-deploy", *sys.argv[1:]])


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
