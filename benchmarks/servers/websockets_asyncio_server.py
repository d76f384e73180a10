"""websockets: its asyncio server, on uvloop."""

from __future__ import annotations

import argparse
from typing import Any

import uvloop
from options import BACKLOG, LARGEST, QUESTION, make_tls_context, parse_options, tell_ready
from websockets.asyncio.server import broadcast, serve
from websockets.exceptions import ConnectionClosed

everybody: set[Any] = set()


async def converse(websocket: Any) -> None:
    """Serve one connection; a client that leaves without a Close is a ConnectionClosed."""
    answer = {"/": echo, "/broadcast": tell_everybody}.get(websocket.request.path, tally)
    try:
        await answer(websocket)
    except ConnectionClosed:
        pass
    finally:
        everybody.discard(websocket)


async def echo(websocket: Any) -> None:
    """Send every message back."""
    async for message in websocket:
        await websocket.send(message)


async def tell_everybody(websocket: Any) -> None:
    """Send every message to everybody."""
    everybody.add(websocket)
    async for message in websocket:
        broadcast(everybody, message)


async def tally(websocket: Any) -> None:
    """Count messages."""
    count = 0
    async for message in websocket:
        if message == QUESTION:
            await websocket.send(str(count))
            count = 0
        else:
            count += 1


async def main(options: argparse.Namespace) -> None:
    """Serve until a signal ends the process."""
    async with serve(
        converse,
        "127.0.0.1",
        options.port,
        ssl=make_tls_context(options.tls),
        compression="deflate" if options.deflate else None,
        max_size=LARGEST,
        backlog=BACKLOG,
    ) as server:
        tell_ready()
        await server.serve_forever()


uvloop.run(main(parse_options()))
