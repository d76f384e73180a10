"""How what was received reaches the application: in listeners, in a loop, in pieces, as frames."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import logging
import random
import time
import tracemalloc
import zlib

import gevent
import pytest
from gevent import socket
from gevent.event import AsyncResult, Event
from gevent.queue import Queue
from greenlet import GreenletExit, getcurrent

from geventws import ConnectionClosed, ConnectionConfig, InvalidState, WebSocketConnection, WebSocketFrame
from geventws.dispatch import BATON_TIME
from geventws.sockets import detach
from tests.support import (
    CERTIFICATE,
    Metered,
    make_frame,
    make_http,
    open_client,
    paired,
    record,
    run_child,
    run_hub,
    serve,
    wait_until,
)

#: A client's Close frames: 1000, 1001, without a code, 3001 with a reason.
CLOSE_1000 = b"\x88\x82\x37\xfa\x21\x3d\x34\x12"
CLOSE_1001 = b"\x88\x82\x37\xfa\x21\x3d\x34\x13"
CLOSE_EMPTY = b"\x88\x80\x37\xfa\x21\x3d"
CLOSE_3001 = make_frame(b"\x0b\xb9bye", 0x88)


# Event style


def test_messages_reach_the_listener_in_order():
    with paired() as (client, connection):
        messages = record(connection, "message")
        client.send(b"\x81\x82\x37\xfa\x21\x3d\x5f\x93" + make_frame(b"\x00\xff", 0x82) + make_frame("é"))
        assert [messages.get() for _ in range(3)] == [("message", "hi"), ("message", b"\x00\xff"), ("message", "é")]


def test_octets_that_came_with_the_handshake_are_the_first_frames():
    with paired(early=make_frame("a") + make_frame("b")[:3]) as (client, connection):
        messages = record(connection, "message")
        client.send(make_frame("b")[3:])
        assert [messages.get(), messages.get()] == [("message", "a"), ("message", "b")]


@pytest.mark.parametrize("is_loop", [pytest.param(False, id="event-style"), pytest.param(True, id="loop-style")])
def test_a_ping_that_came_with_the_handshake_is_answered_before_the_message_behind_it(is_loop):
    def echo(request):
        connection = request.accept()
        if is_loop:
            connection.send(connection.receive())
        else:
            connection.on("message", connection.send)

    with serve() as (http, server):
        server.on("request", echo)
        # Between the fragments, as in case 5.6 of the Autobahn suite.
        early = make_frame("a", 0x01) + make_frame("ping", 0x89) + make_frame("b", 0x80)
        with open_client(http, early=early) as client:
            assert [client.read_frame(), client.read_frame()] == [(0x8A, b"ping"), (0x81, b"ab")]


def test_messages_are_held_until_somebody_listens():
    with paired() as (client, connection):
        client.send(make_frame("a") + make_frame("b"))
        run_hub()
        messages = record(connection, "message")
        assert [messages.get(), messages.get()] == [("message", "a"), ("message", "b")]


def test_a_frame_listener_alone_does_not_swallow_messages():
    with paired() as (client, connection):
        frames = record(connection, "frame")
        client.send(make_frame("a"))
        run_hub()
        assert record(connection, "message").get() == ("message", "a")
        assert frames.empty()


def test_a_listener_for_one_message():
    with paired() as (client, connection):
        first = AsyncResult()
        connection.once("message", first.set)
        client.send(make_frame("a") + make_frame("b"))
        assert first.get() == "a"
        run_hub()
        assert record(connection, "message").get() == ("message", "b")


def test_listeners_change_within_a_turn():
    with paired() as (client, connection):
        seen = []

        def second(message):
            seen.append(("second", message))

        def first(message):
            seen.append(("first", message))
            if message == "a":
                connection.on("message", second)
            elif message == "b":
                connection.off("message", second)
            elif message == "c":
                connection.off("message", first)

        connection.on("message", first)
        client.send(make_frame("a") + make_frame("b") + make_frame("c") + make_frame("d"))
        run_hub()
        # A round is not disturbed by what its listeners add or take away.
        assert seen == [("first", "a"), ("first", "b"), ("second", "b"), ("first", "c")]
        assert record(connection, "message").get() == ("message", "d")


def test_events_come_one_at_a_time():
    with paired() as (client, connection):
        goes_on = Event()
        seen = []

        @connection.on("message")
        def receive(message):
            seen.append(("begin", message))
            goes_on.wait()
            seen.append(("end", message))

        connection.on("pong", lambda payload: seen.append(("pong", payload)))
        connection.on("close", lambda code, _: seen.append(("close", code)))
        client.send(make_frame("a") + make_frame("p", 0x8A) + make_frame("b"))
        run_hub()
        client.send(CLOSE_1000)
        run_hub()
        assert seen == [("begin", "a")]
        goes_on.set()
        connection.wait_closed()
        run_hub()
        assert seen == [("begin", "a"), ("end", "a"), ("pong", b"p"), ("begin", "b"), ("end", "b"), ("close", 1000)]


def test_a_hundred_listeners_that_sleep_keep_each_connections_order():
    numbers = random.Random(1)
    with serve() as (http, server):
        seen = {}
        everything = Event()

        @server.on("request")
        def accept(request):
            connection = request.accept()
            own = seen[request.resource] = []

            @connection.on("message")
            def receive(message):
                gevent.sleep(numbers.random() / 200)
                own.append(message)
                if message == "9":
                    connection.send("done")

        clients = [open_client(http, f"/{number}") for number in range(100)]
        for number in range(10):
            for client in clients:
                client.send(make_frame(str(number)))
        for client in clients:
            assert client.read_frame() == (0x81, b"done")
        assert list(seen.values()) == [list("0123456789")] * 100
        everything.set()
        for client in clients:
            client.close()


def test_a_listener_that_sleeps_delays_nobody_else():
    with serve() as (http, server):
        goes_on = Event()

        @server.on("request")
        def accept(request):
            connection = request.accept()
            if request.resource == "/slow":
                connection.on("message", lambda _: goes_on.wait())
            else:
                connection.on("message", connection.send)

        with open_client(http, "/slow") as slow, open_client(http) as quick:
            slow.send(make_frame("a"))
            for number in range(3):
                run_hub()
                quick.send(make_frame(str(number)))
                assert quick.read_frame() == (0x81, b"%d" % number)
            goes_on.set()


def test_a_flooding_peer_does_not_starve_others():
    with serve() as (http, server):
        counts = {"/flood": 0}

        @server.on("request")
        def accept(request):
            connection = request.accept()

            @connection.on("message")
            def receive(message):
                if request.resource == "/flood":
                    counts["/flood"] += 1
                    until = time.perf_counter() + 0.0002
                    while time.perf_counter() < until:
                        pass
                else:
                    connection.send(str(counts["/flood"]))

        with open_client(http, "/flood") as flood, open_client(http) as quick:
            flood.send(make_frame("") * 5_000)
            counted = []
            while len(counted) < 2 or counted[-1] < 500:
                quick.send(make_frame("?"))
                counted.append(int(quick.read_frame()[1]))
            # A turn is 64 messages or 1 ms, so the next one's answer never waits for many of the other's.
            assert counts["/flood"] < 5_000
            waits = [after - before for before, after in itertools.pairwise(counted)]
            assert max(waits) <= 128


def test_each_connections_listeners_have_their_own_context():
    user = contextvars.ContextVar("user", default="nobody")
    with serve() as (http, server):

        @server.on("request")
        def accept(request):
            user.set("of the request")
            connection = request.accept()

            @connection.on("message")
            def receive(message):
                before = user.get()
                user.set(message)
                gevent.sleep(0.001)
                connection.send(f"{before} {user.get()}")

            connection.on("ping", lambda _: connection.send(user.get()))

        with open_client(http) as first, open_client(http) as second:
            for client, name in ((first, "a"), (second, "b")):
                client.send(make_frame(name))
            assert first.read_frame() == (0x81, b"of the request a")
            assert second.read_frame() == (0x81, b"of the request b")
            first.send(make_frame("", 0x89))
            assert first.read(5) == b"\x8a\x00\x81\x01a"
    assert user.get() == "nobody"


@pytest.mark.parametrize("end", ["raises", "is killed", "times out"])
def test_a_listener_that_breaks_off_leaves_its_context_behind(end, caplog):
    user = contextvars.ContextVar("user", default="nobody")
    names = Queue()
    with serve() as (http, server):

        @server.on("request")
        def accept(request):
            user.set(request.resource_url.path)
            connection = request.accept()

            @connection.on("message")
            def receive(message):
                names.put(user.get())
                user.set(message)
                if message == "end":
                    if end == "is killed":
                        gevent.get_hub().loop.run_callback(getcurrent().throw, GreenletExit)
                    with gevent.Timeout(0.001 if end == "times out" else None):
                        gevent.sleep(0.001 if end == "raises" else 10)
                    raise ValueError("no good")

            connection.on("close", lambda *_: names.put(user.get()))

        with open_client(http, "/first") as first, open_client(http, "/second") as second:
            second.send(make_frame("hi"))
            assert names.get() == "/second"
            first.send(make_frame("end"))
            assert names.get() == "/first"
            # The connection's later events have the context that its listener has left.
            assert names.get() == "end"
            second.send(make_frame("there"))
            assert names.get() == "hi"
    assert names.get() == "there"
    assert user.get() == "nobody"


@contextlib.contextmanager
def two_connections(**options):
    """Give two started connections, with the stream and the peer of each."""
    pairs = [socket.socketpair() for _ in range(2)]
    streams = [Metered(detach(ours), None) for ours, _ in pairs]
    connections = [WebSocketConnection(stream, ConnectionConfig(**options)) for stream in streams]
    for connection in connections:
        connection._start()
    try:
        yield connections, streams, [peer for _, peer in pairs]
    finally:
        for connection, (_, peer) in zip(connections, pairs, strict=True):
            connection.drop(skip_close_frame=True)
            peer.close()


def compute(order):
    """Be a listener that computes for longer than the hub should wait."""
    gevent.get_hub().loop.run_callback(order.append, "hub")
    end = time.monotonic() + 2 * BATON_TIME
    while time.monotonic() < end:
        pass
    order.append("listener")


def test_the_hub_has_its_turn_between_close_listeners_that_compute():
    order = []
    with two_connections() as (connections, _, peers):
        for connection in connections:
            connection.on("close", lambda *_: compute(order))
        run_hub()
        for peer in peers:
            peer.close()
        wait_until(lambda: order.count("listener") == 2)
        assert order[:3] == ["listener", "hub", "listener"]


def test_the_hub_has_its_turn_between_drain_listeners_that_compute():
    order = []
    with two_connections(send_high_water_mark=1000) as (connections, streams, peers):
        for connection, stream in zip(connections, streams, strict=True):
            connection.on("drain", lambda: compute(order))
            stream.room = 0
            connection.send_nowait(bytes(3000))
            assert connection.output_buffer_full
            stream.room = None
        wait_until(lambda: order.count("listener") == 2)
        assert order[:3] == ["listener", "hub", "listener"]
        assert [len(peer.recv(10_000)) for peer in peers] == [3004, 3004]


# Listeners that raise


def raise_timeout(_):
    with gevent.Timeout(0.001):
        gevent.sleep(10)


def raise_value_error(_):
    raise ValueError("no good")


@pytest.mark.parametrize(
    ("listener", "name", "has_error"),
    [
        pytest.param(raise_value_error, "ValueError", True, id="exception"),
        pytest.param(raise_timeout, "Timeout", False, id="timeout"),
    ],
)
@pytest.mark.parametrize("event", ["message", "ping"])
def test_a_listener_that_raises_ends_its_connection_with_1011(caplog, event, listener, name, has_error):
    with paired() as (client, connection):
        errors = record(connection, "error")
        closes = record(connection, "close")
        connection.on(event, listener)
        client.send(make_frame("a", 0x81 if event == "message" else 0x89) + make_frame("b"))
        assert client.read_end()[-4:] == b"\x88\x02\x03\xf3"
        assert closes.get() == ("close", 1011, "")
        assert (connection.close_code, connection.closed_by, connection.sent_close_code) == (1011, "local", 1011)
        assert name in connection.close_cause
        assert errors.empty() is not has_error
        assert [(each.name, each.levelno) for each in caplog.records] == [("geventws", logging.ERROR)]
        assert caplog.records[0].exc_info


def test_others_go_on_when_a_listener_raises(caplog):
    with serve() as (http, server):

        @server.on("request")
        def accept(request):
            connection = request.accept()
            connection.on("message", raise_value_error if request.resource == "/bad" else connection.send)

        with open_client(http, "/bad") as bad, open_client(http) as good:
            bad.send(make_frame("a"))
            good.send(make_frame("a"))
            assert good.read_frame() == (0x81, b"a")
            assert bad.read_end() == b"\x88\x02\x03\xf3"
    assert len(caplog.records) == 1


@pytest.mark.parametrize("event", ["close", "error"])
def test_a_close_listener_that_raises_is_logged(caplog, event):
    with paired() as (client, connection):
        connection.on(event, lambda *_: raise_value_error(None))
        closes = record(connection, "close")
        client.send(b"\x83\x80\x00\x00\x00\x00")
        assert client.read_end()[:4] == b"\x88\x3c\x03\xea"[:1] + client_length(connection) + b"\x03\xea"
        connection.wait_closed()
        run_hub()
        assert [each.name for each in caplog.records] == ["geventws"]
        assert closes.empty() is (event == "close")


def client_length(connection):
    return bytes([2 + len(connection.close_reason)])


def test_greenlet_exit_in_a_listener_ends_the_connection_and_not_the_dispatcher(caplog):
    with serve() as (http, server):

        @server.on("request")
        def accept(request):
            connection = request.accept()

            @connection.on("message")
            def receive(message):
                if message == "exit":
                    raise GreenletExit
                if message == "killed":
                    gevent.kill(getcurrent())
                    gevent.sleep(10)
                connection.send(message)

        with open_client(http) as first, open_client(http) as second, open_client(http) as third:
            first.send(make_frame("exit"))
            second.send(make_frame("killed"))
            assert first.read_end() == b"\x88\x02\x03\xf3"
            assert second.read_end() == b"\x88\x02\x03\xf3"
            third.send(make_frame("a"))
            assert third.read_frame() == (0x81, b"a")
    assert not caplog.records


def test_a_loop_that_the_stopping_http_server_kills_ends_with_1001():
    with serve(http=make_http(spawn=4)) as (http, server):
        accepted = AsyncResult()

        @server.on("request")
        def loop(request):
            connection = request.accept()
            accepted.set(connection)
            for message in connection:
                connection.send(message)

        with open_client(http) as client:
            connection = accepted.get()
            # The pool kills what is left after its time-out.
            stopper = gevent.spawn(http.stop, 0.02)
            assert client.read(4) == b"\x88\x02\x03\xe9"
            stopper.join()
            client.send(CLOSE_1001)
            connection.wait_closed()
            assert (connection.close_code, connection.sent_close_code) == (1001, 1001)


def test_greenlet_exit_in_a_listener_while_the_http_server_is_stopped_is_1001():
    with serve() as (http, server):
        accepted = AsyncResult()
        server.on("request", lambda request: accepted.set(request.accept()))
        with open_client(http) as client:
            connection = accepted.get()
            started = AsyncResult()

            @connection.on("message")
            def receive(_):
                started.set(getcurrent())
                gevent.sleep(10)

            client.send(make_frame("a"))
            runner = started.get()
            http.close()
            gevent.kill(runner)
            assert client.read(4) == b"\x88\x02\x03\xe9"
            client.send(CLOSE_1001)
            connection.wait_closed()
            assert connection.close_code == 1001


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exits_reach_the_main_greenlet(error):
    with serve() as (http, server):

        def leave(_):
            raise error("now")

        @server.on("request")
        def accept(request):
            connection = request.accept()
            connection.on("message", leave if request.resource == "/leave" else connection.send)

        with open_client(http, "/leave") as client, open_client(http) as other:
            client.send(make_frame("a"))
            with pytest.raises(error, match="now"):
                client.read(4)
            assert client.read(4) == b"\x88\x02\x03\xf3"
            other.send(make_frame("a"))
            assert other.read_frame() == (0x81, b"a")


@pytest.mark.parametrize("end", ["close", "drop", "peer"])
def test_the_end_of_its_own_connection_is_no_error_of_a_listener(caplog, end):
    with paired() as (client, connection):

        @connection.on("message")
        def receive(_):
            if end == "peer":
                connection.wait_closed()
            else:
                getattr(connection, end)(1001)
            connection.send("too late")

        client.send(make_frame("a") + make_frame("b"))
        if end == "peer":
            run_hub()
            connection.drop(1001)
        client.send(CLOSE_1001)
        assert client.read_end() == b"\x88\x02\x03\xe9"
        connection.wait_closed()
        run_hub()
        assert connection.close_code == 1001
    assert not caplog.records


def test_a_vanished_peer_is_no_error_of_a_listener_that_answers(caplog):
    with paired() as (client, connection):
        closes = record(connection, "close")
        goes_on = Event()

        @connection.on("message")
        def receive(message):
            goes_on.wait()
            connection.send(message)

        client.send(make_frame("a") * 20)
        run_hub()
        # The first answer meets a closed socket, and the reset that comes back breaks the writing of a next one.
        client.close()
        goes_on.set()
        assert closes.get() == ("close", 1006, "")
    assert not caplog.records


# Closing from within


def test_close_within_a_listener_discards_what_is_queued():
    with paired() as (client, connection):
        events = record(connection, "close")
        seen = []

        @connection.on("message")
        def receive(message):
            seen.append(message)
            connection.send("bye")
            connection.close(3000)

        client.send(make_frame("a") + make_frame("b") + make_frame("c"))
        assert client.read(9) == b"\x81\x03bye\x88\x02\x0b\xb8"
        client.send(make_frame("d") + CLOSE_3001)
        assert events.get() == ("close", 3001, "bye")
        assert seen == ["a"]


def test_drop_within_a_listener():
    with paired() as (client, connection):
        seen = []
        connection.on("close", lambda code, reason: seen.append((code, reason)))

        @connection.on("message")
        def receive(message):
            seen.append(message)
            connection.drop(3000, "out")
            seen.append("dropped")

        client.send(make_frame("a") + make_frame("b"))
        assert client.read_end() == b"\x88\x05\x0b\xb8out"
        run_hub()
        assert seen == ["a", (3000, "out"), "dropped"]


def test_drop_from_elsewhere_waits_for_the_listener_to_end():
    with paired() as (client, connection):
        goes_on = Event()
        seen = []

        @connection.on("message")
        def receive(message):
            goes_on.wait()
            seen.append(message)

        connection.on("close", lambda code, _: seen.append(code))
        client.send(make_frame("a") + make_frame("b"))
        run_hub()
        connection.drop(3000)
        assert (connection.state, seen) == ("CLOSED", [])
        goes_on.set()
        run_hub()
        assert seen == ["a", 3000]


def test_nothing_comes_after_the_close_event():
    with paired() as (client, connection):
        events = record(connection, "message", "ping", "pong", "drain", "close")
        client.send(make_frame("a") + CLOSE_1000 + make_frame("b") + make_frame("c", 0x89))
        assert [events.get(), events.get()] == [("message", "a"), ("close", 1000, "")]
        connection.resume()
        connection.on("message", print)
        run_hub()
        assert events.empty()


def test_the_servers_close_comes_before_the_connections_own():
    with serve() as (http, server):
        seen = []
        done = Event()
        server.on("close", lambda connection, code, reason: seen.append(("server", connection, code, reason)))

        @server.on("request")
        def accept(request):
            connection = request.accept()

            @connection.on("close")
            def close(code, reason):
                seen.append(("own", connection, code, reason))
                done.set()

        with open_client(http) as client:
            (connection,) = server.connections
            client.send(CLOSE_3001)
            done.wait()
            assert seen == [("server", connection, 3001, "bye"), ("own", connection, 3001, "bye")]
            assert not server.connections


# Pausing


def test_pause_and_resume_in_event_style():
    with paired() as (client, connection):
        messages = record(connection, "message")
        connection.pause()
        client.send(make_frame("a"))
        run_hub()
        assert messages.empty()
        connection.resume()
        assert messages.get() == ("message", "a")


def test_pause_within_a_listener_holds_what_was_read():
    with paired() as (client, connection):
        messages = record(connection, "message")
        connection.on("message", lambda _: connection.pause())
        client.send(make_frame("a") + make_frame("b"))
        assert messages.get() == ("message", "a")
        run_hub()
        assert messages.empty()
        connection.resume()
        assert messages.get() == ("message", "b")


def test_pause_and_resume_in_loop_style():
    with paired() as (client, connection):
        client.send(make_frame("a") + make_frame("b"))
        assert connection.receive() == "a"
        connection.pause()
        with pytest.raises(TimeoutError):
            connection.receive(0.001)
        receiver = gevent.spawn(connection.receive)
        run_hub()
        assert not receiver.ready()
        connection.resume()
        assert receiver.get() == "b"


def test_a_paused_connection_stops_its_peer():
    with paired(is_narrow=True) as (client, connection):
        connection.pause()
        sender = gevent.spawn(client.send, make_frame(b"." * 60_000, 0x82) * 50)
        run_hub(20)
        assert not sender.ready()
        connection.resume()
        assert all(connection.receive() == b"." * 60_000 for _ in range(50))
        sender.get()


@pytest.mark.parametrize("is_loop", [pytest.param(False, id="event-style"), pytest.param(True, id="loop-style")])
def test_messages_before_a_close_survive_a_pause(is_loop):
    with paired() as (client, connection):
        client.send(make_frame("a") + make_frame("b") + CLOSE_1000)
        run_hub()
        connection.pause()
        if is_loop:
            receiver = gevent.spawn(lambda: list(connection))
            run_hub()
            assert not receiver.ready()
            connection.resume()
            assert receiver.get() == ["a", "b"]
        else:
            events = record(connection, "message", "close")
            run_hub()
            assert events.empty()
            connection.resume()
            assert [events.get() for _ in range(3)] == [("message", "a"), ("message", "b"), ("close", 1000, "")]
        assert client.read_end() == b"\x88\x02\x03\xe8"


@pytest.mark.parametrize("is_loop", [pytest.param(False, id="event-style"), pytest.param(True, id="loop-style")])
def test_small_compressed_messages_do_not_pass_the_mark_by_what_they_inflate_to(is_loop):
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (compressor.compress(bytes(1_000_000)) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    deflate = "Sec-WebSocket-Extensions: permessage-deflate"
    with paired("/", deflate, permessage_deflate=True) as (client, connection):
        # All in one read: 100 KB that make 100 MB.
        client.send(make_frame(bomb, 0xC2) * 100 + make_frame("last") + make_frame(b"more", 0x89) + CLOSE_1000)
        sizes = []
        tracemalloc.start()
        try:
            run_hub()
            if is_loop:
                sizes.extend(map(len, connection))
            else:
                connection.on("message", lambda message: sizes.append(len(message)))
                connection.wait_closed()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert sizes == [1_000_000] * 100 + [4]
        assert peak < 8_000_000
        assert (connection.close_code, connection.closed_by) == (1000, "peer")
        assert client.read_frame() == (0x8A, b"more")


def test_a_close_of_ours_passes_compressed_messages_that_wait():
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (compressor.compress(bytes(1_000_000)) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    deflate = "Sec-WebSocket-Extensions: permessage-deflate"
    with paired("/", deflate, permessage_deflate=True) as (client, connection):
        client.send(make_frame(bomb, 0xC2) * 100 + CLOSE_3001)
        run_hub()
        connection.close()
        assert client.read_frame() == (0x88, b"\x03\xe8")
        assert connection.wait_closed()
        assert (connection.close_code, connection.close_reason) == (3001, "bye")


def test_close_and_drop_of_a_paused_connection():
    with paired() as (client, connection):
        connection.pause()
        connection.close()
        client.send(make_frame("a") + CLOSE_1000)
        assert connection.wait_closed()
        assert connection.close_code == 1000
    with paired() as (client, connection):
        connection.pause()
        connection.drop()
        assert client.read_end() == b"\x88\x02\x03\xea"


# Messages before a Close


def test_messages_before_the_peers_close_may_be_answered():
    with paired() as (client, connection):
        connection.on("message", connection.send)
        client.send(make_frame("a") + make_frame("b") + CLOSE_1001)
        assert client.read_end() == b"\x81\x01a\x81\x01b\x88\x02\x03\xe9"


def test_messages_before_the_peers_close_may_be_answered_late():
    with paired() as (client, connection):
        goes_on = Event()

        @connection.on("message")
        def receive(message):
            goes_on.wait()
            connection.send(message)

        client.send(make_frame("a") + CLOSE_1001)
        run_hub()
        assert connection.connected
        goes_on.set()
        assert client.read_end() == b"\x81\x01a\x88\x02\x03\xe9"
        assert (connection.close_code, connection.closed_by) == (1001, "peer")


def test_close_timeout_bounds_how_late():
    with paired(close_timeout=0.05) as (client, connection):
        events = record(connection, "close")
        goes_on = Event()
        seen = []

        @connection.on("message")
        def receive(message):
            seen.append(message)
            goes_on.wait()

        client.send(make_frame("a") + make_frame("b") + CLOSE_1001)
        assert client.read_end() == b"\x88\x02\x03\xe9"
        assert (connection.state, connection.close_code, seen) == ("CLOSED", 1001, ["a"])
        assert events.empty()
        goes_on.set()
        assert events.get() == ("close", 1001, "")
        assert seen == ["a", "b"]


def test_close_timeout_bounds_the_wait_for_a_first_listener():
    with paired(close_timeout=0.05) as (client, connection):
        events = record(connection, "close")
        client.send(make_frame("a") + CLOSE_1001)
        assert events.get() == ("close", 1001, "")
        assert client.read_end() == b"\x88\x02\x03\xe9"


def test_a_message_before_a_violation_is_delivered_and_may_be_answered():
    with paired() as (client, connection):
        connection.on("message", connection.send)
        client.send(make_frame("a") + b"\x81\x00")
        assert client.read(4)[:3] == b"\x81\x01a"
        connection.wait_closed()
        assert connection.close_code == 1002


# Loop style


def test_receive():
    with paired() as (client, connection):
        client.send(make_frame("a"))
        assert connection.receive() == "a"
        waiting = gevent.spawn(connection.receive)
        run_hub()
        client.send(make_frame(b"b", 0x82))
        assert waiting.get() == b"b"


def test_receive_with_a_timeout():
    with paired() as (client, connection):
        with pytest.raises(TimeoutError):
            connection.receive(0.001)
        with pytest.raises(TimeoutError):
            connection.receive(timeout=0)
        client.send(make_frame("a"))
        assert connection.receive(10) == "a"
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
            connection.receive(10)
        client.send(make_frame("b"))
        assert connection.receive() == "b"


def test_a_ping_does_not_end_or_lengthen_the_wait():
    with paired() as (client, connection):
        pings = record(connection, "ping")
        waiting = gevent.spawn(connection.receive, 0.05)
        run_hub()
        client.send(make_frame("p", 0x89))
        assert pings.get() == ("ping", b"p")
        assert not waiting.ready()
        with pytest.raises(TimeoutError):
            waiting.get()


def test_pings_come_before_the_message_behind_them():
    with paired() as (client, connection):
        goes_on = Event()
        seen = []

        @connection.on("ping")
        def ping(payload):
            goes_on.wait()
            seen.append(payload)

        client.send(make_frame("p", 0x89) + make_frame("q", 0x89) + make_frame("a"))
        waiting = gevent.spawn(lambda: seen.append(connection.receive()))
        run_hub()
        assert seen == []
        goes_on.set()
        waiting.get()
        assert seen == [b"p", b"q", "a"]


def test_a_ping_listener_that_raises_ends_the_loop_with_1011(caplog):
    with paired() as (client, connection):
        connection.on("ping", raise_value_error)
        client.send(make_frame("p", 0x89))
        with pytest.raises(ConnectionClosed) as caught:
            connection.receive()
        assert caught.value.code == 1011
    assert len(caplog.records) == 1


def test_a_killed_receiver_leaves_the_connection_usable():
    with paired() as (client, connection):
        waiting = gevent.spawn(connection.receive)
        run_hub()
        waiting.kill()
        client.send(make_frame("a"))
        assert connection.receive() == "a"


def test_a_second_receiver_is_refused():
    with paired() as (client, connection):
        waiting = gevent.spawn(connection.receive)
        run_hub()
        with pytest.raises(InvalidState):
            connection.receive()
        with pytest.raises(InvalidState):
            next(connection)
        with pytest.raises(InvalidState):
            next(connection.receive_fragments())
        client.send(make_frame("a"))
        assert waiting.get() == "a"


@pytest.mark.parametrize("event", ["message", "frame"])
def test_receive_and_listeners_exclude_each_other(event):
    with paired() as (client, connection):
        waiting = gevent.spawn(connection.receive)
        run_hub()
        with pytest.raises(InvalidState):
            connection.on(event, print)
        for other in ("ping", "pong", "drain", "close", "error"):
            connection.on(other, lambda *_: None)
        client.send(make_frame("a"))
        assert waiting.get() == "a"
        connection.on(event, print)
        with pytest.raises(InvalidState):
            connection.receive()


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        pytest.param(CLOSE_1000, 1000, id="1000"),
        pytest.param(CLOSE_1001, 1001, id="1001"),
        pytest.param(CLOSE_EMPTY, 1005, id="1005"),
    ],
)
def test_iteration_ends_at_a_clean_close(octets, code):
    with paired() as (client, connection):
        client.send(make_frame("a") + make_frame("b") + octets)
        assert list(connection) == ["a", "b"]
        assert connection.close_code == code
        with pytest.raises(ConnectionClosed) as caught:
            connection.receive()
        assert caught.value.code == code


def test_iteration_raises_at_another_close():
    with paired() as (client, connection):
        client.send(make_frame("a") + CLOSE_3001)
        messages = []
        with pytest.raises(ConnectionClosed) as caught:
            messages.extend(connection)
        assert (caught.value.code, caught.value.reason) == (3001, "bye")
        assert "3001" in caught.value.cause
        assert messages == ["a"]


def test_iteration_raises_where_tcp_ended():
    with paired() as (client, connection):
        client.send(make_frame("a"))
        run_hub()
        client.close()
        run_hub()
        assert connection.state == "CLOSED"
        # What was complete is still there.
        assert connection.receive() == "a"
        with pytest.raises(ConnectionClosed) as caught:
            next(connection)
        assert caught.value.code == 1006


def test_iteration_ends_when_somebody_else_closes():
    with paired() as (client, connection):
        loop = gevent.spawn(lambda: list(connection))
        run_hub()
        connection.close()
        client.send(make_frame("discarded") + CLOSE_1000)
        assert loop.get() == []


def test_drop_ends_who_receives():
    with paired() as (_, connection):
        waiting = gevent.spawn(connection.receive)
        run_hub()
        connection.drop(3000)
        with pytest.raises(ConnectionClosed) as caught:
            waiting.get()
        assert caught.value.code == 3000


def test_a_request_listener_that_looped_closes_its_connection():
    with serve() as (http, server):

        @server.on("request")
        def accept(request):
            connection = request.accept()
            connection.receive()

        with open_client(http) as client:
            client.send(make_frame("a"))
            assert client.read(4) == b"\x88\x02\x03\xe8"
            client.send(CLOSE_1000)
            assert client.read_end() == b""


def test_a_request_listener_that_raises_ends_its_connection(caplog):
    with serve() as (http, server):

        @server.on("request")
        def accept(request):
            request.accept().receive()
            raise_value_error(None)

        with open_client(http) as client:
            client.send(make_frame("a"))
            assert client.read_end() == b"\x88\x02\x03\xf3"
    assert len(caplog.records) == 1


def test_a_request_listener_that_returns_keeps_its_connection():
    with paired() as (client, connection):
        run_hub()
        connection.send("alive")
        assert client.read_frame() == (0x81, b"alive")


# Messages in pieces


def test_receive_fragments():
    with paired() as (client, connection):
        pieces = connection.receive_fragments()
        client.send(b"\x01\x82\x37\xfa\x21\x3d\x5f\x93")
        first = gevent.spawn(next, pieces)
        assert first.get() == "hi"
        client.send(make_frame(", you", 0x00) + make_frame("p", 0x89))
        assert next(pieces) == ", you"
        client.send(make_frame("", 0x80) + make_frame("next"))
        assert list(pieces) == []
        assert connection.receive() == "next"


def test_receive_fragments_splits_no_character():
    with paired() as (client, connection):
        pieces = connection.receive_fragments()
        first = gevent.spawn(next, pieces)
        run_hub()
        client.send(make_frame(b"a\xc3", 0x01))
        assert first.get() == "a"
        client.send(make_frame(b"\xa9", 0x80))
        assert list(pieces) == ["é"]


def test_receive_fragments_of_a_message_that_is_there():
    with paired() as (client, connection):
        client.send(make_frame(b"whole", 0x82))
        run_hub()
        assert list(connection.receive_fragments()) == [b"whole"]


def test_receive_fragments_that_were_abandoned():
    with paired() as (client, connection):
        pieces = connection.receive_fragments()
        first = gevent.spawn(next, pieces)
        run_hub()
        client.send(make_frame("a", 0x01) + make_frame("b", 0x00))
        assert first.get() == "a"
        pieces.close()
        client.send(make_frame("c", 0x80) + make_frame("next"))
        assert connection.receive() == "next"
        client.send(make_frame("d", 0x01) + make_frame("e", 0x80))
        assert connection.receive() == "de"


def test_receive_fragments_with_a_timeout():
    with paired() as (client, connection):
        client.send(make_frame("a", 0x01))
        with pytest.raises(TimeoutError):
            list(connection.receive_fragments(timeout=0.01))
        client.send(make_frame("b", 0x80) + make_frame("next"))
        assert connection.receive() == "next"


def test_receive_fragments_ends_with_the_connection():
    with paired() as (client, connection):
        pieces = connection.receive_fragments()
        client.send(make_frame("a", 0x01) + CLOSE_1000)
        with pytest.raises(ConnectionClosed) as caught:
            list(pieces)
        assert caught.value.code == 1000


def test_receive_fragments_keeps_to_the_size_limit():
    with paired(max_received_message_size=10) as (client, connection):
        pieces = connection.receive_fragments()
        first = gevent.spawn(next, pieces)
        run_hub()
        client.send(make_frame("123456", 0x01))
        assert first.get() == "123456"
        client.send(make_frame("12345", 0x00))
        with pytest.raises(ConnectionClosed) as caught:
            list(pieces)
        assert caught.value.code == 1009


# Frames


def test_frames_instead_of_messages():
    with paired(assemble_fragments=False) as (client, connection):
        events = record(connection, "frame", "message", "ping")
        client.send(make_frame("He", 0x01) + make_frame("p", 0x89) + make_frame("llo", 0x80) + make_frame("whole"))
        assert [events.get() for _ in range(6)] == [
            ("frame", WebSocketFrame(1, b"He", fin=False)),
            ("frame", WebSocketFrame(9, b"p")),
            ("ping", b"p"),
            ("frame", WebSocketFrame(0, b"llo")),
            ("frame", WebSocketFrame(1, b"whole")),
            ("message", "whole"),
        ]
        assert client.read(3) == b"\x8a\x01p"


def test_receive_yields_messages_of_a_single_frame():
    with paired(assemble_fragments=False) as (client, connection):
        client.send(make_frame("He", 0x01) + make_frame("llo", 0x80) + make_frame("whole"))
        assert connection.receive() == "whole"
        with pytest.raises(InvalidState):
            connection.receive_fragments()


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        pytest.param(make_frame("a", 0x80), 1002, id="order"),
        pytest.param(make_frame(b"\xff", 0x01), 1007, id="utf-8"),
        pytest.param(make_frame(bytes(11), 0x82), 1009, id="frame-size"),
    ],
)
def test_frames_are_checked_all_the_same(octets, code):
    with paired(assemble_fragments=False, max_received_frame_size=10) as (client, connection):
        closes = record(connection, "close")
        client.send(octets)
        assert closes.get()[:2] == ("close", code)


# Other loops, TLS

SMOKE = """
import gevent
from tests.support import *
EVENT = b"\\x88\\x82\\x37\\xfa\\x21\\x3d\\x34\\x12"
assert "{loop}" in type(gevent.get_hub().loop).__module__, gevent.get_hub().loop
with paired() as (client, connection):
    connection.on("message", connection.send)
    for number in range(50):
        client.send(make_frame(str(number)) * 3)
        for _ in range(3):
            assert client.read_frame() == (0x81, str(number).encode())
    client.send(EVENT)
    assert client.read_end() == b"\\x88\\x02\\x03\\xe8"
with paired(is_narrow=True, send_high_water_mark=5000) as (client, connection):
    sender = gevent.spawn(connection.send, bytes(500_000))
    size = 0
    while size < 500_000:
        size += len(client.read_frame()[1])
    sender.get()
    client.send(make_frame("a"))
    assert connection.receive() == "a"
    connection.pause()
    client.send(make_frame("b"))
    run_hub()
    connection.resume()
    assert connection.receive() == "b"
    waiting = gevent.spawn(connection.receive)
    run_hub()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
    client.close()
    connection.wait_closed()
    waiting.join()
    assert connection.close_code == 1006
with paired(close_timeout=0.05) as (client, connection):
    connection.close()
    connection.wait_closed()
    assert connection.close_code == 1006
with serve() as (http, server):
    server.on("request", lambda request: request.accept())
    clients = [open_client(http) for _ in range(50)]
    wait_until(lambda: len(server.connections) == 50)
    for index, connection in enumerate(server.connections):
        connection.drop(skip_close_frame=bool(index % 2))
    for client in clients:
        client.read_end()
        client.close()
print("passed")
"""


@pytest.mark.limit(60)
@pytest.mark.parametrize(
    ("variable", "loop"),
    [pytest.param("libuv-cffi", "libuv", id="libuv"), pytest.param("libev-cffi", "libev._corecffi", id="libev-cffi")],
)
def test_another_loop(monkeypatch, variable, loop):
    pytest.importorskip("cffi", reason="the other loops of gevent need cffi, which is not installed")
    monkeypatch.setenv("GEVENT_LOOP", variable)
    module = "libuv" if loop == "libuv" else "libev.corecffi"
    assert run_child(PATH + SMOKE.replace("{loop}", module)) == "passed\n"


PATH = f"import sys; sys.path.insert(0, {CERTIFICATE.rpartition('/tests/')[0]!r})\n"


@pytest.mark.parametrize("is_loop", [pytest.param(False, id="event-style"), pytest.param(True, id="loop-style")])
def test_tls(is_loop):
    with paired(tls=True, early=make_frame("early")) as (client, connection):
        if is_loop:
            loop = gevent.spawn(lambda: [connection.send(message) for message in connection])
        else:
            connection.on("message", connection.send)
        assert client.read_frame() == (0x81, b"early")
        # More than one record, and more than one readiness.
        payload = bytes(range(256)) * 200
        sender = gevent.spawn(client.send, make_frame(payload, 0x82) * 20)
        for _ in range(20):
            received = b""
            first = 0
            while not first & 0x80:
                first, piece = client.read_frame()
                received += piece
            assert received == payload
        sender.get()
        client.send(make_frame("a") + CLOSE_1000)
        assert client.read_end() == b"\x81\x01a\x88\x02\x03\xe8"
        if is_loop:
            loop.get()


def test_tls_pause_and_resume():
    with paired(tls=True, receive_high_water_mark=10_000) as (client, connection):
        connection.pause()
        sender = gevent.spawn(client.send, make_frame(b"." * 5_000, 0x82) * 200)
        run_hub(5)
        connection.resume()
        assert [len(connection.receive()) for _ in range(200)] == [5_000] * 200
        sender.get()
