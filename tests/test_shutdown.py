"""How a server and its connections end under fire: spread closes, peers that do not play along, SIGTERM under load."""

from __future__ import annotations

import collections
import contextlib
import json
import signal
import time

import gevent
import pytest
from gevent import socket, ssl
from gevent.pool import Pool

from geventws import ConnectionClosed, WebSocketServer
from geventws.host import get_host
from tests.siege import bystander, many_descriptors
from tests.support import (
    CERTIFICATE,
    RawClient,
    make_frame,
    make_http,
    make_narrow_listener,
    make_tls_context,
    make_upgrade,
    open_client,
    paired,
    record,
    run_hub,
    running,
    serve,
    start_child,
    wait_until,
)

CLOSE_1001 = make_frame(b"\x03\xe9", 0x88)


def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "3")])
    return [b"app"]


def describe(connection):
    return connection.state, connection.close_code, connection.closed_by, connection.sent_close_code


def open_many(stack, http, count, *args, **options):
    return [stack.enter_context(open_client(http, *args, **options)) for _ in range(count)]


# shut_down


@pytest.mark.parametrize("code", [1001, 1012])
def test_closes_are_spread(code):
    """None comes before its time, and meanwhile upgrades go to the application."""
    count, spread = 60, 0.6
    arrivals = []

    def wait(client):
        assert client.read_frame() == (0x88, code.to_bytes(2, "big") + b"later")
        arrivals.append(time.monotonic() - started)
        client.send(make_frame(code.to_bytes(2, "big"), 0x88))
        assert client.read_end() == b""

    with serve(app) as (http, server), contextlib.ExitStack() as stack:
        server.on("request", lambda request: request.accept())
        closed = record(server, "close")
        clients = open_many(stack, http, count)
        waiting = [gevent.spawn(wait, client) for client in clients]
        started = time.monotonic()
        shutting = gevent.spawn(server.shut_down, 20, code, "later", spread)
        run_hub()
        while len(arrivals) < count:
            with RawClient(http) as newcomer:
                newcomer.send(make_upgrade())
                assert newcomer.read_answer()[0] == 200
            gevent.sleep(0.02)
        gevent.joinall(waiting, raise_error=True)
        shutting.get()
        assert [closed.get()[2:] for _ in clients] == [(code, "")] * count
    assert all(arrival > spread * index / count - 0.02 for index, arrival in enumerate(arrivals))
    assert arrivals[-1] < spread + 0.5


def test_many_closes_take_no_longer_than_the_spread():
    """A sleep for each of them would take a millisecond or more."""
    with many_descriptors(4096), serve() as (http, server), contextlib.ExitStack() as stack:
        server.on("request", lambda request: request.accept())
        open_many(stack, http, 400)
        wait_until(lambda: len(server.connections) == 400)
        started = time.monotonic()
        server.shut_down(spread=0.04)
        wait_until(lambda: not any(connection.connected for connection in server.connections))
        assert time.monotonic() - started < 0.3


def test_peers_that_never_answer_are_dropped_in_the_end():
    with serve(close_timeout=20) as (http, server), contextlib.ExitStack() as stack:
        server.on("request", lambda request: request.accept())
        clients = open_many(stack, http, 20)
        connections = list(server.connections)
        started = time.monotonic()
        server.shut_down(timeout=0.2, code=1012)
        assert 0.2 <= time.monotonic() - started < 1
        assert {describe(connection) for connection in connections} == {("CLOSED", 1012, "local", 1012)}
        assert {client.read_end() for client in clients} == {b"\x88\x02\x03\xf4"}


def test_peers_that_never_answer_are_waited_for_no_longer_than_close_timeout():
    with serve(close_timeout=0.1) as (http, server), contextlib.ExitStack() as stack:
        server.on("request", lambda request: request.accept())
        clients = open_many(stack, http, 20)
        connections = list(server.connections)
        started = time.monotonic()
        server.shut_down(timeout=20)
        assert 0.1 <= time.monotonic() - started < 1
        assert {describe(connection) for connection in connections} == {("CLOSED", 1006, "local", 1001)}
        assert {client.read_end() for client in clients} == {b"\x88\x02\x03\xe9"}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_peers_that_never_read_are_dropped_in_the_end(tls):
    options = {"ssl_context": make_tls_context()} if tls else {}
    http = make_http(listener=make_narrow_listener(), **options)
    with serve(http=http) as (_, server), contextlib.ExitStack() as stack:
        server.on("request", lambda request: request.accept().send_nowait(bytes(5_000_000)))
        open_many(stack, http, 5, tls=tls)
        connections = list(server.connections)
        assert all(connection.buffered_amount for connection in connections)
        started = time.monotonic()
        server.shut_down(timeout=0.2)
        assert time.monotonic() - started < 1
        assert {describe(connection) for connection in connections} == {("CLOSED", 1001, "local", 1001)}


def test_peers_that_read_get_everything_and_then_the_close():
    with serve(http=make_http(listener=make_narrow_listener())) as (http, server), contextlib.ExitStack() as stack:

        @server.on("request")
        def accept(request):
            connection = request.accept()
            for number in range(50):
                connection.send_nowait(f"{number:04}" * 1000)

        clients = open_many(stack, http, 10)
        assert all(connection.buffered_amount for connection in server.connections)
        shutting = gevent.spawn(server.shut_down, 20)
        run_hub()
        assert not shutting.ready()
        for client in clients:
            for number in range(50):
                assert client.read_frame() == (0x81, f"{number:04}".encode() * 1000)
            assert client.read_frame() == (0x88, b"\x03\xe9")
            client.send(CLOSE_1001)
            assert client.read_end() == b""
        shutting.get()


# Peers that end TCP in their own way


class PatientTLS:
    """Be a client's TLS socket that may end its side and read on, which Python's own do not allow.

    Over memory: those look for the peer's close_notify at once, and take what it still sends for an error.
    """

    def __init__(self, sock):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(CERTIFICATE)
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.do(self.tls.do_handshake)

    def do(self, call, *args):
        while (results := self.attempt(call, *args)) is None:
            self.incoming.write(self.sock.recv(65536))
        return results[0]

    def attempt(self, call, *args):
        """Return the result as the only item of a tuple; None where something has to come in before."""
        try:
            return (call(*args),)
        except ssl.SSLWantReadError:
            return None
        finally:
            self.flush()

    def flush(self):
        self.sock.sendall(self.outgoing.read())

    def sendall(self, octets):
        self.do(self.tls.write, octets)

    def recv(self, size):
        try:
            return self.do(self.tls.read, size)
        except ssl.SSLZeroReturnError:
            return b""

    def end(self):
        """Send close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.flush()

    def close(self):
        self.sock.close()


@contextlib.contextmanager
def paired_narrow(tls):
    """Give a client that can end its side, the function that does so, and the connection accepted for it."""
    http = make_http(listener=make_narrow_listener(), **({"ssl_context": make_tls_context()} if tls else {}))
    with serve(http=http) as (_, server), RawClient(http) as client:
        requests = record(server, "request")
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        if tls:
            client.sock = PatientTLS(client.sock)
        client.send(make_upgrade())
        connection = requests.get()[1].accept()
        client.read_head()
        yield client, client.sock.end if tls else client.shut_write, connection


@pytest.mark.parametrize("style", ["listeners", "loop"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_peer_that_ended_its_side_gets_what_it_was_sent(style, tls):
    """In order and to the last octet; then the connection is over, 1006, for no Close has come."""
    with paired_narrow(tls) as (client, end, connection):
        finished = record(connection, "close")
        looping = gevent.spawn(list, connection) if style == "loop" else None
        for number in range(100):
            connection.send_nowait(f"{number:04}" * 1000)
        assert connection.buffered_amount > 100_000
        end()
        assert finished.get() == ("close", 1006, "")
        assert connection.closed_by == "transport"
        with pytest.raises(ConnectionClosed):
            connection.send("too late")
        for number in range(100):
            assert client.read_frame() == (0x81, f"{number:04}".encode() * 1000)
        assert client.read_end() == b""
        if style == "loop":
            with pytest.raises(ConnectionClosed):
                looping.get()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_peer_that_ended_its_side_behind_its_close_gets_what_it_was_sent(tls):
    with paired_narrow(tls) as (client, end, connection):
        for number in range(100):
            connection.send_nowait(f"{number:04}" * 1000)
        client.send(make_frame(b"\x03\xe8bye", 0x88))
        end()
        for number in range(100):
            assert client.read_frame() == (0x81, f"{number:04}".encode() * 1000)
        assert client.read_frame() == (0x88, b"\x03\xe8")
        assert client.read_end() == b""
        assert connection.wait_closed()
        assert (connection.close_code, connection.close_reason, connection.closed_by) == (1000, "bye", "peer")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_reset_while_output_waits(tls):
    with paired(is_narrow=True, tls=tls) as (client, connection):
        connection.send_nowait(bytes(1_000_000))
        waiting = gevent.spawn(connection.send, "behind it")
        run_hub()
        client.send(make_frame("abc")[:4])
        client.reset()
        assert connection.wait_closed()
        assert describe(connection)[:3] == ("CLOSED", 1006, "transport")
        assert "octets unsent" in connection.close_cause
        waiting.join()
        assert waiting.value is None or isinstance(waiting.exception, ConnectionClosed)


@pytest.mark.parametrize("ending", ["in order", "with TCP alone", "in a record", "by a reset"])
def test_tls_peers_that_end_without_a_close(ending):
    """Whether TLS was ended in order makes no difference to who ended the connection: nobody said Close."""
    with paired(tls=True) as (client, connection):
        client.send(make_frame("last"))
        assert connection.receive() == "last"
        if ending == "in order":
            with contextlib.suppress(ssl.SSLWantReadError):
                client.sock._sslobj.shutdown()
        elif ending == "in a record":
            client.sock._sock.send(b"\x17\x03\x03\x00\x40half of it")
        if ending == "by a reset":
            client.reset()
        else:
            client.close()
        with pytest.raises(ConnectionClosed) as caught:
            connection.receive()
        assert caught.value.code == 1006
        assert describe(connection) == ("CLOSED", 1006, "transport", None)


def test_a_tls_peer_that_ends_with_tcp_behind_its_close():
    with paired(tls=True) as (client, connection):
        client.send(make_frame(b"\x0b\xb8", 0x88))
        client.close()
        assert connection.wait_closed()
        assert describe(connection) == ("CLOSED", 3000, "peer", 3000)


# stop


def serve_echoes(server, style):
    """Let a server echo; what it sends first on ``/full`` is more than fits, and ``/pending`` is never decided."""

    @server.on("request")
    def decide(request):
        if request.resource == "/pending":
            return
        connection = request.accept()
        if request.resource == "/full":
            connection.send_nowait(bytes(1_000_000))
        if style == "loop":
            with contextlib.suppress(ConnectionClosed):
                for message in connection:
                    connection.send(message)
        else:
            connection.on("message", connection.send)


def talk(client, started):
    """Send and have it back, again and again, until the server closes; then play along."""
    count = 0
    while True:
        client.send(make_frame(f"{count}"))
        first, payload = client.read_frame()
        if first == 0x88:
            break
        assert payload == f"{count}".encode()
        count += 1
        started.add(client)
    assert payload == b"\x03\xe9"
    client.send(CLOSE_1001)
    assert client.read_end() == b""


@pytest.mark.parametrize("pool", [False, True], ids=["no pool", "pool"])
@pytest.mark.parametrize("style", ["listeners", "loop"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_stop_among_peers_of_all_kinds(tls, style, pool):
    """Those that play along get everything; the others hold it up no longer than its time-out."""
    options = {"ssl_context": make_tls_context()} if tls else {}
    http = make_http(listener=make_narrow_listener(), spawn=Pool(100) if pool else "default", **options)
    server = WebSocketServer(http_server=http, close_timeout=0.3, send_timeout=0.5)
    serve_echoes(server, style)
    ends = collections.Counter()
    server.on("close", lambda connection, code, reason: ends.update([(connection.request_path, code)]))
    with running(http), contextlib.ExitStack() as stack:
        talkers = open_many(stack, http, 20, "/talk", tls=tls)
        mute = open_many(stack, http, 5, "/mute", tls=tls)
        open_many(stack, http, 5, "/full", tls=tls)
        for _ in range(5):
            stack.enter_context(RawClient(http, tls=tls)).send(make_upgrade()[:30])
        pending = stack.enter_context(RawClient(http, tls=tls))
        pending.send(make_upgrade("/pending"))
        wait_until(lambda: len(server.connections) == 30 and server.pending_requests)
        busy = set()
        talking = [gevent.spawn(talk, client, busy) for client in talkers]
        wait_until(lambda: len(busy) == len(talkers))
        started = time.monotonic()
        http.stop(timeout=1.0)
        # With a pool, a second for its greenlets to take being killed.
        assert time.monotonic() - started < 2.5
        gevent.joinall(talking, raise_error=True)
        assert {client.read_frame() for client in mute} == {(0x88, b"\x03\xe9")}
        if not pool:
            # Its greenlet waits as ever; it is the http server's end that kills the others'.
            next(iter(server.pending_requests)).reject(503)
        assert pending.read_answer()[0] == 503
        wait_until(lambda: not get_host(http).connections)
        assert ends[("/talk", 1001)] == 20
        assert ends[("/mute", 1006)] == ends[("/full", 1006)] == 5


def test_stop_twice_at_once():
    with serve(close_timeout=0.2) as (http, server), contextlib.ExitStack() as stack:
        server.on("request", lambda request: request.accept())
        clients = open_many(stack, http, 5)
        stopping = [gevent.spawn(http.stop, 5) for _ in range(3)]
        gevent.joinall(stopping, raise_error=True)
        assert {client.read_end() for client in clients} == {b"\x88\x02\x03\xe9"}


def test_a_server_goes_on_beside_one_that_is_shut_down():
    with serve(path="/one") as (http, one):
        one.on("request", lambda request: request.accept())
        two = WebSocketServer(http_server=http, path="/two")
        two.on("request", lambda request: echo(request.accept()))
        with bystander(http, "/two"), open_client(http, "/one") as client:
            shutting = gevent.spawn(one.shut_down, 5, spread=0.1)
            assert client.read_frame() == (0x88, b"\x03\xe9")
            client.send(CLOSE_1001)
            shutting.get()
        two.unmount()


def echo(connection):
    connection.on("message", connection.send)


# SIGTERM under load

CHILD = """
import contextlib, json, signal, sys, time

import gevent
from gevent.pywsgi import WSGIServer
from geventws import ConnectionClosed, WebSocketServer

http = WSGIServer(("127.0.0.1", 0), log=None)
http.stop_timeout = float(sys.argv[1])
server = WebSocketServer(http_server=http, close_timeout=float(sys.argv[2]))
# For each connection: how many messages were queued for it, its close code, and who ended it.
report = {}

class Source:
    def __init__(self, connection, name):
        self.connection = connection
        self.report = report[name] = [0, None, None]
        connection.on("close", self.note_end)

    def send(self, text):
        if self.connection.connected:
            # From here on nothing can come between the number and the queue.
            self.report[0] += 1
            self.connection.send(f"{self.report[0]} {text}")

    def flood(self, text):
        with contextlib.suppress(ConnectionClosed):
            while self.connection.connected:
                self.send(text)

    def take(self, message):
        if message == "flood":
            gevent.spawn(self.flood, 16000 * "x")
        else:
            with contextlib.suppress(ConnectionClosed):
                self.send(message)

    def note_end(self, code, reason):
        self.report[1:] = [code, self.connection.closed_by]

@server.on("request")
def decide(request):
    connection = request.accept()
    source = Source(connection, request.resource)
    if request.resource.startswith("/loop"):
        with contextlib.suppress(ConnectionClosed):
            for message in connection:
                source.take(message)
    else:
        connection.on("message", source.take)

gevent.signal_handler(signal.SIGTERM, http.stop)
http.start()
print(http.server_port, flush=True)
http.serve_forever()
print(json.dumps(report))
"""


class Peer:
    """Be a client of the child: what it has read is numbered, and no number may be missing."""

    def __init__(self, http, name, *, answers=True, floods=False):
        self.name = name
        self.client = open_client(http, name)
        self.answers = answers
        self.floods = floods
        self.count = 0
        self.code = None

    def run(self):
        """Talk until the server closes, and then read what there is."""
        self.client.send(make_frame("flood" if self.floods else "a") + make_frame("b") * 3)
        while True:
            first, payload = self.client.read_frame()
            if first == 0x88:
                break
            self.count += 1
            number, _, text = payload.partition(b" ")
            assert int(number) == self.count
            if text[:1] != b"x":
                with contextlib.suppress(OSError):
                    self.client.send(make_frame(text))
        self.code = int.from_bytes(payload, "big")
        if self.answers:
            self.client.send(CLOSE_1001)
        assert self.client.read_end() == b""


class Address:
    def __init__(self, port):
        self.server_port = port
        self.address = ("127.0.0.1", port)


@pytest.mark.limit(60)
def test_sigterm_under_load():
    """A thousand connections, messages both ways: nothing that a reading peer was sent is lost, and nothing hangs."""
    stop_timeout, close_timeout = 4.0, 1.0
    with many_descriptors(4096), start_child(CHILD, str(stop_timeout), str(close_timeout)) as child:
        try:
            http = Address(int(child.stdout.readline()))
            end_under_load(child, http, stop_timeout)
        finally:
            if child.poll() is None:
                child.kill()


def end_under_load(child, http, stop_timeout):
    peers = [Peer(http, f"/{('event', 'loop')[number % 2]}/talks/{number}") for number in range(860)]
    peers += [Peer(http, f"/{('event', 'loop')[number % 2]}/flooded/{number}", floods=True) for number in range(20)]
    mute = [Peer(http, f"/{('event', 'loop')[number % 2]}/mute/{number}", answers=False) for number in range(50)]
    deaf = [open_client(http, f"/{('event', 'loop')[number % 2]}/deaf/{number}") for number in range(50)]
    full = [open_client(http, f"/{('event', 'loop')[number % 2]}/full/{number}") for number in range(20)]
    running_peers = [gevent.spawn(peer.run) for peer in peers + mute]
    for client in deaf:
        client.send(make_frame("a") * 10)
    for client in full:
        client.send(make_frame("flood"))
    wait_until(lambda: all(peer.count for peer in peers + mute))
    started = time.monotonic()
    child.send_signal(signal.SIGTERM)
    output, errors = child.communicate()
    assert time.monotonic() - started < stop_timeout + 1.5
    # That a thousand connections keep a slow machine busy is no fault.
    assert [line for line in errors.splitlines() if "the hub stood still" not in line] == []
    assert child.returncode == 0
    gevent.joinall(running_peers, raise_error=True)
    report = json.loads(output)
    assert len(report) == 1000
    for peer in peers + mute:
        sent, code, by = report[peer.name]
        assert (peer.name, peer.count, peer.code) == (peer.name, sent, 1001)
        assert (code, by) == ((1001 if peer.answers else 1006), "local")
    for name, (sent, code, by) in report.items():
        if "/deaf/" in name:
            # The Close reached the kernel, and nobody answered.
            assert (sent, code, by) == (10, 1006, "local")
        elif "/full/" in name:
            # Output was waiting to the last.
            assert sent
            assert code is None
    for client in deaf + full + [peer.client for peer in peers + mute]:
        client.close()
