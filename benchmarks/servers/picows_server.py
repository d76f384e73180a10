"""picows, on uvloop: its listeners get frames, and put no message together."""

from __future__ import annotations

import argparse
from typing import Any

import uvloop
from options import BACKLOG, LARGEST, QUESTION, make_tls_context, parse_options, tell_ready
from picows import WSListener, WSMsgType, ws_create_server

everybody: set[Any] = set()


class Echo(WSListener):  # type: ignore[misc]
    """Send every frame back."""

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        """Answer one frame."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            self.answer(transport, frame)

    def answer(self, transport: Any, frame: Any) -> None:
        """Answer one frame of a message."""
        transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)


class Broadcast(Echo):
    """Send every frame to everybody."""

    def on_ws_connected(self, transport: Any) -> None:
        """Remember a connection."""
        everybody.add(transport)

    def on_ws_disconnected(self, transport: Any) -> None:
        """Forget a connection."""
        everybody.discard(transport)

    def answer(self, transport: Any, frame: Any) -> None:
        """Send one frame to everybody."""
        payload = frame.get_payload_as_bytes()
        for receiver in everybody:
            receiver.send(frame.msg_type, payload)


class Sink(Echo):
    """Count messages."""

    def __init__(self) -> None:
        self.count = 0

    def answer(self, transport: Any, frame: Any) -> None:
        """Count one message, or tell how many there were."""
        if frame.get_payload_as_bytes() == QUESTION.encode():
            transport.send(WSMsgType.TEXT, str(self.count).encode())
            self.count = 0
        else:
            self.count += frame.fin


def choose(request: Any) -> Echo:
    """Return the listener for a connection."""
    return {b"/": Echo, b"/broadcast": Broadcast}.get(request.path, Sink)()


async def main(options: argparse.Namespace) -> None:
    """Serve until a signal ends the process."""
    server = await ws_create_server(
        choose,
        "127.0.0.1",
        options.port,
        ssl=make_tls_context(options.tls),
        max_frame_size=LARGEST,
        backlog=BACKLOG,
    )
    tell_ready()
    await server.serve_forever()


uvloop.run(main(parse_options()))
