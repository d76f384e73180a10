"""uvicorn with websockets' sans-I/O protocol, uvloop and httptools, under a bare ASGI application."""

from __future__ import annotations

import argparse
from typing import Any

import uvicorn
from options import BACKLOG, LARGEST, QUESTION, parse_options, tell_ready
from uvicorn.supervisors import Multiprocess

everybody: set[Any] = set()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve one connection, or what uvicorn tells of its own start and end."""
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    answer = {"/": echo, "/broadcast": broadcast}.get(scope["path"], tally)
    await receive()
    await send({"type": "websocket.accept"})
    await answer(receive, send)


async def live(receive: Any, send: Any) -> None:
    """Tell when a worker is there; the socket listens already."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    tell_ready()
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def echo(receive: Any, send: Any) -> None:
    """Send every message back."""
    while (event := await receive())["type"] == "websocket.receive":
        text = event.get("text")
        if text is None:
            await send({"type": "websocket.send", "bytes": event["bytes"]})
        else:
            await send({"type": "websocket.send", "text": text})


async def broadcast(receive: Any, send: Any) -> None:
    """Send every message to everybody."""
    everybody.add(send)
    try:
        while (event := await receive())["type"] == "websocket.receive":
            message = {"type": "websocket.send", "text": event["text"]}
            for send_to in list(everybody):
                await send_to(message)
    finally:
        everybody.remove(send)


async def tally(receive: Any, send: Any) -> None:
    """Count messages."""
    count = 0
    while (event := await receive())["type"] == "websocket.receive":
        if event.get("text") == QUESTION:
            await send({"type": "websocket.send", "text": str(count)})
            count = 0
        else:
            count += 1


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1)
    options = parse_options(parser)
    config = uvicorn.Config(
        "uvicorn_server:app",
        host="127.0.0.1",
        port=options.port,
        ssl_certfile=options.tls,
        ssl_keyfile=options.tls,
        workers=options.workers,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=options.deflate,
        ws_max_size=LARGEST,
        lifespan="on",
        access_log=False,
        log_level="error",
        backlog=BACKLOG,
    )
    sock = config.bind_socket()
    sock.listen(BACKLOG)
    if options.workers == 1:
        uvicorn.Server(config).run(sockets=[sock])
    else:
        Multiprocess(config, sockets=[sock]).run()


if __name__ == "__main__":
    main()
