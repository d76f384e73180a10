"""The chat of examples/ as people use it: in Chromium, each window a session of its own."""

from __future__ import annotations

import contextlib
import shutil

import pytest

from geventws import DeflateOptions
from tests.support import Example, in_thread, make_http, serve

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=1000,700",
)
#: Try to connect as any script could; tells whether that worked.
CONNECT = """
const [address, done] = arguments;
const socket = new WebSocket(address, "chat");
socket.onopen = () => { socket.close(); done("open"); };
socket.onclose = () => done("refused");
"""
#: Send texts and octets to a server that echoes; tells how many came back as they were, and what was negotiated.
CONVERSE = """
const [address, done] = arguments;
const socket = new WebSocket(address);
const messages = [];
for (let number = 0; number < 40; number += 1) {
  messages.push(`${number}: ${"Grüße, 世界 ".repeat(number * 50)}`);
  messages.push(crypto.getRandomValues(new Uint8Array(number * 100)));
}
let count = 0, same = 0;
socket.binaryType = "arraybuffer";
socket.onopen = () => messages.forEach((message) => socket.send(message));
socket.onmessage = ({ data }) => {
  const sent = messages[count++];
  const octets = typeof data === "string" ? null : new Uint8Array(data);
  same += octets ? octets.length === sent.length && octets.every((octet, at) => octet === sent[at]) : data === sent;
  if (count === messages.length) socket.close(1000);
};
socket.onclose = ({ code }) => done({ code, count, same, extensions: socket.extensions });
"""

pytestmark = pytest.mark.limit(120)


@pytest.fixture
def open_window(require, tmp_path, monkeypatch):
    """Give a function that opens a browser without cookies, and close them all in the end."""
    chromium = require("chromium")
    from selenium import webdriver  # noqa: PLC0415 - `require` has said whether it is there

    # The driver is asked over HTTP.
    monkeypatch.setenv("NO_PROXY", "*")
    with contextlib.ExitStack() as stack:

        def open_one(name):
            options = webdriver.ChromeOptions()
            options.binary_location = chromium
            for flag in (*FLAGS, f"--user-data-dir={tmp_path / name}"):
                options.add_argument(flag)
            options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
            driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
            stack.callback(driver.quit)
            driver.set_page_load_timeout(30)
            driver.set_script_timeout(30)
            return Window(driver)

        yield open_one


class Window:
    """Do and see what a person does and sees."""

    def __init__(self, driver):
        self.driver = driver

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def read_all(self, selector):
        return [element.text for element in self.driver.find_elements("css selector", selector)]

    def wait(self, condition):
        from selenium.common.exceptions import StaleElementReferenceException  # noqa: PLC0415
        from selenium.webdriver.support.wait import WebDriverWait  # noqa: PLC0415

        wait = WebDriverWait(self.driver, 20, 0.02, [StaleElementReferenceException])
        return wait.until(lambda _: condition())

    def wait_for(self, selector, *texts):
        self.wait(lambda: self.read_all(selector) == list(texts))

    def log_in(self, address, name):
        self.driver.get(address)
        self.find("#name").send_keys(name)
        self.find("form button").click()

    def say(self, text):
        self.find("#text").send_keys(text)
        self.find("#send").click()

    def list_problems(self):
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_chat_from_two_windows(open_window):
    with Example("chat/app.py") as example:
        address = example.read_address()
        ann, bob = open_window("ann"), open_window("bob")
        ann.log_in(address, "Ann")
        ann.wait_for("#status", "Connected")
        ann.wait_for("#people li", "Ann (you)")
        bob.log_in(address, "Bob")
        bob.wait_for("#people li", "Ann", "Bob (you)")
        ann.wait_for("#people li", "Ann (you)", "Bob")

        ann.say("Grüße, <b>Bob</b>")
        bob.wait_for(".message .text", "Grüße, <b>Bob</b>")
        bob.say("hello")
        for window in (ann, bob):
            window.wait_for(".message .text", "Grüße, <b>Bob</b>", "hello")
            assert window.read_all(".message strong") == ["Ann", "Bob"]
        assert ann.read_all(".own .text") == ["Grüße, <b>Bob</b>"]
        assert bob.read_all(".own .text") == ["hello"]

        bob.find("header button").click()
        ann.wait_for("#people li", "Ann (you)")
        ann.wait_for(".news", "Ann joined", "Bob joined", "Bob left")
        bob.wait_for("label", "Your name")
        assert ann.list_problems() == bob.list_problems() == []
        example.stop()
        example.check_end()


def test_chat_tells_of_a_lost_connection(open_window):
    with Example("chat/app.py") as example:
        window = open_window("ann")
        window.log_in(example.read_address(), "Ann")
        window.wait_for("#status", "Connected")
        assert window.find("#send").is_enabled()
        example.stop()
        example.check_end()
        window.wait_for("#status", "Connection lost, trying again…")
        assert not window.find("#send").is_enabled()


def test_chat_has_names_for_what_can_be_used(open_window):
    with Example("chat/app.py") as example:
        window = open_window("ann")
        address = example.read_address()
        window.log_in(address, "x")
        window.wait_for("#status", "Connected")
        assert (window.find("#text").aria_role, window.find("#text").accessible_name) == ("textbox", "Message")
        assert window.find("#messages").accessible_name == "Messages"
        assert [window.find(each).accessible_name for each in ("#send", "header button")] == ["Send", "Leave"]

        other = open_window("other")
        other.log_in(address, "X")
        other.wait_for("[role=alert]", "Somebody called X is here already. Please choose another name.")
        assert (other.find("#name").accessible_name, other.find("#name").get_attribute("value")) == ("Your name", "X")


def test_chat_refuses_the_page_of_a_foreign_origin(open_window):
    with Example("chat/app.py") as chat, Example("chat/app.py") as foreign:
        address, foreign_address = chat.read_address(), foreign.read_address()
        target = address.replace("http:", "ws:") + "/chat"
        window = open_window("ann")
        window.log_in(address, "Ann")
        window.wait_for("#status", "Connected")
        assert window.driver.execute_async_script(CONNECT, target) == "open"
        # Cookies know no ports, so this page's connection has Ann's: the origin alone tells it from hers.
        window.driver.get(f"{foreign_address}/me")
        assert window.driver.execute_async_script(CONNECT, target) == "refused"
        window.driver.get(f"{address}/me")
        assert window.driver.execute_async_script(CONNECT, target) == "open"


def answer_page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"<!doctype html><title>page</title>"]


@pytest.mark.parametrize("takes_over", [True, False], ids=["context takeover", "none"])
def test_a_compressed_conversation(open_window, compressions, takes_over):
    options = DeflateOptions(server_no_context_takeover=not takes_over, client_no_context_takeover=not takes_over)
    with serve(http=make_http(answer_page), permessage_deflate=options) as (http, server):
        server.on("request", lambda request: request.accept().on("message", request.connection.send))
        driver = open_window("ann").driver
        # The driver blocks natively, and this thread is the server's.
        in_thread(driver.get, f"http://127.0.0.1:{http.server_port}/")
        result = in_thread(driver.execute_async_script, CONVERSE, f"ws://127.0.0.1:{http.server_port}/")
    assert (result["code"], result["count"], result["same"]) == (1000, 80, 80)
    assert result["extensions"].startswith("permessage-deflate")
    assert ("client_no_context_takeover" in result["extensions"]) is not takes_over
    # Chromium compresses every message, noise and the empty one, too; ours are those of 256 octets and more.
    assert compressions["in"] == 80
    assert compressions["out"] > 70
