"""The tools of the benchmarks: the load generator sees what is wrong with a server, and the bare echo is in order."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer
from gevent.subprocess import PIPE, Popen, run

from tests.support import CERTIFICATE, make_frame, make_http, make_tls_context, mask, open_client, serve

ROOT = Path(__file__).parent.parent
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MODES = {
    "echo": ("/", "--connections", "10", "--in-flight", "4"),
    "large": ("/", "--connections", "3", "--binary", "--size", "70000"),
    "empty": ("/", "--size", "0"),
    "rate": ("/", "--connections", "3", "--rate", "1000"),
    "connect": ("/", "--mode", "connect", "--connections", "5"),
    "idle": ("/", "--mode", "idle", "--connections", "20"),
    "broadcast": ("/broadcast", "--mode", "broadcast", "--connections", "20"),
    "fan-in": ("/sink", "--mode", "fan-in", "--connections", "20"),
}
MODE_IDS = list(MODES)


class Outcome(NamedTuple):
    status: int
    result: dict
    errors: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def tools(folder, require):
    """Give the folder of both tools, which are built once."""
    require("cc")
    targets = [str(folder / name) for name in ("load", "echo")]
    run(["make", "-s", "-C", str(ROOT), f"BENCH={folder}", *targets], check=True)
    return folder


@pytest.fixture
def load(tools):
    """Give a function that runs the load generator, shortly unless the options say otherwise."""

    def call(port, path, *options):
        brief = ("--seconds", "0.1", "--warm-up", "0.02", "--timeout", "5")
        command = [str(tools / "load"), *brief, *options, "127.0.0.1", str(port), path]
        with Popen(command, stdout=PIPE, stderr=PIPE, text=True) as process:
            output, errors = process.communicate()
        return Outcome(process.returncode, json.loads(output or "{}"), errors)

    return call


def check_success(outcome):
    assert outcome.errors == ""
    assert outcome.status == 0
    assert outcome.result["errors"] == 0
    assert outcome.result["messages"] > 0


def check_error(outcome, message):
    assert re.search(message, outcome.errors), outcome
    assert outcome.status == 1
    assert outcome.result["errors"] > 0


# Servers made of literal octets


class Peer:
    """Speak with the load generator: read its handshake and its frames; what is sent is up to the test."""

    def __init__(self, sock):
        self.sock = sock
        self.stream = sock.makefile("rb")

    def read_head(self):
        lines = []
        while (line := self.stream.readline()) not in {b"\r\n", b""}:
            lines.append(line)
        return b"".join(lines)

    def make_answer(self, *fields):
        """Read the upgrade request, and return the right answer with more fields."""
        key = re.search(rb"Sec-WebSocket-Key: (.*)\r\n", self.read_head())[1]
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        lines = [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + accept,
            *fields,
        ]
        return b"\r\n".join([*lines, b"", b""])

    def read_frame(self):
        """Return the first octet of a frame and its payload without the mask; a Close is an `EOFError`."""
        first, second = self.read(2)
        size = second & 127
        if size > 125:
            size = int.from_bytes(self.read(2 if size == 126 else 8), "big")
        assert second & 128
        key = self.read(4)
        payload = mask(self.read(size), key)
        if first == 0x88:
            self.sock.sendall(make_reply(payload, first))
            raise EOFError
        return first, payload

    def read(self, count):
        octets = self.stream.read(count)
        if len(octets) < count:
            raise EOFError
        return octets


def make_reply(payload, first=0x81):
    """Return a server's frame."""
    size = len(payload)
    if size < 126:
        return bytes([first, size]) + payload
    if size < 65536:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


@contextlib.contextmanager
def serve_peers(talk):
    """Call ``talk`` with a `Peer` for each connection, and close that when it returns; yields the port."""

    def take(sock, _):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(sock)
        with peer.stream, contextlib.suppress(EOFError, OSError):
            talk(peer)

    server = StreamServer(("127.0.0.1", 0), take)
    server.start()
    try:
        yield server.server_port
    finally:
        server.stop(timeout=1)


def answer_with(make_octets, *fields):
    """Return a talk that answers each message with what is made of its payload."""

    def talk(peer):
        peer.sock.sendall(peer.make_answer(*fields))
        while True:
            _, payload = peer.read_frame()
            peer.sock.sendall(make_octets(payload))

    return talk


def flip_last(payload):
    return payload[:-1] + bytes([payload[-1] ^ 1])


def compress(payload):
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflate(payload):
    return zlib.decompressobj(wbits=-15).decompress(payload + b"\0\0\xff\xff")


class TestWrongReplies:
    @pytest.mark.parametrize(
        ("make_octets", "message"),
        [
            pytest.param(lambda payload: make_reply(flip_last(payload)), "other content than expected", id="content"),
            pytest.param(lambda payload: make_reply(payload, 0x82), "opcode 2 instead of 1", id="opcode"),
            pytest.param(lambda payload: make_reply(payload[:-1]), "31 octets instead of 32", id="shorter"),
            pytest.param(lambda payload: make_reply(payload + b" "), "longer than the 32 octets", id="longer"),
            pytest.param(lambda payload: make_reply(b""), "0 octets instead of 32", id="empty"),
            pytest.param(make_frame, "a frame is masked", id="masked"),
            pytest.param(lambda payload: make_reply(payload, 0xC1), r"reserved bit is set \(c1, 32", id="rsv1"),
            pytest.param(lambda payload: make_reply(payload, 0x91), "reserved bit is set", id="rsv3"),
            pytest.param(lambda payload: make_reply(payload, 0x83), "opcode is unknown", id="unknown-opcode"),
            pytest.param(lambda payload: make_reply(payload, 0x8B) * 2, "opcode is unknown", id="unknown-control"),
            pytest.param(lambda payload: make_reply(payload) * 2, "that nobody waits for", id="extra"),
            pytest.param(lambda payload: make_reply(payload, 0x80), "without a beginning", id="continuation"),
            pytest.param(lambda payload: make_reply(payload, 0x01) * 2, "within another", id="not-finished"),
            pytest.param(lambda _: make_reply(b"", 0x09), "fragmented or too long", id="fragmented-ping"),
            pytest.param(lambda _: make_reply(bytes(126), 0x89), "fragmented or too long", id="long-ping"),
            pytest.param(lambda _: make_reply(b"\x03\xe9", 0x88), "the server closed with 1001", id="early-close"),
        ],
    )
    def test_one(self, load, make_octets, message):
        with serve_peers(answer_with(make_octets)) as port:
            check_error(load(port, "/"), message)

    def test_content_of_a_large_one(self, load):
        with serve_peers(answer_with(lambda payload: make_reply(flip_last(payload)))) as port:
            check_error(load(port, "/", "--size", "100000"), "other content")

    def test_order(self, load):
        def talk(peer):
            peer.sock.sendall(peer.make_answer())
            while True:
                first, second = peer.read_frame()[1], peer.read_frame()[1]
                peer.sock.sendall(make_reply(second) + make_reply(first))

        with serve_peers(talk) as port:
            check_error(load(port, "/", "--in-flight", "2"), "other content")

    def test_dropped(self, load):
        def talk(peer):
            peer.sock.sendall(peer.make_answer())
            peer.read_frame()

        with serve_peers(talk) as port:
            check_error(load(port, "/"), "the connection ended: no Close came before")

    def test_only_some_are_wrong(self, load):
        """The others go on; the first few errors are told, and all are counted."""
        accepted = []

        def talk(peer):
            accepted.append(peer)
            answer_with(make_reply if len(accepted) % 4 == 0 else lambda _: make_reply(b""))(peer)

        with serve_peers(talk) as port:
            outcome = load(port, "/", "--connections", "40")
        check_error(outcome, "0 octets instead of 32")
        assert outcome.result["errors"] == 30
        assert outcome.result["messages"] > 0
        assert len(outcome.errors.splitlines()) == 5

    def test_no_reply(self, load):
        with serve_peers(answer_with(lambda _: b"")) as port:
            check_error(load(port, "/", "--timeout", "0.1"), "nothing came for 0.1 seconds")

    def test_wrong_count(self, load):
        with serve_peers(answer_with(lambda payload: make_reply(b"15") if payload == b"count?" else b"")) as port:
            check_error(load(port, "/", "--mode", "fan-in"), "other content")

    @pytest.mark.parametrize(
        ("times", "message"),
        [pytest.param(1, "nothing came for 0.1 s", id="sender-only"), pytest.param(2, "nobody waits for", id="twice")],
    )
    def test_wrong_delivery(self, load, times, message):
        with serve_peers(answer_with(lambda payload: make_reply(payload) * times)) as port:
            check_error(load(port, "/", "--mode", "broadcast", "--connections", "2", "--timeout", "0.1"), message)


class TestWrongHandshakes:
    @pytest.mark.parametrize(
        ("make_head", "message"),
        [
            pytest.param(lambda answer: b"HTTP/1.1 403 Forbidden\r\n\r\n", "refused: HTTP/1.1 403 Forbidden", id="403"),
            pytest.param(
                lambda answer: re.sub(b"Accept: .", b"Accept: =", answer), "does not fit the key", id="accept"
            ),
            pytest.param(lambda answer: answer.replace(b"-Accept", b"-A"), "does not fit the key", id="no-accept"),
            pytest.param(lambda answer: answer.replace(b": websocket", b": h2c"), "something else", id="upgrade"),
            pytest.param(lambda answer: answer.replace(b": Upgrade", b": close"), "something else", id="connection"),
            pytest.param(lambda answer: b"", "the connection ended", id="nothing"),
            pytest.param(lambda answer: answer[:-2] + b"X: " + bytes(9000), "head does not end", id="endless"),
            pytest.param(
                lambda answer: answer[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
                "an extension that was not offered",
                id="extension",
            ),
        ],
    )
    def test_one(self, load, make_head, message):
        with serve_peers(lambda peer: peer.sock.sendall(make_head(peer.make_answer()))) as port:
            check_error(load(port, "/"), message)

    @pytest.mark.parametrize("mode", ["echo", "connect"])
    def test_no_server(self, load, mode):
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            outcome = load(bound.getsockname()[1], "/", "--mode", mode)
        check_error(outcome, "Connection refused")
        assert outcome.result["messages"] == 0

    def test_no_answer(self, load):
        with serve_peers(lambda peer: [peer.read_head(), peer.read(1)]) as port:
            check_error(load(port, "/", "--timeout", "0.1"), "nothing came for 0.1 seconds")

    def test_no_tls(self, load):
        with serve_peers(answer_with(make_reply)) as port:
            check_error(load(port, "/", "--tls", "--timeout", "0.1"), "TLS handshake failed|nothing came")


class TestWrongEnds:
    """Mode connect judges the closing handshake, too."""

    def test_no_close(self, load):
        def talk(peer):
            peer.sock.sendall(peer.make_answer())
            peer.sock.sendall(make_reply(peer.read_frame()[1]))
            peer.read(1)

        with serve_peers(talk) as port:
            check_error(load(port, "/", "--mode", "connect"), "the connection ended: no Close came before")

    def test_no_end(self, load):
        def talk(peer):
            with contextlib.suppress(EOFError):
                answer_with(make_reply)(peer)
            peer.read(1)

        with serve_peers(talk) as port:
            outcome = load(port, "/", "--mode", "connect", "--timeout", "0.1")
        check_error(outcome, "nothing came for 0.1 seconds")
        assert outcome.result["messages"] == 0

    def test_frame_after_close(self, load):
        def talk(peer):
            with contextlib.suppress(EOFError):
                answer_with(make_reply)(peer)
            peer.sock.sendall(make_reply(b"", 0x89))

        with serve_peers(talk) as port:
            check_error(load(port, "/", "--mode", "connect"), "a frame came after Close")


class TestOddReplies:
    """What is unusual but right is no error."""

    def test_octet_by_octet(self, load):
        def talk(peer):
            for octet in peer.make_answer():
                peer.sock.sendall(bytes([octet]))
            while True:
                for octet in make_reply(peer.read_frame()[1]):
                    peer.sock.sendall(bytes([octet]))

        with serve_peers(talk) as port:
            check_success(load(port, "/", "--connections", "2", "--size", "130"))

    def test_fragments(self, load):
        def split(payload):
            return make_reply(payload[:7], 0x01) + make_reply(b"", 0x00) + make_reply(payload[7:], 0x80)

        with serve_peers(answer_with(split)) as port:
            check_success(load(port, "/"))

    def test_control_frames_between(self, load):
        """A Ping within a fragmented reply is answered with its payload."""
        pongs = []

        def talk(peer):
            peer.sock.sendall(peer.make_answer() + make_reply(b"early", 0x8A))
            while True:
                _, payload = peer.read_frame()
                peer.sock.sendall(make_reply(payload[:9], 0x01) + make_reply(b"ping", 0x89))
                pongs.append(peer.read_frame())
                peer.sock.sendall(make_reply(payload[9:], 0x80))

        with serve_peers(talk) as port:
            check_success(load(port, "/"))
        assert set(pongs) == {(0x8A, b"ping")}

    def test_all_replies_at_once(self, load):
        def talk(peer):
            peer.sock.sendall(peer.make_answer())
            while True:
                peer.sock.sendall(b"".join(make_reply(peer.read_frame()[1]) for _ in range(50)))

        with serve_peers(talk) as port:
            outcome = load(port, "/", "--in-flight", "50")
        check_success(outcome)
        assert outcome.result["messages"] % 50 == 0


class TestDeflate:
    EXTENSION = b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover"

    def test_offer(self, load):
        heads = []
        with serve_peers(lambda peer: heads.append(peer.read_head())) as port:
            load(port, "/", "--deflate")
            load(port, "/", "--deflate-offer", "server_max_window_bits=10")
            load(port, "/", "--deflate-offer", "")
            load(port, "/")
        offers = [re.findall(rb"Sec-WebSocket-Extensions: (.*)\r\n", head) for head in heads]
        assert offers == [
            [b"permessage-deflate; client_no_context_takeover"],
            [b"permessage-deflate; server_max_window_bits=10"],
            [b"permessage-deflate"],
            [],
        ]

    def test_messages(self, load):
        """Each message is compressed on its own, to about a sixth; replies may be compressed or not."""
        sizes = []

        def echo(payload):
            sizes.append(len(payload))
            text = inflate(payload)
            return make_reply(text) if len(sizes) % 2 else make_reply(compress(text), 0xC1)

        with serve_peers(answer_with(echo, self.EXTENSION)) as port:
            outcome = load(port, "/", "--deflate", "--size", "4096")
        check_success(outcome)
        assert outcome.result["deflate"] == "permessage-deflate; server_no_context_takeover"
        assert all(0.15 < size / 4096 < 0.25 for size in sizes)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            pytest.param(lambda text: compress(flip_last(text)), "other content", id="content"),
            pytest.param(lambda text: compress(text[:-1]), "4095 octets instead of 4096", id="shorter"),
            pytest.param(lambda text: compress(text + b" "), "longer than the 4096", id="longer"),
            pytest.param(lambda text: b"\xff" * 9, "cannot be inflated", id="garbage"),
        ],
    )
    def test_wrong_reply(self, load, spoil, message):
        make_octets = lambda payload: make_reply(spoil(inflate(payload)), 0xC1)  # noqa: E731 - one line says it
        with serve_peers(answer_with(make_octets, self.EXTENSION)) as port:
            check_error(load(port, "/", "--deflate", "--size", "4096"), message)

    def test_refused(self, load):
        with serve_peers(answer_with(make_reply)) as port:
            outcome = load(port, "/", "--deflate")
        check_success(outcome)
        assert outcome.result["deflate"] == ""

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            pytest.param(b"permessage-deflate; fast", "unknown parameter", id="unknown"),
            pytest.param(b"permessage-deflate; client_max_window_bits=8", "zlib cannot compress", id="eight-bits"),
            pytest.param(b"x-other", "not offered", id="other"),
        ],
    )
    def test_wrong_answer(self, load, answer, message):
        with serve_peers(answer_with(make_reply, b"Sec-WebSocket-Extensions: " + answer)) as port:
            check_error(load(port, "/", "--deflate"), message)

    def test_small_window(self, load):
        def echo(payload):
            return make_reply(zlib.decompressobj(wbits=-9).decompress(payload + b"\0\0\xff\xff"))

        answer = self.EXTENSION + b"; client_max_window_bits=9"
        with serve_peers(answer_with(echo, answer)) as port:
            check_success(load(port, "/", "--deflate-offer", "client_max_window_bits", "--size", "4096"))


class TestMeasures:
    def test_window(self, load):
        """Only what came in the window counts, not the warm-up."""
        with serve_peers(answer_with(make_reply)) as port:
            outcome = load(port, "/", "--rate", "200", "--warm-up", "0.4", "--seconds", "0.5")
        check_success(outcome)
        assert 0.5 <= outcome.result["seconds"] < 1
        assert outcome.result["messages"] == pytest.approx(200 * outcome.result["seconds"], rel=0.3)
        assert outcome.result["rate"] == pytest.approx(outcome.result["messages"] / outcome.result["seconds"])

    def test_latency_from_the_due_time(self, load):
        """In an open loop, all that was due while a server stood still tells of it; in a closed loop, one would."""

        def talk(peer):
            peer.sock.sendall(peer.make_answer())
            pause = 0.3
            while True:
                _, payload = peer.read_frame()
                gevent.sleep(pause)
                pause = 0
                peer.sock.sendall(make_reply(payload))

        with serve_peers(talk) as port:
            outcome = load(port, "/", "--rate", "100", "--warm-up", "0", "--seconds", "0.5")
        check_success(outcome)
        latency = outcome.result["latency_us"]
        assert 10_000 < latency["p50"] < latency["p90"] <= latency["p99"] <= latency["p999"] <= latency["max"]
        assert 250_000 < latency["max"] < 1_000_000

    def test_server(self, load, echo):
        outcome = load(echo.port, "/", "--pids", str(echo.pid), "--size", "200")
        check_success(outcome)
        result = outcome.result
        cpu = result["server_us"] * result["messages"]
        assert cpu == pytest.approx(1e6 * result["server_load"] * result["seconds"])
        assert 0 < result["server_load"] < 1.1
        assert 0 < result["load_load"] < 1.1
        assert result["wire_reply"] == 204
        assert result["handshakes"] == 1
        assert result["memory_per_connection"] is None

    def test_memory(self, load, tools):
        with running_echo(tools, "--deflate") as echo:
            outcome = load(
                echo.port, "/", "--mode", "idle", "--connections", "50", "--pids", str(echo.pid), "--deflate"
            )
        check_success(outcome)
        assert outcome.result["messages"] == outcome.result["handshakes"] == 50
        # Two windows of zlib are most of it.
        assert 50_000 < outcome.result["memory_per_connection"] < 400_000

    def test_nothing_known(self, load, echo):
        result = load(echo.port, "/").result
        assert result["server_us"] is None
        assert result["server_load"] is None
        assert (result["mode"], result["connections"], result["in_flight"], result["size"]) == ("echo", 1, 1, 32)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            pytest.param(["--mode", "ping"], "--mode must be echo, connect, idle, broadcast or fan-in", id="mode"),
            pytest.param(["--connections", "0"], "--connections must be a whole number from 1", id="none"),
            pytest.param(["--size", "12k"], '--size must be a whole number from 0 to 16777216, not "12k"', id="size"),
            pytest.param(["--seconds", "0"], "--seconds must be a number from 0.001", id="seconds"),
            pytest.param(["--seconds", "nan"], "--seconds must be a number", id="nan"),
            pytest.param(["--pids", "1,x"], "--pids must be a whole number", id="pids"),
            pytest.param(["--pids", "4194304"], "--pids must name processes that run", id="no-process"),
            pytest.param(["--rate", "5", "--mode", "idle"], "--rate is for --mode echo alone", id="rate"),
            pytest.param(["--in-flight", "5", "--mode", "fan-in"], "--in-flight is for --mode echo", id="in-flight"),
            pytest.param(["--colour"], "unrecognized option '--colour'", id="unknown"),
            pytest.param(["extra"], "HOST, PORT and PATH are needed", id="extra"),
        ],
    )
    def test_wrong(self, load, options, message):
        outcome = load(1, "/", *options)
        assert message in outcome.errors
        assert outcome.status == 2
        assert outcome.result == {}

    def test_too_few_descriptors(self, tools):
        limited = ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh", str(tools / "load")]
        done = run([*limited, "--connections", "80", "127.0.0.1", "1", "/"], stderr=PIPE)
        assert b"--connections must fit into the limit of 100 descriptors (ulimit -Hn) with 32 to spare" in done.stderr
        assert done.returncode == 2

    @pytest.mark.parametrize(
        ("port", "path", "message"),
        [
            pytest.param("http", "/", "PORT must be a whole number from 1 to 65535", id="port"),
            pytest.param("80", "chat", 'PATH must begin with /, not "chat"', id="path"),
        ],
    )
    def test_wrong_target(self, load, port, path, message):
        outcome = load(port, path)
        assert message in outcome.errors
        assert outcome.status == 2

    def test_wrong_echo_options(self, tools):
        done = run([str(tools / "echo"), "--port", "0"], stderr=PIPE)
        assert b"--port 1..65535" in done.stderr
        assert done.returncode == 2


# The bare echo, and this project's server


@contextlib.contextmanager
def running_echo(tools, *options):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    with Popen([str(tools / "echo"), "--port", str(port), *options], stdout=PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield SimpleNamespace(port=port, pid=process.pid, address=("127.0.0.1", port), server_port=port)
        finally:
            process.terminate()


@pytest.fixture
def echo(tools):
    with running_echo(tools) as echo:
        yield echo


@contextlib.contextmanager
def running_geventws(**options):
    """Run a server with the three paths; yields its port."""

    def decide(request):
        connection = request.accept()
        if request.resource == "/broadcast":
            connection.on("message", server.broadcast)
        elif request.resource == "/sink":
            connection.on("message", count_for(connection))
        else:
            connection.on("message", connection.send)

    http = make_http(**({"ssl_context": make_tls_context()} if options.pop("tls", False) else {}))
    with serve(http=http, **options) as (http, server):
        server.on("request", decide)
        yield http.server_port


def count_for(connection):
    messages = []

    def take(message):
        messages.append(message)
        if message == "count?":
            connection.send(str(len(messages) - 1))
            messages.clear()

    return take


class TestModes:
    @pytest.mark.parametrize("mode", MODE_IDS)
    def test_bare_echo(self, load, echo, mode):
        outcome = load(echo.port, *MODES[mode])
        check_success(outcome)
        assert outcome.result["deflate"] == ""

    @pytest.mark.parametrize("mode", ["echo", "large", "empty", "broadcast", "fan-in"])
    def test_bare_echo_with_deflate(self, load, tools, mode):
        with running_echo(tools, "--deflate") as echo:
            outcome = load(echo.port, *MODES[mode], "--deflate")
        check_success(outcome)
        assert outcome.result["deflate"] == "permessage-deflate"

    @pytest.mark.parametrize("mode", ["echo", "large", "connect", "broadcast"])
    def test_bare_echo_with_tls(self, load, tools, mode):
        with running_echo(tools, "--tls", CERTIFICATE) as echo:
            check_success(load(echo.port, *MODES[mode], "--tls"))

    @pytest.mark.parametrize("mode", MODE_IDS)
    def test_geventws(self, load, mode):
        with running_geventws(max_received_frame_size=1 << 20) as port:
            check_success(load(port, *MODES[mode]))

    @pytest.mark.parametrize("mode", ["echo", "broadcast"])
    def test_geventws_with_deflate(self, load, mode):
        with running_geventws(permessage_deflate=True) as port:
            outcome = load(port, *MODES[mode], "--deflate")
        check_success(outcome)
        assert outcome.result["deflate"].startswith("permessage-deflate")

    @pytest.mark.parametrize("mode", ["echo", "connect"])
    def test_geventws_with_tls(self, load, mode):
        with running_geventws(tls=True) as port:
            check_success(load(port, *MODES[mode], "--tls"))


class TestBareEcho:
    @pytest.mark.parametrize(
        ("sent", "received"),
        [
            pytest.param(make_frame("Hi"), b"\x81\x02Hi", id="text"),
            pytest.param(make_frame("Hi") * 3, b"\x81\x02Hi" * 3, id="three"),
            pytest.param(make_frame(b"\xff", 0x82) + make_frame("a", 0x89), b"\x82\x01\xff\x8a\x01a", id="ping"),
            pytest.param(
                make_frame("a", 0x01) + make_frame("b", 0x89) + make_frame("c", 0x80),
                b"\x8a\x01b\x81\x02ac",
                id="fragments",
            ),
            pytest.param(make_frame("a", 0x8A) + make_frame("b"), b"\x81\x01b", id="pong"),
            pytest.param(make_frame("€"), b"\x81\x03" + "€".encode(), id="utf-8"),
            pytest.param(make_frame(b"\x0f\xa0bye", 0x88), b"\x88\x02\x0f\xa0", id="close"),
            pytest.param(make_frame(b"", 0x88), b"\x88\x02\x03\xe8", id="close-without-code"),
            pytest.param(make_frame("a") + make_frame(b"a\xff"), b"\x81\x01a\x88\x02\x03\xef", id="no-utf-8"),
            pytest.param(make_frame(b"\xed\xa0\x80"), b"\x88\x02\x03\xef", id="surrogate"),
            pytest.param(make_frame(b"\xe2\x82"), b"\x88\x02\x03\xef", id="cut-character"),
            pytest.param(b"\x81\x02Hi", b"\x88\x02\x03\xea", id="not-masked"),
            pytest.param(make_frame("a", 0xC1), b"\x88\x02\x03\xea", id="reserved-bit"),
            pytest.param(make_frame("a", 0x83), b"\x88\x02\x03\xea", id="unknown-opcode"),
            pytest.param(make_frame("a", 0x80), b"\x88\x02\x03\xea", id="continuation"),
            pytest.param(make_frame("a", 0x01) + make_frame("b"), b"\x88\x02\x03\xea", id="not-finished"),
            pytest.param(make_frame(bytes(126), 0x89), b"\x88\x02\x03\xea", id="long-ping"),
            pytest.param(make_frame(b"\x03", 0x88), b"\x88\x02\x03\xea", id="close-of-one-octet"),
            pytest.param(b"\x82\xff" + (2**24 + 1).to_bytes(8, "big") + bytes(4), b"\x88\x02\x03\xf1", id="too-large"),
        ],
    )
    @pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "octets"])
    def test_frames(self, echo, sent, received, is_whole):
        # What is refused before its end ends the connection: octets that came after that would reset it.
        is_refused = received[-2:] in (b"\x03\xea", b"\x03\xf1")
        pieces = [sent[:1], sent[1:]] if is_refused else [bytes([octet]) for octet in sent]
        with open_client(echo) as client:
            for piece in [sent] if is_whole else pieces:
                client.send(piece)
            assert client.read(len(received)) == received

    def test_frame_with_the_handshake(self, echo):
        with open_client(echo, early=make_frame("early")) as client:
            assert client.read_frame() == (0x81, b"early")

    def test_end(self, echo):
        """The server ends TCP behind the closing handshake."""
        with open_client(echo) as client:
            client.send(make_frame(b"", 0x88))
            assert client.read_end() == b"\x88\x02\x03\xe8"

    def test_largest_message(self, echo):
        payload = bytes(range(256)) * 65536
        with open_client(echo) as client:
            # The key is zeros.
            client.send(b"\x82\xff" + len(payload).to_bytes(8, "big") + bytes(4) + payload)
            assert client.read_frame() == (0x82, payload)

    def test_compressed_fragments(self, tools):
        octets = compress(b"compressed" * 9)
        with (
            running_echo(tools, "--deflate") as echo,
            open_client(
                echo, "/", "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover"
            ) as client,
        ):
            assert b"permessage-deflate; server_no_context_takeover\r\n" in client.head
            client.send((make_frame(octets[:5], 0x41) + make_frame(octets[5:], 0x80)) * 2)
            first, second = client.read_frame(), client.read_frame()
        assert first == second
        assert (first[0], inflate(first[1])) == (0xC1, b"compressed" * 9)

    def test_offer_that_cannot_be_met(self, tools):
        offer = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9"
        with running_echo(tools, "--deflate") as echo, open_client(echo, "/", offer) as client:
            assert b"Extensions" not in client.head

    def test_no_upgrade(self, echo):
        with socket.create_connection(echo.address) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.makefile("rb").read().startswith(b"HTTP/1.1 400 ")
