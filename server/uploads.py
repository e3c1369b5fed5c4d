"""The images of a request: one raw body, or the `file` parts of a form."""

from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.problems import Problem

RAW_TYPES = ("image/jpeg", "image/png", "image/webp")
FORM_TYPE = "multipart/form-data"


def check_type(request: Request) -> str:
    """The body's type; raises a Problem of 415 for one that no image comes in."""
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type in RAW_TYPES or content_type == FORM_TYPE:
        return content_type
    given = f"Content-Type {content_type}" if content_type else "no Content-Type"
    raise Problem(415, f"{given}; send {', '.join(RAW_TYPES)} or {FORM_TYPE} with parts named file")


async def read_images(request: Request, body: bytes, *, max_images: int) -> list[bytes]:
    """Encoded images in the order sent; raises a Problem for a request that has none or too many."""
    if check_type(request) in RAW_TYPES:
        return [body]
    parser = MultiPartParser(
        request.headers,
        _stream(body),
        max_files=max_images,
        max_fields=max_images,
        max_part_size=len(body),
    )
    # The body is in memory already and within its limit: parts are not written to the disk.
    parser.spool_max_size = len(body) + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:  # cannot be parsed, or has too many parts
        raise Problem(400, error.message) from error
    try:
        return [await upload.read() for upload in _uploads(form)]
    finally:
        await form.close()


async def _stream(body: bytes) -> AsyncGenerator[bytes]:
    yield body
    yield b""


def _uploads(form: FormData) -> list[UploadFile]:
    parts = form.multi_items()
    others = sorted({name for name, _ in parts if name != "file"})
    if others:
        raise Problem(400, f"unknown form parts {', '.join(others)}; images are parts named file")
    uploads = [part for _, part in parts if isinstance(part, UploadFile)]
    if not uploads or len(uploads) != len(parts):
        raise Problem(400, "the form has no file; send each image as a part named file with a filename")
    return uploads
