"""Ray Serve with two replicas: a lifespan in each, streams, and a replica that is killed."""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from asgi_upstream.testing import ScriptedResponse, Upstream
from tests.real_clients.apps.site import bin_folder, has
from tests.support.servers import ROOT, free_port
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has("ray"), reason="there is no Ray in .venv/apps/ray: run `make apps`"),
]

APP = """
import os, sys, threading
from contextlib import asynccontextmanager
import ray
from fastapi import FastAPI, Request
from ray import serve
from asgi_upstream import ReverseProxy, StreamedResponse, client_lifespan, get_client

port, upstream = int(sys.argv[1]), sys.argv[2]
clients = client_lifespan(base_url=upstream)

folder = sys.argv[3]

def make_lifespan(folder, clients):
    @asynccontextmanager
    async def lifespan(app):
        with open(f"{folder}/lifespans", "a") as log:
            log.write(f"{os.getpid()}\\n")
        async with clients(app) as state:
            yield state
    return lifespan

app = FastAPI(lifespan=make_lifespan(folder, clients))

@app.get("/pid")
async def pid():
    return os.getpid()

@app.get("/item")
async def item(request: Request):
    client = await get_client(request)
    return StreamedResponse(client, client.build_request("GET", "/item"))

app.mount("/api", ReverseProxy())

@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Gateway:
    pass

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(Gateway.bind())
print("ready", flush=True)
threading.Event().wait()
"""
PATIENCE = 300.0


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        upstream.get("/item").json({"id": 1})
        upstream.get("/events").chunks(b"data: tick\n\n", every=0.05, forever=True)
        upstream.post("/upload").callback(lambda request: ScriptedResponse().content(request.body))
        yield upstream


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, folder: Path) -> Iterator[httpx.Client]:
    """Two replicas, and a client of theirs that opens a connection for each request."""
    port = free_port()
    (folder / "app.py").write_text(APP)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [bin_folder("ray") / "python", "app.py", str(port), upstream.url, str(folder)],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "PYTHONPATH": f"{ROOT}/src",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_TMPDIR": "/tmp",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:

        def is_ready() -> bool:
            text = (folder / "log").read_text(errors="replace")
            assert process.poll() is None, text[-3000:]
            return "ready" in text

        eventually(is_ready, PATIENCE)
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60, limits=limits
        ) as client:
            yield client
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)


def replicas(gateway: httpx.Client) -> set[int]:
    """Return the processes that answer."""
    return {gateway.get("/pid").json() for _ in range(20)}


def lifespans(folder: Path) -> Counter[int]:
    """Return how often each process has entered the lifespan."""
    return Counter(map(int, (folder / "lifespans").read_text().split()))


def test_each_replica_enters_the_lifespan_once(gateway: httpx.Client, folder: Path) -> None:
    eventually(lambda: len(replicas(gateway)) == 2, PATIENCE)
    entered = lifespans(folder)
    assert all(entered[pid] == 1 for pid in replicas(gateway))
    for _ in range(20):
        assert gateway.get("/item").json() == {"id": 1}
        assert gateway.get("/api/item").json() == {"id": 1}
    assert lifespans(folder) == entered


def test_upload_through_a_replica_arrives(gateway: httpx.Client) -> None:
    data = bytes(range(256)) * 4_000
    assert gateway.post("/api/upload", content=data).content == data


def test_stream_of_a_replica_ends_with_its_caller(
    gateway: httpx.Client, upstream: Upstream
) -> None:
    with gateway.stream("GET", "/api/events") as response:
        chunks = response.iter_bytes()  # If it were dropped, httpcore would close the connection.
        assert next(chunks).startswith(b"data: tick\n\n")
        assert upstream.open_exchanges == 1
    eventually(lambda: upstream.open_exchanges == 0)


def test_killed_replica_is_replaced(gateway: httpx.Client, folder: Path) -> None:
    eventually(lambda: len(replicas(gateway)) == 2, PATIENCE)
    killed = min(replicas(gateway))
    os.kill(killed, signal.SIGKILL)

    def is_replaced() -> bool:
        with suppress(httpx.HTTPError, ValueError):
            running = replicas(gateway)
            return len(running) == 2 and killed not in running
        return False

    eventually(is_replaced, PATIENCE)
    assert all(lifespans(folder)[pid] == 1 for pid in replicas(gateway))
    for _ in range(10):
        assert gateway.get("/item").json() == {"id": 1}
