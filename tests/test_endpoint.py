"""How a connection ends, by whom and with which code: closing handshake, deadlines, keepalive, drops, resets."""

from __future__ import annotations

import gc
import logging
import os
import re
import struct

import gevent
import pytest
from gevent import socket
from gevent.event import AsyncResult, Event
from greenlet import GreenletExit

import geventws
from geventws import ConnectionClosed, WebSocketHandler
from tests.support import (
    RawClient,
    in_thread,
    make_frame,
    make_http,
    make_upgrade,
    open_client,
    paired,
    record,
    run_hub,
    running,
    serve,
    wait_until,
)

#: A client's Close frames.
CLOSE_1000 = b"\x88\x82\x37\xfa\x21\x3d\x34\x12"
CLOSE_1001 = b"\x88\x82\x37\xfa\x21\x3d\x34\x13"
CLOSE_EMPTY = b"\x88\x80\x37\xfa\x21\x3d"
PING = b"\x89\x80\x37\xfa\x21\x3d"
PONG = b"\x8a\x80\x37\xfa\x21\x3d"


def reset(client):
    """End with a RST."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def make_close(code, reason=b""):
    return make_frame(code.to_bytes(2, "big") + reason, 0x88)


def describe(connection):
    return connection.state, connection.close_code, connection.closed_by, connection.sent_close_code


SENDABLE = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
NOT_SENDABLE = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65535]


# The closing handshake


@pytest.mark.parametrize("code", SENDABLE)
def test_the_peer_closes(code):
    with paired() as (client, connection):
        closes = record(connection, "close")
        client.send(make_close(code, "é".encode()))
        assert client.read_end() == b"\x88\x02" + code.to_bytes(2, "big")
        assert closes.get() == ("close", code, "é")
        assert describe(connection) == ("CLOSED", code, "peer", code)
        assert connection.close_reason == "é"
        assert str(code) in connection.close_cause


def test_the_peer_closes_without_a_code():
    with paired() as (client, connection):
        closes = record(connection, "close")
        client.send(CLOSE_EMPTY)
        assert client.read_end() == b"\x88\x00"
        assert closes.get() == ("close", 1005, "")
        assert describe(connection) == ("CLOSED", 1005, "peer", 1005)


@pytest.mark.parametrize("code", NOT_SENDABLE)
def test_the_peer_closes_with_an_illegal_code(code):
    with paired() as (client, connection):
        client.send(make_close(code))
        assert client.read_end()[2:4] == b"\x03\xea"
        assert describe(connection) == ("CLOSED", 1002, "local", 1002)


@pytest.mark.parametrize("code", SENDABLE)
def test_we_close(code):
    with paired() as (client, connection):
        closes = record(connection, "close")
        connection.close(code, "é")
        assert describe(connection) == ("CLOSING", None, "local", code)
        assert not connection.connected
        connection.close(1001, "a second call does nothing")
        assert client.read(6) == b"\x88\x04" + code.to_bytes(2, "big") + b"\xc3\xa9"
        # 7.1.5: the code of the first Close that is received, also where it is another than ours.
        client.send(make_frame("discarded") + make_close(3001, b"theirs"))
        assert client.read_end() == b""
        assert closes.get() == ("close", 3001, "theirs")
        assert describe(connection) == ("CLOSED", 3001, "local", code)


@pytest.mark.parametrize("code", NOT_SENDABLE)
def test_we_cannot_close_with_an_illegal_code(code):
    with paired() as (client, connection):
        with pytest.raises(ValueError, match=str(code)):
            connection.close(code)
        with pytest.raises(ValueError, match=str(code)):
            connection.drop(code)
        connection.send("still here")
        assert client.read_frame() == (0x81, b"still here")


@pytest.mark.parametrize("method", ["close", "drop"])
def test_a_close_reason_has_123_octets_at_most(method):
    with paired() as (client, connection):
        with pytest.raises(ValueError, match="123"):
            getattr(connection, method)(1000, "é" * 62)
        with pytest.raises(TypeError):
            getattr(connection, method)(1000, b"bytes")
        getattr(connection, method)(1000, "x" * 123)
        assert client.read(127) == b"\x88\x7d\x03\xe8" + b"x" * 123


def test_both_close_at_once():
    with paired() as (client, connection):
        client.send(CLOSE_1001)
        connection.close(3000)
        assert client.read_end() == b"\x88\x02\x0b\xb8"
        assert connection.wait_closed()
        assert describe(connection) == ("CLOSED", 1001, "local", 3000)


def test_close_comes_behind_what_was_sent():
    with paired(is_narrow=True) as (client, connection):
        connection.send(bytes(100_000))
        connection.send("last")
        connection.close()
        frames = []
        while not frames or frames[-1][0] != 0x88:
            frames.append(client.read_frame())
        assert sum(len(payload) for first, payload in frames if first in {0x02, 0x00, 0x80}) == 100_000
        assert frames[-2:] == [(0x81, b"last"), (0x88, b"\x03\xe8")]
        client.send(CLOSE_1000)
        assert client.read_end() == b""


def test_pings_are_not_answered_after_our_close():
    with paired() as (client, connection):
        connection.close()
        client.send(PING + CLOSE_1000)
        assert client.read_end() == b"\x88\x02\x03\xe8"


def test_what_the_peer_sends_after_its_close_is_ignored():
    with paired() as (client, connection):
        events = record(connection, "message", "ping", "close")
        client.send(CLOSE_1000 + make_frame("a") + PING + b"\xff\xff\xff")
        assert client.read_end() == b"\x88\x02\x03\xe8"
        assert events.get() == ("close", 1000, "")
        assert events.empty()


def test_the_answer_is_read_although_the_peer_sent_more_after_its_close():
    with paired(is_narrow=True) as (client, connection):
        sender = gevent.spawn(client.send, CLOSE_1000 + bytes(200_000))
        assert client.read(4) == b"\x88\x02\x03\xe8"
        sender.get()
        # The end, and no reset.
        assert client.sock.recv(1) == b""
        connection.wait_closed()
        assert connection.close_code == 1000


def send_until_broken(client, octets):
    try:
        client.send(octets)
    except OSError:
        return


def test_wait_closed():
    with paired() as (client, connection):
        assert connection.wait_closed(0.001) is False
        waiting = [gevent.spawn(connection.wait_closed) for _ in range(3)]
        run_hub()
        assert not any(each.ready() for each in waiting)
        client.send(CLOSE_1000)
        assert [each.get() for each in waiting] == [True] * 3
        assert connection.wait_closed(0) is True


def test_close_in_a_connect_listener():
    with serve() as (http, server):
        server.on("connect", lambda connection: connection.close(1013))
        server.on("request", lambda request: request.accept())
        with open_client(http, early=make_frame("a")) as client:
            assert client.read(4) == b"\x88\x02\x03\xf5"
            client.send(CLOSE_1000)
            assert client.read_end() == b""


def test_a_peer_that_ends_tcp_instead_of_answering_our_close():
    with paired() as (client, connection):
        connection.close(3000)
        client.close()
        assert connection.wait_closed()
        assert describe(connection) == ("CLOSED", 1006, "local", 3000)


# Failures and lingering


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        pytest.param(b"\x81\x02hi", 1002, id="unmasked"),
        pytest.param(b"\xc1\x80\x00\x00\x00\x00", 1002, id="rsv1"),
        pytest.param(b"\x83\x80\x00\x00\x00\x00", 1002, id="opcode"),
        pytest.param(b"\x80\x80\x00\x00\x00\x00", 1002, id="continuation-of-nothing"),
        pytest.param(b"\x81\xfe\x00\x7d", 1002, id="non-minimal-length"),
        pytest.param(b"\x88\x81\x00\x00\x00\x00\x03", 1002, id="close-of-one-octet"),
        pytest.param(b"\x81\x81\x00\x00\x00\x00\xff", 1007, id="utf-8"),
        pytest.param(b"\x81\x85\x00\x00\x00\x00\xff", 1007, id="utf-8-as-soon-as-certain"),
        pytest.param(b"\x82\xff\x00\x00\x00\x00\x00\x01\x00\x01", 1009, id="size"),
    ],
)
def test_a_violation_ends_the_connection(octets, code):
    with paired() as (client, connection):
        events = record(connection, "error", "close")
        client.send(octets)
        assert client.read(4)[2:] == code.to_bytes(2, "big")
        # The state is CLOSED at once; the peer has time to read our Close.
        assert describe(connection) == ("CLOSED", code, "local", code)
        name, error = events.get()
        assert (name, error.close_code) == ("error", code)
        assert events.get() == ("close", code, str(error))
        assert str(error) in connection.close_cause


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("max_received_frame_size", make_frame(bytes(11))),
        ("max_received_message_size", make_frame(bytes(10), 0x02) + make_frame(bytes(10), 0x00)),
        ("max_message_fragments", make_frame("", 0x01) + make_frame("", 0x00) * 3),
    ],
)
def test_what_is_too_big_is_counted(name, frames):
    limits = {"max_received_frame_size": 10, "max_received_message_size": 15, "max_message_fragments": 3}
    with serve(**limits) as (http, server):
        server.on("request", lambda request: request.accept())
        with open_client(http) as client:
            client.send(frames)
            assert client.read_frame()[1][:2] == b"\x03\xf1"
            assert {name: count for name, count in server.limit_counts.items() if count} == {name: 1}


def test_a_peer_that_keeps_sending_sees_our_close_and_not_a_reset():
    with paired(is_narrow=True) as (client, connection):
        client.send(b"\x81\x02hi")
        sender = gevent.spawn(client.send, bytes(500_000))
        frame = client.read_frame()
        assert frame[1][:2] == b"\x03\xea"
        # All of it is taken and discarded: a reset would break the sending.
        sender.get()
        assert client.sock.recv(1) == b""
        assert connection.close_code == 1002


def test_lingering_ends_with_the_peer():
    with paired() as (client, connection):
        before = count_descriptors()
        client.send(b"\x81\x02hi")
        client.read_end()
        client.close()
        wait_until(lambda: count_descriptors() == before - 2)
        assert connection.close_code == 1002


def count_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_a_violation_while_we_close():
    with paired() as (client, connection):
        connection.close()
        client.send(b"\x81\x02hi")
        assert client.read_end() == b"\x88\x02\x03\xe8"
        assert describe(connection) == ("CLOSED", 1002, "local", 1000)


def test_a_violation_and_then_the_end():
    with paired() as (client, connection):
        goes_on = Event()

        @connection.on("message")
        def answer(message):
            goes_on.wait()
            connection.send(message)

        closes = record(connection, "close")
        client.send(make_frame("a") + b"\x81\x02hi")
        run_hub()
        reset(client)
        # The answer cannot be written, and the violation that came before is the reason to tell.
        goes_on.set()
        assert closes.get()[:2] == ("close", 1002)


# TCP ends


def test_the_peer_ends_tcp():
    with paired() as (client, connection):
        events = record(connection, "error", "close")
        client.send(make_frame("a"))
        run_hub()
        client.close()
        assert events.get() == ("close", 1006, "")
        assert describe(connection) == ("CLOSED", 1006, "transport", None)
        assert "silent for 0." in connection.close_cause
        assert "0 octets unsent" in connection.close_cause


def test_the_peer_ends_its_side_of_tcp():
    with paired() as (client, connection):
        client.shut_write()
        assert client.read_end() == b""
        assert describe(connection) == ("CLOSED", 1006, "transport", None)


def test_the_peer_resets():
    with paired() as (client, connection):
        events = record(connection, "error", "close")
        reset(client)
        name, error = events.get()
        assert (name, type(error)) == ("error", ConnectionResetError)
        assert events.get() == ("close", 1006, "")
        assert describe(connection) == ("CLOSED", 1006, "transport", None)


def test_the_peer_closes_and_does_not_wait():
    with paired() as (client, connection):
        events = record(connection, "message", "close")
        client.send(make_frame("a") + CLOSE_1001)
        client.close()
        assert [events.get(), events.get()] == [("message", "a"), ("close", 1001, "")]
        assert (connection.close_code, connection.closed_by) == (1001, "peer")


@pytest.mark.parametrize("closes", [False, True], ids=["without a Close", "behind its Close"])
def test_a_peer_that_ended_its_side_gets_what_waits_for_it(closes):
    with paired(is_narrow=True) as (client, connection):
        connection.send_nowait("first")
        connection.send_nowait(bytes(1_000_000))
        client.send(CLOSE_1000 * closes)
        client.shut_write()
        assert connection.buffered_amount
        connection.wait_closed() if not closes else run_hub()
        octets = client.read_end()
        assert octets.startswith(b"\x81\x05first\x02\x7e\x40\x00")
        assert len(octets) == 7 + 61 * 16388 + 580 + 4 * closes
        assert octets.endswith(b"\x88\x02\x03\xe8" if closes else bytes(4))
        connection.wait_closed()
        assert describe(connection)[1:3] == ((1000, "peer") if closes else (1006, "transport"))


def test_a_peer_that_ended_its_side_gets_our_close_as_well():
    with paired(is_narrow=True) as (client, connection):
        connection.send_nowait(bytes(1_000_000))
        connection.close(3000)
        client.shut_write()
        connection.wait_closed()
        assert describe(connection) == ("CLOSED", 1006, "local", 3000)
        assert client.read_end()[-4:] == b"\x88\x02\x0b\xb8"


def test_a_peer_that_ended_its_side_while_we_linger():
    with paired(is_narrow=True) as (client, connection):
        connection.send_nowait(bytes(1_000_000))
        client.send(b"\x81\x00")
        client.shut_write()
        connection.wait_closed()
        run_hub()
        octets = client.read_end()
        assert octets.startswith(b"\x02\x7e\x40\x00")
        assert octets.endswith(b"\0\x88\x20\x03\xeaa client's frame is not masked")


def test_a_peer_that_ended_its_side_and_does_not_read_is_given_up():
    with paired(is_narrow=True, close_timeout=0.05) as (client, connection):
        connection.send_nowait(bytes(10_000_000))
        client.shut_write()
        connection.wait_closed()
        assert connection.buffered_amount
        wait_until(lambda: not connection.buffered_amount)
        assert len(client.read_end()) < 10_000_000


def test_a_handshake_a_message_a_close_and_the_end_in_one_segment():
    """The peer ended its side before anything of it was read, and gets the answers all the same."""
    with serve() as (http, server), RawClient(http) as client:
        requests = record(server, "request")
        client.send(make_upgrade() + make_frame("a") + CLOSE_1000)
        client.shut_write()
        connection = requests.get()[1].accept()
        connection.on("message", connection.send)
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        assert client.read_end() == b"\x81\x01a\x88\x02\x03\xe8"
        assert describe(connection) == ("CLOSED", 1000, "peer", 1000)


def test_a_loop_that_closes_because_the_connection_broke():
    """What ended it is the break, although the loop's end closes the connection, too."""
    with serve() as (http, server):

        @server.on("request")
        def accept(request):
            connection = request.accept()
            try:
                for message in connection:
                    connection.send(message)
            except ConnectionClosed:
                return

        closed = record(server, "close")
        client = open_client(http)
        client.send(make_frame("a") * 10)
        reset(client)
        connection = closed.get()[1]
        assert describe(connection) == ("CLOSED", 1006, "transport", None)
        assert connection.close_cause.startswith("the connection broke: ")


def test_unsent_octets_are_told():
    with paired(is_narrow=True) as (client, connection):
        connection.send_nowait(bytes(300_000))
        reset(client)
        connection.wait_closed()
        assert connection.close_code == 1006
        assert "octets unsent" in connection.close_cause
        assert connection.buffered_amount == 0


# Drops


def test_drop():
    with paired() as (client, connection):
        closes = record(connection, "close")
        client.send(make_frame("undelivered"))
        run_hub()
        connection.drop()
        # Called in a greenlet: the event is out before it returns.
        assert closes.get_nowait() == ("close", 1002, "")
        assert describe(connection) == ("CLOSED", 1002, "local", 1002)
        with pytest.raises(ConnectionClosed) as caught:
            connection.receive()
        assert caught.value.code == 1002
        connection.drop(1001)
        assert client.read_end() == b"\x88\x02\x03\xea"


def test_drop_with_code_and_reason():
    with paired() as (client, connection):
        connection.drop(4000, "é")
        assert client.read_end() == b"\x88\x04\x0f\xa0\xc3\xa9"
        assert (connection.close_code, connection.close_reason) == (4000, "é")


@pytest.mark.parametrize("code", [1002, 1006])
def test_drop_without_a_close_frame(code):
    with paired() as (client, connection):
        connection.drop(code, skip_close_frame=True)
        assert client.read_end() == b""
        assert describe(connection) == ("CLOSED", code, "local", None)


def test_drop_from_the_hub():
    with paired() as (client, connection):
        closes = record(connection, "close")
        seen = AsyncResult()

        def drop():
            connection.drop(3000)
            seen.set((connection.state, closes.qsize()))

        gevent.get_hub().loop.run_callback(drop)
        assert seen.get() == ("CLOSED", 0)
        assert closes.get() == ("close", 3000, "")
        assert client.read_end() == b"\x88\x02\x0b\xb8"


def test_drop_discards_the_output():
    with paired(is_narrow=True) as (client, connection):
        connection.send_nowait(bytes(900_000))
        connection.send_nowait("more")
        run_hub()
        connection.drop(3000)
        octets = client.read_end()
        assert len(octets) < 900_000
        assert connection.buffered_amount == 0
        # The Close goes out only behind a whole frame.
        at = 0
        while at < len(octets) and octets[at] != 0x88:
            size = int.from_bytes(octets[at + 2 : at + 4], "big") + 4
            assert octets[at] in {0x02, 0x00}
            at += size
        assert (octets[at:] == b"\x88\x02\x0b\xb8") is (connection.sent_close_code == 3000)


def test_drop_while_closing():
    with paired() as (client, connection):
        connection.close()
        connection.drop(3000)
        assert client.read_end() == b"\x88\x02\x03\xe8"
        assert describe(connection) == ("CLOSED", 3000, "local", 1000)


# The cause


FIGURES = r"; silent for \d+\.\d{3} s, (\d+) octets unsent"


def raise_key_error(_):
    raise KeyError("secret")


def be_killed(_):
    raise GreenletExit


def listen(listener):
    def act(client, connection):
        connection.on("message", listener)
        client.send(make_frame("a"))

    return act


def send_broken_fragments(client, connection):
    with pytest.raises(KeyError):
        connection.send_fragments(raise_key_error(piece) if piece == "b" else piece for piece in "ab")


def break_a_write(client, connection):
    reset(client)
    with pytest.raises(ConnectionClosed) as caught:
        connection.send("lost")
    assert re.fullmatch(
        r"the connection broke: \[Errno \d+\] [\w ]+; silent for .*, 6 octets unsent", caught.value.cause
    )


def overflow(client, connection):
    connection.send_nowait(bytes(200_000))
    connection.send_nowait("one more")


def close_and_drop(client, connection):
    connection.close(3000)
    connection.drop(3001)


def close_and_violate(client, connection):
    connection.close(3000)
    client.send(b"\x81\x02hi")


def close_and_vanish(client, connection):
    connection.close(3000)
    client.read_frame()
    client.close()


def close_behind_output(client, connection):
    connection.send_nowait(bytes(500_000))
    client.send(CLOSE_1001)


def drop_with_output(client, connection):
    connection.send_nowait(bytes(500_000))
    connection.drop(3000)


ORDERLY = [
    pytest.param({}, lambda client, _: client.send(CLOSE_1000), "the peer closed with 1000", id="peer"),
    pytest.param({}, lambda client, _: client.send(CLOSE_EMPTY), "the peer closed with 1005", id="peer-without-a-code"),
    pytest.param(
        {},
        lambda client, _: client.send(CLOSE_1001) or client.close(),
        "the peer closed with 1001.*",
        id="peer-and-gone",
    ),
    pytest.param(
        {},
        lambda client, connection: connection.close(3000) or client.send(CLOSE_1001),
        "we closed with 3000",
        id="we",
    ),
]
ABNORMAL = [
    pytest.param(
        {"close_timeout": 0.05},
        lambda _, connection: connection.close(3000),
        r"we closed with 3000, and the peer sent no Close within 0\.050 s",
        id="close-timeout",
    ),
    pytest.param(
        {"close_timeout": 0.05, "is_narrow": True},
        close_behind_output,
        r"the peer closed with 1001, and the peer did not take the rest within 0\.050 s",
        id="close-timeout-with-output",
    ),
    pytest.param(
        {}, close_and_vanish, "we closed with 3000, and the peer ended the connection without a Close", id="we-and-end"
    ),
    pytest.param({}, close_and_drop, "we closed with 3000, and we dropped it with 3001", id="we-and-drop"),
    pytest.param(
        {},
        close_and_violate,
        "we closed with 3000, and we failed it: a client's frame is not masked",
        id="we-and-violation",
    ),
    pytest.param({}, lambda client, _: client.close(), "the peer ended the connection without a Close", id="end"),
    pytest.param(
        {}, lambda client, _: reset(client), r"the connection broke: \[Errno 104\] Connection reset by peer", id="reset"
    ),
    pytest.param({}, break_a_write, r"the connection broke: \[Errno \d+\] [\w ]+", id="broken-write"),
    pytest.param(
        {"keepalive_interval": 0.05, "keepalive_grace_period": 0.03},
        lambda *_: None,
        r"the peer did not answer a ping within 0\.030 s",
        id="keepalive",
    ),
    pytest.param(
        {"send_timeout": 0.05, "is_narrow": True},
        lambda _, connection: connection.send_nowait(bytes(500_000)),
        r"the peer took no octet for 0\.\d{3} s",
        id="send-timeout",
    ),
    pytest.param(
        {}, lambda client, _: client.send(b"\x81\x02hi"), "we failed it: a client's frame is not masked", id="violation"
    ),
    pytest.param(
        {},
        lambda client, _: client.send(b"\x81\x81\x00\x00\x00\x00\xff"),
        r"we failed it: text is not UTF-8: .*",
        id="utf-8",
    ),
    pytest.param(
        {"max_received_frame_size": 10},
        lambda client, _: client.send(make_frame(bytes(11))),
        "we failed it: a frame has more than 10 octets",
        id="size",
    ),
    pytest.param({}, listen(raise_key_error), "we failed it: a listener raised KeyError", id="listener"),
    pytest.param({}, listen(be_killed), "we failed it: its greenlet was killed", id="killed"),
    pytest.param({}, send_broken_fragments, "we failed it: a fragmented message broke off", id="fragments"),
    pytest.param(
        {"send_high_water_mark": 1, "is_narrow": True},
        overflow,
        r"we failed it: a slow consumer, \d+ octets wait",
        id="slow-consumer",
    ),
    pytest.param({}, lambda _, connection: connection.drop(3000), "we dropped it with 3000", id="drop"),
    pytest.param({"is_narrow": True}, drop_with_output, "we dropped it with 3000", id="drop-with-output"),
]
#: The ends with octets that did not leave.
UNSENT = {"close-timeout-with-output", "broken-write", "send-timeout", "slow-consumer", "drop-with-output"}


@pytest.mark.parametrize(("options", "act", "cause"), [*ORDERLY, *ABNORMAL])
def test_each_end_tells_its_cause_with_figures(caplog, request, options, act, cause):
    caplog.set_level(logging.DEBUG, "geventws")
    is_orderly = request.node.callspec.id in {param.id for param in ORDERLY}
    with paired(**options) as (client, connection):
        act(client, connection)
        assert connection.wait_closed()
        match = re.fullmatch(cause + FIGURES, connection.close_cause)
        assert match, connection.close_cause
        if request.node.callspec.id in UNSENT:
            assert int(match[1]) > 0
        elif request.node.callspec.id != "peer-and-gone":
            assert int(match[1]) == 0
        with pytest.raises(ConnectionClosed) as caught:
            connection.send("late")
        assert caught.value.cause == connection.close_cause
        # The log is written by a greenlet of its own.
        run_hub()
        start = f"{connection!r} ended with {connection.close_code} by {connection.closed_by}: {connection.close_cause}"
        [text] = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
        assert text.startswith(start)
        assert (text == start) is is_orderly
        assert ("; the last frames: " in text) is not is_orderly
        assert not re.search("secret|lost|one more", text)


def test_the_log_has_the_last_frames_of_both_directions_and_the_refused_one(caplog):
    caplog.set_level(logging.DEBUG, "geventws")
    with paired(early=make_frame("early")) as (client, connection):
        client.send(make_frame("secret") + PING)
        assert [connection.receive(), connection.receive()] == ["early", "secret"]
        assert client.read(2) == b"\x8a\x00"
        connection.send("secret")
        client.read_frame()
        client.send(b"\xd1\x85")
        client.read_end()
        run_hub()
        [text] = caplog.messages
        assert text.partition("; the last frames: ")[2].split(", ") == [
            "received TEXT FIN 5",
            "received TEXT FIN 6",
            "received PING FIN 0",
            "sent PONG FIN 0",
            "sent TEXT FIN 6",
            "received TEXT FIN RSV1 RSV3 5",
            f"sent CLOSE FIN {2 + len(connection.close_reason)}",
        ]
        assert "secret" not in text


@pytest.mark.parametrize("threshold", [65536, 60000], ids=["a frame is a write", "a write is two frames"])
def test_the_log_has_frames_in_the_order_of_the_wire(caplog, threshold):
    caplog.set_level(logging.DEBUG, "geventws")
    with paired(is_narrow=True, fragmentation_threshold=threshold) as (client, connection):
        connection.send_nowait(bytes(400_000))
        connection.send_nowait("behind it")
        connection.ping()
        while client.read_frame()[0] != 0x81:
            pass
        reset(client)
        connection.wait_closed()
        run_hub()
        frames = caplog.messages[0].partition("; the last frames: ")[2].split(", ")
        assert frames[0] == f"sent BINARY {threshold}"
        assert sorted(frames[1:-2]) == [f"sent CONTINUATION {threshold}"] * 5 + ["sent PING FIN 0"]
        assert frames[-2:] == [f"sent CONTINUATION FIN {400_000 - 6 * threshold}", "sent TEXT FIN 9"]


def test_a_broadcast_is_among_the_last_frames_of_each_connection(caplog):
    caplog.set_level(logging.DEBUG, "geventws")
    with serve() as (http, server):
        server.on("request", lambda request: request.accept())
        with open_client(http) as first, open_client(http) as second:
            server.broadcast("all")
            for client in (first, second):
                assert client.read_frame() == (0x81, b"all")
        wait_until(lambda: len(caplog.messages) == 2)
        assert all(text.endswith("; the last frames: sent TEXT FIN 3") for text in caplog.messages)


def test_frames_are_only_kept_where_the_log_wanted_them_from_the_start(caplog):
    with paired() as (client, connection):
        caplog.set_level(logging.DEBUG, "geventws")
        client.send(b"\x81\x02hi")
        connection.wait_closed()
        run_hub()
        [text] = caplog.messages
        assert text.endswith("0 octets unsent")


def test_ends_are_not_logged_above_debug(caplog):
    caplog.set_level(logging.INFO, "geventws")
    with paired() as (client, connection):
        client.send(b"\x81\x02hi")
        connection.wait_closed()
        run_hub()
        assert caplog.messages == []


@pytest.mark.parametrize(
    ("act", "is_answered", "cause"),
    [
        pytest.param(
            lambda http, _: http.close(), True, "we closed with 1001 (the http server is closed)", id="http-closes"
        ),
        pytest.param(
            lambda _, server: server.close_all_connections(3000),
            True,
            "we closed with 3000 (close_all_connections)",
            id="close-all",
        ),
        pytest.param(lambda _, server: server.shut_down(), True, "we closed with 1001 (shut_down)", id="shut-down"),
        pytest.param(
            lambda _, server: server.shut_down(spread=0.01), True, "we closed with 1001 (shut_down)", id="spread"
        ),
        pytest.param(
            lambda _, server: server.shut_down(0.02),
            False,
            "we closed with 1001 (shut_down), and we dropped it with 1001 (the time-out of shut_down)",
            id="shut-down-times-out",
        ),
    ],
)
def test_an_end_of_the_server_is_the_cause(act, is_answered, cause):
    with serve() as (http, server):
        accepted = AsyncResult()
        server.on("request", lambda request: accepted.set(request.accept()))
        with open_client(http) as client:
            connection = accepted.get()
            act(http, server)
            if is_answered:
                client.send(CLOSE_1001)
            connection.wait_closed()
            assert connection.close_cause.partition("; silent for")[0] == cause


@pytest.mark.parametrize("method", ["close_all_connections", "shut_down"])
def test_a_server_closes_connections_of_another_thread(method):
    with serve() as (http, server):
        server.on("request", lambda request: request.accept())
        with open_client(http) as first, open_client(http) as second:
            in_thread(getattr(server, method), code=3000)
            for client in (first, second):
                assert client.read_frame() == (0x88, b"\x0b\xb8")
                client.send(CLOSE_1000)
                assert client.read_end() == b""


def test_a_client_that_was_gone_is_the_cause():
    with serve() as (http, server):
        requests = record(server, "request")
        with RawClient(http) as client:
            client.send(make_upgrade())
            _, request = requests.get()
        wait_until(lambda: request.is_client_gone)
        connection = request.accept()
        cause = "the client was gone before the opening handshake was complete; silent for 0.000 s, 0 octets unsent"
        assert connection.close_cause == cause


def test_a_loop_that_ends_is_the_cause():
    with serve() as (http, server):
        closed = AsyncResult()
        server.on("close", lambda connection, code, reason: closed.set(connection.close_cause))
        server.on("request", lambda request: request.accept().receive())
        with open_client(http) as client:
            client.send(make_frame("a"))
            client.read_frame()
            client.send(CLOSE_1000)
            assert closed.get().startswith("we closed with 1000 (its loop ended); ")


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        ("200 OK", "we closed with 1000 (the view returned)"),
        # What a framework makes of an exception.
        ("500 Internal Server Error", "we closed with 1011 (the view failed)"),
        (None, "we failed it: a listener raised TypeError"),
    ],
)
def test_a_view_is_the_cause(status, cause):
    connections = []

    def view(environ, start_response):
        connections.append(geventws.accept(environ))
        return start_response(status, []) and []

    with running(make_http(view, handler_class=WebSocketHandler)) as http, open_client(http) as client:
        client.read_frame()
        client.send(CLOSE_1000)
        client.read_end()
    assert connections[0].close_cause.partition("; silent for")[0] == cause


# Nothing is left behind


def count_watchers():
    gc.collect()
    kinds = (type(gevent.get_hub().loop.io(0, 1)), type(gevent.get_hub().loop.timer(1)))
    return sum(1 for each in gc.get_objects() if type(each) in kinds and each.active)


def test_two_hundred_abrupt_closes_leave_nothing_behind():
    with serve() as (http, server):
        closed = []
        server.on("close", lambda connection, code, reason: closed.append(code))

        @server.on("request")
        def accept(request):
            connection = request.accept()
            if request.resource == "/loop":
                for message in connection:
                    connection.send(message)
            else:
                connection.on("message", connection.send)

        with open_client(http) as first:
            first.send(make_frame("a"))
            first.read_frame()
        wait_until(lambda: not server.connections)
        before = count_descriptors(), count_watchers()
        for number in range(200):
            client = open_client(http, "/loop" if number % 2 else "/")
            client.send(make_frame("a") * (number % 5))
            if number % 3:
                run_hub(1)
            reset(client)
        wait_until(lambda: not server.connections)
        wait_until(lambda: (count_descriptors(), count_watchers()) == before)
        assert closed == [1006] * 201


def test_a_storm_of_drops_leaves_nothing_behind():
    with serve(close_timeout=0.2) as (http, server):
        connections = []

        @server.on("request")
        def accept(request):
            connection = request.accept()
            connections.append(connection)

            @connection.on("message")
            def receive(message):
                # Each drops the next one, and itself every third time.
                index = int(message)
                connections[(index + 1) % len(connections)].drop(3000, skip_close_frame=bool(index % 2))
                if not index % 3:
                    connection.drop()
                server.broadcast("somebody is gone")

            connection.on("close", lambda *_: connections[0].drop())

        before = count_descriptors()
        clients = [open_client(http) for _ in range(150)]
        wait_until(lambda: len(connections) == 150)
        for index, client in enumerate(clients):
            send_until_broken(client, make_frame(str(index)) * 3)
        # The close of any other one drops the first.
        wait_until(lambda: not connections[0].connected)
        run_hub()
        for connection in connections:
            connection.drop(1001)
        for client in clients:
            client.read_end()
            client.close()
        wait_until(lambda: count_descriptors() == before)
        assert not server.connections


# TLS


def test_tls_closing_handshakes():
    with paired(tls=True) as (client, connection):
        client.send(make_frame("a") + CLOSE_1001)
        assert connection.receive() == "a"
        assert list(connection) == []
        assert client.read_end() == b"\x88\x02\x03\xe9"
        assert describe(connection) == ("CLOSED", 1001, "peer", 1001)
    with paired(tls=True) as (client, connection):
        connection.close(3000)
        assert client.read(4) == b"\x88\x02\x0b\xb8"
        client.send(CLOSE_1000)
        assert connection.wait_closed()
        assert describe(connection) == ("CLOSED", 1000, "local", 3000)


def test_tls_failure_and_drop():
    with paired(tls=True) as (client, connection):
        client.send(b"\x81\x02hi")
        assert client.read_frame()[1][:2] == b"\x03\xea"
        assert connection.close_code == 1002
    with paired(tls=True) as (client, connection):
        connection.drop(3000)
        assert client.read(4) == b"\x88\x02\x0b\xb8"


def test_tls_ends():
    with paired(tls=True) as (client, connection):
        reset(client)
        assert connection.wait_closed()
        assert (connection.close_code, connection.closed_by) == (1006, "transport")
