"""`python -m benchmarks.serving.bare`: uvicorn as our server runs it, with an application that does nothing.

It answers every request with as many bytes as the no-op network's answer has, and prints its URL to stdout.
What `lct-deploy serve` answers beside it tells what is ours of the cost of a request.
"""

import socket

import uvicorn
from starlette.types import Receive, Scope, Send

from server.listening import url_of

BODY = bytes(200)
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]


async def answer(_: Scope, receive: Receive, send: Send) -> None:
    """The application; without a lifespan it gets requests alone."""
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": BODY})


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(url_of(listener), flush=True)
        config = uvicorn.Config(
            answer,
            loop="uvloop",
            http="httptools",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
