"""Where TensorRT-RTX keeps the kernels that it compiles for this GPU: never in the bundle.

RTX compiles an engine's kernels when a context is made. What it has compiled is kept in a file of the
user's cache directory, one an engine and GPU, and read at the next start.
"""

import logging
from typing import Any

from lct_deploy.atomic import atomic_file
from lct_deploy.errors import UsageError
from lct_deploy.runtime.cache import VARIABLE, cache_directory

logger = logging.getLogger("lct_deploy.runtime")


class RtxCache:
    """The compiled kernels of one engine on one GPU; `name` tells the file from all others."""

    def __init__(self, name: str) -> None:
        self._file = cache_directory() / f"{name}.rtx-kernels"
        self._cache: Any = None
        self._read = b""

    def attach(self, config: Any) -> None:
        """Have the contexts of `config` take their kernels from here and leave new ones here."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what has been compiled; where that is not possible the log says that it will be again."""
        compiled = bytes(memoryview(self._cache.serialize()))
        if compiled == self._read:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._file) as temporary:
                temporary.write_bytes(compiled)
        except (OSError, UsageError) as error:
            logger.warning(
                "%s cannot be written (%s): TensorRT-RTX compiles its kernels anew at each start; %s names "
                "another directory",
                self._file,
                error,
                VARIABLE,
            )

    def _load(self) -> None:
        """RTX itself ignores what another version or GPU has left."""
        if self._file.is_file():
            self._read = self._file.read_bytes()
            self._cache.deserialize(self._read)
