"""granian with one worker on uvloop, under a bare RSGI application. It has no limit of a message's size to raise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from granian import Granian
from granian.constants import Interfaces, Loops
from granian.rsgi import WebsocketMessageType
from options import BACKLOG, QUESTION, parse_options, tell_ready

everybody: set[Any] = set()


class App:
    """Be the application."""

    def __rsgi_init__(self, loop: Any) -> None:
        """Tell when the worker is there; the socket listens already."""
        tell_ready()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Serve one connection."""
        answer = {"/": echo, "/broadcast": broadcast}.get(scope.path, tally)
        transport = await protocol.accept()
        try:
            await answer(transport)
        finally:
            everybody.discard(transport)
            protocol.close()


async def echo(transport: Any) -> None:
    """Send every message back."""
    while (message := await transport.receive()).kind != WebsocketMessageType.close:
        if message.kind == WebsocketMessageType.string:
            await transport.send_str(message.data)
        else:
            await transport.send_bytes(message.data)


async def broadcast(transport: Any) -> None:
    """Send every message to everybody."""
    everybody.add(transport)
    while (message := await transport.receive()).kind != WebsocketMessageType.close:
        for receiver in list(everybody):
            await receiver.send_str(message.data)


async def tally(transport: Any) -> None:
    """Count messages."""
    count = 0
    while (message := await transport.receive()).kind != WebsocketMessageType.close:
        if message.data == QUESTION:
            await transport.send_str(str(count))
            count = 0
        else:
            count += 1


app = App()


def main() -> None:
    """Serve until a signal ends the process."""
    options = parse_options()
    pem = Path(options.tls) if options.tls else None
    Granian(
        "granian_server:app",
        address="127.0.0.1",
        port=options.port,
        interface=Interfaces.RSGI,
        workers=1,
        loop=Loops.uvloop,
        log_enabled=False,
        ssl_cert=pem,
        ssl_key=pem,
        backlog=BACKLOG,
    ).serve()


if __name__ == "__main__":
    main()
