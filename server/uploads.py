"""The images of a request: one raw body, or the `file` parts of a form."""

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

from server.problems import Problem

RAW_TYPES = ("image/jpeg", "image/png", "image/webp")
FORM_TYPE = "multipart/form-data"


async def read_images(request: Request, *, max_images: int) -> list[bytes]:
    """Encoded images in the order sent; raises Problem for a request that has none or too many."""
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type in RAW_TYPES:
        return [await request.body()]
    if content_type == FORM_TYPE:
        return await _read_form(request, max_images)
    given = f"Content-Type {content_type}" if content_type else "no Content-Type"
    raise Problem(415, f"{given}; send {', '.join(RAW_TYPES)} or {FORM_TYPE} with parts named file")


async def _read_form(request: Request, max_images: int) -> list[bytes]:
    try:
        async with request.form(max_files=max_images, max_fields=max_images) as form:
            return [await upload.read() for upload in _uploads(form)]
    except MultiPartException as error:  # cannot be parsed, or has too many parts
        raise Problem(400, error.message) from error


def _uploads(form: FormData) -> list[UploadFile]:
    parts = form.multi_items()
    others = sorted({name for name, _ in parts if name != "file"})
    if others:
        raise Problem(400, f"unknown form parts {', '.join(others)}; images are parts named file")
    uploads = [part for _, part in parts if isinstance(part, UploadFile)]
    if not uploads or len(uploads) != len(parts):
        raise Problem(400, "the form has no file; send each image as a part named file with a filename")
    return uploads
