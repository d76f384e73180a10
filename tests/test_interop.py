"""Clients of others against our server, in both styles, and our client against servers of others.

All servers speak the same few words (see `answer`), all clients go through the same topics, and each topic has one
right result. The clients in Python block natively, so they run in gevent's thread pool; those for Node.js are
tests/node/client.js.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import threading
from pathlib import Path

import pytest
import websocket
import websockets.asyncio.client
import websockets.sync.client
import websockets.sync.server
from gevent.subprocess import PIPE, Popen
from websockets.exceptions import ConnectionClosed, InvalidStatus

import geventws
from geventws import DeflateOptions
from geventws.headers import serialize_extensions
from tests.support import in_thread, record, serve

NODE = Path(__file__).parent / "node"
LARGE = (bytes(range(251)) * 4178)[: 1 << 20]
RESULTS = {
    "exchange": {
        "text": "Grüße, 世界 🌍",
        "binary": "00017f80ff",
        "large": hashlib.sha256(LARGE).hexdigest(),
        "fragmented": "one two three",
        "assembled": "one two three",
    },
    "control": {"pong": "hello", "ping": "pong: are you there"},
    "handshake": {
        "subprotocol": "chat",
        "header": "yes",
        "set_cookie": "seen=1; Path=/",
        "request": {
            "resource": "/path?x=1",
            "origin": "http://example.com",
            "header": "yes",
            "cookies": [["a", "1"], ["b", "two"]],
            "subprotocols": ["superchat", "chat"],
        },
    },
    "leave": {"code": 4002},
    "wait": {"closed": [4001, "enough"]},
    "too_large": {"code": 1009},
    "refused": {"status": 403, "reason": "not today"},
}
#: These answer every Close with 1000.
DEAF_CLIENTS = {"websocket-client", "npm-websocket"}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")


# The topics, for clients that block


class Refused(Exception):
    """Tell how a server refused the handshake."""


def exchange(open_client, url):
    with open_client(url) as client:
        client.send("Grüße, 世界 🌍")
        text = client.receive()
        client.send(b"\x00\x01\x7f\x80\xff")
        binary = client.receive().hex()
        client.send(LARGE)
        large = hashlib.sha256(client.receive()).hexdigest()
        client.send_fragments(["one ", "two ", "three"])
        fragmented = client.receive()
        client.send("fragments")
        assembled = client.receive()
        client.close(1000, "")
    return {"text": text, "binary": binary, "large": large, "fragmented": fragmented, "assembled": assembled}


def control(open_client, url):
    with open_client(url) as client:
        pong = client.ping(b"hello").decode()
        client.send("ping")
        ping = client.receive()
        client.close(1000, "")
    return {"pong": pong, "ping": ping}


def handshake(open_client, url):
    headers = {"X-Client": "yes", "Cookie": "a=1; b=two"}
    with open_client(f"{url}path?x=1", ["superchat", "chat"], "http://example.com", headers) as client:
        client.send("request")
        request = json.loads(client.receive())
        subprotocol, fields = client.subprotocol, client.get_response_fields()
        client.close(1000, "")
    return {
        "subprotocol": subprotocol,
        "header": fields.get("x-server"),
        "set_cookie": fields.get("set-cookie"),
        "request": request,
    }


def leave(open_client, url):
    with open_client(url) as client:
        return {"code": client.close(4002, "done")[0]}


def wait(open_client, url):
    with open_client(url) as client:
        client.send("close")
        return {"closed": client.wait_closed()}


def too_large(open_client, url):
    with open_client(url) as client:
        client.send_regardless(bytes(1 << 21))
        return {"code": client.wait_closed()[0]}


def refused(open_client, url):
    with pytest.raises(Refused) as caught:
        open_client(f"{url}refused").__enter__()
    status, reason = caught.value.args
    return {"status": status, "reason": reason}


def compressed(open_client, url):
    with open_client(url) as client:
        same = 0
        for number in range(40):
            text = f"{number}: {'Grüße, 世界 ' * number}"
            for message in (text, hashlib.sha256(text.encode()).digest(), bytes(number * 1000)):
                client.send(message)
                same += client.receive() == message
                if message:
                    half = len(message) // 2
                    client.send_fragments([message[:half], message[half:]])
                    same += client.receive() == message
        client.send("fragments")
        assembled = client.receive()
        extensions = client.get_extensions()
        client.close(1000, "")
    return {"extensions": extensions, "same": same, "assembled": assembled}


TOPICS = {
    function.__name__: function
    for function in (exchange, control, handshake, leave, wait, too_large, refused, compressed)
}


# The clients that block


class SyncWebsockets:
    """The threading client of `websockets`."""

    def __init__(self, url, subprotocols=None, origin=None, headers=None):
        self.stack = contextlib.ExitStack()
        opening = websockets.sync.client.connect(
            url, subprotocols=subprotocols, origin=origin, additional_headers=headers
        )
        self.connection = self.stack.enter_context(opening)
        self.subprotocol = self.connection.subprotocol

    def get_response_fields(self):
        return {name.lower(): value for name, value in self.connection.response.headers.raw_items()}

    def get_extensions(self):
        return self.get_response_fields().get("sec-websocket-extensions", "")

    def send(self, message):
        self.connection.send(message)

    send_fragments = send

    def send_regardless(self, message):
        with contextlib.suppress(ConnectionClosed):
            self.connection.send(message)

    def receive(self):
        return self.connection.recv(timeout=10)

    def ping(self, payload):
        # The event is that of the Pong with this payload.
        assert self.connection.ping(payload).wait(10)
        return payload

    def close(self, code, reason):
        self.connection.close(code, reason)
        return [self.connection.close_code, self.connection.close_reason]

    def wait_closed(self):
        with pytest.raises(ConnectionClosed) as caught:
            self.receive()
        return [caught.value.rcvd.code, caught.value.rcvd.reason]

    def end(self):
        self.stack.close()


class AsyncioWebsockets:
    """The asyncio client of `websockets`."""

    def __init__(self, url, subprotocols=None, origin=None, headers=None):
        self.loop = asyncio.new_event_loop()
        opening = websockets.asyncio.client.connect(
            url, subprotocols=subprotocols, origin=origin, additional_headers=headers
        )
        self.stack = contextlib.AsyncExitStack()
        try:
            self.connection = self.run(self.stack.enter_async_context(opening))
        except BaseException:
            self.loop.close()
            raise
        self.subprotocol = self.connection.subprotocol

    def run(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 10))

    def get_response_fields(self):
        return {name.lower(): value for name, value in self.connection.response.headers.raw_items()}

    def get_extensions(self):
        return self.get_response_fields().get("sec-websocket-extensions", "")

    def send(self, message):
        self.run(self.connection.send(message))

    send_fragments = send

    def send_regardless(self, message):
        with contextlib.suppress(ConnectionClosed):
            self.send(message)

    def receive(self):
        return self.run(self.connection.recv())

    def ping(self, payload):
        async def ping_and_wait():
            await (await self.connection.ping(payload))

        self.run(ping_and_wait())
        return payload

    def close(self, code, reason):
        self.run(self.connection.close(code, reason))
        return [self.connection.close_code, self.connection.close_reason]

    def wait_closed(self):
        with pytest.raises(ConnectionClosed) as caught:
            self.receive()
        return [caught.value.rcvd.code, caught.value.rcvd.reason]

    def end(self):
        self.run(self.stack.aclose())
        self.loop.close()


class WebsocketClient:
    """The package `websocket-client`."""

    def __init__(self, url, subprotocols=None, origin=None, headers=None):
        self.connection = websocket.create_connection(
            url, timeout=10, subprotocols=subprotocols, origin=origin, header=headers
        )
        self.subprotocol = self.connection.getsubprotocol()

    def get_response_fields(self):
        return self.connection.getheaders()

    def send(self, message):
        opcode = websocket.ABNF.OPCODE_TEXT if isinstance(message, str) else websocket.ABNF.OPCODE_BINARY
        self.connection.send(message, opcode)

    def send_regardless(self, message):
        with contextlib.suppress(OSError):
            self.send(message)

    def send_fragments(self, parts):
        for index, part in enumerate(parts):
            opcode = websocket.ABNF.OPCODE_CONT if index else websocket.ABNF.OPCODE_TEXT
            fin = int(index == len(parts) - 1)
            self.connection.send_frame(websocket.ABNF.create_frame(part, opcode, fin))

    def receive(self):
        return self.connection.recv()

    def ping(self, payload):
        self.connection.ping(payload)
        opcode, frame = self.connection.recv_data_frame(control_frame=True)
        assert opcode == websocket.ABNF.OPCODE_PONG
        return frame.data

    def close(self, code, reason):
        self.connection.send_close(code, reason.encode())
        return self.parse_close(self.connection.recv_frame())

    def wait_closed(self):
        # Answers the Close, too.
        _, frame = self.connection.recv_data_frame(control_frame=True)
        return self.parse_close(frame)

    def parse_close(self, frame):
        assert frame.opcode == websocket.ABNF.OPCODE_CLOSE
        return [int.from_bytes(frame.data[:2], "big"), frame.data[2:].decode()]

    def end(self):
        self.connection.shutdown()


class GeventwsClient:
    """Our own."""

    def __init__(self, url, subprotocols=(), origin=None, headers=(), **options):
        self.connection = geventws.connect(
            url, subprotocols=subprotocols, origin=origin, headers=headers, max_received_frame_size=1 << 20, **options
        )
        self.subprotocol = self.connection.subprotocol

    def get_response_fields(self):
        return {}

    def get_extensions(self):
        return serialize_extensions(self.connection.extensions)

    def send(self, message):
        self.connection.send(message)

    send_regardless = send

    def send_fragments(self, parts):
        self.connection.send_fragments(parts)

    def receive(self):
        return self.connection.receive(timeout=10)

    def ping(self, payload):
        pongs = record(self.connection, "pong")
        self.connection.ping(payload)
        return pongs.get(timeout=10)[1]

    def close(self, code, reason):
        self.connection.close(code, reason)
        return self.wait_closed()

    def wait_closed(self):
        assert self.connection.wait_closed(timeout=10)
        return [self.connection.close_code, self.connection.close_reason]

    def end(self):
        self.connection.drop(skip_close_frame=True)


def make_opener(make_client):
    """Return a context manager that opens a client, and turns every library's refusal into `Refused`."""

    @contextlib.contextmanager
    def open_client(*arguments):
        try:
            client = make_client(*arguments)
        except InvalidStatus as error:
            response = error.response
            raise Refused(response.status_code, response.headers["X-WebSocket-Reject-Reason"]) from None
        except websocket.WebSocketBadStatusException as error:
            raise Refused(error.status_code, error.resp_headers["x-websocket-reject-reason"]) from None
        except geventws.HandshakeError as error:
            fields = {name.lower(): value for name, value in error.headers}
            raise Refused(error.status, fields["x-websocket-reject-reason"]) from None
        try:
            yield client
        finally:
            client.end()

    return open_client


def run_in_thread(make_client):
    def run(topic, url):
        return in_thread(TOPICS[topic], make_opener(make_client), url)

    return run


def run_in_node(library):
    def run(topic, url):
        child = Popen(["node", "client.js", library, topic, url], cwd=NODE, stdout=PIPE, stderr=PIPE, text=True)
        try:
            output, errors = child.communicate()
        finally:
            if child.poll() is None:
                child.kill()
        assert child.returncode == 0, errors
        return json.loads(output)

    return run


CLIENTS = {
    "websockets": run_in_thread(SyncWebsockets),
    "websockets-asyncio": run_in_thread(AsyncioWebsockets),
    "websocket-client": run_in_thread(WebsocketClient),
    "npm-websocket": run_in_node("websocket"),
    "npm-ws": run_in_node("ws"),
}


# Our server


def answer(connection, request, message):
    """Speak the words that every server here knows."""
    if message == "ping":
        connection.ping(b"are you there")
    elif message == "fragments":
        connection.send_fragments(["one ", "two ", "three"])
    elif message == "close":
        connection.close(4001, "enough")
    elif message == "request":
        told = {
            "resource": request.resource,
            "origin": request.origin,
            "header": request.http.headers.get("X-Client"),
            "cookies": request.cookies,
            "subprotocols": request.requested_subprotocols,
        }
        connection.send(json.dumps(told))
    else:
        connection.send(message)


def accept(request):
    if request.resource == "/refused":
        request.reject(403, "not today")
        return None
    connection = request.accept(
        "chat" if "chat" in request.requested_subprotocols else None,
        request.origin,
        [{"name": "seen", "value": "1", "path": "/"}],
        {"X-Server": "yes"},
    )
    connection.on("pong", lambda payload: connection.send(f"pong: {payload.decode()}"))
    return connection


def answer_events(request):
    if connection := accept(request):
        connection.on("message", lambda message: answer(connection, request, message))


def answer_in_loop(request):
    if connection := accept(request):
        for message in connection:
            answer(connection, request, message)


@pytest.fixture(params=[answer_events, answer_in_loop], ids=["events", "loop"])
def our_server(request):
    with serve(max_received_frame_size=1 << 20) as (http, server):
        server.on("request", request.param)
        yield http, record(server, "close")


@pytest.mark.parametrize("topic", RESULTS)
@pytest.mark.parametrize("name", CLIENTS)
def test_client_of_others(name, topic, our_server, require):
    if name.startswith("npm-"):
        require("node")
    http, closes = our_server
    assert CLIENTS[name](topic, f"ws://127.0.0.1:{http.server_port}/") == RESULTS[topic]
    if topic != "refused":
        codes = {"leave": 4002, "too_large": 1009, "wait": 1000 if name in DEAF_CLIENTS else 4001}
        _, _, code, reason = closes.get()
        assert code == codes.get(topic, 1000)
        assert reason == "done" or topic != "leave"


# Compression

AGREEMENTS = {
    "forgetting": DeflateOptions(),
    "taking over": DeflateOptions(server_no_context_takeover=False, client_no_context_takeover=False, threshold=0),
    "small windows": DeflateOptions(
        server_no_context_takeover=False,
        client_no_context_takeover=False,
        server_max_window_bits=8,
        client_max_window_bits=9,
        threshold=0,
    ),
}
# Each message goes whole and in fragments, but the empty one.
SAME = 2 * 3 * 40 - 1


def check_extensions(value, options):
    """See that an answer agrees on compression as ``options`` want it."""
    assert value.startswith("permessage-deflate")
    assert ("server_no_context_takeover" in value) is options.server_no_context_takeover
    assert ("client_no_context_takeover" in value) is options.client_no_context_takeover
    bits = options.server_max_window_bits
    assert bits == 15 or f"server_max_window_bits={bits}" in value


@pytest.mark.parametrize("agreement", AGREEMENTS)
@pytest.mark.parametrize("name", ["websockets", "websockets-asyncio", "npm-ws"])
def test_compression_with_a_client_of_others(name, agreement, compressions, require):
    if name.startswith("npm-"):
        require("node")
    options = AGREEMENTS[agreement]
    with serve(permessage_deflate=options) as (http, server):
        server.on("request", answer_events)
        closes = record(server, "close")
        result = CLIENTS[name]("compressed", f"ws://127.0.0.1:{http.server_port}/")
        assert (result["same"], result["assembled"]) == (SAME, "one two three")
        check_extensions(result["extensions"], options)
        assert closes.get()[2] == 1000
        # Nearly all of them; small ones stay as they are where the options say so.
        assert compressions["in"] > 200
        assert compressions["out"] > (200 if options.threshold == 0 else 100)


# Servers of others


@contextlib.contextmanager
def run_websockets_server(require):
    def refuse(connection, request):
        if request.path != "/refused":
            return None
        response = connection.respond(403, "not today\n")
        response.headers["X-WebSocket-Reject-Reason"] = "not today"
        return response

    def talk(connection):
        for message in connection:
            if message == "ping":
                assert connection.ping(b"are you there").wait(10)
                connection.send("pong: are you there")
            elif message == "fragments":
                connection.send(["one ", "two ", "three"])
            elif message == "close":
                connection.close(4001, "enough")
            elif message == "request":
                connection.send(json.dumps(describe(connection.request)))
            else:
                connection.send(message)

    def describe(request):
        return {
            "resource": request.path,
            "origin": request.headers["Origin"],
            "header": request.headers["X-Client"],
            "cookies": [pair.split("=") for pair in request.headers["Cookie"].split("; ")],
            "subprotocols": request.headers["Sec-WebSocket-Protocol"].split(", "),
        }

    with websockets.sync.server.serve(
        talk,
        "127.0.0.1",
        0,
        select_subprotocol=lambda _, offered: "chat" if "chat" in offered else None,
        process_request=refuse,
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            in_thread(server.shutdown)
            in_thread(thread.join)


@contextlib.contextmanager
def run_ws_server(require):
    require("node")
    with Popen(["node", "server.js"], cwd=NODE, stdin=PIPE, stdout=PIPE, text=True) as child:
        try:
            yield int(child.stdout.readline())
        finally:
            child.stdin.close()


SERVERS = {"websockets": run_websockets_server, "npm-ws": run_ws_server}


@pytest.mark.parametrize("topic", RESULTS)
@pytest.mark.parametrize("name", SERVERS)
def test_server_of_others(name, topic, require):
    expected = RESULTS[topic]
    if topic == "handshake":
        # Our client does not show the fields of the answer.
        expected = {**expected, "header": None, "set_cookie": None}
    with SERVERS[name](require) as port:
        assert TOPICS[topic](make_opener(GeventwsClient), f"ws://127.0.0.1:{port}/") == expected


@pytest.mark.parametrize("agreement", AGREEMENTS)
@pytest.mark.parametrize("name", SERVERS)
def test_compression_with_a_server_of_others(name, agreement, compressions, require):
    options = AGREEMENTS[agreement]
    if options.server_max_window_bits == 8:
        # Their servers decline it: zlib has no such compressor.
        options = dataclasses.replace(options, server_max_window_bits=9)

    def make_client(*arguments):
        return GeventwsClient(*arguments, permessage_deflate=options)

    with SERVERS[name](require) as port:
        result = TOPICS["compressed"](make_opener(make_client), f"ws://127.0.0.1:{port}/")
    assert (result["same"], result["assembled"]) == (SAME, "one two three")
    check_extensions(result["extensions"], options)
    assert compressions["in"] > 200
    assert compressions["out"] > (200 if options.threshold == 0 else 100)
