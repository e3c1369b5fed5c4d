"""Routes of the page, its assets and the sample images, under a policy that lets nothing else in."""

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fastapi import APIRouter, Request, Response
from PIL import Image

from lct_deploy.sample import load_sample

HERE = Path(__file__).parent
ASSETS = tuple(sorted(file.name for file in HERE.iterdir() if file.suffix in (".js", ".css", ".svg")))
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
# Labels and file names come from others: no text can become markup, script or style, nor send anything
# to another host.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for by its ETag each time
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Asset:
    """A file as it is sent."""

    body: bytes
    media_type: str
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "etag", f'"{hashlib.sha256(self.body).hexdigest()[:32]}"')


def page_router() -> APIRouter:
    """One fixed route for each file: no path that a client sends is ever opened."""
    router = APIRouter(include_in_schema=False)
    for path, asset in _assets().items():
        _add(router, path, asset)
    return router


def sample_indices() -> list[int]:
    """Of the shipped sample, the first image of each class, in the order of the classes."""
    labels = load_sample().labels
    return [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]


def _add(router: APIRouter, path: str, asset: Asset) -> None:
    @router.api_route(path, methods=["GET", "HEAD"])
    async def send(request: Request) -> Response:
        headers = {**HEADERS, "ETag": asset.etag}
        if _is_current(request.headers.get("if-none-match", ""), asset.etag):
            return Response(status_code=304, headers=headers)
        return Response(asset.body, media_type=asset.media_type, headers=headers)


def _is_current(if_none_match: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or "*" in tags


def _assets() -> dict[str, Asset]:
    files = {"/": HERE / "index.html", **{f"/page/{name}": HERE / name for name in ASSETS}}
    pages = {path: Asset(file.read_bytes(), MEDIA_TYPES[file.suffix]) for path, file in files.items()}
    return pages | _samples()


def _samples() -> dict[str, Asset]:
    images = load_sample().images
    return {
        f"/samples/{index}.png": Asset(_png(Image.fromarray(images[index])), MEDIA_TYPES[".png"])
        for index in sample_indices()
    }


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
