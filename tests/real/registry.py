"""A registry of images, as far as a push goes: the upload of a blob in chunks, by the OCI's rules.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-a-blob-in-chunks
"""

import hashlib
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass
class Upload:
    length: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


uploads: dict[str, Upload] = {}
blobs: dict[str, int] = {}


def accepted(request: Request, key: str) -> Response:
    """The address of the next chunk is a whole URL, as the reference registry's is."""
    url = request.url_for("upload", name=request.path_params["name"], key=key)
    last = max(uploads[key].length - 1, 0)
    fields = {"location": f"{url}?state={last}", "range": f"0-{last}", "docker-upload-uuid": key}
    return Response(status_code=202, headers=fields)


async def start(request: Request) -> Response:
    key = str(uuid.uuid4())
    uploads[key] = Upload()
    return accepted(request, key)


async def chunk(request: Request) -> Response:
    """The next chunk of a blob, which must begin where the last one ended."""
    key = request.path_params["key"]
    upload = uploads[key]
    first, last = map(int, request.headers["content-range"].split("-"))
    if first != upload.length or "state" not in request.query_params:
        return Response(status_code=416, headers={"range": f"0-{max(upload.length - 1, 0)}"})
    async for part in request.stream():
        upload.digest.update(part)
        upload.length += len(part)
    if upload.length != last + 1:
        return Response(status_code=400)
    return accepted(request, key)


async def finish(request: Request) -> Response:
    name, upload = request.path_params["name"], uploads.pop(request.path_params["key"])
    async for part in request.stream():
        upload.digest.update(part)
        upload.length += len(part)
    digest = "sha256:" + upload.digest.hexdigest()
    if request.query_params["digest"] != digest:
        return Response(status_code=400)
    blobs[digest] = upload.length
    url = request.url_for("blob", name=name, digest=digest)
    fields = {"location": str(url), "docker-content-digest": digest}
    return Response(status_code=201, headers=fields)


async def blob(request: Request) -> Response:
    digest = request.path_params["digest"]
    if digest not in blobs:
        return Response(status_code=404)
    fields = {"content-length": str(blobs[digest]), "docker-content-digest": digest}
    return Response(headers=fields)


routes = [
    Route("/v2/{name}/blobs/uploads/", start, methods=["POST"]),
    Route("/v2/{name}/blobs/uploads/{key}", chunk, methods=["PATCH"], name="upload"),
    Route("/v2/{name}/blobs/uploads/{key}", finish, methods=["PUT"]),
    Route("/v2/{name}/blobs/{digest}", blob, methods=["HEAD"]),
]
