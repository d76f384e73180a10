"""What takes too long: keepalive, `close_timeout` and `send_timeout`."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket
from gevent.event import AsyncResult
from gevent.pywsgi import WSGIHandler

from geventws import ConnectionConfig, WebSocketConnection
from geventws.sockets import detach
from tests.support import (
    make_frame,
    make_http,
    open_client,
    paired,
    record,
    run_hub,
    serve,
    start_child,
    wait_until,
)

#: A client's Close frames.
CLOSE_1000 = b"\x88\x82\x37\xfa\x21\x3d\x34\x12"
CLOSE_1001 = b"\x88\x82\x37\xfa\x21\x3d\x34\x13"
PING = b"\x89\x80\x37\xfa\x21\x3d"
PONG = b"\x8a\x80\x37\xfa\x21\x3d"


def describe(connection):
    return connection.state, connection.close_code, connection.closed_by, connection.sent_close_code


# close_timeout


def test_a_peer_that_does_not_answer_our_close():
    with paired(close_timeout=0.05) as (client, connection):
        closes = record(connection, "close")
        connection.close(3000)
        client.send(make_frame("no Close") + PING)
        assert client.read_end() == b"\x88\x02\x0b\xb8"
        assert closes.get() == ("close", 1006, "")
        assert describe(connection) == ("CLOSED", 1006, "local", 3000)
        assert "0.050 s" in connection.close_cause


def read_frames(client):
    while True:
        client.read_frame()


def test_a_peer_that_closes_and_does_not_read():
    with paired(is_narrow=True, close_timeout=0.05) as (client, connection):
        connection.send_nowait(bytes(500_000))
        client.send(CLOSE_1001)
        assert connection.wait_closed()
        assert describe(connection) == ("CLOSED", 1001, "peer", 1001)
        run_hub()
        with pytest.raises(EOFError):
            read_frames(client)


def keep_sending(client):
    while True:
        client.send(b"more")
        gevent.sleep(0.001)


def test_lingering_ends_after_close_timeout():
    with paired(close_timeout=0.05) as (client, connection):
        client.send(b"\x81\x02hi")
        client.read_frame()
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            keep_sending(client)
        assert connection.close_code == 1002


# send_timeout


def test_send_timeout():
    with paired(is_narrow=True, send_timeout=0.05) as (_, connection):
        closes = record(connection, "close")
        connection.send_nowait(bytes(500_000))
        assert closes.get() == ("close", 1006, "")
        assert describe(connection) == ("CLOSED", 1006, "transport", None)
        assert "took no octet for 0.0" in connection.close_cause


def test_send_timeout_is_not_taken_twice():
    """The little room that the kernel makes for a peer that does not read is no progress."""
    with paired(is_narrow=True, send_timeout=0.4) as (_, connection):
        started = time.monotonic()
        connection.send_nowait(bytes(5_000_000))
        assert connection.wait_closed()
        assert 0.4 <= time.monotonic() - started < 0.7


def test_send_timeout_counts_from_the_last_octet():
    with paired(is_narrow=True, send_timeout=0.2) as (client, connection):
        connection.send_nowait(bytes(2_000_000))
        started = time.monotonic()
        while connection.buffered_amount:
            assert client.sock.recv(100_000)
            gevent.sleep(0.02)
        assert time.monotonic() - started > 0.2
        assert connection.connected


def test_send_timeout_may_be_none():
    with paired(is_narrow=True, send_timeout=None) as (client, connection):
        connection.send_nowait(bytes(200_000))
        run_hub()
        assert connection.connected
        client.read(200_000)


# Keepalive


def test_a_silent_peer_is_pinged_and_dropped():
    with paired(keepalive_interval=0.05, keepalive_grace_period=0.03) as (client, connection):
        closes = record(connection, "close")
        assert client.read(2) == b"\x89\x00"
        assert connection.connected
        assert closes.get() == ("close", 1006, "")
        assert describe(connection) == ("CLOSED", 1006, "transport", None)
        assert "0.030 s" in connection.close_cause
        assert client.read_end() == b""


@pytest.mark.parametrize("answer", [PONG, PING, make_frame("a"), b"\x81"], ids=["pong", "ping", "message", "part"])
def test_any_octet_is_an_answer(answer):
    with paired(keepalive_interval=0.04, keepalive_grace_period=0.02) as (client, connection):
        for _ in range(2):
            while client.read(2) != b"\x89\x00":
                pass
            client.send(answer)
            if answer == b"\x81":
                answer = b"\x80"
        started = time.monotonic()
        while client.read(2) != b"\x89\x00":
            pass
        # The next ping came an interval after the answer, and no drop before.
        assert time.monotonic() - started > 0.02
        assert connection.connected


def test_received_octets_put_the_ping_off():
    with paired(keepalive_interval=0.1, keepalive_grace_period=10) as (client, _):
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            client.send(PONG)
            gevent.sleep(0.01)
        with pytest.raises(BlockingIOError):
            client.sock._sock.recv(1)
        assert client.read(2) == b"\x89\x00"


def test_latency_of_a_keepalive_ping():
    with paired(keepalive_interval=0.03) as (client, connection):
        assert client.read(2) == b"\x89\x00"
        client.send(PONG)
        wait_until(lambda: connection.latency is not None)
        assert 0 < connection.latency < 10


def test_keepalive_off():
    with paired(keepalive=False, keepalive_interval=0.01, keepalive_grace_period=0.01) as (client, connection):
        gevent.sleep(0.05)
        assert connection.connected
        with pytest.raises(BlockingIOError):
            client.sock._sock.recv(1)


def test_pinged_and_never_dropped():
    options = {"keepalive_interval": 0.02, "keepalive_grace_period": 0.01}
    with paired(drop_connection_on_keepalive_timeout=False, **options) as (client, connection):
        assert client.read(8) == b"\x89\x00" * 4
        assert connection.connected


def test_native_keepalive():
    kept = []

    class Handler(WSGIHandler):
        def __init__(self, sock, *args):
            kept.append(sock.dup())
            super().__init__(sock, *args)

    options = {"keepalive_interval": 0.02, "keepalive_grace_period": 0.01}
    for native in (True, False):
        with serve(http=make_http(handler_class=Handler), use_native_keepalive=native, **options) as (http, server):
            server.on("request", lambda request: request.accept())
            with open_client(http) as client:
                assert bool(kept[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is native
                if native:
                    gevent.sleep(0.05)
                    with pytest.raises(BlockingIOError):
                        client.sock._sock.recv(1)
                else:
                    assert client.read(2) == b"\x89\x00"
            kept.pop().close()


def test_an_answer_that_waits_in_the_kernel_counts():
    with paired(keepalive_interval=0.03, keepalive_grace_period=0.03) as (client, connection):
        assert client.read(2) == b"\x89\x00"
        client.send(PONG)
        # The answer is with the kernel, and the hub comes to its timers long after the grace period: it blocks here.
        time.sleep(0.1)
        run_hub()
        assert connection.connected
        client.send(CLOSE_1000)
        connection.wait_closed()
        assert connection.close_code == 1000


def test_a_pause_does_not_count():
    with paired(keepalive_interval=0.02, keepalive_grace_period=0.02) as (client, connection):
        connection.pause()
        gevent.sleep(0.1)
        assert connection.connected
        client.send(make_frame("a"))
        connection.resume()
        assert connection.receive() == "a"


def test_a_pause_during_the_grace_period_does_not_count():
    with paired(keepalive_interval=0.02, keepalive_grace_period=0.04) as (client, connection):
        assert client.read(2) == b"\x89\x00"
        connection.pause()
        client.send(make_frame("a"))
        gevent.sleep(0.1)
        connection.resume()
        assert connection.receive() == "a"


def test_a_full_inbox_does_not_count():
    options = {"keepalive_interval": 0.02, "keepalive_grace_period": 0.02}
    with paired(receive_high_water_mark=1, **options) as (client, connection):
        client.send(make_frame("a"))
        gevent.sleep(0.1)
        assert connection.connected
        assert connection.receive() == "a"


def test_the_end_of_a_peer_is_noticed_while_reading_is_paused():
    with paired(keepalive_interval=0.02, keepalive_grace_period=10) as (client, connection):
        closes = record(connection, "close")
        connection.pause()
        client.close()
        # One ping is answered with a reset, and the next one cannot be written.
        assert closes.get() == ("close", 1006, "")
        assert connection.closed_by == "transport"


def test_an_answer_that_passed_a_large_message_counts():
    with paired(is_narrow=True, keepalive_interval=0.05, keepalive_grace_period=0.03) as (client, connection):
        connection.send_nowait(bytes(400_000))
        is_answered = False
        final = False
        while not final:
            first, _ = client.read_frame()
            gevent.sleep(0.005)
            if first == 0x89:
                client.send(PONG)
                is_answered = True
            final = first == 0x80
        assert is_answered
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            assert client.read(2) == b"\x89\x00"
            client.send(PONG)
        assert connection.connected


# The counts of a server


@pytest.mark.parametrize(
    ("name", "options", "act"),
    [
        ("keepalive_grace_period", {"keepalive_interval": 0.02, "keepalive_grace_period": 0.02}, lambda _: None),
        ("close_timeout", {"close_timeout": 0.02}, lambda connection: connection.close()),
        ("send_timeout", {"send_timeout": 0.02}, lambda connection: connection.send_nowait(bytes(5_000_000))),
    ],
)
def test_a_time_out_is_counted(name, options, act):
    with serve(**options) as (http, server):
        accepted = AsyncResult()
        server.on("request", lambda request: accepted.set(request.accept()))
        with open_client(http):
            connection = accepted.get()
            act(connection)
            connection.wait_closed()
            assert {name: count for name, count in server.limit_counts.items() if count} == {name: 1}


def test_lingering_that_ends_is_not_counted():
    with serve(close_timeout=0.02) as (http, server):
        server.on("request", lambda request: request.accept())
        with open_client(http) as client:
            client.send(b"\x81\x02hi")
            client.read_frame()
            with pytest.raises(OSError, match=r"reset|[Bb]roken"):
                keep_sending(client)
            assert not any(server.limit_counts.values())


# The hub stands still

#: Longer than a heartbeat and its tolerance, so that it is noticed whenever it begins.
STALL = 1.2


def list_stalls(texts):
    """Return how many connections each warning of a stall speaks of; its length is checked."""
    pattern = r"the hub stood still for at least ([\d.]+) s: .* of its connections \((\d+)\)"
    stalls = [match for text in texts if (match := re.search(pattern, text))]
    assert all(STALL - 0.6 < float(seconds) < STALL + 5 for seconds, _ in map(re.Match.groups, stalls))
    return [int(match[2]) for match in stalls]


def test_a_stall_gives_a_silent_peer_its_whole_time(caplog):
    with paired(keepalive_interval=0.1, keepalive_grace_period=1) as (client, connection):
        assert client.read(2) == b"\x89\x00"
        # The client stands still as well, so nothing waits in the kernel afterwards.
        time.sleep(STALL)
        gevent.sleep(0.2)
        client.send(make_frame("late"))
        assert connection.receive() == "late"
        assert list_stalls(caplog.messages) == [1]
        assert [(record.name, record.levelname) for record in caplog.records] == [("geventws", "WARNING")]


def test_a_dead_peer_is_dropped_after_a_stall():
    with paired(keepalive_interval=0.1, keepalive_grace_period=0.3) as (client, connection):
        assert client.read(2) == b"\x89\x00"
        time.sleep(STALL)
        started = time.monotonic()
        assert connection.wait_closed()
        assert time.monotonic() - started > 0.1
        assert (connection.close_code, connection.closed_by) == (1006, "transport")
        # The stall is not the peer's silence.
        silent = float(re.search(r"silent for ([\d.]+) s", connection.close_cause)[1])
        assert silent < STALL


def test_a_listener_that_computes_is_one_stall_for_all_connections(caplog):
    with serve(keepalive_interval=0.1, keepalive_grace_period=1) as (http, server):

        @server.on("request")
        def accept(request):
            request.accept().on("message", lambda _: time.sleep(STALL))

        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(open_client(http)) for _ in range(5)]
            for client in clients:
                assert client.read(2) == b"\x89\x00"
            clients[0].send(make_frame("compute"))
            wait_until(lambda: list_stalls(caplog.messages))
            gevent.sleep(0.2)
            for client in clients:
                client.send(PONG)
            for client in clients:
                assert client.read(2) == b"\x89\x00"
            assert len(server.connections) == 5
            assert list_stalls(caplog.messages) == [5]


def test_a_stall_gives_a_peer_the_whole_close_timeout():
    with paired(close_timeout=1) as (client, connection):
        connection.close()
        run_hub()
        time.sleep(STALL)
        gevent.sleep(0.2)
        client.send(CLOSE_1001)
        assert connection.wait_closed()
        assert describe(connection) == ("CLOSED", 1001, "local", 1000)


def test_a_close_that_waits_in_the_kernel_counts():
    with paired(close_timeout=0.05) as (client, connection):
        connection.close()
        run_hub()
        client.send(CLOSE_1001)
        # Too short for a stall: only one more read shows what came.
        time.sleep(0.1)
        assert connection.wait_closed()
        assert describe(connection) == ("CLOSED", 1001, "local", 1000)


def test_a_stall_gives_a_peer_the_whole_send_timeout():
    # Not TCP, where the kernel of a peer that does not read makes a little room now and then.
    ours, peer = socket.socketpair()
    connection = WebSocketConnection(detach(ours), ConnectionConfig(send_timeout=1))
    connection._start()
    with peer:
        connection.send_nowait(bytes(900_000))
        time.sleep(STALL)
        gevent.sleep(0.2)
        left = 900_000
        while left > 0 and (octets := peer.recv(left)):
            left -= len(octets)
        assert connection.connected
        connection.drop(skip_close_frame=True)


def test_room_in_the_kernel_counts():
    with paired(is_narrow=True, send_timeout=0.05) as (client, connection):
        connection.send_nowait(bytes(500_000))
        run_hub()
        # The peer reads while our hub stands still.
        size = len(client.sock._sock.recv(1_000_000))
        time.sleep(0.1)
        client.read(500_000 - size)
        assert connection.connected


ECHO_SERVER = """
from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

http = WSGIServer(("127.0.0.1", 0), log=None)
server = WebSocketServer(http_server=http, keepalive_interval=0.2, keepalive_grace_period=1)


@server.on("request")
def accept(request):
    connection = request.accept()
    connection.on("message", connection.send)


http.start()
print(http.server_port, flush=True)
http.serve_forever()
"""


def test_a_process_that_was_stopped_does_not_blame_its_peer():
    with started_child(ECHO_SERVER) as child:
        port = int(child.stdout.readline())
        with open_client(SimpleNamespace(address=("127.0.0.1", port), server_port=port)) as client:
            assert client.read(2) == b"\x89\x00"
            child.send_signal(signal.SIGSTOP)
            gevent.sleep(STALL)
            child.send_signal(signal.SIGCONT)
            # The peer has the rest of the grace period, and uses most of it.
            gevent.sleep(0.3)
            client.send(make_frame("alive"))
            first, payload = client.read_frame()
            assert (first, payload) == (0x81, b"alive")
        child.terminate()
        assert list_stalls(child.stderr) == [1]


@contextlib.contextmanager
def started_child(source):
    child = start_child(source)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


# TLS


def test_tls_keepalive():
    with paired(tls=True, keepalive_interval=0.03, keepalive_grace_period=0.03) as (client, connection):
        assert client.read(2) == b"\x89\x00"
        client.send(PONG)
        assert client.read(2) == b"\x89\x00"
        assert connection.wait_closed()
        assert connection.close_code == 1006
