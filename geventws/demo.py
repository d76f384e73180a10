"""The example that ``geventws demo`` serves: a chat room in one page.

Everything that is said in the room is a text message that holds a JSON object, whose ``type`` tells the
other members:

=========  =====================================  ==========================================================
type       from the page                          to the page
=========  =====================================  ==========================================================
join       ``name``; the first message
welcome                                           ``name`` as it was given, ``people``, ``history``
people                                            ``people``, and who ``joined`` or ``left``
say        ``text``
said                                              ``name``, ``text``, ``time`` in milliseconds
echo       anything, to measure the latency       the same
refused                                           ``reason``; the page may try again
=========  =====================================  ==========================================================
"""

from __future__ import annotations

import json
import time
from collections import deque
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from webob import Response
from webob.exc import HTTPNotFound

from geventws.server import WebSocketServer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gevent.pywsgi import WSGIServer

    from geventws.connection import WebSocketConnection
    from geventws.request import WebSocketRequest

__all__ = ["MAX_NAME_SIZE", "MAX_TEXT_SIZE", "PATH", "ChatRoom", "application"]

#: Where the page finds its WebSocket.
PATH = "/ws"
#: Characters of a name, and of what is said at once.
MAX_NAME_SIZE = 32
MAX_TEXT_SIZE = 2000
#: What newcomers get to read.
_HISTORY_COUNT = 50
#: Octets: the longest text with every character escaped, and some more.
_MAX_MESSAGE_SIZE = 32768
#: Invisible, but it makes one emoji of several.
_JOINER = "\u200d"


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Serve the page at ``/``, and 404 elsewhere: a WSGI application."""
    response = _make_page() if environ.get("PATH_INFO") in ("/", "") else HTTPNotFound()
    return response(environ, start_response)


def _make_page() -> Response:
    page = Response(files("geventws").joinpath("demo.html").read_bytes(), content_type="text/html", charset="utf-8")
    page.headers["Content-Security-Policy"] = (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page.headers["X-Content-Type-Options"] = "nosniff"
    page.cache_control.no_store = True
    return page


class ChatRoom:
    """Let everybody who connects to `PATH` of an http server read what the others say.

    Attributes:
        server: The `WebSocketServer`; the ``data`` of its connections is the name of who joined.
    """

    def __init__(self, http_server: WSGIServer) -> None:
        self.server = WebSocketServer(http_server=http_server, path=PATH, max_received_message_size=_MAX_MESSAGE_SIZE)
        self._history: deque[dict[str, object]] = deque(maxlen=_HISTORY_COUNT)
        self.server.on("request", self._decide)
        self.server.on("close", self._leave)

    def _decide(self, request: WebSocketRequest) -> None:
        # RFC 6455, 10.2: any page of the web can open a connection; only our own is meant to.
        if request.origin is not None and request.origin.partition("://")[2] != request.host:
            request.reject(403, "this origin is not the demo's own")
            return
        connection = request.accept()
        connection.on("message", lambda message: self._take(connection, message))

    def _take(self, connection: WebSocketConnection, message: str | bytes) -> None:
        content = _parse(message)
        kind = content.get("type")
        if kind == "echo":
            connection.send(message)
        elif kind == "join" and connection.data is None:
            self._join(connection, content.get("name"))
        elif kind == "say" and connection.data is not None:
            self._say(connection, content.get("text"))
        else:
            connection.close(1008, "this is not understood here")

    def _join(self, connection: WebSocketConnection, name: object) -> None:
        name = _clean(name, MAX_NAME_SIZE)
        if not name:
            _send(connection, type="refused", reason=f"A name has 1 to {MAX_NAME_SIZE} characters.")
            return
        taken = {other.casefold() for other in self._list_people()}
        if name.casefold() in taken:
            _send(connection, type="refused", reason=f"{name} is here already; please take another name.")
            return
        connection.data = name
        people = self._list_people()
        _send(connection, type="welcome", name=name, people=people, history=list(self._history))
        self._tell({"type": "people", "people": people, "joined": name}, connection)

    def _say(self, connection: WebSocketConnection, text: object) -> None:
        text = _clean(text, MAX_TEXT_SIZE)
        if not text:
            _send(connection, type="refused", reason=f"A message has 1 to {MAX_TEXT_SIZE} characters.")
            return
        said: dict[str, object] = {
            "type": "said",
            "name": connection.data,
            "text": text,
            "time": round(time.time() * 1000),
        }
        self._history.append(said)
        self._tell(said)

    def _leave(self, connection: WebSocketConnection, _code: int, _reason: str) -> None:
        name, connection.data = connection.data, None
        if name is not None:
            self._tell({"type": "people", "people": self._list_people(), "left": name})

    def _list_people(self) -> list[str]:
        return sorted((each.data for each in self.server.connections if each.data is not None), key=str.casefold)

    def _tell(self, content: dict[str, object], *excluded: WebSocketConnection) -> None:
        """Send to everybody who joined."""
        outside = [each for each in self.server.connections if each.data is None]
        self.server.broadcast(json.dumps(content), exclude=[*outside, *excluded])


def _parse(message: str | bytes) -> dict[str, object]:
    """Return the object that a message holds, an empty one where it holds none."""
    try:
        content = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _clean(text: object, size: int) -> str:
    """Return a text without what cannot be seen at its ends; ``""`` for none, and for one that is too long."""
    if not isinstance(text, str):
        return ""
    visible = (character if character.isprintable() or character == _JOINER else " " for character in text)
    cleaned = "".join(visible).strip(f" {_JOINER}")
    return cleaned if len(cleaned) <= size else ""


def _send(connection: WebSocketConnection, **content: object) -> None:
    connection.send(json.dumps(content))
