"""Runtimes behind one protocol; each is imported only when it is asked for."""

from lct_deploy.runtime.base import Runtime, RuntimeOptions, RuntimeSpec
from lct_deploy.runtime.select import open_artifact, open_bundled

__all__ = ["Runtime", "RuntimeOptions", "RuntimeSpec", "open_artifact", "open_bundled"]
