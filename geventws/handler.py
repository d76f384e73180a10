"""`WebSocketHandler`: pywsgi's handler that knows upgrade requests.

Strategy: everything of plain HTTP stays pywsgi's. One method is overridden to take over an upgrade
request (``run_application``: error handling and access log are ready there), and three so that after a
101 nothing more is written. Accepting takes the socket away: the handler's greenlet may then end
without closing it.

The head of a usual upgrade request is not parsed by pywsgi, and what pywsgi makes of a head, ``headers`` and
``environ``, is made when somebody asks for it: that is the greater part of what a new connection costs.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from _socket import SHUT_WR
from email.errors import InvalidHeaderDefect, MissingHeaderBodySeparatorDefect
from http.client import HTTPException
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote, urlsplit

from gevent import Timeout, get_hub
from gevent.core import READ  # type: ignore[import-not-found]
from gevent.pywsgi import Input, WSGIHandler, _NoopLog  # type: ignore[attr-defined]
from greenlet import GreenletExit

from geventws import sockets
from geventws.config import ServerConfig
from geventws.errors import HandshakeError, SubprotocolError
from geventws.handshake import is_upgrade
from geventws.head import HeadTooLarge, UpgradeHead, parse_upgrade, read_fields
from geventws.host import HeadLimits, Mount, get_host
from geventws.request import ENVIRON_KEY, WebSocketRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gevent.pywsgi import WSGIServer

    from geventws.sockets import Stream

__all__ = ["WebSocketHandler"]

logger = logging.getLogger("geventws")

_HEADER_TIMEOUT_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n\r\n"
    b"Request Timeout\n"
)
# Without a body, as pywsgi's own refusals of a head are: it may have been a HEAD.
_HEAD_TOO_LARGE_ANSWER = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)
#: Seconds for a client to stop sending what is not taken any more, and to read why.
_LINGER_TIME = 2.0
# What pywsgi's parser of a head notes, and goes on without some of its lines.
_LOST_LINES = (InvalidHeaderDefect, MissingHeaderBodySeparatorDefect)


# Where a subclass overrides one of these, each request goes through it.
_HEAD_METHODS = ("read_requestline", "read_request", "MessageClass")
_LOG_METHODS = ("log_request", "format_request")
_SWITCHING = "101 Switching Protocols"
_NO_HEADERS = WSGIHandler.headers
_Message = type(_NO_HEADERS)


class _FirstOctet:
    """Stand in for ``rfile`` while it reads the request line, and tell when there is a first octet."""

    __slots__ = ("_note", "_rfile")

    def __init__(self, rfile: Any, note: Callable[[], None]) -> None:
        self._rfile = rfile
        self._note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rfile, name)

    def readline(self, size: int = -1) -> bytes:
        """Do as the file."""
        if self._rfile.peek(1):
            self._note()
        line: bytes = self._rfile.readline(size)
        return line


class WebSocketHandler(WSGIHandler):
    """Handle HTTP as pywsgi does, and upgrade requests for the servers mounted, or for a view.

    As ``WSGIServer(address, app, handler_class=WebSocketHandler)`` without any mount, a view finds a
    `WebSocketRequest` in ``environ["geventws.request"]``, and its connection ends with the view.
    """

    #: The options for views; None where only mounted servers take upgrade requests.
    config: ClassVar[ServerConfig | None] = ServerConfig()

    @staticmethod
    def limit_counts(http_server: WSGIServer) -> Mapping[str, int]:
        """How often each limit was exceeded by what views of an http server accepted.

        It is what `WebSocketServer.limit_counts` is for a server: live, read-only, by the option's name.
        """
        return MappingProxyType(get_host(http_server).views.limit_counts)

    # What pywsgi sets before any method here is called; its stubs say that it may be None, or hide it.
    command: str
    path: str
    request_version: str
    client_address: Any
    content_length: Any
    response_headers: Any
    status: Any
    _orig_status: Any
    # None once the request is over: pywsgi deletes them then, and the environment may be asked for after that.
    rfile: Any = None
    socket: Any = None

    _parses_upgrades = True
    _logs_itself = False
    # The head of the request, where it was parsed here.
    _head: UpgradeHead | None = None
    _fields: dict[str, list[str]]
    _message: Any = None
    _environ: dict[str, Any] | None = None
    # Whether ``rfile`` has no octet, as far as is known.
    _is_drained = False
    _head_limits = HeadLimits()
    _request_line_size = 0
    _deadline: Timeout | None = None
    _has_octet = False
    _is_first_request = True
    _is_answered = False
    _is_logged = False
    _has_failed = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Look whether a subclass has its own way of reading a head, or of writing the access log."""
        super().__init_subclass__(**options)
        own = {name for base in cls.__mro__ if base not in (WebSocketHandler, WSGIHandler) for name in vars(base)}
        cls._parses_upgrades = own.isdisjoint(_HEAD_METHODS)
        cls._logs_itself = not own.isdisjoint(_LOG_METHODS)

    # What pywsgi makes of each head

    @property
    def headers(self) -> Any:
        """The request's fields, as http.client has them."""
        if self._message is None and self._head is not None:
            self._message = _Message()
            for name, value in self._head.fields:
                self._message.set_raw(name, value)
        return _NO_HEADERS if self._message is None else self._message

    @headers.setter
    def headers(self, message: Any) -> None:
        self._message = message

    @property
    def environ(self) -> Any:
        """The WSGI environment."""
        if self._environ is None and self._head is not None:
            self._environ = self.get_environ()
            # It has `rfile`, and whoever has it may read.
            self._is_drained = False
        return self._environ

    @environ.setter
    def environ(self, environ: dict[str, Any] | None) -> None:
        self._environ = environ

    # The request head, within one deadline and bounds

    def handle_one_request(self) -> Any:
        """Handle one request, its head within ``header_timeout``, ``max_head_size`` and ``max_header_count``."""
        self._head = self._message = self._environ = None
        self._is_drained = False
        self._head_limits = get_host(self.server).get_head_limits(self.config)
        seconds = self._head_limits.header_timeout
        self._deadline = None if seconds is None else Timeout(seconds)
        self.begin_head()
        if self._deadline is None:
            return self._handle_one_request()
        try:
            return self._handle_one_request()
        except Timeout as expired:
            if expired is not self._deadline or seconds is None:
                raise
            return self._end_slow_head(seconds)
        finally:
            self._deadline.close()

    def _handle_one_request(self) -> Any:
        """Parse the head of an upgrade request, if it is there and usual; leave all else to pywsgi."""
        limits = self._head_limits
        # Without a limit nobody here takes upgrade requests.
        if not self._parses_upgrades or limits.max_header_count is None or self.rfile.closed:
            return super().handle_one_request()
        try:
            octets = self.rfile.peek(1)
        except OSError:
            # As in pywsgi: a client that is gone is no news.
            return None
        if octets:
            self._note_first_octet()
        head = parse_upgrade(octets, limits.max_head_size or sys.maxsize, limits.max_header_count)
        if head is None:
            return super().handle_one_request()
        self.rfile.read(head.size)
        if self._deadline is not None:
            self._deadline.close()
        self._head = head
        self._environ = None
        self._is_drained = len(octets) == head.size
        self.requestline = f"GET {head.target} HTTP/1.1"
        self.command, self.path, self.request_version = "GET", head.target, "HTTP/1.1"
        self.content_length = None
        self.wsgi_input = Input(self.rfile, None)
        self.application = self.server.application
        self.handle_one_response()
        return None if self.close_connection or self.rfile.closed else True

    def begin_head(self) -> None:
        """Note that a head is waited for; with the connection the deadline of its first request starts."""
        self._has_octet = False
        if self._is_first_request:
            self._is_first_request = False
            if self._deadline is not None:
                self._deadline.start()

    def read_requestline(self) -> str:
        """Start the deadline with the first octet, unless the connection or that octet has started it already."""
        if self._deadline is None or self._has_octet:
            return super().read_requestline()
        rfile = self.rfile
        # Within `super`, so that a time-out that a user's handler class sets for idle connections holds as ever.
        self.rfile = _FirstOctet(rfile, self._note_first_octet)
        try:
            return super().read_requestline()
        finally:
            self.rfile = rfile

    def _note_first_octet(self) -> None:
        self._has_octet = True
        if self._deadline is not None and not self._deadline.pending:
            self._deadline.start()

    def read_request(self, raw_requestline: str) -> Any:
        """Read the head; with its end the deadline is met."""
        self._request_line_size = len(raw_requestline)
        try:
            return super().read_request(raw_requestline)
        except (HTTPException, IndexError) as fault:
            # pywsgi writes a traceback for all but a ValueError, and a client can cause these at will.
            raise ValueError(str(fault)) from fault
        finally:
            if self._deadline is not None:
                self._deadline.close()

    def MessageClass(self, rfile: Any, *args: Any) -> Any:  # noqa: N802 - pywsgi's name
        """Parse the fields, as far as they keep within the limits."""
        limits = self._head_limits
        if limits.max_header_count is not None:
            max_size = limits.max_head_size or sys.maxsize
            rfile = read_fields(rfile, self._request_line_size, max_size, limits.max_header_count)
        return super().MessageClass(rfile, *args)

    def _end_slow_head(self, seconds: float) -> Any:
        get_host(self.server).count_limit("header_timeout", seconds, self.config)
        self.log_error("no complete request head came within %s s from %s", seconds, self.client_address)
        if not self._has_octet:
            return None
        self.requestline = ""
        self._note_refusal(_HEADER_TIMEOUT_ANSWER)
        return "408 Request Timeout", _HEADER_TIMEOUT_ANSWER

    def _handle_client_error(self, ex: Exception) -> Any:
        """Refuse a head that cannot be read."""
        if not isinstance(ex, HeadTooLarge):
            return super()._handle_client_error(ex)  # type: ignore[misc]
        get_host(self.server).count_limit(ex.limit, ex.value, self.config)
        self.log_error("%s, from %s", ex, self.client_address)
        self._note_refusal(_HEAD_TOO_LARGE_ANSWER)
        self.status = "431 Request Header Fields Too Large"
        self.time_finish = time.time()
        self.log_request()
        with contextlib.suppress(OSError), Timeout(_LINGER_TIME, False):  # type: ignore[arg-type]
            # Not by pywsgi, which would close over what the client still sends: a reset, that swallows the answer.
            self.socket.sendall(_HEAD_TOO_LARGE_ANSWER)
            self.socket.shutdown(SHUT_WR)
            while self.socket.recv(65536):
                pass
        return None

    def _note_refusal(self, answer: bytes) -> None:
        """Let the access log say nothing of the request before."""
        self._orig_status = None
        self.response_length = len(answer)

    # Upgrade requests

    def run_application(self) -> None:
        """Ask the mounted servers who claims an upgrade request; all others go to the application."""
        if self._head is None and "HTTP_UPGRADE" not in self.environ:
            super().run_application()
            return
        self._fields = self._collect_fields()
        if not is_upgrade(self._fields):
            self._run_as_http()
            return
        mounts = get_host(self.server).mounts
        for mount in tuple(mounts):
            # A listener before it may have blocked, and the mount be gone since.
            if mount in mounts and mount.server._claims(self.get_path()):
                request = WebSocketRequest(self, mount)
                mount.server._decide(request)
                if not request.is_ignored:
                    self.close_connection = True
                    return
        if self.config is None:
            self._run_as_http()
        else:
            self._run_view(self.config)

    def _run_as_http(self) -> None:
        if self._head is not None:
            # As pywsgi does where it parses a head.
            self.close_connection = self.headers.get("Connection", "").lower() == "close"
        super().run_application()

    def _run_view(self, config: ServerConfig) -> None:
        """Run the application with a request in its environment; the connection ends with it."""
        request = WebSocketRequest(self, Mount(get_host(self.server), None, config))
        self.environ[ENVIRON_KEY] = request
        try:
            self._run_as_http()
        except BaseException as error:
            if self._is_answered and isinstance(error, (HandshakeError, SubprotocolError)):
                # The client was told; it can cause this at will, so it is worth one line.
                logger.error("a view raised for %r: %s", request, error)
                return
            if request.connection is None:
                raise
            self._has_failed = True
            request.connection._on_listener_raised()
            if isinstance(error, GreenletExit):
                raise
        finally:
            # The environment outlives this in pywsgi's error path; the request must not keep what it holds.
            self.environ.pop(ENVIRON_KEY, None)
            request.end()
            if request.connection is not None:
                # A framework turns what the view raises into a response of 500.
                code, why = (1011, "the view failed") if self._has_failed else (1000, "the view returned")
                request.connection._close_for(why, code)

    def get_fields(self) -> dict[str, list[str]]:
        """Return the request's fields by their lower-case names; what is no field stands under no name."""
        return self._fields

    def _collect_fields(self) -> dict[str, list[str]]:
        collected: dict[str, list[str]] = {}
        head = self._head
        for name, value in self.headers.items() if head is None else head.fields:
            collected.setdefault(name.lower(), []).append(value)
        if head is None and any(isinstance(defect, _LOST_LINES) for defect in self.headers.defects):
            # The parser passed over a line without a name, or took one without a colon for the end of the head.
            collected[""] = []
        return collected

    def get_path(self) -> str:
        """Return the decoded path of the request target, without query, scheme and host."""
        path = self._get_variable("PATH_INFO") or unquote(self.path.partition("?")[0], "latin-1")
        if not path.startswith("/"):
            # RFC 9112, 3.2.2: a server accepts the absolute form, which pywsgi leaves as it is.
            path = urlsplit(path).path or "/"
        return path if path.isascii() else path.encode("latin-1").decode("utf-8", "replace")

    def get_peer_address(self) -> str:
        """Return the IP address of the TCP peer; ``""`` for a Unix socket."""
        address = self._get_variable("REMOTE_ADDR")
        if address is None:
            # On a Unix socket the http server may have a value for all requests.
            is_tcp = isinstance(self.client_address, tuple)
            address = self.client_address[0] if is_tcp else self.server.get_environ().get("REMOTE_ADDR", "")
        return str(address)

    def _get_variable(self, name: str) -> str | None:
        """Return what the WSGI environment says, where there is one or a subclass has a word in it."""
        if self._environ is None and type(self).get_environ is WSGIHandler.get_environ:
            return None
        return self.environ.get(name, "")  # type: ignore[no-any-return]

    # What a request does with the socket

    def watch_client(self, callback: Callable[[], None]) -> Any:
        """Return a started watcher that calls in the hub when there is something to read."""
        watcher = get_hub().loop.io(self.socket.fileno(), READ)
        watcher.start(callback)
        return watcher

    def is_client_gone(self) -> bool:
        """Look without waiting; octets that are there stay in ``rfile``."""
        is_tls = sockets.is_tls(self.socket)
        if (is_tls or not self._is_drained) and self._peek():
            return False
        return self._tls_ended if is_tls else sockets.is_ended(self.socket)

    _tls_ended = False

    def holds_octets(self) -> bool:
        """Tell whether ``rfile`` has octets, or can have them without waiting."""
        return bool(self._peek())

    def _peek(self) -> bytes:
        """Return what ``rfile`` can give without waiting; afterwards `_tls_ended` tells of an end under TLS."""
        self._is_drained = False
        sock = self.socket
        timeout = sock.timeout
        sock.timeout = 0.0
        try:
            octets: bytes = self.rfile.peek(1)
            self._tls_ended = not octets
        except OSError as error:
            # Would block, which SocketIO does not tell from an end under TLS; or broken.
            self._tls_ended = "Want" not in type(error).__name__
            return b""
        finally:
            sock.timeout = timeout
        return octets

    def send_switch(self, fields: list[tuple[str, str]]) -> None:
        """Send the 101 and write its line into the access log."""
        # Not by pywsgi's `start_response`, which is for applications: the fields are checked already. RFC 9110, 6.6.1
        # asks for no Date in a 1xx.
        lines = "".join([f"{name}: {value}\r\n" for name, value in fields])
        octets = f"HTTP/1.1 {_SWITCHING}\r\n{lines}\r\n".encode("latin-1")
        self._orig_status = _SWITCHING
        self.status = _SWITCHING.encode()
        self.code = 101
        self.response_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        self.connection_upgraded = self.headers_sent = True
        sent = self.socket.send(octets)
        if sent < len(octets):
            self.socket.sendall(octets[sent:])
        self.response_length = len(octets)
        self._is_answered = True
        self.time_finish = time.time()
        self.log_request()
        self._is_logged = True

    def send_answer(self, status: str, fields: list[tuple[str, str]], body: bytes) -> None:
        """Send an answer of our own, which ends the connection."""
        self._end_http()
        super().start_response(status, fields)
        # RFC 9110, 9.3.2: the fields, but no content.
        super().write(b"" if self.command == "HEAD" else body)
        self._is_answered = True

    def run_response(self, response: Callable[..., Iterable[bytes]]) -> None:
        """Send a WSGI response instead of the application's."""
        self._end_http()

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            kept = [(name, value) for name, value in headers if name.lower() != "connection"]
            return WSGIHandler.start_response(self, status, [*kept, ("Connection", "close")], exc_info)

        application = self.application
        self.application = lambda environ, _: response(environ, start_response)
        # In a view that is a generator, this is its.
        result, self.result = self.result, None
        try:
            super().run_application()
        finally:
            self.application = application
            self.result = result
            self._is_answered = self.headers_sent

    def _end_http(self) -> None:
        self.close_connection = True
        # A body that came with the request is not waited for.
        self.wsgi_input = Input(self.rfile, None)

    def detach(self, config: ServerConfig) -> tuple[Stream, bytes]:
        """Give the socket away: its stream, and the octets that came with the handshake."""
        self._end_http()
        self._is_answered = True
        # A loop over the messages keeps this handler for as long as the connection lives.
        self._fields = {}
        self.response_headers = []
        early = b"" if self._is_drained else self._peek()
        if early:
            early = self.rfile.read(len(early))
        sock = self.socket
        self.socket = None
        sockets.set_options(sock, no_delay=config.disable_nagle_algorithm, keepalive_idle=config.native_keepalive_idle)
        if sockets.is_tls(sock):
            # First, while the file still counts as a user of the socket.
            stream = sockets.detach(sock)
            self.rfile.close()
        else:
            self.rfile.close()
            stream = sockets.detach(sock)
        return stream, early

    # After an answer of ours nothing more goes out

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Do as pywsgi, unless the request was answered: a framework's response then goes nowhere."""
        if self._is_answered:
            self._has_failed = self._has_failed or status[:1] == "5"
            return _discard
        return super().start_response(status, headers, exc_info)

    def write(self, data: bytes) -> None:
        """Do as pywsgi, unless the request was answered."""
        if not self._is_answered:
            super().write(data)

    def log_request(self) -> None:
        """Do as pywsgi, once a request."""
        if self._is_logged:
            self._is_logged = False
        elif self._logs_itself or not isinstance(self.server.log, _NoopLog):
            super().log_request()


def _discard(data: bytes) -> None:
    """Take what a framework writes after the connection was taken over."""
