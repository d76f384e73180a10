"""The command line in real child processes: what it prints, how it ends, and with which exit status."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from gevent import socket, ssl
from gevent.subprocess import PIPE, Popen, TimeoutExpired

import geventws
from geventws import ClientConfig, ConnectionClosed, ServerConfig, connect
from geventws.cli import main
from tests.support import CERTIFICATE, make_frame, make_http, make_upgrade, record, running, serve

NOT_FLAGS = {"http_server"}


class Command:
    """Run ``geventws`` in a child process; used as a context it is ended, whatever happened."""

    def __init__(self, *arguments, stdin=PIPE, stdout=PIPE):
        # Not in the project's folder: a child would import the package from there, and not the one under test.
        self.child = Popen(
            [sys.executable, "-m", "geventws", *arguments],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONPATH": str(Path(geventws.__file__).parent.parent)},
            stdin=stdin,
            stdout=stdout,
            stderr=PIPE,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.child.poll() is None:
            self.child.terminate()
        try:
            self.child.wait(5)
        except TimeoutExpired:
            self.child.kill()
            self.child.wait()
        for file in (self.child.stdin, self.child.stdout, self.child.stderr):
            if file is not None:
                file.close()

    def read_line(self):
        return self.child.stdout.readline().decode()

    def read_error_line(self):
        return self.child.stderr.readline().decode()

    def write(self, text):
        self.child.stdin.write(text if isinstance(text, bytes) else text.encode())
        self.child.stdin.flush()

    def end_input(self):
        self.child.stdin.close()

    def signal(self, number):
        self.child.send_signal(number)

    def finish(self):
        """Wait for its end; return the exit status and what it has printed since."""
        output = self.child.stdout.read().decode() if self.child.stdout is not None else ""
        errors = self.child.stderr.read().decode()
        return self.child.wait(), output, errors


def run(*arguments, **options):
    with Command(*arguments, **options) as command:
        return command.finish()


def run_here(arguments, capsys):
    """Run a command line that ends at once, in this process."""
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


@contextlib.contextmanager
def echoing(*arguments):
    """Run an echo server on a free port; gives the command and the server's URL."""
    with Command("echo", "--port", "0", *arguments) as command:
        line = command.read_line()
        assert re.fullmatch(r"listening on wss?://\S+:\d+/\n", line), (line, command.finish())
        yield command, line.split()[-1]


@contextlib.contextmanager
def connected(url, **options):
    connection = connect(url, **options)
    try:
        yield connection
        connection.close()
        assert connection.wait_closed(5)
    finally:
        connection.drop(1001, skip_close_frame=True)


def get_port(url):
    return int(re.search(r":(\d+)/", url)[1])


def open_raw(url):
    return socket.create_connection(("127.0.0.1", get_port(url)))


def ask_http(url, path="/"):
    """Return status, media type and body of a plain request."""
    with open_raw(url) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        octets = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = octets.partition(b"\r\n\r\n")
    return head.split()[1], re.search(rb"Content-Type: (\S+?);?\s", head)[1], body


# echo


@pytest.mark.parametrize("style", ["event", "loop"])
def test_echo_in_both_styles(style):
    with echoing("--style", style) as (_, url), connected(url + "any/path", subprotocols=["one", "two"]) as connection:
        assert connection.subprotocol == "one"
        for message in ("Hello", b"\x00\x01", "", "Grüße" * 20_000):
            connection.send(message)
            assert connection.receive(5) == message


@pytest.mark.parametrize("style", ["event", "loop"])
def test_broadcast_reaches_its_own_path_alone(style):
    with (
        echoing("--style", style) as (_, url),
        connected(url + "broadcast") as one,
        connected(url + "broadcast?x") as two,
        connected(url) as other,
    ):
        one.send("all")
        assert [one.receive(5), two.receive(5)] == ["all", "all"]
        other.send("only me")
        assert other.receive(5) == "only me"


def test_plain_http_is_answered_on_any_path():
    with echoing() as (_, url):
        assert ask_http(url) == (b"200", b"text/plain", b"A WebSocket echo server.\n")
        assert ask_http(url, "/broadcast")[0] == b"200"


@pytest.mark.parametrize(
    ("number", "style"),
    [(signal.SIGTERM, "event"), (signal.SIGINT, "event"), (signal.SIGINT, "loop")],
    ids=["SIGTERM", "Ctrl-C", "Ctrl-C in loop style"],
)
def test_a_signal_closes_with_1001_and_exits_0(number, style):
    with echoing("--style", style) as (command, url):
        connection = connect(url)
        connection.send("there?")
        assert connection.receive(5) == "there?"
        command.signal(number)
        with pytest.raises(ConnectionClosed) as caught:
            connection.receive(5)
        assert (caught.value.code, connection.closed_by) == (1001, "peer")
        assert command.finish() == (0, "", "")


def test_a_second_ctrl_c_ends_at_once():
    with echoing("--close-timeout", "3000") as (command, url), open_raw(url) as sock:
        sock.sendall(make_upgrade())
        received = b""
        while b"\r\n\r\n" not in received:
            received += sock.recv(65536)
        command.signal(signal.SIGINT)
        # The Close, which this client does not answer.
        assert sock.recv(2) == b"\x88\x02"
        command.signal(signal.SIGINT)
        assert command.finish()[0] == 130


def test_tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(CERTIFICATE)
    with echoing("--certfile", CERTIFICATE, "--keyfile", CERTIFICATE, "--host", "localhost") as (_, url):
        assert url.startswith("wss://localhost:")
        with connected(url, ssl_context=context) as connection:
            connection.send("Hello")
            assert connection.receive(5) == "Hello"


def test_an_address_of_ipv6():
    with Command("echo", "--port", "0", "--host", "::1") as command:
        line = command.read_line()
        if not line:
            assert "cannot listen" in command.finish()[2]
            pytest.skip("this machine has no IPv6")
        assert re.fullmatch(r"listening on ws://\[::1\]:\d+/\n", line)
        with connected(line.split()[-1]) as connection:
            connection.send("Hello")
            assert connection.receive(5) == "Hello"


def test_a_port_in_use():
    with running(make_http()) as http:
        status, output, errors = run("echo", "--port", str(http.server_port))
    assert (status, output) == (1, "")
    assert re.fullmatch(r"geventws echo: cannot listen there: .*Address already in use.*\n", errors)


def test_options_reach_the_server():
    arguments = ["--max-received-message-size", "3", "--no-keepalive", "--send-timeout", "none"]
    with echoing(*arguments) as (_, url):
        connection = connect(url)
        connection.send("four")
        with pytest.raises(ConnectionClosed) as caught:
            connection.receive(5)
        assert caught.value.code == 1009


def test_a_path_is_the_only_one():
    with echoing("--path", "/here") as (_, url):
        for path in ("", "broadcast"):
            with pytest.raises(geventws.HandshakeError) as caught:
                connect(url + path)
            assert caught.value.status == 200
        with connected(url + "here") as connection:
            connection.send("Hello")
            assert connection.receive(5) == "Hello"


def test_lists_are_repeated_and_may_hold_none():
    allowed = ["--allowed-origins", "https://a.example", "--allowed-origins", "none"]
    with echoing(*allowed, "--trusted-proxies", "none") as (_, url):
        for origin in (None, "https://a.example"):
            with connected(url, origin=origin):
                pass
        with pytest.raises(geventws.HandshakeError) as caught:
            connect(url, origin="https://b.example")
        assert caught.value.status == 403


@pytest.mark.parametrize("style", ["event", "loop"])
def test_auto_accepting(style):
    with echoing("--auto-accept-connections", "--style", style) as (_, url):
        for path in ("", "broadcast"):
            with connected(url + path, subprotocols=["chat"]) as connection:
                assert connection.subprotocol == "chat"
                connection.send("Hello")
                assert connection.receive(5) == "Hello"


def test_frames_are_echoed_one_by_one_without_assembling():
    with echoing("--no-assemble-fragments") as (_, url):
        with open_raw(url) as sock:
            fragments = make_frame("Hel", 0x01) + make_frame("", 0x89) + make_frame("lo", 0x80)
            sock.sendall(make_upgrade() + fragments + make_frame(b"\x03\xe8", 0x88))
            octets = b"".join(iter(lambda: sock.recv(65536), b""))
        frames = octets.partition(b"\r\n\r\n")[2]
        # The Pong may overtake what an application sends.
        assert frames.replace(b"\x8a\x00", b"") == b"\x01\x03Hel\x80\x02lo\x88\x02\x03\xe8"


def test_a_subprotocol_that_is_no_token_is_not_accepted():
    with echoing() as (command, url):
        with open_raw(url) as sock:
            sock.sendall(make_upgrade("/", "Sec-WebSocket-Protocol: a b"))
            assert sock.recv(12) == b"HTTP/1.1 500"
        command.signal(signal.SIGTERM)
        assert command.finish() == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param([], "geventws: the following arguments are required: COMMAND", id="no command"),
        pytest.param(["ech"], "geventws: argument COMMAND: invalid choice: 'ech' .*", id="unknown command"),
        pytest.param(["echo", "--por", "1"], "geventws: unrecognized arguments: --por 1", id="unknown option"),
        pytest.param(["echo", "--style", "x"], "geventws echo: argument --style: invalid choice: 'x' .*", id="style"),
        pytest.param(["echo", "--port", "x"], "geventws echo: --port must be .* 65535, not 'x'", id="port"),
        pytest.param(
            ["demo", "--port", "65536"], "geventws demo: --port must be .* 65535, not '65536'", id="high port"
        ),
        pytest.param(
            ["echo", "--close-timeout", "0"],
            "geventws echo: --close-timeout must be a finite number of seconds above 0, not 0.0",
            id="time",
        ),
        pytest.param(
            ["echo", "--max-received-frame-size", "1.5"],
            r"geventws echo: --max-received-frame-size must be an int from 1 to \d+, in octets, not '1.5'",
            id="size",
        ),
        pytest.param(
            ["echo", "--keepalive-interval", "none"],
            "geventws echo: --keepalive-interval must be a finite number of seconds above 0, not 'none'",
            id="None where it may not be",
        ),
        pytest.param(
            ["echo", "--allowed-origins", "example.com"],
            "geventws echo: --allowed-origins must hold serialised origins .*, not 'example.com'",
            id="list",
        ),
        pytest.param(
            ["echo", "--auto-accept-connections", "--path", "/"],
            "geventws echo: auto_accept_connections .* does not go with path",
            id="contradiction",
        ),
        pytest.param(["echo", "--keyfile", "x"], "geventws echo: --keyfile needs --certfile", id="key alone"),
        pytest.param(["echo", "--certfile", "/no/such"], "geventws echo: --certfile .*No such file.*", id="no file"),
        pytest.param(["echo", "--certfile", __file__], "geventws echo: --certfile and --keyfile must .*", id="no PEM"),
        pytest.param(["connect"], "geventws connect: .* required: URL", id="no URL"),
        pytest.param(["connect", "http://h/"], "geventws connect: url: it must begin with ws:// or wss://", id="URL"),
        pytest.param(
            ["connect", "ws://h/", "--header", "x"],
            "geventws connect: --header must be 'NAME: VALUE', not 'x'",
            id="header",
        ),
        pytest.param(
            ["connect", "ws://h/", "--subprotocol", "a b"],
            "geventws connect: subprotocol 'a b' .*token.*",
            id="subprotocol",
        ),
        pytest.param(
            ["connect", "ws://h/", "--connect-timeout", "x"],
            "geventws connect: --connect-timeout must be a finite number .*, or None, not 'x'",
            id="option of the client",
        ),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(arguments, line, capsys):
    status, output, errors = run_here(arguments, capsys)
    assert (status, output) == (2, "")
    assert re.fullmatch(line + "\n", errors), errors


def test_a_wrong_command_line_exits_2():
    status, output, errors = run("echo", "--close-timeout", "0")
    assert (status, output) == (2, "")
    assert errors == "geventws echo: --close-timeout must be a finite number of seconds above 0, not 0.0\n"


def test_a_time_in_milliseconds_is_warned_of_once():
    with echoing("--keepalive-interval", "20000") as (command, _):
        command.signal(signal.SIGTERM)
        status, _, errors = command.finish()
    assert status == 0
    assert errors == "geventws: keepalive_interval=20000.0: more than an hour; times are in seconds, not milliseconds\n"


@pytest.mark.parametrize(
    ("command", "config"), [("echo", ServerConfig), ("connect", ClientConfig)], ids=["echo", "connect"]
)
def test_every_option_has_a_flag(command, config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, output, errors = run_here([command, "--help"], capsys)
    assert (status, errors) == (0, "")
    for item in fields(config):
        flag = "--" + item.name.replace("_", "-")
        expected = (
            rf"^  {flag}, --no-{flag[2:]}$|^  {flag}, --no-{flag[2:]} "
            if isinstance(item.default, bool)
            else rf"^  {flag}\b"
        )
        if item.name not in NOT_FLAGS:
            assert re.search(expected, output, re.MULTILINE), flag


def test_the_version():
    assert run("--version") == (0, f"geventws {geventws.__version__}\n", "")


# connect


def test_lines_go_out_and_messages_come_back():
    with serve() as (http, server):
        requests = record(server, "request")
        server.on("request", lambda request: request.accept("chat").on("message", request.connection.send))
        arguments = [
            "--subprotocol",
            "old",
            "--subprotocol",
            "chat",
            "--origin",
            "https://a.example",
            "--header",
            "X-A: b: c",
        ]
        with Command("connect", f"ws://127.0.0.1:{http.server_port}/x", *arguments) as command:
            assert command.read_error_line() == "connected to 127.0.0.1, subprotocol chat\n"
            _, request = requests.get()
            command.write("Grüße\n\n")
            assert [command.read_line(), command.read_line()] == ["Grüße\n", "\n"]
            command.end_input()
            assert command.finish() == (0, "", "closed: 1000\n")
    assert request.requested_subprotocols == ["old", "chat"]
    assert (request.origin, request.environ["HTTP_X_A"], request.resource) == ("https://a.example", "b: c", "/x")


def test_the_answers_to_the_last_lines_are_printed():
    with echoing() as (_, url), Command("connect", url) as command:
        command.write("one\ntwo")
        command.end_input()
        assert command.finish() == (0, "one\ntwo\n", "connected to 127.0.0.1\nclosed: 1000\n")


def test_a_server_that_answers_no_ping_is_not_waited_for():
    received = []
    with serve() as (http, server):

        @server.on("request")
        def accept(request):
            connection = request.accept()
            connection.auto_pong = False
            connection.on("message", received.append)

        status, _, errors = run_with_input(f"ws://127.0.0.1:{http.server_port}/", b"one\n")
    assert (status, errors, received) == (0, "connected to 127.0.0.1\nclosed: 1000\n", ["one"])


def run_with_input(url, octets, *arguments):
    with Command("connect", url, *arguments) as command:
        command.write(octets)
        command.end_input()
        return command.finish()


def test_binary_lines():
    with echoing() as (_, url):
        status, output, _ = run_with_input(url, b"\x00\xffa\nb\n", "--binary")
    assert (status, output) == (0, "00ff61\n62\n")


def test_what_is_no_utf8_is_replaced():
    with echoing() as (_, url):
        assert run_with_input(url, b"a\xff\n")[:2] == (0, "a\ufffd\n")


@pytest.mark.parametrize(
    ("code", "status"), [(1000, 0), (1001, 0), (1011, 1), (4000, 1)], ids=["normal", "going away", "error", "private"]
)
def test_the_servers_close_code_decides_about_the_exit_status(code, status):
    with serve() as (http, server):
        server.on("request", lambda request: request.accept().close(code, "that's\x1b it"))
        # Its standard input stays open meanwhile.
        with Command("connect", f"ws://127.0.0.1:{http.server_port}/") as command:
            assert command.finish() == (status, "", f"connected to 127.0.0.1\nclosed: {code} that's\\x1b it\n")


def test_a_connection_that_breaks_has_its_cause_told():
    with serve() as (http, server):
        server.on("request", lambda request: request.accept().drop(1006, skip_close_frame=True))
        with Command("connect", f"ws://127.0.0.1:{http.server_port}/") as command:
            status, _, errors = command.finish()
    assert status == 1
    assert re.search(
        r"^closed: 1006 the peer ended the connection without a Close; silent for .*\n\Z", errors, re.MULTILINE
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_closes_the_client(number):
    with serve() as (http, server):
        server.on("request", lambda request: request.accept())
        closes = record(server, "close")
        with Command("connect", f"ws://127.0.0.1:{http.server_port}/") as command:
            command.read_error_line()
            command.signal(number)
            assert command.finish() == (0, "", "closed: 1001\n")
        assert closes.get()[2] == 1001


def test_a_refusal_and_a_closed_port():
    with serve() as (http, server):
        server.on("request", lambda request: request.reject(403))
        url = f"ws://127.0.0.1:{http.server_port}/"
        assert run("connect", url) == (1, "", "geventws connect: the server answered 403 'Forbidden'\n")
    status, _, errors = run("connect", url)
    assert status == 1
    assert re.fullmatch(r"geventws connect: ws://127\.0\.0\.1:\d+: .*refused\n", errors)


def test_ctrl_c_while_connecting():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with Command("connect", f"ws://127.0.0.1:{listener.getsockname()[1]}/") as command:
            sock, _ = listener.accept()
            with sock:
                assert sock.recv(3) == b"GET"
                command.signal(signal.SIGINT)
                assert command.finish() == (130, "", "")


def test_a_reader_that_goes_away():
    with echoing() as (_, url):
        reading, writing = os.pipe()
        with Command("connect", url, stdout=writing) as command:
            os.close(writing)
            os.close(reading)
            command.read_error_line()
            command.write("Hello\n")
            assert command.finish()[0] == 1


def test_control_characters_do_not_reach_a_terminal():
    def accept(request):
        request.accept().send("red \x1b[31m")

    with serve() as (http, server):
        server.on("request", accept)
        leader, follower = pty.openpty()
        try:
            with Command("connect", f"ws://127.0.0.1:{http.server_port}/", stdout=follower) as command:
                os.close(follower)
                command.read_error_line()
                command.end_input()
                assert command.finish()[0] == 0
                assert os.read(leader, 100) == b"red \\x1b[31m\r\n"
        finally:
            os.close(leader)


def test_the_clients_options():
    def accept(request):
        request.accept().send("four")

    with serve() as (http, server):
        server.on("request", accept)
        url = f"ws://127.0.0.1:{http.server_port}/"
        with Command("connect", url, "--max-received-message-size", "3") as command:
            status, output, errors = command.finish()
    assert (status, output) == (1, "")
    assert "closed: 1009" in errors


# The script


def test_the_script_is_the_same_command_line():
    source = "import sys; from geventws.cli import main; sys.exit(main(['--version']))"
    environment = {**os.environ, "PYTHONPATH": str(Path(geventws.__file__).parent.parent)}
    with Popen([sys.executable, "-c", source], stdout=PIPE, env=environment, cwd=Path(__file__).parent) as child:
        assert child.stdout.read().decode() == f"geventws {geventws.__version__}\n"
        assert child.wait() == 0
