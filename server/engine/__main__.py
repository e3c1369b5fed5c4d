"""`python -m server.engine CONFIG CONTROL RUNNING`: an engine, started by `server.engine.process`.

CONFIG is an EngineConfig in JSON; CONTROL a socket and RUNNING the lanes' clocks, inherited descriptors.
"""

import mmap
import os
import signal
import socket
import sys
from dataclasses import replace

import numpy as np

from lct_deploy.atomic import sha256_file
from lct_deploy.bundle import MANIFEST, Bundle, open_bundle
from lct_deploy.errors import LctDeployError
from lct_deploy.golden import check_golden
from lct_deploy.runtime import Runtime, RuntimeOptions, open_bundled
from server.engine.config import BatchSizes, EngineConfig, EngineInfo
from server.engine.defaults import (
    Sharing,
    computes_on_cpu,
    default_batch,
    default_fill_delay,
    multiply_adds,
    share_cores,
)
from server.engine.engine import Engine
from server.engine.process import Failure
from server.garbage import keep_for_good
from server.observability.logs import configure_logging
from server.orphans import end_with

WARM_UP_IMAGES = 4
ORPHAN_SECONDS = 20


def main() -> None:
    config = EngineConfig.model_validate_json(sys.argv[1])
    control, clocks = socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3])
    # The parent ends this process by closing its socket, once every request has been answered.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    configure_logging(config.log_level, config.log_format, engine=config.bundle.name)
    try:
        bundle = open_bundle(config.bundle)
        cost = multiply_adds(bundle.manifest)
        on_cpu = computes_on_cpu(config.runtime, config.options.provider)
        sharing = share_cores(cost, config.instances, config.threads, on_cpu=on_cpu)
        options = replace(config.options, max_batch=config.max_batch or default_batch(cost))
        runtimes = _open_instances(bundle, config, options, sharing)
        alone = _open(bundle, config, options, sharing.alone) if sharing.alone else None
        sizes = BatchSizes.of(runtimes[0].spec, config.max_batch, usual=default_batch(cost))
    except LctDeployError as error:
        failure = Failure(error=type(error).__name__, message=error.message, hint=error.hint)
        control.send(failure.model_dump_json().encode())
        return
    running = np.frombuffer(mmap.mmap(clocks, os.fstat(clocks).st_size), np.float64)
    engine = Engine(
        runtimes,
        sizes,
        alone=alone,
        max_delay=config.max_delay,
        fill_delay=default_fill_delay(on_cpu=on_cpu),
        control=control,
        running=running,
    )
    keep_for_good()
    control.send(_info(bundle, runtimes[0], sharing, sizes).model_dump_json().encode())
    # Nobody kills an engine that hangs once its parent has gone; otherwise it ends by itself.
    end_with(control, ORPHAN_SECONDS)
    engine.run()
    for runtime in dict.fromkeys((*runtimes, *filter(None, [alone]))):
        runtime.close()


def _open_instances(
    bundle: Bundle, config: EngineConfig, options: RuntimeOptions, sharing: Sharing
) -> list[Runtime]:
    """A runtime for each instance; of onnxruntime without threads one for all, whose weights they share."""
    first = _open(bundle, config, options, sharing.threads)
    if config.runtime == "onnxruntime" and options.provider == "cpu" and sharing.threads == 1:
        return [first] * sharing.instances
    others = range(1, sharing.instances)
    return [first, *(_open(bundle, config, options, sharing.threads) for _ in others)]


def _open(bundle: Bundle, config: EngineConfig, options: RuntimeOptions, threads: int) -> Runtime:
    """A runtime that has answered the golden inputs: first inferences are slow ones."""
    runtime = open_bundled(bundle, config.runtime, replace(options, threads=threads), config.precision)
    check_golden(bundle, runtime, images=WARM_UP_IMAGES)
    return runtime


def _info(bundle: Bundle, runtime: Runtime, sharing: Sharing, sizes: BatchSizes) -> EngineInfo:
    return EngineInfo(
        manifest_sha256=sha256_file(bundle.path / MANIFEST),
        spec=runtime.spec,
        sharing=sharing,
        max_batch=sizes.largest,
    )


if __name__ == "__main__":
    main()
