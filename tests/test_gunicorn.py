"""The worker for gunicorn in a real gunicorn: a master and its workers as child processes, on real ports."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path

import gevent
import pytest
from gevent import subprocess

import geventws
from tests.support import (
    ACCEPT,
    CERTIFICATE,
    RawClient,
    make_frame,
    make_upgrade,
    open_client,
    run_child,
    wait_until,
)

pytest.importorskip("gunicorn")

CLOSE_1001 = make_frame(b"\x03\xe9", 0x88)
GOING_AWAY = (0x88, b"\x03\xe9")
GET = b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

APP = """
import os

import gevent
import geventws
from geventws import WebSocketServer

server = WebSocketServer()

@server.on("request")
def decide(request):
    if request.resource == "/mounted?no":
        request.reject(410, "no more")
        return
    connection = request.accept()
    connection.on("message", lambda message: answer(connection, message))
    if request.resource_url.query.get("describe"):
        connection.send(describe(request))

def describe(request):
    # Whether its head was parsed without http.client is nothing that an application could see.
    environ, is_ours = request.environ, request._handler._head is not None
    return "{} {} {} {}".format(
        environ["RAW_URI"], environ["REMOTE_ADDR"], type(environ["gunicorn.sock"]).__name__, is_ours
    )

def answer(connection, message):
    if message == "pid":
        connection.send(str(os.getpid()))
    elif message == "many":
        for number in range(80):
            connection.send(f"{number} " + 100000 * "x")
    else:
        connection.send(message)

def app(environ, start_response):
    if environ["PATH_INFO"] == "/view":
        connection = geventws.accept(environ)
        if environ["QUERY_STRING"]:
            connection.send(describe(environ["geventws.request"]))
        for message in connection:
            connection.send(message.upper())
        return []
    if environ["PATH_INFO"] == "/stubborn":
        geventws.accept(environ)
        gevent.sleep(60)
    if environ["PATH_INFO"] == "/no":
        environ["geventws.request"].reject(410, "no more")
        return []
    body = "{} {} {} {}".format(
        os.getpid(), environ["RAW_URI"], "gunicorn.sock" in environ, environ["SERVER_SOFTWARE"]
    ).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
CONFIG = """
worker_class = "geventws.integrations.gunicorn.Worker"
control_socket_disable = True
accesslog = "-"

def post_worker_init(worker):
    from app import server
    server.mount(http_server=worker.http_servers, path="/mounted", **OPTIONS)

def worker_int(worker):
    worker.log.info("interrupted")
"""
WORKER_WITH_OPTIONS = """
from geventws import ServerConfig
from geventws.integrations import gunicorn

class Handler(gunicorn.Handler):
    config = ServerConfig(allowed_origins=["https://example.com"])

class worker_class(gunicorn.Worker):
    wsgi_handler = Handler
"""
# So that whatever happens within a test's time limit was not found by looking now and then.
SLOW_HEARTBEAT = """
from geventws.integrations import gunicorn
gunicorn._HEARTBEAT_INTERVAL = 60.0
"""


class Address:
    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.address = (host, int(port)) if host else address
        self.server_port = int(port) if host else None


class Gunicorn:
    """Run gunicorn, and know its addresses; ``log`` gets the lines of its error log as they come."""

    def __init__(self, folder, *arguments, config="", **options):
        (folder / "app.py").write_text(APP)
        (folder / "gunicorn.conf.py").write_text(f"OPTIONS = {options}\n" + CONFIG + config)
        paths = [str(folder), str(Path(geventws.__file__).parent.parent)]
        self.child = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", *arguments, "app:app"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = []
        self.access = []
        self.readers = [
            gevent.spawn(self.read, self.child.stderr, self.log),
            gevent.spawn(self.read, self.child.stdout, self.access),
        ]

    @staticmethod
    def read(file, lines):
        for line in file:
            lines.append(line.rstrip("\n"))

    def __enter__(self):
        wait_until(lambda: self.find("Listening at") or self.child.poll() is not None)
        listening = "".join(self.find("Listening at"))
        self.https = [Address(address) for address in re.findall(r"(?:https?://|unix:)([^ ,]+)", listening)]
        assert self.https, "\n".join(self.log)
        return self

    def __exit__(self, *exception):
        if self.child.poll() is None:
            # In order, for its workers would outlive it.
            self.child.send_signal(signal.SIGQUIT)
            self.child.wait()
        gevent.joinall(self.readers)
        self.child.stdout.close()
        self.child.stderr.close()

    def find(self, words):
        return [line for line in self.log if words in line]

    def connect(self, path="/mounted", *headers, **options):
        return open_client(self.https[0], path, *headers, **options)

    def fetch(self, octets=GET, *, index=0, **options):
        with RawClient(self.https[index], **options) as client:
            client.send(octets)
            return client.read_answer()

    def end(self, number=signal.SIGTERM):
        """End it, and return how long that took; it must be a clean end."""
        started = time.monotonic()
        self.child.send_signal(number)
        return self.check_end(started)

    def check_end(self, started):
        assert self.child.wait() == 0
        took = time.monotonic() - started
        gevent.joinall(self.readers)
        faults = [line for line in self.log if "Traceback" in line or "[ERROR]" in line]
        # An old worker is sent it every second, and may be just ending.
        assert [line for line in faults if "was sent SIGTERM" not in line] == []
        return took


def ask(client, message):
    client.send(make_frame(message))
    return client.read_frame()[1].decode()


def read_number(client):
    number, _, filling = client.read_frame()[1].partition(b" ")
    assert len(filling) == 100000
    return int(number)


def check_goodbye(client):
    assert client.read_frame() == GOING_AWAY
    client.send(CLOSE_1001)
    assert client.read_end() == b""


# What is served


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["own", "preload"])
def test_a_view_and_a_mounted_server_in_two_workers(tmp_path, preload):
    with Gunicorn(tmp_path, "--workers", "2", *preload) as gunicorn:
        pids = set()
        while len(pids) < 2:
            with gunicorn.connect() as client:
                pids.add(ask(client, "pid"))
        with gunicorn.connect("/view", early=make_frame("early")) as view:
            assert ACCEPT in view.head
            assert view.read_frame() == (0x81, b"EARLY")
            assert ask(view, "later") == "LATER"
        status, _, body = gunicorn.fetch(b"GET /a%20page?x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        pid, *words = body.decode().split(" ", 3)
        assert (status, pid in pids, words[:2]) == (200, True, ["/a%20page?x", "True"])
        assert re.fullmatch(r"gevent/\S+ gunicorn/\S+", words[2])
        gunicorn.end()
    lines = [re.search(r'"(.*?)" (\d+) (\d+)', line).groups() for line in gunicorn.access]
    assert lines.count(("GET /view HTTP/1.1", "101", "129")) == 1
    assert [line[:2] for line in lines].count(("GET /a%20page?x HTTP/1.1", "200")) == 1
    assert {line[:2] for line in lines} == {
        ("GET /view HTTP/1.1", "101"),
        ("GET /mounted HTTP/1.1", "101"),
        ("GET /a%20page?x HTTP/1.1", "200"),
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Give one gunicorn, with few slots and a Unix socket as well, to the tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("gunicorn")
    arguments = ("--bind", f"unix:{folder}/socket", "--worker-connections", "2")
    with Gunicorn(folder, *arguments, header_timeout=0.5) as gunicorn:
        yield gunicorn
        gunicorn.end()


@pytest.mark.parametrize("target", ["/no", "/mounted?no"])
def test_reject(shared, target):
    status, fields, body = shared.fetch(make_upgrade(target))
    assert (status, fields["x-websocket-reject-reason"], body) == (410, "no more", b"no more\n")
    wait_until(lambda: any(f'"GET {target} HTTP/1.1" 410 ' in line for line in shared.access))


@pytest.mark.parametrize("is_ours", [True, False], ids=["whole", "in pieces"])
@pytest.mark.parametrize("path", ["/view", "/mounted"])
def test_the_environment_and_the_access_log_of_an_upgrade(shared, path, is_ours):
    before = len(shared.access)
    with RawClient(shared.https[0]) as client:
        client.send(GET.replace(b"close", b"keep-alive"))
        assert client.read_answer()[0] == 200
        octets = make_upgrade(f"{path}?describe=%20")
        if not is_ours:
            client.send(octets[:1])
            # gunicorn is another process, and nothing tells what it has read.
            gevent.sleep(0.1)
        client.send(octets if is_ours else octets[1:])
        size = len(client.read_head())
        assert client.read_frame()[1].decode() == f"{path}?describe=%20 127.0.0.1 socket {is_ours}"
    wait_until(lambda: len(shared.access) == before + 2)
    address, line, status, length = re.search(r'^(\S+) .*"(GET .*?)" (\d+) (\d+) ', shared.access[-1]).groups()
    assert (address, line) == ("127.0.0.1", f"GET {path}?describe=%20 HTTP/1.1")
    assert (status, int(length)) == ("101", size)


@pytest.mark.parametrize("index", [0, 1], ids=["TCP", "Unix"])
def test_connections_in_event_style_take_no_slot(shared, index):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(open_client(shared.https[index], "/mounted")) for _ in range(5)]
        assert shared.fetch(index=index)[0] == 200
        assert [ask(client, "Grüße") for client in clients] == ["Grüße"] * 5


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nX: " + 70000 * b"x", 431, id="too large"),
        pytest.param(b"NONSENSE\r\n\r\n", 400, id="no request line"),
        pytest.param(b"GET / HT", 408, id="slow"),
    ],
)
def test_a_head_that_cannot_be_read_is_answered_and_logged(shared, octets, status):
    """gunicorn's own handler raises there, for it has no environment to log."""
    before = len(shared.access)
    with RawClient(shared.https[0]) as client:
        client.send(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n" + octets)
        assert client.read_answer()[0] == 200
        assert client.read_answer()[0] == status
    assert shared.fetch(octets)[0] == status
    wait_until(lambda: len(shared.access) == before + 3)
    requests = [re.search(r'^(\S+) .*"(.*?)" (\d+) ', line).groups() for line in shared.access[before:]]
    unread = ("127.0.0.1", "- - -", str(status))
    assert requests == [("127.0.0.1", "GET /page HTTP/1.1", "200"), unread, unread]


def test_options_for_views(tmp_path):
    with Gunicorn(tmp_path, config=WORKER_WITH_OPTIONS) as gunicorn:
        assert gunicorn.fetch(make_upgrade("/view"))[0] == 403
        with gunicorn.connect("/view", "Origin: https://example.com") as client:
            assert ask(client, "hello") == "HELLO"
        gunicorn.end()


# The end


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_sigterm(tmp_path, tls):
    certificate = ("--certfile", CERTIFICATE, "--keyfile", CERTIFICATE) if tls else ()
    options = {"send_high_water_mark": 2**24, "max_queued_output": None, "fragment_outgoing_messages": False}
    with (
        Gunicorn(tmp_path, "--graceful-timeout", "15", *certificate, config=SLOW_HEARTBEAT, **options) as gunicorn,
        contextlib.ExitStack() as stack,
    ):
        event, view, full = (
            stack.enter_context(gunicorn.connect(path, tls=tls)) for path in ("/mounted", "/view", "/mounted")
        )
        assert (ask(event, "hello"), ask(view, "hello")) == ("hello", "HELLO")
        full.send(make_frame("many"))
        assert read_number(full) == 0
        started = time.monotonic()
        gunicorn.child.send_signal(signal.SIGTERM)
        check_goodbye(event)
        check_goodbye(view)
        assert gunicorn.child.poll() is None
        assert [read_number(full) for _ in range(79)] == list(range(1, 80))
        check_goodbye(full)
        assert gunicorn.check_end(started) < 15


def test_reload_while_peers_do_not_answer(tmp_path):
    """The new worker serves; the old one leaves after graceful_timeout, and is not taken for dead before."""
    graceful_timeout, timeout = 3, 2
    limits = ("--graceful-timeout", str(graceful_timeout), "--timeout", str(timeout))
    with Gunicorn(tmp_path, *limits, close_timeout=60) as gunicorn:
        with gunicorn.connect() as mute, gunicorn.connect("/stubborn") as stubborn:
            old = ask(mute, "pid")
            started = time.monotonic()
            gunicorn.child.send_signal(signal.SIGHUP)
            assert (mute.read_frame(), stubborn.read_frame()) == (GOING_AWAY, GOING_AWAY)
            with gunicorn.connect() as client:
                assert ask(client, "pid") != old
                assert not gunicorn.find(f"Worker exiting (pid: {old})")
                assert mute.read_end() == b""
                assert time.monotonic() - started > graceful_timeout - 0.5
                wait_until(lambda: gunicorn.find(f"Worker exiting (pid: {old})"))
                assert ask(client, "hello") == "hello"
        assert not gunicorn.find("TIMEOUT")
        gunicorn.end()


def test_sigquit(tmp_path):
    """The quick end: a Close for everybody, but no wait for a peer that does not answer."""
    with Gunicorn(tmp_path, close_timeout=60) as gunicorn:
        with gunicorn.connect() as client, gunicorn.connect() as mute, gunicorn.connect("/stubborn") as stubborn:
            ask(client, "hello")
            started = time.monotonic()
            gunicorn.child.send_signal(signal.SIGQUIT)
            check_goodbye(client)
            assert (mute.read_frame(), stubborn.read_frame()) == (GOING_AWAY, GOING_AWAY)
            # Less than half of gunicorn's graceful_timeout.
            assert gunicorn.check_end(started) < 15
        assert gunicorn.find("interrupted")


# What it needs


MISSING = """
import sys
sys.modules[sys.argv[1]] = None
try:
    import geventws.integrations.gunicorn
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["gunicorn", "packaging"])
def test_without_gunicorn(name):
    assert "pip install gunicorn packaging" in run_child(MISSING, name)
