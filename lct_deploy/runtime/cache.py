"""Where runtimes keep what they can make again: never in a bundle."""

import os
from pathlib import Path

VARIABLE = "LCT_CACHE"


def cache_directory() -> Path:
    """`LCT_CACHE`, or `lct-deploy` in the user's cache directory."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lct-deploy"
