"""``/v1/bundles`` and ``/v1/models``."""

from __future__ import annotations

from typing import BinaryIO

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from ..cursors import Page
from ..dependencies import Actor, Cursor, Limit, ServicesDep
from ..files import storage_error
from .views import ModelRow, VersionRow

router = APIRouter(prefix="/v1", tags=["models"])

UPLOAD_PATH = "/v1/bundles"

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/bundles", status_code=201, openapi_extra=_BODY, responses={200: {"model": VersionRow}})
async def publish(request: Request, response: Response, services: ServicesDep, actor: Actor) -> VersionRow:
    """Publish a bundle: the body is the ``.skerry`` file. 200 if the very same one was published before."""
    with services.blobs.spool() as file:
        # Spooled before it is read: a slow sender holds a file, not one of the few worker threads.
        async for piece in request.stream():
            await run_in_threadpool(_append, file, piece)
        await run_in_threadpool(file.seek, 0)
        published = await run_in_threadpool(services.models.publish, file, actor)
    if not published.created:
        response.status_code = 200
    return published.version


@router.get("/models")
def list_models(services: ServicesDep, cursor: Cursor = None, limit: Limit = 100) -> Page[ModelRow]:
    """Every model, by name."""
    return services.models.models(cursor=cursor, limit=limit)


@router.get("/models/{name}/versions")
def list_versions(
    name: str, services: ServicesDep, cursor: Cursor = None, limit: Limit = 100
) -> Page[VersionRow]:
    """Every version of a model, newest release first."""
    return services.models.versions(name, cursor=cursor, limit=limit)


def _append(file: BinaryIO, piece: bytes) -> None:
    try:
        file.write(piece)
    except OSError as error:
        raise storage_error("the upload could not be stored", error) from error
