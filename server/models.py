"""The models being served: each a bundle, its runtime and the threads that run it."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lct_deploy.bundle import Bundle, open_bundle
from lct_deploy.errors import UsageError
from lct_deploy.golden import check_golden
from lct_deploy.manifest import Manifest, Precision
from lct_deploy.runtime import Runtime, RuntimeOptions, RuntimeSpec, open_bundled
from lct_deploy.runtime.submit import Inference, Submitter
from server.settings import ServerSettings

WARM_UP_IMAGES = 4
logger = logging.getLogger("lct_deploy.server")


class ServedModel:
    """A bundle whose runtime has answered its golden inputs correctly on this machine."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle = bundle
        self._runtime = runtime
        self._submitter = Submitter(runtime, name=f"engine-{self.name}")

    @classmethod
    def open(
        cls, path: Path, runtime: str, options: RuntimeOptions, precision: Precision | None = None
    ) -> "ServedModel":
        """Raises BundleError, RuntimeUnavailableError or ParityError where it must not be served."""
        bundle = open_bundle(path)
        opened = open_bundled(bundle, runtime, options, precision)
        try:
            check_golden(bundle, opened, images=WARM_UP_IMAGES)
        except Exception:
            opened.close()
            raise
        return cls(bundle, opened)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def spec(self) -> RuntimeSpec:
        return self._runtime.spec

    async def infer(self, images: NDArray[np.uint8]) -> Inference:
        """Logits for (N, H, W, 3) uint8 images; the event loop and the decoders go on meanwhile."""
        return await asyncio.wrap_future(self._submitter.submit(images))

    def describe(self) -> str:
        """One line for the log: what is served, and what runs it."""
        spec = self._runtime.spec
        versions = ", ".join(f"{name} {version}" for name, version in spec.versions.items())
        compiled = ""
        if spec.compiled_batches:
            batches = ", ".join(map(str, spec.compiled_batches))
            others = "filled up to them" if spec.pads else "on the bundle's graph"
            compiled = f"; batches of {batches} run compiled, others {others}"
        return (
            f"{self.name} version {self.manifest.version}: {spec.precision} on {spec.device} "
            f"({versions}){compiled}"
        )

    def close(self) -> None:
        self._submitter.close()


class ModelRegistry:
    """Served models by name."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}

    @classmethod
    def open(cls, settings: ServerSettings) -> "ModelRegistry":
        """Open every bundle, or none; raises UsageError where two have the same name."""
        options = RuntimeOptions(
            threads=settings.intra_op_threads,
            provider=settings.provider,
            streams=settings.streams,
            cuda_graphs=settings.cuda_graphs,
        )
        models: list[ServedModel] = []
        try:
            for path in settings.bundles:
                models.append(ServedModel.open(path, settings.runtime, options, settings.precision))  # noqa: PERF401 - closed below
            _check_names(models)
        except Exception:
            for model in models:
                model.close()
            raise
        for model in models:
            logger.info("serving %s", model.describe())
        return cls(models)

    @property
    def models(self) -> list[ServedModel]:
        return list(self._models.values())

    @property
    def names(self) -> list[str]:
        return list(self._models)

    def get(self, name: str | None) -> ServedModel | None:
        """The model called `name`, or the only one there is where `name` is None."""
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        return self._models.get(name) if name is not None else None

    def close(self) -> None:
        for model in self._models.values():
            model.close()


def _check_names(models: Sequence[ServedModel]) -> None:
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"two bundles have the name {', '.join(twice)}", hint="export one again with another --name"
        )
