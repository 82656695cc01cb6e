"""An MCP server of the official package, by streamable HTTP."""

import asyncio
from collections import Counter

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

mcp = MCPServer("numbers")
seen: Counter[str] = Counter()


@mcp.tool()
def add(a: int, b: int) -> int:
    return a + b


@mcp.tool()
async def count(to: int, ctx: Context) -> str:
    """Counts, and tells of each step while the call goes on."""
    for number in range(1, to + 1):
        await ctx.report_progress(number, to, f"at {number}")
        await asyncio.sleep(0.02)
    return f"counted to {to}"


@mcp.tool()
async def count_for_ever(ctx: Context) -> None:
    try:
        for number in range(100_000):
            await ctx.report_progress(number)
            await asyncio.sleep(0.02)
    finally:
        seen["cancelled"] += 1


@mcp.tool()
async def publish(ctx: Context) -> None:
    """Tells who listens of a change."""
    await ctx.notify_tools_changed()


@mcp.tool()
async def announce(ctx: Context) -> None:
    """Tells of a change on the stream of the session."""
    await ctx.session.send_tool_list_changed()


@mcp.tool()
def size(text: str) -> int:
    return len(text)


async def tell(request: Request) -> Response:
    return JSONResponse(seen)


mcp.custom_route("/seen", methods=["GET"])(tell)
_app = mcp.streamable_http_app()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        seen[f"{scope['method']} {scope['path']}"] += 1
    await _app(scope, receive, send)
