"""What an engine does unless it is told, by what its network costs (docs/decisions/0013)."""

from pydantic import BaseModel, ConfigDict, Field

from lct_deploy.architecture import model_config
from lct_deploy.cores import available_cores
from lct_deploy.cost import model_cost
from lct_deploy.errors import ArchitectureError
from lct_deploy.manifest import Manifest
from lct_deploy.runtime.flavours import is_flavour

# Multiply-adds of one image.
FILLS_THE_CORES = 1_000_000_000  # from here on images side by side gain nothing on a CPU
WORTH_THREADS = 100_000_000  # up to here a second thread costs more than it brings
SIDE_BY_SIDE = 2  # inferences, where images gain nothing side by side in one
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


def computes_on_cpu(runtime: str, provider: str) -> bool:
    """Whether inferences take the cores that images are decoded on."""
    return provider == "cpu" and not is_flavour(runtime)


def default_fill_delay(*, on_cpu: bool) -> float:
    """Seconds that a batch waits for images that are being decoded and fill it.

    They are many only where the cores have more to do than they can: there a full batch, which costs less an
    image, is answered sooner than several small ones. A GPU is not what those images wait for.
    """
    return FILL_SECONDS if on_cpu else 0


class Sharing(BaseModel):
    """How a model's inferences share the cores."""

    model_config = ConfigDict(frozen=True)

    instances: int = Field(ge=1, description="copies of the model that run side by side")
    threads: int = Field(ge=1, description="of each of their inferences, on a CPU")
    alone: int | None = Field(
        default=None,
        ge=1,
        description="threads of one more copy, for what nothing runs or waits beside; None: there is none",
    )


def share_cores(cost: int | None, instances: int | None, threads: int | None, *, on_cpu: bool) -> Sharing:
    """What is asked for, and for None what pays.

    More threads than cores wait for each other while they spin. Those of one inference wait for each other
    too, so that two of half the threads get more done than one after the other with all; but who is alone is
    answered sooner by all.
    """
    cores = available_cores()
    large = cost is not None and cost >= FILLS_THE_CORES
    if on_cpu and large and cores >= SIDE_BY_SIDE and instances is None and threads is None:
        return Sharing(instances=SIDE_BY_SIDE, threads=cores // SIDE_BY_SIDE, alone=cores)
    copies = instances or 1
    if threads is None:
        threads = 1 if cost is not None and cost < WORTH_THREADS else max(1, cores // copies)
    return Sharing(instances=copies, threads=threads)
