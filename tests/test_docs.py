"""What the documentation shows, run as it stands: each file of docs/snippets is a server in a child process.

A snippet listens on port 8000; `Child` lets it take any free port in its place, and tells which. Its clients are
another library's, and the standard library's for plain HTTP.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import pytest
import websocket
import websockets.sync.client

import geventws
from geventws.config import ClientConfig, ServerConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SNIPPETS = DOCS / "snippets"
PAGES = [ROOT / "README.md", *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts)]
TIMEOUT = 10.0

# The child says on which port each server listens. Warnings are errors in it, as in the tests.
RUNNER = """
import sys
from gevent.baseserver import BaseServer

def start(self, start=BaseServer.start):
    start(self)
    print("listening on", self.server_port, flush=True)

BaseServer.start = start
with open(sys.argv[1]) as file:
    source = file.read()
assert "8000)" in source
exec(compile(source.replace("8000)", "0)"), sys.argv[1], "exec"), {"__name__": "__main__"})
"""
OPTIONS = ["-W", "error", "-W", "ignore:'cgi' is deprecated:DeprecationWarning"]


def start(folder, *command, **options):
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", **options
    )


def start_node(folder, source):
    modules = str(Path(__file__).parent / "node" / "node_modules")
    return start(folder, "node", "-e", source, env={**os.environ, "NODE_PATH": modules})


class Child:
    """A server that runs in a process, and its port."""

    def __init__(self, process):
        self.process = process
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            process.kill()
            pytest.fail(f"the server did not come up: {line}{process.communicate(timeout=TIMEOUT)[1]}")
        self.port = int(line.split()[-1])

    @contextlib.contextmanager
    def connect(self, target="/", **options):
        connection = websocket.create_connection(f"ws://127.0.0.1:{self.port}{target}", timeout=TIMEOUT, **options)
        try:
            yield connection
        finally:
            connection.close()
            # It does nothing above where the server closed first.
            connection.shutdown()

    def fetch(self, target="/", **options):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{target}", **options)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.read().decode()

    def end(self):
        """End the child, and return what it printed: on its output, and for errors."""
        self.process.kill()
        return self.process.communicate(timeout=TIMEOUT)


@pytest.fixture
def run(tmp_path):
    """Give a function that runs a snippet, and look afterwards whether it complained."""
    children = []

    def run_snippet(name):
        child = Child(start(tmp_path, sys.executable, *OPTIONS, "-c", RUNNER, str(SNIPPETS / name)))
        children.append(child)
        return child

    yield run_snippet
    for child in children:
        if child.process.poll() is None:
            _, errors = child.end()
            assert "Traceback" not in errors, errors


def echo(connection, message="some text"):
    connection.send(message)
    return connection.recv()


def get_refusal(child, target="/", **options):
    with pytest.raises(websocket.WebSocketBadStatusException) as caught, child.connect(target, **options):
        pytest.fail("the server accepted")
    return caught.value


def test_readme(run):
    child = run("readme.py")
    page = child.fetch()
    assert 'new WebSocket("ws://" + location.host)' in page
    with child.connect() as connection:
        assert echo(connection, "it works") == "it works"


def test_hello_http(run):
    assert run("hello_http.py").fetch() == "Hello over HTTP"


def test_hello_websocket(run):
    child = run("hello_websocket.py")
    assert child.fetch() == "Hello over HTTP"
    with child.connect("/ws") as connection:
        assert connection.recv() == "Hello over WebSocket"
        assert echo(connection) == "some text"
    assert get_refusal(child, "/").status_code == 400


def test_hello_everybody(run):
    child = run("hello_everybody.py")
    with child.connect("/ws") as first, child.connect("/ws") as second:
        assert first.recv() == "somebody came"
        assert child.fetch() == "2 are here"
        assert child.fetch("/announce/dinner", method="POST") == "2 have been told"
        assert (first.recv(), second.recv()) == ("dinner", "dinner")
        second.send("thanks")
        assert (first.recv(), second.recv()) == ("thanks", "thanks")
        second.close()
        assert first.recv() == "somebody left (1000)"


def test_loop_style(run):
    with run("loop_style.py").connect() as connection:
        assert echo(connection, "Ada") == "What is your name?"
        assert echo(connection, "hello") == "Ada said hello"


def test_reject(run):
    child = run("reject.py")
    refusal = get_refusal(child, "/?token=guess")
    assert refusal.status_code == 401
    assert refusal.resp_headers["x-websocket-reject-reason"] == "wrong token"
    assert refusal.resp_headers["www-authenticate"] == "Bearer"
    assert get_refusal(child, "/other").status_code == 404
    assert get_refusal(child, "/?token=open%20sesame").status_code == 400
    chat = {"target": "/?token=open%20sesame", "subprotocols": ["chat"]}
    with child.connect(**chat) as first, child.connect(**chat):
        assert first.getsubprotocol() == "chat"
        assert first.getheaders()["x-served-by"] == "geventws"
        assert first.getheaders()["set-cookie"] == "seen=yes"
        assert get_refusal(child, **chat).status_code == 429


def test_decide_later(run):
    child = run("decide_later.py")
    client = http.client.HTTPConnection("127.0.0.1", child.port, timeout=TIMEOUT)
    with contextlib.closing(client):
        client.putrequest("GET", "/")
        for field in [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Version", "13"),
        ]:
            client.putheader(*field)
        client.endheaders(b"\x81\x81\x00\x00\x00\x00a")
        child.fetch()
        with client.getresponse() as response:
            assert response.status == 101
            assert response.headers["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_flask_view(run):
    with run("flask_view.py").connect("/ws/Ada") as connection:
        assert echo(connection) == "Ada: some text"


def test_view_options(run):
    child = run("view_options.py")
    assert child.fetch() == "no upgrade request\n"
    assert get_refusal(child, origin="https://evil.example").status_code == 403
    with child.connect(origin="https://example.com") as connection:
        assert echo(connection, "x" * 16) == "x" * 16
        connection.send("x" * 17)
        assert connection.recv_data() == (8, b"\x03\xf1a message has more than 16 octets")


def test_feed_thread(run):
    with run("feed_thread.py").connect() as connection:
        assert [connection.recv() for _ in range(3)] == ["value 0", "value 1", "value 2"]


def test_thread_pool(run):
    with run("thread_pool.py").connect() as connection:
        assert echo(connection, "secret") == hashlib.scrypt(b"secret", salt=b"salt", n=1024, r=8, p=1).hex()


def test_context(run):
    child = run("context.py")
    with child.connect("/?user=ada") as ada, child.connect("/?user=bob") as bob:
        answers = [echo(connection) for connection in (ada, bob, ada)]
    assert answers == ["message 1 of ada", "message 1 of bob", "message 2 of ada"]


def test_sqlalchemy_session(run):
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    child = run("sqlalchemy_session.py")
    with child.connect() as first, child.connect() as second:
        assert [echo(connection) for connection in (first, second, first)] == ["1 notes", "2 notes", "3 notes"]


def test_session_per_message(run):
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    with run("session_per_message.py").connect() as connection:
        assert [echo(connection), echo(connection)] == ["1 notes", "2 notes"]


def test_listener_timeout(run):
    with run("listener_timeout.py").connect() as connection:
        assert [echo(connection, "60"), echo(connection, "0")] == ["too slow", "found"]


def test_stream_upload(run):
    with run("stream_upload.py").connect() as connection:
        half = b"a" * 60000
        connection.send_frame(websocket.ABNF.create_frame(half, websocket.ABNF.OPCODE_BINARY, 0))
        connection.send_frame(websocket.ABNF.create_frame(half, websocket.ABNF.OPCODE_CONT, 1))
        assert connection.recv() == f"120000 octets, {hashlib.sha256(half * 2).hexdigest()}"
        assert connection.recv() == "line 0\nline 1\nline 2\n"


def test_compression(run):
    child = run("compression.py")
    # The client knows no compression: it offers what it lacks, and its frames are read here.
    offer = "Sec-WebSocket-Extensions: permessage-deflate"
    with child.connect(header=[offer]) as connection, connection.sock.makefile("rb") as file:
        assert connection.getheaders()["sec-websocket-extensions"].startswith("permessage-deflate;")
        first, payload = read_frame(file)
        assert (first, len(payload) > 1024, len(json.loads(payload)["token"])) == (0x81, True, 32)
        connection.send("42")
        assert read_frame(file) == (0x81, b'["room number 42"]')
        connection.send("room")
        first, payload = read_frame(file)
        assert (first, len(payload) < 1024) == (0xC1, True)
        rooms = json.loads(zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff"))
        assert rooms == [f"room number {number}" for number in range(100)]
    with websockets.sync.client.connect(f"ws://127.0.0.1:{child.port}/") as connection:
        assert [extension.name for extension in connection.protocol.extensions] == ["permessage-deflate"]
        assert json.loads(connection.recv(TIMEOUT))["rooms"] == rooms
        connection.send("room")
        assert json.loads(connection.recv(TIMEOUT)) == rooms


def read_frame(file):
    """Return the first octet and the payload of a frame from a server."""
    first, size = file.read(2)
    if size == 126:
        size = int.from_bytes(file.read(2), "big")
    return first, file.read(size)


def test_log_ends(run):
    child = run("log_ends.py")
    assert get_refusal(child, header=["Sec-WebSocket-Version: 12"]).status_code == 426
    with child.connect() as first:
        assert echo(first, "12") == "144"
    with child.connect() as second:
        second.send("twelve")
        assert second.recv_data() == (8, b"\x03\xf3")
    with child.connect() as third:
        # Whatever the second one's end has to say was said before this is answered.
        assert echo(third, "1") == "1"
    _, errors = child.end()
    assert "ends: refused with 426: the only supported Sec-WebSocket-Version is 13\n" in errors
    figures = r"; silent for \d+\.\d{3} s, 0 octets unsent\n"
    assert re.search("ends: 1000 '', ended by peer: the peer closed with 1000" + figures, errors)
    assert re.search("ends: 1011 '', ended by local: we failed it: a listener raised ValueError" + figures, errors)
    assert "geventws: a listener of <WebSocketConnection OPEN 127.0.0.1 /> raised\nTraceback" in errors


def test_tune_memory(run):
    with run("tune_memory.py").connect() as connection:
        # More than is taken unless the option says so.
        assert len(echo(connection, 2_000_000 * "x")) == 2_000_000


def test_sigterm(run):
    child = run("sigterm.py")
    with child.connect() as connection:
        assert echo(connection) == "some text"
        child.process.send_signal(signal.SIGTERM)
        assert connection.recv_data() == (8, b"\x03\xe9")
    output, errors = child.process.communicate(timeout=TIMEOUT)
    assert (child.process.returncode, output) == (0, "every connection is closed\n")
    assert "Traceback" not in errors


# Each worker tells when it is ready: gunicorn loses a signal that comes to it before.
TELL_WORKERS = """
mount = post_worker_init

def post_worker_init(worker):
    mount(worker)
    print("listening on", worker.http_servers[0].address[1], flush=True)
"""


@pytest.fixture
def gunicorn(tmp_path):
    """Run gunicorn with its two files, and two workers."""
    config = (SNIPPETS / "gunicorn_conf.py").read_text()
    assert ":8000" in config
    (tmp_path / "gunicorn.conf.py").write_text(config.replace(":8000", ":0") + TELL_WORKERS)
    (tmp_path / "chat.py").write_text((SNIPPETS / "gunicorn_app.py").read_text())
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    child = Child(start(tmp_path, sys.executable, "-m", "gunicorn", "chat:app", env=environment))
    child.process.stdout.readline()
    yield child
    child.process.terminate()
    _, errors = child.process.communicate(timeout=TIMEOUT)
    assert (child.process.returncode, "Traceback" in errors) == (0, False), errors


def test_gunicorn_app(gunicorn):
    with gunicorn.connect("/ws") as connection:
        assert echo(connection) == "some text"
    assert gunicorn.fetch() in {"0 are in this worker", "1 are in this worker"}


def test_gunicorn_conf(gunicorn):
    # Flask's answer to an upgrade request that it has no rule for.
    assert get_refusal(gunicorn, "/").status_code == 400
    with gunicorn.connect("/ws") as connection:
        gunicorn.process.send_signal(signal.SIGHUP)
        assert connection.recv_data() == (8, b"\x03\xe9")
    for _ in range(2):
        assert gunicorn.process.stdout.readline() == f"listening on {gunicorn.port}\n"


def test_pool(run):
    child = run("pool.py")
    with child.connect() as first, child.connect() as second:
        assert (echo(first), echo(second, "more")) == ("some text", "more")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            child.fetch()


def test_behind_proxy(run):
    child = run("behind_proxy.py")
    with child.connect(header=["X-Forwarded-For: 192.0.2.66, 203.0.113.5"]) as connection:
        assert connection.recv() == "you are 203.0.113.5"
        assert connection.recv() == "127.0.0.1 <- 203.0.113.5 <- 192.0.2.66"


def test_nginx_conf(run, require, tmp_path):
    nginx = require("nginx")
    child = run("behind_proxy.py")
    text = (SNIPPETS / "nginx.conf").read_text().replace("8000", str(child.port))
    # A Unix socket needs no free port; nginx then has no client address to hand on.
    path = tmp_path / "nginx.sock"
    text = text.replace("listen 8080", f"listen unix:{path}")
    config = tmp_path / "nginx.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = " ".join(f"{kind}_temp_path {tmp_path / kind};" for kind in kinds)
    config.write_text(f"daemon off; pid {tmp_path}/pid; events {{}} http {{ access_log off; {folders} {text} }}")
    process = subprocess.Popen([nginx, "-p", str(tmp_path), "-e", "stderr", "-c", str(config)])
    try:
        connection = connect_through(path)
        with contextlib.closing(connection):
            assert connection.recv().startswith("you are ")
            assert connection.recv().startswith("127.0.0.1 <- ")
        assert child.process.poll() is None
    finally:
        process.terminate()
        process.wait(TIMEOUT)


def connect_through(path):
    """Connect through a Unix socket as soon as somebody listens there."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(TIMEOUT)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            if time.monotonic() > deadline:
                raise
        else:
            return websocket.create_connection("ws://localhost/", socket=sock)


def test_client(run):
    output, errors = run("client.py").process.communicate(timeout=TIMEOUT)
    ending = r"1000 we closed with 1000; silent for \d+\.\d{3} s, 0 octets unsent"
    assert re.fullmatch(rf"chat welcome\n{ending}\n", output), output
    assert "Traceback" not in errors


def test_moved(run):
    check_moved(run("moved.py"))


def test_moved_js(require, tmp_path):
    require("node")
    source = (SNIPPETS / "moved.js").read_text().replace("8000", "0")
    tell = "http.on('listening', () => console.log('listening on', http.address().port));"
    child = Child(start_node(tmp_path, source + tell))
    try:
        check_moved(child)
    finally:
        child.end()


def test_console_js(run, require, tmp_path):
    require("node")
    child = run("hello_websocket.py")
    source = (SNIPPETS / "console.js").read_text().replace("8000", str(child.port))
    # The page has a WebSocket of its own, and older versions of Node.js have none.
    browser = start_node(tmp_path, "globalThis.WebSocket = require('ws');" + source)
    try:
        lines = [browser.stdout.readline() for _ in range(2)]
    finally:
        browser.kill()
        errors = browser.communicate(timeout=TIMEOUT)[1]
    assert (lines, errors) == (["Hello over WebSocket\n", "Hello back\n"], "")


def check_moved(child):
    assert get_refusal(child, origin="http://evil.example").status_code == 403
    with child.connect(origin="http://example.com", subprotocols=["echo"]) as connection:
        assert connection.getsubprotocol() == "echo"
        assert echo(connection) == "some text"
        connection.send_binary(b"\x00\xff")
        assert connection.recv() == b"\x00\xff"


# What the pages say beside


each_snippet = pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name) for path in sorted(SNIPPETS.glob("[!.]*.*")) if path.name != "ruff.toml"]
)


@each_snippet
def test_snippet_is_run(path):
    assert f"test_{path.stem}" + path.suffix.replace(".", "_").removesuffix("_py") in globals()


@each_snippet
def test_snippet_is_shown(path):
    assert any(f"snippets/{path.name}" in page.read_text() for page in PAGES)


def test_readme_shows_its_snippet():
    snippet = (SNIPPETS / "readme.py").read_text()
    assert f"```python\n{snippet}```\n" in (ROOT / "README.md").read_text()
    assert len([line for line in snippet.splitlines() if line]) <= 15


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
def test_code_stands_in_files(page):
    text = page.read_text()
    if page.name == "README.md":
        text = text.replace((SNIPPETS / "readme.py").read_text(), "")
    assert not re.findall(r"^ *```(?:\{code-block\} *)?(?:python|js|javascript|nginx)\n(?!```)", text, re.MULTILINE)
    for name in re.findall(r"^ *```\{literalinclude\} (\S+)", text, re.MULTILINE):
        assert page.parent.joinpath(name).is_file(), name


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert page.parent.joinpath(target).exists(), target


@pytest.mark.parametrize("cls", [ServerConfig, ClientConfig])
def test_options_table(cls):
    tables = runpy.run_path(str(DOCS / "options_tables.py"))
    assert f"<!-- options of {cls.__name__} -->" in (DOCS / "options.md").read_text()
    rows = tables["make_table"](cls).splitlines()[2:]
    assert len(rows) == len(dataclasses.fields(cls))
    for row, field in zip(rows, dataclasses.fields(cls), strict=True):
        seed, name, _, unit, meaning, exceeded = (cell.strip() for cell in row.strip("|").split("|"))
        assert name == f"`{field.name}`"
        assert seed == (f"`{field.metadata['seed']}`" if field.metadata["seed"] else "—")
        assert (unit, meaning, exceeded or "—") == (
            field.metadata["unit"] or "—",
            field.metadata["help"],
            field.metadata["exceeded"] or "—",
        )


def test_options_page_is_complete_when_built():
    tables = runpy.run_path(str(DOCS / "options_tables.py"))
    built = tables["insert_tables"]((DOCS / "options.md").read_text())
    assert "<!-- options of" not in built
    assert "| `maxReceivedFrameSize` | `max_received_frame_size` | `65536` | octets |" in built


# Methods that other modules of the package call, and nobody else.
INTERNAL = {"deliver", "end", "expire", "refuse", "wait", "EVENTS"}


def list_members():
    """List the public names, and the methods and properties of the three classes that a user calls."""
    for name in geventws.__all__:
        yield name
        if name in ("WebSocketServer", "WebSocketRequest", "WebSocketConnection"):
            cls = getattr(geventws, name)
            # The class's own page names these.
            attributes = re.findall(r"^ {4,8}(\w+): ", cls.__doc__, re.MULTILINE)
            for member in dir(cls):
                if not member.startswith("_") and member not in attributes and member not in INTERNAL:
                    yield f"{name}.{member}"


def test_reference_is_complete():
    text = "\n".join(page.read_text() for page in sorted(DOCS.glob("reference/*.md")))
    named = re.findall(r"^\.\. (?:auto\w+|py:data):: geventws\.(\S+)", text, re.MULTILINE)
    assert set(list_members()) - set(named) == set()
    assert len(set(named)) == len(named)


def test_the_attacks_of_the_security_page_are_tried():
    tests = "".join(Path(__file__).with_name(f"test_{name}.py").read_text() for name in ("adversary", "shutdown"))
    named = re.findall(r"`(test_\w+)`", (DOCS / "security.md").read_text())
    assert len(named) > 30
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_changelog_begins_with_this_version():
    headings = re.findall(r"^## (\S+)", (DOCS / "changelog.md").read_text(), re.MULTILINE)
    assert headings[0] == geventws.__version__
