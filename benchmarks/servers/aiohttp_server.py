"""aiohttp, on uvloop."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import uvloop
from aiohttp import WSMsgType, web
from options import BACKLOG, LARGEST, QUESTION, make_tls_context, parse_options, tell_ready

options = parse_options()
everybody: set[Any] = set()


async def accept(request: Any) -> Any:
    """Do the opening handshake."""
    websocket = web.WebSocketResponse(compress=options.deflate, max_msg_size=LARGEST)
    await websocket.prepare(request)
    return websocket


async def echo(request: Any) -> Any:
    """Send every message back."""
    websocket = await accept(request)
    async for message in websocket:
        if message.type is WSMsgType.TEXT:
            await websocket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await websocket.send_bytes(message.data)
    return websocket


async def broadcast(request: Any) -> Any:
    """Send every message to everybody."""
    websocket = await accept(request)
    everybody.add(websocket)
    try:
        async for message in websocket:
            for receiver in list(everybody):
                await receiver.send_str(message.data)
    finally:
        everybody.remove(websocket)
    return websocket


async def tally(request: Any) -> Any:
    """Count messages."""
    websocket = await accept(request)
    count = 0
    async for message in websocket:
        if message.data == QUESTION:
            await websocket.send_str(str(count))
            count = 0
        else:
            count += 1
    return websocket


async def main(options: argparse.Namespace) -> None:
    """Serve until a signal ends the process."""
    app = web.Application()
    app.router.add_get("/", echo)
    app.router.add_get("/broadcast", broadcast)
    app.router.add_get("/sink", tally)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    tls = make_tls_context(options.tls)
    await web.TCPSite(runner, "127.0.0.1", options.port, ssl_context=tls, backlog=BACKLOG).start()
    tell_ready()
    await asyncio.Event().wait()


uvloop.run(main(options))
