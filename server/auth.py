"""API keys: who may infer, who may administer, who may read the metrics.

Keys come as `Authorization: Bearer KEY`. A group without keys is open to everybody, but for `admin`,
which is closed to everybody.
"""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import SecretStr
from starlette.requests import Request

from lct_deploy.errors import UsageError
from server.problems import Problem
from server.settings import ServerSettings

Group = Literal["infer", "admin", "metrics"]
_GROUPS: dict[str, Group] = {group: group for group in get_args(Group)}
_LONGEST = 512


class ApiKeys:
    """The keys of each group, as digests: all of the same length, and none of them a secret."""

    def __init__(self, keys: Mapping[Group, list[str]]) -> None:
        self._digests = {group: [_digest(key) for key in keys.get(group, [])] for group in _GROUPS.values()}

    @classmethod
    def of(cls, settings: ServerSettings) -> Self:
        """From the settings and the file that they name; raises UsageError for what is no key."""
        keys = _read_file(settings.keys_file) if settings.keys_file else {}
        told: Mapping[Group, SecretStr | None] = {
            "infer": settings.infer_keys,
            "admin": settings.admin_keys,
            "metrics": settings.metrics_keys,
        }
        for group, text in told.items():
            if text is not None:
                keys.setdefault(group, []).extend(_split(group, text.get_secret_value()))
        return cls(keys)

    def check(self, request: Request, group: Group) -> None:
        """Raises a Problem of 401 for a request without a key of `group`, of 403 where there is none."""
        digests = self._digests[group]
        if not digests and group == "admin":
            raise Problem(403, "administration is off; start the server with LCT_ADMIN_KEYS")
        if digests and not _is_among(request.headers.get("authorization", ""), digests):
            raise Problem(401, f"this needs an API key of the group {group}", {"WWW-Authenticate": "Bearer"})


def _is_among(authorization: str, digests: list[bytes]) -> bool:
    """Compares with every key, each in constant time: how long it takes tells nothing."""
    scheme, _, key = authorization.partition(" ")
    given = _digest(key)
    found = [hmac.compare_digest(given, digest) for digest in digests]
    return scheme.lower() == "bearer" and any(found)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _split(group: str, text: str) -> list[str]:
    keys = [key.strip() for key in text.split(",")]
    for key in keys:
        _check(group, key)
    return keys


def _read_file(path: Path) -> dict[Group, list[str]]:
    """Lines of a group and a key, separated by white space; # starts a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the API keys cannot be read: {error}", hint="set LCT_KEYS_FILE") from error
    keys: dict[Group, list[str]] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        group = _GROUPS.get(words[0])
        if group is None or len(words) != 2:
            raise UsageError(
                f"{path}, line {number}: not a group and a key",
                hint=f"write one of {', '.join(_GROUPS)}, a space, and the key",
            )
        _check(f"{path}, line {number}", words[1])
        keys.setdefault(group, []).append(words[1])
    return keys


def _check(where: str, key: str) -> None:
    """Short keys can be guessed; others than visible ASCII cannot be sent."""
    if not (16 <= len(key) <= _LONGEST and key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(
            f"{where}: an API key has to be 16 to {_LONGEST} visible ASCII characters",
            hint="make one: openssl rand -hex 32",
        )
