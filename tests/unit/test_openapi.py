"""Responses in FastAPI's OpenAPI schema."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from asgi_upstream import BufferedResponse, StreamedResponse

BOTH = pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
OK: dict[str, Any] = {"200": {"description": "Successful Response"}}


@BOTH
def test_response_class_keeps_the_schema_valid(cls: type[Any]) -> None:
    app = FastAPI()

    @app.get("/file", response_class=cls)
    async def file() -> None: ...

    @app.post("/created", response_class=cls, status_code=201)
    async def created() -> None: ...

    with TestClient(app) as client:
        paths = client.get("/openapi.json").raise_for_status().json()["paths"]
    assert paths["/file"]["get"]["responses"] == OK
    assert list(paths["/created"]["post"]["responses"]) == ["201"]


@BOTH
def test_default_response_class_keeps_the_schema_valid(cls: type[Any]) -> None:
    app = FastAPI(default_response_class=cls)

    @app.get("/file")
    async def file() -> None: ...

    with TestClient(app) as client:
        paths = client.get("/openapi.json").raise_for_status().json()["paths"]
        assert client.get("/docs").status_code == 200
    assert paths["/file"]["get"]["responses"] == OK
