"""`combine_lifespans`: a shared client beside the app's own database.

    uvicorn examples.own_lifespan:app

Both open at startup in this order and close at shutdown in reverse. Routes find both in the
lifespan state.
"""

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, Request
from starlette.background import BackgroundTask

from asgi_upstream import StreamedResponse, client_lifespan, combine_lifespans, get_client

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
DATABASE = os.environ.get("DATABASE", ":memory:")


@asynccontextmanager
async def database_lifespan(app: FastAPI) -> AsyncIterator[dict[str, sqlite3.Connection]]:
    """Open the database and create its table."""
    database = sqlite3.connect(DATABASE, check_same_thread=False, isolation_level=None)
    try:
        database.execute("CREATE TABLE IF NOT EXISTS served (path TEXT)")
        yield {"database": database}
    finally:
        database.close()


app = FastAPI(lifespan=combine_lifespans(database_lifespan, client_lifespan(base_url=UPSTREAM_URL)))
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


async def get_database(request: Request) -> sqlite3.Connection:
    """Return the database of the lifespan state."""
    database: sqlite3.Connection = request.state.database
    return database


Database = Annotated[sqlite3.Connection, Depends(get_database)]


@app.get("/text")
async def text(client: Client, database: Database) -> StreamedResponse:
    """Relay, and record in the database that the complete response was sent."""
    noted = BackgroundTask(database.execute, "INSERT INTO served VALUES (?)", ["/text"])
    return StreamedResponse(client, client.build_request("GET", "/text"), background=noted)


@app.get("/served")
async def served(database: Database) -> dict[str, int]:
    """Return how often each path was served."""
    return dict(database.execute("SELECT path, count(*) FROM served GROUP BY path").fetchall())
