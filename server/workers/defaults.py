"""How many workers a server has unless it is told (docs/decisions/0017)."""

import os

from lct_deploy.bundle import read_manifest
from lct_deploy.cores import available_cores
from server.engine.defaults import WORTH_THREADS, computes_on_cpu, multiply_adds
from server.settings import ServerSettings
from server.sources import scan
from server.workers.counting import VARIABLE

MOST = 4  # whether more would pay has not been measured, and each takes some 90 MB


def settled(settings: ServerSettings) -> ServerSettings:
    """`settings` with a number of workers, and all else that follows from it.

    Raises what `scan` raises.
    """
    if settings.workers is not None:
        return settings
    told = settings.model_dump(exclude_unset=True)
    return ServerSettings.model_validate({**told, "workers": default_workers(settings)})


def default_workers(settings: ServerSettings) -> int:
    """A worker a core where images cost more than networks, so that reading and decoding limit the server.

    That is so where one thread is enough for each bundle's network. Others need the cores themselves.
    """
    if VARIABLE in os.environ:  # told to count together with other servers, which several workers cannot
        return 1
    sources, _ = scan(settings.bundles)
    costs = [multiply_adds(read_manifest(source.path)) for source in sources]
    small = bool(costs) and all(cost is not None and cost < WORTH_THREADS for cost in costs)
    on_cpu = computes_on_cpu(settings.runtime, settings.provider)
    return min(available_cores(), MOST) if small and on_cpu else 1
