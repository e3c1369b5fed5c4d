"""What the supervisor and a worker say to each other. Each message is answered, most with nothing."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from lct_deploy.manifest import Manifest
from server.engine.config import EngineInfo
from server.engine.slots import Geometry


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class OfferedModel(_Message):
    """An Offer; of its descriptors, the memory comes first, then the connection if there is one now."""

    engine: int
    manifest: Manifest
    info: EngineInfo
    geometry: Geometry
    connected: bool


class Serve(_Message):
    """To a worker: `Attendant.serve`, with the descriptors of one model after the other."""

    kind: Literal["serve"] = "serve"
    models: tuple[OfferedModel, ...]


class Connect(_Message):
    """To a worker: `Attendant.connect`, with the connection's descriptor."""

    kind: Literal["connect"] = "connect"
    engine: int


class Suspend(_Message):
    """To a worker: `Attendant.suspend`."""

    kind: Literal["suspend"] = "suspend"
    engine: int
    seconds: float


class Withdraw(_Message):
    """To a worker: `Attendant.withdraw`, answered when that returns."""

    kind: Literal["withdraw"] = "withdraw"
    engines: tuple[int, ...]
    seconds: float | None


class Listen(_Message):
    """To a worker: it has been given all models; answered once it takes requests."""

    kind: Literal["listen"] = "listen"


class Ping(_Message):
    """To a worker: answered by every event loop that runs."""

    kind: Literal["ping"] = "ping"


class Drain(_Message):
    """To a worker: not ready from now on, but serving."""

    kind: Literal["drain"] = "drain"


class Stop(_Message):
    """To a worker: answer what was sent, and end; with `force`, without waiting for that."""

    kind: Literal["stop"] = "stop"
    force: bool = False


class Index(_Message):
    """To the supervisor: `Repository.index`, answered with the entries."""

    kind: Literal["index"] = "index"


class Load(_Message):
    """To the supervisor: `Repository.load`."""

    kind: Literal["load"] = "load"
    name: str


class Unload(_Message):
    """To the supervisor: `Repository.unload`."""

    kind: Literal["unload"] = "unload"
    name: str


Message = Serve | Connect | Suspend | Withdraw | Listen | Ping | Drain | Stop | Index | Load | Unload
MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])
