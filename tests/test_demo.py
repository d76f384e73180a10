"""The demo: its page, what its chat room says, and two windows of a real browser that talk to each other."""

from __future__ import annotations

import contextlib
import json
import re
import shutil

import gevent
import pytest
from gevent import socket

from geventws import ConnectionClosed, HandshakeError, connect
from geventws.demo import MAX_NAME_SIZE, MAX_TEXT_SIZE, ChatRoom, application
from tests.support import make_http, running
from tests.test_cli import Command


@contextlib.contextmanager
def serve_demo():
    http = make_http(application)
    room = ChatRoom(http)
    with running(http):
        try:
            yield http.server_port
        finally:
            for connection in room.server.connections:
                connection.drop(1001, skip_close_frame=True)


class Guest:
    """Be a page: one connection, JSON in both directions."""

    def __init__(self, port, **options):
        self.connection = connect(f"ws://127.0.0.1:{port}/ws", **options)

    def tell(self, **content):
        self.connection.send(json.dumps(content))

    def hear(self):
        return json.loads(self.connection.receive(5))

    def join(self, name):
        self.tell(type="join", name=name)
        return self.hear()


def get(port, path):
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        octets = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = octets.decode().partition("\r\n\r\n")
    return head, body


def test_the_page_is_served_and_needs_nothing_else():
    with serve_demo() as port:
        head, body = get(port, "/")
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        assert "Content-Type: text/html; charset=utf-8\r\n" in head
        assert "Content-Security-Policy: default-src 'none'; " in head
        assert body.startswith("<!DOCTYPE html>")
        assert not re.search(r'(src|href)="(?!data:)', body)
        assert get(port, "/other")[0].startswith("HTTP/1.1 404 ")


def test_two_guests_talk():
    with serve_demo() as port:
        ann, bob = Guest(port), Guest(port)
        assert ann.join("Ann") == {"type": "welcome", "name": "Ann", "people": ["Ann"], "history": []}
        assert bob.join(" Bob\n") == {"type": "welcome", "name": "Bob", "people": ["Ann", "Bob"], "history": []}
        assert ann.hear() == {"type": "people", "people": ["Ann", "Bob"], "joined": "Bob"}
        ann.tell(type="say", text="Grüße\x00 👩\u200d💻 <b>")
        said = ann.hear()
        assert said == {"type": "said", "name": "Ann", "text": "Grüße  👩\u200d💻 <b>", "time": said["time"]}
        assert bob.hear() == said
        late = Guest(port)
        assert late.join("Cleo")["history"] == [said]
        assert bob.hear()["joined"] == "Cleo"
        ann.connection.close()
        assert bob.hear() == {"type": "people", "people": ["Bob", "Cleo"], "left": "Ann"}


def test_who_has_not_joined_hears_nothing():
    with serve_demo() as port:
        outside, ann = Guest(port), Guest(port)
        ann.join("Ann")
        ann.tell(type="say", text="Hello")
        ann.hear()
        outside.tell(type="echo", sent=1.5)
        assert outside.hear() == {"type": "echo", "sent": 1.5}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("", "1 to 32 characters", id="empty"),
        pytest.param(" \u200d\t", "1 to 32 characters", id="blank"),
        pytest.param("a" * (MAX_NAME_SIZE + 1), "1 to 32 characters", id="long"),
        pytest.param(7, "1 to 32 characters", id="number"),
        pytest.param("ANN", "is here already", id="taken"),
    ],
)
def test_a_refused_name_may_be_tried_again(name, reason):
    with serve_demo() as port:
        ann, guest = Guest(port), Guest(port)
        ann.join("Ann")
        refused = guest.join(name)
        assert refused["type"] == "refused"
        assert reason in refused["reason"]
        assert guest.join("a" * MAX_NAME_SIZE)["type"] == "welcome"


@pytest.mark.parametrize("text", ["", "a" * (MAX_TEXT_SIZE + 1), None], ids=["empty", "long", "none"])
def test_a_refused_text(text):
    with serve_demo() as port:
        ann = Guest(port)
        ann.join("Ann")
        ann.tell(type="say", text=text)
        assert ann.hear()["type"] == "refused"
        ann.tell(type="say", text="\U0001f600" * MAX_TEXT_SIZE)
        assert ann.hear()["text"] == "\U0001f600" * MAX_TEXT_SIZE


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("Hello", id="no JSON"),
        pytest.param("[1]", id="no object"),
        pytest.param("[" * 30000, id="deep"),
        pytest.param(b"{}", id="binary"),
        pytest.param('{"type": "dance"}', id="unknown type"),
        pytest.param('{"type": "say", "text": "Hello"}', id="not joined"),
    ],
)
def test_what_is_not_understood_ends_the_connection(message):
    with serve_demo() as port:
        guest = Guest(port)
        guest.connection.send(message)
        with pytest.raises(ConnectionClosed) as caught:
            guest.connection.receive(5)
        assert caught.value.code == 1008


def test_another_origin_is_refused():
    with serve_demo() as port:
        Guest(port, origin=f"http://127.0.0.1:{port}")
        for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port}.evil.example"):
            with pytest.raises(HandshakeError) as caught:
                Guest(port, origin=origin)
            assert caught.value.status == 403


@contextlib.contextmanager
def demonstrating():
    """Run the command; gives the address that it prints."""
    with Command("demo", "--port", "0") as command:
        line = command.read_line()
        yield command, re.search(r"http://127\.0\.0\.1:\d+/", line)[0]


def test_the_command_prints_the_address():
    with demonstrating() as (command, url):
        port = int(re.search(r":(\d+)/", url)[1])
        assert "<title>Chat" in get(port, "/")[1]
        ann = Guest(port)
        assert ann.join("Ann")["name"] == "Ann"
        command.child.terminate()
        with pytest.raises(ConnectionClosed) as caught:
            ann.hear()
        assert caught.value.code == 1001
        assert command.finish() == (0, "", "")


@pytest.mark.limit(90)
def test_two_windows_of_a_browser(require):
    binary = require("chromium")
    with demonstrating() as (_, url):
        # Selenium waits in its own way, so it gets a thread.
        gevent.get_hub().threadpool.apply(talk_in_two_windows, (binary, url))


def talk_in_two_windows(binary, url):
    from selenium import webdriver  # noqa: PLC0415 - only where there is a browser
    from selenium.webdriver.common.by import By  # noqa: PLC0415
    from selenium.webdriver.support.wait import WebDriverWait  # noqa: PLC0415

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    wait = WebDriverWait(driver, 20)

    def find(selector):
        return driver.find_element(By.CSS_SELECTOR, selector)

    def wait_for_text(selector, text):
        wait.until(lambda _: text in find(selector).text, f"{selector}: no {text!r}")

    def join(name):
        driver.get(url)
        wait_for_text("#status", "Connected")
        find("#name").send_keys(name + "\n")
        wait_for_text("#log", f"You are here as {name}.")
        return driver.current_window_handle

    try:
        first = join("Ann")
        driver.switch_to.new_window("window")
        second = join("Bob")
        wait_for_text("#people", "Ann\nBob (you)")
        find("#text").send_keys("Grüße <b>\n")
        driver.switch_to.window(first)
        wait_for_text("#log", "Bob came in.")
        wait_for_text("#log", "BobGrüße <b>")
        find("#text").send_keys("Hello Bob\n")
        wait_for_text("#latency", " ms")
        driver.switch_to.window(second)
        wait_for_text("#log", "AnnHello Bob")
        driver.close()
        driver.switch_to.window(first)
        wait_for_text("#log", "Bob left.")
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()
