"""The closest match to a name that does not exist."""

import difflib
from collections.abc import Iterable


def closest(name: str, choices: Iterable[str]) -> str | None:
    matches = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`"; did you mean X?"`, or an empty string where nothing is close."""
    match = closest(name, choices)
    return f"; did you mean {match}?" if match else ""
