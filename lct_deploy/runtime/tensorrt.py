"""TensorRT and TensorRT-RTX: engines of a bundle on the first GPU, without torch."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from queue import LifoQueue
from typing import Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from lct_deploy.errors import UsageError
from lct_deploy.manifest import Artifact
from lct_deploy.rebuild import compile_command
from lct_deploy.runtime import cuda
from lct_deploy.runtime.base import RuntimeOptions, RuntimeSpec, Stages, check_images
from lct_deploy.runtime.buckets import split
from lct_deploy.runtime.engine import Engine, load_engine
from lct_deploy.runtime.engines import is_version_compatible
from lct_deploy.runtime.flavours import Flavour, FlavourName, driver_version, gpu_capability, load_flavour
from lct_deploy.runtime.lane import Lane
from lct_deploy.runtime.rtx_cache import RtxCache

T = TypeVar("T")


class TensorRtRuntime:
    """An engine with several lanes: as many calls run side by side."""

    def __init__(self, engine: Engine, lanes: list[Lane], spec: RuntimeSpec) -> None:
        self._engine, self._spec = engine, spec
        # The last one used is the first to be taken again: its memory is warm.
        self._lanes: LifoQueue[Lane] = LifoQueue()
        for lane in lanes:
            self._lanes.put(lane)

    @classmethod
    def open(cls, path: Path, options: RuntimeOptions, artifact: Artifact | None = None) -> Self:
        if artifact is None:
            raise UsageError(f"{path}: an engine does not say what it is; open it through its bundle")
        flavour = load_flavour(cast("FlavourName", artifact.runtime))
        device = cuda.device_name()
        _register_plugins(artifact, flavour)
        engine = load_engine(
            path,
            flavour,
            rebuild=compile_command(path.parent.parent, artifact),
            host_code=is_version_compatible(artifact),
        )
        cache = _cache(artifact, flavour)
        lanes = _lanes(engine, cache, options)
        if cache is not None:
            cache.save()
        return cls(engine, lanes, _spec(engine, artifact, device, options))

    @property
    def spec(self) -> RuntimeSpec:
        return self._spec

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = self._in_lane(images, Lane.infer)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def profile(self, images: NDArray[np.uint8]) -> Stages:
        parts = self._in_lane(images, Lane.profile)
        names = [stage.name for stage in fields(Stages)]
        return Stages(**{name: sum(getattr(part, name) for part in parts) for name in names})

    def _in_lane(
        self, images: NDArray[np.uint8], run: Callable[[Lane, NDArray[np.uint8], int], T]
    ) -> list[T]:
        """Of each batch that the engine has for them, in a lane of this call's own."""
        check_images(images, self._spec)
        lanes = self._lanes
        lane = lanes.get()
        try:
            return [
                run(lane, images[chunk.start : chunk.stop], chunk.bucket)
                for chunk in split(len(images), self._engine.buckets)
            ]
        finally:
            lanes.put(lane)

    def close(self) -> None:
        lanes = self._lanes
        del self._lanes
        for _ in range(self._spec.streams):
            lanes.get().close()  # waits for the calls that have one
        del self._engine


def _register_plugins(artifact: Artifact, flavour: Flavour) -> None:
    """RTX launches our kernel from here; an engine of TensorRT carries it inside."""
    if flavour.is_rtx and artifact.build is not None and artifact.build.attention == "plugin":
        from lct_deploy.kernels.gpu.plugin import register_plugins

        register_plugins(flavour)


def _cache(artifact: Artifact, flavour: Flavour) -> RtxCache | None:
    return RtxCache(f"{artifact.sha256[:16]}-{gpu_capability()}") if flavour.is_rtx else None


def _lanes(engine: Engine, cache: RtxCache | None, options: RuntimeOptions) -> list[Lane]:
    with ExitStack() as made:
        lanes: list[Lane] = []
        for _ in range(options.streams):
            lanes.append(Lane(engine, cache, cuda_graphs=options.cuda_graphs))
            made.callback(lanes[-1].close)
        made.pop_all()
    return lanes


def _spec(engine: Engine, artifact: Artifact, device: str, options: RuntimeOptions) -> RuntimeSpec:
    return RuntimeSpec(
        runtime=engine.flavour.name,
        precision=artifact.precision,
        height=engine.height,
        width=engine.width,
        num_classes=engine.classes,
        device=device,
        versions={engine.flavour.name: engine.flavour.version, "driver": driver_version() or "unknown"},
        compiled_batches=engine.buckets,
        pads=True,
        streams=options.streams,
    )
