"""A worker for gunicorn: ``gunicorn -k geventws.integrations.gunicorn.Worker chat:app``.

Strategy: gunicorn's own worker for pywsgi, with a handler that knows upgrade requests. Its http servers are there
before gunicorn calls ``post_worker_init``, so that a `WebSocketServer` can be mounted on them. And they are stopped:
gunicorn would close them and wait for the handlers in the pool alone, where a connection in event style is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from gevent.pool import Pool

from geventws import WebSocketHandler

try:
    from gunicorn.http.wsgi import base_environ
    from gunicorn.sock import ssl_context
    from gunicorn.workers.ggevent import VERSION, GeventPyWSGIWorker, PyWSGIHandler, PyWSGIServer
except ImportError as missing:
    raise ImportError(
        "geventws.integrations.gunicorn needs gunicorn and packaging: pip install gunicorn packaging"
    ) from missing

if TYPE_CHECKING:
    from types import FrameType

    from gevent import socket

__all__ = ["Handler", "Worker"]

# gunicorn's master takes a worker that does not tell of itself for dead.
_HEARTBEAT_INTERVAL = 1.0
#: Seconds for the closing handshakes where gunicorn wants a worker to leave at once.
_QUICK_STOP_TIMEOUT = 1.0


class Handler(WebSocketHandler, PyWSGIHandler):
    """Handle upgrade requests as `WebSocketHandler` does, and all else as gunicorn's handler for pywsgi.

    A worker with other options for views has a subclass of this, with its own ``config``, as ``wsgi_handler``.
    """

    def begin_head(self) -> None:
        """Begin a request; until its head is read, the access log has nothing to tell."""
        # gunicorn's line is made of these; where one is missing its handler raises, and the client has no answer.
        self.response_headers = []
        self.environ = dict.fromkeys(("REQUEST_METHOD", "RAW_URI", "SERVER_PROTOCOL"), "-")
        if self.client_address:
            self.environ["REMOTE_ADDR"] = self.client_address[0]
        super().begin_head()


class Worker(GeventPyWSGIWorker):
    """Serve an application with pywsgi and WebSockets in a worker process of gunicorn.

    Views find their request in ``environ["geventws.request"]``. A `WebSocketServer` is mounted in gunicorn's hook
    ``post_worker_init(worker)``, which runs in each worker: ``server.mount(http_server=worker.http_servers)``.

    On SIGTERM and on a reload, connections get a Close with 1001 at once, and the worker leaves when they and the
    requests in progress have ended, at the latest after ``graceful_timeout``. On SIGQUIT and SIGINT they have a second.
    """

    server_class = PyWSGIServer
    #: What handles the requests: `Handler`, or a subclass of it with options of its own.
    wsgi_handler = Handler

    #: One for each address that gunicorn is bound to; started after ``post_worker_init``.
    http_servers: list[PyWSGIServer]

    def init_process(self) -> None:
        """Begin, in the new process; returns when the worker ends."""
        self._woken = Event()
        # For a signal that comes while the application is loaded.
        self.http_servers = []
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the application, and make the http servers for it."""
        super().load_wsgi()
        self.http_servers = [self._make_http_server(listener) for listener in self.sockets]

    def _make_http_server(self, listener: socket.socket) -> PyWSGIServer:
        """Do as gunicorn in its ``run``."""
        listener.setblocking(True)
        options: dict[str, Any] = {
            "application": self.wsgi,
            "environ": {**base_environ(self.cfg), "wsgi.multithread": True, "SERVER_SOFTWARE": VERSION},
            "handler_class": self.wsgi_handler,
            "log": self.log,
            "spawn": Pool(self.worker_connections),
        }
        if self.cfg.is_ssl:
            options["ssl_context"] = ssl_context(self.cfg)
        http_server: PyWSGIServer = self.server_class(listener, **options)
        return http_server

    def run(self) -> None:
        """Serve until gunicorn's master wants the worker to end."""
        for http_server in self.http_servers:
            http_server.start()
        while self.alive:
            self.notify()
            self._woken.wait(_HEARTBEAT_INTERVAL)
        self._stop(self.cfg.graceful_timeout)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, in order; called in a signal handler, where nothing may wait."""
        super().handle_exit(sig, frame)
        self._woken.set()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """End soon; called in a signal handler, where nothing may wait."""
        gevent.spawn(self._quit, sig, frame)

    def _quit(self, sig: int, frame: FrameType | None) -> None:
        self._stop(min(_QUICK_STOP_TIMEOUT, self.cfg.graceful_timeout))
        super().handle_quit(sig, frame)

    def _stop(self, timeout: float) -> None:
        """Stop the http servers, and wait until their connections have ended."""
        # Together, so that none's connections learn of it later than the others'.
        stops = [gevent.spawn(http_server.stop, timeout) for http_server in self.http_servers]
        while len(gevent.joinall(stops, timeout=_HEARTBEAT_INTERVAL)) < len(stops):
            self.notify()
