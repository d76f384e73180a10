"""`WebSocketRequest`: who asks, for what; accepted, rejected or ignored once (seed: WebSocketRequest).

Strategy: everything is checked before an octet of the answer leaves. The handler owns the socket and
writes; the request decides. It may be resolved in the listener, in a view, or later by another greenlet
while the handler's greenlet waits in `WebSocketRequest.wait`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import parse_qsl

import gevent
from gevent.event import Event
from webob import Request
from webob.multidict import MultiDict

from geventws.connection import WebSocketConnection
from geventws.cookies import parse_cookies
from geventws.deflate import accept_offer, serialize_parameters
from geventws.errors import HandshakeError, InvalidState
from geventws.events import Emitter
from geventws.handshake import choose_subprotocol, parse_opening, serialize_switch
from geventws.headers import check_field
from geventws.proxies import resolve_addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from geventws.deflate import DeflateParameters
    from geventws.handler import WebSocketHandler
    from geventws.host import Mount
    from geventws.sockets import Stream

__all__ = ["ResourceURL", "WebSocketRequest", "accept"]

logger = logging.getLogger("geventws")

#: The key of a WSGI environment under which a view finds its request.
ENVIRON_KEY = "geventws.request"


class ResourceURL(NamedTuple):
    """Hold the parts of a request target (seed: resourceURL).

    Attributes:
        path: Percent-decoded, without the query.
        query: A multi-dict of the decoded parameters.
    """

    path: str
    query: MultiDict[str, str]


class WebSocketRequest(Emitter):
    """Ask for a decision about one upgrade request (seed: WebSocketRequest).

    Events: ``accepted(connection)``, ``rejected(request)``, ``resolved(request)``.

    Attributes:
        host: The Host field, with its port.
        key: Sec-WebSocket-Key.
        origin: The Origin field, or None.
        remote_address: The client's address, as far as trusted proxies tell it; ``""`` on a Unix socket.
        remote_addresses: The items of X-Forwarded-For, then the TCP peer.
        requested_extensions: As ``(name, [(parameter, value | None)])``, in the offered order.
        requested_subprotocols: In the offered order and spelling.
        resolved: Whether it was accepted, rejected or ignored.
        resource: The raw request target.
        websocket_version: 13, unless the handshake is broken.
    """

    EVENTS: ClassVar[frozenset[str]] = frozenset({"accepted", "rejected", "resolved"})

    def __init__(self, handler: WebSocketHandler, mount: Mount) -> None:
        """Read an upgrade request; the handler makes these."""
        super().__init__()
        config = mount.config
        self._handler = handler
        self._mount = mount
        self.config = config
        headers = handler.get_fields()
        opening = parse_opening(
            handler.command, handler.request_version, headers, parse_extensions=config.parse_extensions
        )
        self.error = opening.error
        self.host = opening.host
        self.key = opening.key
        self.origin = opening.origin
        self.resource: str = handler.path
        self.websocket_version = opening.version
        self.requested_subprotocols = opening.subprotocols
        self.requested_extensions = opening.extensions
        forwarded = None if config.ignore_x_forwarded_for else ", ".join(headers.get("x-forwarded-for", ())) or None
        self.remote_address, self.remote_addresses = resolve_addresses(
            handler.get_peer_address(), forwarded, config.trusted_networks
        )
        self.resolved = False
        self._outcome = ""
        # Once it is known that the handler will go on, to other requests.
        self._environ: dict[str, Any] | None = None
        self._orphan: Stream | None = None
        self.is_ignored = False
        self.is_client_gone = False
        self.connection: WebSocketConnection | None = None
        self._done: Event | None = None
        self._watcher: Any = None

    def __repr__(self) -> str:
        """Name the target and the client."""
        return f"<WebSocketRequest {self.resource} from {self.remote_address or 'unix'}>"

    @property
    def environ(self) -> dict[str, Any]:
        """The WSGI environment; made when it is asked for, unless somebody had need of it before."""
        return self._handler.environ if self._environ is None else self._environ

    @cached_property
    def http(self) -> Request:
        """The request as a ``webob.Request``."""
        return Request(self.environ)

    @cached_property
    def resource_url(self) -> ResourceURL:
        """The parts of `resource`."""
        # WSGI has each octet as a character; a client's broken escapes must not make this raise.
        query = self.environ.get("QUERY_STRING", "").encode("latin-1").decode("utf-8", "replace")
        return ResourceURL(self._handler.get_path(), MultiDict(parse_qsl(query, keep_blank_values=True)))

    @cached_property
    def cookies(self) -> list[tuple[str, str | None]]:
        """The cookies as name and value, order and duplicates kept; empty where ``parse_cookies`` is off."""
        if not self.config.parse_cookies:
            return []
        return parse_cookies(self.environ.get("HTTP_COOKIE", ""))

    # The decision

    def accept(
        self,
        subprotocol: str | None = None,
        origin: str | None = None,
        cookies: Iterable[object] = (),
        headers: Iterable[tuple[str, str]] | Mapping[str, str] = (),
    ) -> WebSocketConnection:
        """Accept the request and return its connection (seed: accept).

        Blocks no longer than the 101 takes to reach the kernel, and as ``connect`` and ``accepted`` listeners do.

        Args:
            subprotocol: One of `requested_subprotocols`, in any case; None for none.
            origin: What the response's Origin field says; None for none.
            cookies: To set: objects or mappings with ``name``, ``value``, ``path``, ``domain``, ``expires``,
                ``max_age``, ``secure``, ``http_only``, ``same_site``.
            headers: Further response fields, as pairs or a mapping.

        Returns:
            The connection. Where the client is gone already it closes at once with 1006, and nothing was written.

        Raises:
            InvalidState: It was accepted, rejected or ignored before.
            HandshakeError: The handshake is broken or, in a view, the origin is not allowed or a limit of connections
                exceeded; the client was answered with the error's status.
            SubprotocolError: The subprotocol is no token, or was not offered; the client was answered 500.
            CookieError: A cookie is illegal; the client was answered 500.
            ValueError: A header is illegal, or is not the caller's to set; the client was answered 500.
        """
        self._check_unresolved()
        # A server has looked before its request event; what a view does not accept may be another library's.
        error = self.error or (self._admit() if self._mount.server is None else None)
        if error is not None:
            self.refuse(error)
            raise error
        try:
            chosen = choose_subprotocol(subprotocol, self.requested_subprotocols)
            agreed = self._agree_on_deflate()
            extensions = [] if agreed is None else [serialize_parameters(agreed)]
            fields = serialize_switch(self.key, chosen, extensions, origin, cookies or (), headers or ())
        except Exception:
            self._answer(500, "", (), None)
            raise
        try:
            self._resolve("accepted")
            connection = self.connection = self._switch(chosen, agreed, fields)
            try:
                self._mount.connection_opened(self, connection)
                self._emit_logged("accepted", connection)
            finally:
                self._start(connection)
        finally:
            self._finish()
        return connection

    def _admit(self) -> HandshakeError | None:
        """Look at the origin, and take a place among the connections; return what stands against it."""
        allowed = self.config.allowed_origins
        if allowed is not None and self.origin not in allowed:
            self._mount.count_limit("allowed_origins")
            origin = "missing" if self.origin is None else ascii(self.origin)
            return HandshakeError(f"origin {origin} is not allowed", 403)
        return self._mount.registry.admit(self)

    def _start(self, connection: WebSocketConnection) -> None:
        connection._start()
        if self.is_client_gone:
            connection._lose_opening()
        elif self._mount.is_stopping():
            connection._close_for("the http server is closed", 1001)

    def _agree_on_deflate(self) -> DeflateParameters | None:
        options = self.config.deflate_options
        return None if options is None else accept_offer(self.requested_extensions, options)

    def _switch(
        self, subprotocol: str | None, agreed: DeflateParameters | None, fields: list[tuple[str, str]]
    ) -> WebSocketConnection:
        """Send the 101 and take the socket from the handler."""
        if not self.is_client_gone:
            self.is_client_gone = self._handler.is_client_gone()
        if not self.is_client_gone:
            try:
                self._handler.send_switch(fields)
            except OSError:
                # A TLS end is an OSError that pywsgi would not pass over; the client is gone either way.
                self.is_client_gone = True
        stream, early = self._detach()
        connection = WebSocketConnection(
            stream,
            self.config,
            deflate=agreed,
            subprotocol=subprotocol,
            request_path=self.resource,
            remote_address=self.remote_address,
            remote_addresses=self.remote_addresses,
            early=early,
        )
        connection._owner = self._mount
        connection._budget = self._mount.registry.budget
        return connection

    def _detach(self) -> tuple[Stream, bytes]:
        """Take the socket from the handler; that of a client that is gone is closed, so nobody writes to it."""
        if self._orphan is not None:
            return self._orphan, b""
        stream, early = self._handler.detach(self.config)
        if self.is_client_gone:
            self._orphan = stream
            stream.close()
        return stream, early

    def reject(
        self,
        status: int | Callable[..., Iterable[bytes]] = 403,
        reason: str | None = None,
        headers: Iterable[tuple[str, str]] | Mapping[str, str] = (),
        body: str | bytes | None = None,
    ) -> None:
        """Refuse the request with an HTTP answer (seed: reject).

        Blocks until the answer is in the kernel. ``Connection: close`` goes with it.

        Args:
            status: 200 to 599, or a WSGI response such as ``webob.exc.HTTPForbidden()``, alone then.
            reason: What ``X-WebSocket-Reject-Reason`` says, and the body where there is none.
            headers: Further response fields, as pairs or a mapping.
            body: The body; str goes out as UTF-8.

        Raises:
            InvalidState: It was accepted, rejected or ignored before.
            ValueError: The status is out of range, or the reason or a header has a character that may not be sent.
            TypeError: An argument is of a wrong type.
        """
        self._check_unresolved()
        if callable(status):
            self._write_answer(lambda: self._run_response(status))
        else:
            self._answer(status, reason, headers, body)
        self._emit_logged("rejected", self)

    def _run_response(self, response: Callable[..., Iterable[bytes]]) -> None:
        try:
            self._handler.run_response(response)
        except OSError:
            raise
        except Exception:
            if not self._handler.headers_sent:
                self._handler.send_answer(*_make_answer(500, None, (), None))
            raise

    def ignore(self) -> None:
        """Hand the request on: to the next server that claims it, and then to the WSGI application.

        Raises:
            InvalidState: It was accepted, rejected or ignored before, or a view has it already.
        """
        self._check_unresolved()
        if self._mount.server is None:
            raise InvalidState(
                "a view is the last that could answer: accept the request, reject it, or return a response"
            )
        self.is_ignored = True
        self._environ = self._handler.environ
        try:
            self._resolve("ignored")
        finally:
            self._finish()

    def _check_unresolved(self) -> None:
        if self.resolved:
            raise InvalidState(
                f"the request was {self._outcome} already: it may be accepted, rejected or ignored once only"
            )
        if self._handler.headers_sent:
            raise InvalidState("the view has begun a response already: accept or reject the request before")

    def end(self) -> None:
        """Note that the view has returned: what comes on this connection now is another request."""
        self._environ = self._handler.environ
        if not self.resolved:
            self._resolve("answered by its view")

    def _resolve(self, outcome: str) -> None:
        """Note the decision before anything leaves: from here on there is no other."""
        self.resolved = True
        self._outcome = outcome
        self._stop_watching()
        self._emit_logged("resolved", self)

    def _finish(self) -> None:
        self._mount.registry.remove_request(self)
        if self._done is not None:
            self._done.set()

    def _answer(
        self,
        status: int,
        reason: str | None,
        headers: Iterable[tuple[str, str]] | Mapping[str, str],
        body: str | bytes | None,
    ) -> None:
        line, fields, octets = _make_answer(status, reason, headers, body)
        self._write_answer(lambda: self._handler.send_answer(line, fields, octets), f"answered {status}")

    def _write_answer(self, write: Callable[[], None], outcome: str = "rejected") -> None:
        try:
            self._resolve(outcome)
            if not self.is_client_gone:
                write()
        except OSError:
            # Nobody is there to read it.
            self.is_client_gone = True
        finally:
            self._finish()

    def refuse(self, error: HandshakeError) -> None:
        """Answer with the status of an error, unless there is an answer already."""
        if not self.resolved:
            self._answer(error.status, str(error), error.headers, None)
            self._emit_logged("rejected", self)

    def _emit_logged(self, name: str, *args: object) -> None:
        try:
            self._emit(name, *args)
        except Exception:
            logger.exception("a %s listener of %r raised", name, self)

    # The time until then

    def wait(self) -> None:
        """Block until the request is resolved or the client is gone; the handler is needed no longer then."""
        self._done = Event()
        self._watcher = self._handler.watch_client(self._look_at_client)
        try:
            self._done.wait()
        except BaseException:
            # Killed with the http server's pool: whoever decides later must not find half a handler.
            self.refuse(HandshakeError("the server is stopping", 503))
            raise
        finally:
            self._stop_watching()
        if not self.resolved:
            self._detach()

    def _look_at_client(self) -> None:
        """See in the hub whether the client has gone; octets that it sent stay for the parser."""
        # What is buffered hides an end behind it, which shows after the 101; other news may be none (libuv).
        gone = self._handler.is_client_gone()
        if gone or self._handler.holds_octets():
            self._stop_watching()
        if gone:
            self.is_client_gone = True
            self._finish()

    def _stop_watching(self) -> None:
        watcher = self._watcher
        self._watcher = None
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def expire(self, reason: str) -> None:
        """Answer 503 from a greenlet of its own, for `accept_timeout` and `close_all_connections`."""
        gevent.spawn(self.refuse, HandshakeError(reason, 503))


def accept(
    environ: Mapping[str, Any],
    subprotocol: str | None = None,
    origin: str | None = None,
    cookies: Iterable[object] = (),
    headers: Iterable[tuple[str, str]] | Mapping[str, str] = (),
) -> WebSocketConnection:
    """Accept the upgrade request of a WSGI environment, in a view; see `WebSocketRequest.accept`.

    Raises:
        InvalidState: The environment has no request: it is no upgrade, or the http server lacks `WebSocketHandler`.
    """
    request = environ.get(ENVIRON_KEY)
    if request is None:
        raise InvalidState(
            "this is no upgrade request for a view: WSGIServer(..., handler_class=WebSocketHandler) makes them"
        )
    connection: WebSocketConnection = request.accept(subprotocol, origin, cookies, headers)
    return connection


def _make_answer(
    status: int,
    reason: str | None,
    headers: Iterable[tuple[str, str]] | Mapping[str, str],
    body: str | bytes | None,
) -> tuple[str, list[tuple[str, str]], bytes]:
    """Check an answer and return its status line, fields and body."""
    phrase = _find_phrase(status)
    if not isinstance(reason, str | None):
        raise TypeError(f"reason must be a str, not {type(reason).__name__}")
    if not isinstance(body, str | bytes | bytearray | memoryview | None):
        raise TypeError(f"body must be str or bytes, not {type(body).__name__}")
    fields = _check_answer_fields(headers)
    if body is None:
        body = f"{reason or phrase}\n"
    octets = body.encode() if isinstance(body, str) else bytes(body)
    if not any(name.lower() == "content-type" for name, _ in fields):
        fields.append(("Content-Type", "text/plain; charset=utf-8"))
    if reason:
        text = reason.encode("latin-1", "replace").decode("latin-1")
        check_field("X-WebSocket-Reject-Reason", text)
        fields.append(("X-WebSocket-Reject-Reason", text))
    if status not in (204, 304):
        fields.append(("Content-Length", str(len(octets))))
    else:
        octets = b""
    fields.append(("Connection", "close"))
    return f"{int(status)} {phrase}", fields, octets


def _find_phrase(status: int) -> str:
    if isinstance(status, bool) or not isinstance(status, int):
        raise TypeError(f"status must be an int or a WSGI response, not {type(status).__name__}")
    if not 200 <= status <= 599:
        raise ValueError(f"status {status} cannot refuse a request: 200 to 599 can")
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _check_answer_fields(headers: Iterable[tuple[str, str]] | Mapping[str, str]) -> list[tuple[str, str]]:
    fields = list(headers.items() if isinstance(headers, Mapping) else headers)
    for name, value in fields:
        check_field(name, value)
        if name.lower() in ("connection", "content-length", "transfer-encoding"):
            raise ValueError(f"header field {name!r}: not the caller's to set, for the answer ends the connection")
    return fields
