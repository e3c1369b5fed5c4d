"""What an engine does unless it is told, by what its network costs (docs/decisions/0013)."""

from lct_deploy.architecture import model_config
from lct_deploy.cores import available_cores
from lct_deploy.cost import model_cost
from lct_deploy.errors import ArchitectureError
from lct_deploy.manifest import Manifest
from lct_deploy.runtime.flavours import is_flavour

# Multiply-adds of one image.
FILLS_THE_CORES = 1_000_000_000  # from here on images side by side gain nothing on a CPU
WORTH_THREADS = 100_000_000  # up to here a second thread costs more than it brings
BATCH = 8  # what larger batches add, each of their images waits for
FILL_SECONDS = 0.01  # for images that are being decoded on the same cores, and fill a batch


def multiply_adds(manifest: Manifest) -> int | None:
    """Of one image; None for an architecture that is not one of ours."""
    try:
        config = model_config(manifest.arch, num_classes=manifest.num_classes)
    except ArchitectureError:
        return None
    return model_cost(config, image_size=manifest.input.height).multiply_adds


def default_batch(cost: int | None) -> int:
    """Images that run together at most, on a graph that takes any number."""
    return BATCH if cost is not None and cost < FILLS_THE_CORES else 1


def default_fill_delay(runtime: str, provider: str) -> float:
    """Seconds that a batch waits for images that are being decoded and fill it.

    They are many only where the cores have more to do than they can: there a full batch, which costs less an
    image, is answered sooner than several small ones. A GPU is not what those images wait for.
    """
    return FILL_SECONDS if provider == "cpu" and not is_flavour(runtime) else 0


def default_threads(cost: int | None, instances: int) -> int:
    """Threads of one inference on the CPU, where `instances` share the cores.

    More threads than cores wait for each other while they spin.
    """
    return 1 if cost is not None and cost < WORTH_THREADS else max(1, available_cores() // instances)
