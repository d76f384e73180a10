"""Each example as its reader meets it: started as a program of its own, used, and stopped by a signal."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import ssl

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.support import CERTIFICATE, EXAMPLES, Example, in_thread

CHAT = "chat/app.py"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")


class Client:
    """Have a client of the library `websockets`, which knows nothing of gevent."""

    def __init__(self, address, **options):
        self.stack = contextlib.ExitStack()
        self.connection = in_thread(lambda: self.stack.enter_context(connect(address, **options)))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        in_thread(self.stack.close)

    def send(self, message):
        in_thread(self.connection.send, message)

    def receive(self):
        return in_thread(self.connection.recv, timeout=10)

    def receive_event(self):
        return json.loads(self.receive())

    def receive_close(self):
        """Return the code of the server's Close; what comes before it is passed over."""
        try:
            while True:
                self.receive()
        except ConnectionClosed as closed:
            return closed.rcvd.code, closed.rcvd.reason


def test_readme_names_every_example():
    programs = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*/app.py")]
    named = re.findall(r"^\* \[`([\w/.]+)`\]\(\1\): ", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(path.relative_to(EXAMPLES).as_posix() for path in programs)


@pytest.mark.parametrize("name", ["echo_events.py", "echo_loop.py"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_echo(name, number):
    with Example(name) as example, Client(example.read_address()) as client:
        client.send("Grüße")
        assert client.receive() == "Grüße"
        client.send(b"\x00\xff")
        assert client.receive() == b"\x00\xff"
        example.stop(number)
        assert client.receive_close() == (1001, "")
        example.check_end()


@pytest.mark.parametrize("name", ["echo_events.py", "echo_loop.py"])
def test_echo_ends_without_clients(name):
    with Example(name) as example:
        with Client(example.read_address()) as client:
            client.send("one")
            assert client.receive() == "one"
        example.stop()
        example.check_end()


def test_two_ports():
    with Example("two_ports.py", CERTIFICATE, CERTIFICATE, "--tls-port", "0") as example:
        plain_address, secure_address = example.read_address(), example.read_address()
        assert plain_address.startswith("ws://")
        assert secure_address.startswith("wss://")
        context = ssl.create_default_context(cafile=CERTIFICATE)
        with Client(plain_address) as plain, Client(secure_address, ssl=context) as secure:
            plain.send("by ws")
            secure.receive()
            plain.receive()
            secure.send("by wss")
            assert plain.receive() == "by wss"
            assert secure.receive() == "by wss"
            example.stop()
            assert plain.receive_close() == (1001, "")
            assert secure.receive_close() == (1001, "")
            example.check_end()


@pytest.mark.parametrize("name", ["patched.py", "unpatched.py"])
def test_pages(name):
    with Example(name) as example, Client(example.read_address()) as client:
        paths = [f"/page/{number}" for number in range(8)]
        for path in paths:
            client.send(path)
        # The threads work side by side, so answers may pass each other.
        assert sorted(client.receive() for _ in paths) == [f"200 the page at {path}" for path in paths]
        example.stop()
        assert client.receive_close() == (1001, "")
        example.check_end()


# The chat


@contextlib.contextmanager
def log_in(address, name):
    """Log in as a browser would; the session has the cookie."""
    with requests.Session() as session:
        answer = in_thread(session.post, f"{address}/login", {"name": name}, timeout=10)
        assert answer.status_code == 200
        assert f"Chat as {name}" in answer.text
        yield session


def join(address, session, **options):
    cookie = "; ".join(f"{name}={value}" for name, value in session.cookies.items())
    given = {"subprotocols": ["chat"], "origin": address, "additional_headers": {"Cookie": cookie}, **options}
    return Client(address.replace("http:", "ws:") + "/chat", **given)


def test_chat():
    with Example(CHAT) as example:
        address = example.read_address()
        with log_in(address, "Ann") as ann_session, log_in(address, "Bob") as bob_session:
            with join(address, ann_session) as ann:
                assert ann.connection.subprotocol == "chat"
                assert ann.receive_event() == {"type": "people", "names": ["Ann"], "joined": "Ann"}
                with join(address, bob_session) as bob:
                    both = {"type": "people", "names": ["Ann", "Bob"], "joined": "Bob"}
                    assert ann.receive_event() == both
                    assert bob.receive_event() == both
                    bob.send("hello <b>you</b>")
                    said = {"type": "message", "name": "Bob", "text": "hello <b>you</b>"}
                    assert ann.receive_event() == said
                    assert bob.receive_event() == said
                assert ann.receive_event() == {"type": "people", "names": ["Ann"], "left": "Bob"}
                in_thread(ann_session.post, f"{address}/logout", timeout=10)
                assert ann.receive_close() == (4001, "logged out")
            assert in_thread(ann_session.get, f"{address}/me", timeout=10).status_code == 403
            assert in_thread(bob_session.get, f"{address}/me", timeout=10).json() == {"name": "Bob"}
            with join(address, bob_session) as bob:
                assert bob.receive_event()["names"] == ["Bob"]
                example.stop()
                assert bob.receive_close() == (1001, "")
        example.check_end()


def test_chat_knows_a_person_in_two_windows():
    with Example(CHAT) as example:
        address = example.read_address()
        with log_in(address, "Ann") as session, join(address, session) as first:
            first.receive()
            with join(address, session) as second:
                alone = {"type": "people", "names": ["Ann"], "joined": None}
                assert first.receive_event() == alone
                assert second.receive_event() == alone
            assert first.receive_event() == {"type": "people", "names": ["Ann"], "left": None}


@pytest.mark.parametrize(
    ("message", "is_sent"),
    [
        pytest.param("x" * 1000, True, id="longest"),
        pytest.param("x" * 1001, False, id="too long"),
        pytest.param(b"x", False, id="binary"),
    ],
)
def test_chat_limits_what_is_said(message, is_sent):
    with Example(CHAT) as example:
        address = example.read_address()
        with log_in(address, "Ann") as session, join(address, session) as client:
            client.receive()
            client.send(message)
            if is_sent:
                assert client.receive_event()["text"] == message
            else:
                assert client.receive_close() == (1008, "text of up to 1000 characters, please")


def test_chat_refuses():
    with Example(CHAT) as example:
        address = example.read_address()
        with log_in(address, "Ann") as session:
            cases = [
                ({"additional_headers": {}}, 403, "log in first"),
                ({"additional_headers": {"Cookie": "chat_session=forged"}}, 403, "log in first"),
                ({"origin": "http://evil.example"}, 403, "http://evil.example"),
                ({"origin": None}, 403, "origin"),
                ({"subprotocols": None}, 400, "the subprotocol chat is spoken here"),
            ]
            for options, status, reason in cases:
                with pytest.raises(InvalidStatus) as caught:
                    join(address, session, **options)
                response = caught.value.response
                assert response.status_code == status
                assert reason in response.headers["X-WebSocket-Reject-Reason"]


def test_chat_names():
    with Example(CHAT) as example:
        address = example.read_address()
        with log_in(address, "Ann") as session, join(address, session) as client:
            client.receive()
            for name, problem in [("", "1 to 24"), ("x" * 25, "1 to 24"), (" ann ", "called ann is here already")]:
                answer = in_thread(requests.post, f"{address}/login", {"name": name}, timeout=10)
                assert answer.status_code == 400
                assert problem in answer.text
