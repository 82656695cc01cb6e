"""Collects the events of httpx's `trace` extension."""

from typing import Any

from tests.support.flavor import httpx

Event = tuple[str, dict[str, Any]]


async def trace_events(
    transport: httpx.AsyncHTTPTransport, url: str, *, content: Any = None, times: int = 1
) -> list[Event]:
    events: list[Event] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        if name == "connection.connect_tcp.complete":
            info["address"] = info["return_value"].get_extra_info("server_addr")
        events.append((name, info))

    async with httpx.AsyncClient(transport=transport, base_url=url) as client:
        for _ in range(times):
            body = None if content is None else content()
            await client.post("/", content=body, extensions={"trace": trace})
    return events
