from __future__ import annotations

import base64
import contextlib
import enum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geventws.errors import CookieError, HandshakeError, SubprotocolError
from geventws.handshake import (
    Opening,
    Response,
    accept_key,
    check_response,
    check_response_fields,
    choose_subprotocol,
    is_upgrade,
    make_key,
    parse_opening,
    parse_response,
    serialize_request,
    serialize_switch,
)

# RFC 6455, 1.3.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

# RFC 6455, 1.2.
REQUEST = {
    "host": ["server.example.com"],
    "upgrade": ["websocket"],
    "connection": ["Upgrade"],
    "sec-websocket-key": [KEY],
    "origin": ["http://example.com"],
    "sec-websocket-protocol": ["chat, superchat"],
    "sec-websocket-version": ["13"],
}
RESPONSE = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
    b"Sec-WebSocket-Protocol: chat\r\n"
    b"\r\n"
)

OWN_FIELDS = ["Connection", "UPGRADE", "content-length", "Transfer-Encoding", "Sec-WebSocket-Accept", "sec-websocket-x"]


def opening(method="GET", http_version="HTTP/1.1", parse_extensions=True, **changes):
    """Parse the example of RFC 6455 with some fields changed; None takes a field out."""
    headers = {**REQUEST, **{name.replace("_", "-"): values for name, values in changes.items()}}
    headers = {name: values for name, values in headers.items() if values is not None}
    return parse_opening(method, http_version, headers, parse_extensions=parse_extensions)


class TestKeys:
    def test_accept_key(self):
        assert accept_key(KEY) == ACCEPT

    def test_make_key(self):
        key = make_key()
        assert len(base64.b64decode(key, validate=True)) == 16
        assert make_key() != key
        assert opening(sec_websocket_key=[key]).error is None


class TestIsUpgrade:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            pytest.param(["websocket"], True, id="websocket"),
            pytest.param(["WebSocket"], True, id="other case"),
            pytest.param(["h2c, websocket"], True, id="list"),
            pytest.param(["h2c", "websocket"], True, id="two fields"),
            pytest.param(["h2c,\r\n websocket"], True, id="folded"),
            pytest.param(["h2c"], False, id="another protocol"),
            pytest.param(["websocket/13"], False, id="with a version"),
            pytest.param([""], False, id="empty"),
        ],
    )
    def test_upgrade_list(self, values, expected):
        assert is_upgrade({"upgrade": values}) is expected

    def test_absent(self):
        assert not is_upgrade({})


class TestParseOpening:
    def test_example_of_the_rfc(self):
        assert opening() == Opening(
            host="server.example.com",
            key=KEY,
            version=13,
            origin="http://example.com",
            subprotocols=["chat", "superchat"],
            extensions=[],
            error=None,
        )

    def test_nothing_but_the_least(self):
        parsed = opening(origin=None, sec_websocket_protocol=None)
        assert (parsed.origin, parsed.subprotocols, parsed.error) == (None, [], None)

    def test_no_fields_at_all(self):
        parsed = parse_opening("GET", "HTTP/1.1", {})
        assert parsed.error is not None
        assert (parsed.host, parsed.key, parsed.version, parsed.origin) == ("", "", None, None)
        assert (parsed.subprotocols, parsed.extensions) == ([], [])

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"http_version": "HTTP/1.2"}, id="later version"),
            pytest.param({"http_version": "HTTP/2.0"}, id="later major version"),
            pytest.param({"connection": ["keep-alive, upgrade"]}, id="connection list"),
            pytest.param({"connection": ["keep-alive", "UPGRADE"]}, id="two connection fields"),
            pytest.param({"upgrade": ["h2c, WebSocket"]}, id="upgrade list"),
            pytest.param({"sec_websocket_key": [f" {KEY}\t"]}, id="blanks around the key"),
            pytest.param({"sec_websocket_version": ["13\r\n "]}, id="fold behind the version"),
            pytest.param({"content_length": ["0"]}, id="empty body"),
            pytest.param({"origin": [""]}, id="empty origin"),
        ],
    )
    def test_good(self, changes):
        assert opening(**changes).error is None

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            pytest.param({"method": "POST"}, "method", id="POST"),
            pytest.param({"method": "get"}, "method", id="methods have a case"),
            pytest.param({"http_version": "HTTP/1.0"}, "HTTP/1.1 or later", id="HTTP/1.0"),
            pytest.param({"http_version": "HTTP/0.9"}, "HTTP/1.1 or later", id="HTTP/0.9"),
            pytest.param({"http_version": "HTTP/11"}, "HTTP/1.1 or later", id="no version"),
            pytest.param({"upgrade": None}, "Upgrade header", id="no Upgrade"),
            pytest.param({"upgrade": ["foo"]}, "Upgrade header", id="Upgrade: foo"),
            pytest.param({"connection": None}, "Connection header", id="no Connection"),
            pytest.param({"connection": ["keep-alive"]}, "Connection header", id="Connection: keep-alive"),
            pytest.param({"content_length ": ["5"]}, "no header field", id="a name that is no token"),
            pytest.param({"": []}, "no header field", id="no name"),
            pytest.param({"host": None}, "Host header", id="no Host"),
            pytest.param({"host": [" "]}, "Host header", id="empty Host"),
            pytest.param({"host": ["a", "a"]}, "Host header", id="two Hosts"),
            pytest.param({"sec_websocket_key": None}, "Sec-WebSocket-Key", id="no key"),
            pytest.param({"sec_websocket_key": [""]}, "Sec-WebSocket-Key", id="empty key"),
            pytest.param({"sec_websocket_key": [KEY, KEY]}, "Sec-WebSocket-Key", id="two keys"),
            pytest.param({"sec_websocket_key": [f"{KEY}, {KEY}"]}, "Sec-WebSocket-Key", id="two keys in one field"),
            pytest.param({"sec_websocket_key": ["zzz"]}, "Sec-WebSocket-Key", id="short key"),
            pytest.param({"sec_websocket_key": ["AAAAAAAAAAAAAAAAAAAA"]}, "Sec-WebSocket-Key", id="15 octets"),
            pytest.param({"sec_websocket_key": ["AAAAAAAAAAAAAAAAAAAAAAA="]}, "Sec-WebSocket-Key", id="17 octets"),
            pytest.param({"sec_websocket_key": [KEY[:-2]]}, "Sec-WebSocket-Key", id="no padding"),
            pytest.param({"sec_websocket_key": [KEY[:-3] + "R=="]}, "Sec-WebSocket-Key", id="not canonical"),
            pytest.param({"sec_websocket_key": ["-" + KEY[1:]]}, "Sec-WebSocket-Key", id="URL alphabet"),
            pytest.param({"sec_websocket_key": ["\u00e9" + KEY[1:]]}, "Sec-WebSocket-Key", id="key not ASCII"),
            pytest.param({"sec_websocket_version": None}, "Version header is missing", id="no version header"),
            pytest.param({"content_length": ["5"]}, "no body", id="body"),
            pytest.param({"content_length": ["0", "5"]}, "no body", id="two lengths"),
            pytest.param({"content_length": ["+0"]}, "no body", id="length is no number"),
            pytest.param({"transfer_encoding": ["chunked"]}, "no body", id="chunked body"),
            pytest.param({"transfer_encoding": [""]}, "no body", id="empty Transfer-Encoding"),
            pytest.param({"origin": ["http://a", "http://a"]}, "Origin header", id="two origins"),
            pytest.param({"origin": ["http://a\x1b"]}, "Origin header", id="control octet in the origin"),
            pytest.param(
                {"sec_websocket_extensions": ["foo; a="]}, "Sec-WebSocket-Extensions: the value", id="extensions"
            ),
        ],
    )
    def test_bad(self, changes, message):
        error = opening(**changes).error
        assert isinstance(error, HandshakeError)
        assert (error.status, error.headers) == (400, [])
        assert message in str(error)

    @pytest.mark.parametrize(
        ("values", "version"),
        [
            pytest.param(["8"], 8, id="8"),
            pytest.param(["255"], 255, id="255"),
            pytest.param(["013"], 13, id="013"),
            pytest.param(["+13"], None, id="+13"),
            pytest.param(["13.0"], None, id="13.0"),
            pytest.param(["13abc"], None, id="13abc"),
            pytest.param(["\u00b9\u00b3"], None, id="superscripts"),
            pytest.param(["9" * 5000], None, id="5000 digits"),
            pytest.param([""], None, id="empty"),
            pytest.param(["8, 13"], None, id="two in one field"),
            pytest.param(["13", "13"], 13, id="two fields"),
        ],
    )
    def test_other_version(self, values, version):
        parsed = opening(sec_websocket_version=values)
        assert parsed.version == version
        assert parsed.error.status == 426
        assert parsed.error.headers == [("Sec-WebSocket-Version", "13")]

    def test_first_broken_rule_is_the_error(self):
        rules = [
            ({"method": "POST"}, "method"),
            ({"http_version": "HTTP/1.0"}, "HTTP/1.1"),
            ({"upgrade": None}, "Upgrade header"),
            ({"connection": None}, "Connection header"),
            ({"host": None}, "Host"),
            ({"sec_websocket_key": None}, "Key"),
            ({"sec_websocket_version": ["8"]}, "Version"),
            ({"content_length": ["1"]}, "body"),
            ({"origin": ["a", "b"]}, "Origin"),
            ({"sec_websocket_extensions": [";"]}, "Extensions"),
        ]
        for first in range(len(rules)):
            changes = {name: value for broken, _ in rules[first:] for name, value in broken.items()}
            assert rules[first][1] in str(opening(**changes).error)

    def test_offers_of_repeated_fields(self):
        parsed = opening(
            sec_websocket_protocol=["SuperChat ,chat", "a/b,,Chat"],
            sec_websocket_extensions=["foo; a=1", "bar,\r\n baz"],
        )
        assert parsed.subprotocols == ["SuperChat", "chat", "a/b", "Chat"]
        assert parsed.extensions == [("foo", [("a", "1")]), ("bar", []), ("baz", [])]

    @pytest.mark.parametrize("value", ["foo; a=1", "foo; a="])
    def test_extensions_left_unread(self, value):
        parsed = opening(sec_websocket_extensions=[value], parse_extensions=False)
        assert (parsed.extensions, parsed.error) == ([], None)

    def test_values_of_a_bad_request(self):
        parsed = opening(method="POST", sec_websocket_extensions=["foo"])
        assert (parsed.host, parsed.key, parsed.version) == ("server.example.com", KEY, 13)
        assert parsed.extensions == [("foo", [])]

    def test_folds_do_not_come_through(self):
        parsed = opening(host=["a\r\n b"], origin=["http://a\r\n\tb"], sec_websocket_protocol=["a\r\n b"])
        assert (parsed.host, parsed.origin, parsed.subprotocols) == ("a   b", "http://a  \tb", ["a   b"])

    @settings(max_examples=50)
    @given(
        st.text(max_size=8),
        st.text(max_size=8),
        st.dictionaries(
            st.sampled_from([*REQUEST, "sec-websocket-extensions"]), st.lists(st.text(max_size=9), max_size=2)
        ),
    )
    def test_nothing_raises(self, method, http_version, headers):
        assert parse_opening(method, http_version, headers).error is not None


class TestChooseSubprotocol:
    @pytest.mark.parametrize(
        ("wanted", "offered", "chosen"),
        [
            pytest.param(None, ["chat"], None, id="None"),
            pytest.param("", ["chat"], None, id="empty"),
            pytest.param("chat", ["superchat", "chat"], "chat", id="same spelling"),
            pytest.param("CHAT", ["superchat", "Chat"], "Chat", id="the client's spelling"),
            pytest.param("chat", ["Chat", "chat"], "chat", id="same spelling comes first"),
            pytest.param("CHAT", ["Chat", "chat"], "Chat", id="first of two spellings"),
            pytest.param("constructor", ["constructor"], "constructor", id="constructor"),
        ],
    )
    def test_choice(self, wanted, offered, chosen):
        assert choose_subprotocol(wanted, offered) == chosen

    def test_member_of_an_enumeration(self):
        class Subprotocol(str, enum.Enum):
            CHAT = "chat"

        assert type(choose_subprotocol(Subprotocol.CHAT, ["chat"])) is str
        assert b"Protocol: chat\r\n" in serialize_request("a.example", "/", KEY, subprotocols=list(Subprotocol))

    @pytest.mark.parametrize("offered", [[], ["superchat"], ["chat2"]])
    def test_not_offered(self, offered):
        with pytest.raises(SubprotocolError, match=r"^subprotocol 'chat' was not offered"):
            choose_subprotocol("chat", offered)

    @pytest.mark.parametrize("wanted", ["a/b", "a b", "chat\r\nX: y", "ch\u00e4t", b"chat", 5])
    def test_not_a_token(self, wanted):
        with pytest.raises(SubprotocolError, match="is not a token"):
            choose_subprotocol(wanted, [wanted])


class TestCheckResponseFields:
    def test_pairs(self):
        assert check_response_fields(iter([("X-A", "1"), ("x-a", "2")])) == [("X-A", "1"), ("x-a", "2")]

    def test_mapping(self):
        assert check_response_fields({"X-A": "1", "Set-Cookie": "a=b"}) == [("X-A", "1"), ("Set-Cookie", "a=b")]

    @pytest.mark.parametrize("name", OWN_FIELDS)
    def test_fields_of_the_handshake(self, name):
        with pytest.raises(ValueError, match=f"'{name}': set by the opening handshake itself"):
            check_response_fields([(name, "1")])

    @pytest.mark.parametrize("value", ["1\r\nX-B: 2", "1\n", "\r1", "1\0"])
    def test_illegal_value(self, value):
        with pytest.raises(ValueError, match="'X-A': the value holds"):
            check_response_fields({"X-A": value})

    def test_illegal_name(self):
        with pytest.raises(ValueError, match="the name is not a token"):
            check_response_fields([("X-A\r\nX-B", "1")])

    def test_wrong_type(self):
        with pytest.raises(TypeError, match="must be str, not int"):
            check_response_fields([("X-A", 1)])


class TestSerializeSwitch:
    def test_least(self):
        assert serialize_switch(KEY, None, [], None, (), ()) == [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", ACCEPT),
        ]

    def test_empty_subprotocol_and_origin(self):
        assert len(serialize_switch(KEY, "", [], "", [], {})) == 3

    def test_everything_in_order(self):
        fields = serialize_switch(
            KEY,
            "chat",
            [("permessage-deflate", [("client_max_window_bits", "10"), ("server_no_context_takeover", None)])],
            "http://example.com",
            [{"name": "a", "value": "b"}, {"name": "c", "value": "d", "path": "/"}],
            {"X-A": "1"},
        )
        assert fields[2:] == [
            ("Sec-WebSocket-Accept", ACCEPT),
            ("Sec-WebSocket-Protocol", "chat"),
            ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits=10; server_no_context_takeover"),
            ("Origin", "http://example.com"),
            ("Set-Cookie", "a=b"),
            ("Set-Cookie", "c=d; Path=/"),
            ("X-A", "1"),
        ]

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            pytest.param({"subprotocol": "a/b"}, SubprotocolError, "'a/b' is not a token", id="subprotocol"),
            pytest.param({"extensions": [("a b", [])]}, ValueError, "'a b' is not a token", id="extension"),
            pytest.param({"origin": "http://a\r\nX: y"}, ValueError, "'Origin': the value", id="origin"),
            pytest.param({"cookies": [{"name": "a b", "value": ""}]}, CookieError, "'a b': the name", id="cookie"),
            pytest.param({"cookies": {"name": "a", "value": ""}}, CookieError, "must be a list", id="one cookie"),
            pytest.param({"headers": [("Upgrade", "h2c")]}, ValueError, "'Upgrade': set by", id="header"),
        ],
    )
    def test_refuses(self, changes, error, message):
        good = {"subprotocol": None, "extensions": [], "origin": None, "cookies": (), "headers": ()}
        with pytest.raises(error, match=message):
            serialize_switch(KEY, **{**good, **changes})


class TestSerializeRequest:
    def test_least(self):
        assert serialize_request("server.example.com", "/chat", KEY) == (
            b"GET /chat HTTP/1.1\r\n"
            b"Host: server.example.com\r\n"
            b"Upgrade: websocket\r\n"
            b"Connection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Version: 13\r\n"
            b"\r\n"
        )

    def test_everything(self):
        request = serialize_request(
            "[::1]:8000",
            "/chat?a=%20b",
            KEY,
            subprotocols=["chat", "superchat"],
            extensions=[("permessage-deflate", [("client_max_window_bits", None)])],
            origin="http://example.com",
            headers={"User-Agent": "caf\u00e9", "Empty": ""},
        )
        assert request == (
            b"GET /chat?a=%20b HTTP/1.1\r\n"
            b"Host: [::1]:8000\r\n"
            b"Upgrade: websocket\r\n"
            b"Connection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Protocol: chat, superchat\r\n"
            b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
            b"Origin: http://example.com\r\n"
            b"User-Agent: caf\xe9\r\n"
            b"Empty: \r\n"
            b"\r\n"
        )

    def test_host_among_the_headers(self):
        request = serialize_request("a.example", "/", KEY, headers=[("X-A", "1"), ("HOST", "b.example")])
        assert request.startswith(b"GET / HTTP/1.1\r\nHost: b.example\r\nUpgrade:")
        assert request.endswith(b"Sec-WebSocket-Version: 13\r\nX-A: 1\r\n\r\n")

    def test_origin_among_the_headers(self):
        assert b"\r\norigin: null\r\n" in serialize_request("a.example", "/", KEY, headers={"origin": "null"})

    @pytest.mark.parametrize("host", ["", "a b", "a\r\nX: y", "a/b", "user@a", "a?b", "a#b", "b\u00fccher.example"])
    def test_illegal_host(self, host):
        with pytest.raises(ValueError, match="must be a name or an address"):
            serialize_request(host, "/", KEY)
        with pytest.raises(ValueError, match=r"must be a name or an address|the value holds"):
            serialize_request("a.example", "/", KEY, headers={"Host": host})

    @pytest.mark.parametrize("target", ["", "chat", "http://a/", "/a b", "/a#b", "/\u00e9", "/\r\nX: y", "/\n"])
    def test_illegal_target(self, target):
        with pytest.raises(ValueError, match="request target"):
            serialize_request("a.example", target, KEY)

    @pytest.mark.parametrize("key", ["", "zzz", KEY + "\r\n"])
    def test_illegal_key(self, key):
        with pytest.raises(ValueError, match="16 octets in base64"):
            serialize_request("a.example", "/", key)

    @pytest.mark.parametrize("subprotocols", [["a/b"], [""], ["chat", "chat"], [5]])
    def test_illegal_subprotocols(self, subprotocols):
        with pytest.raises(SubprotocolError, match=r"is not a token|is offered twice"):
            serialize_request("a.example", "/", KEY, subprotocols=subprotocols)

    def test_one_str_as_subprotocols(self):
        with pytest.raises(TypeError, match="must be a list of str"):
            serialize_request("a.example", "/", KEY, subprotocols="chat")

    @pytest.mark.parametrize(
        "arguments",
        [
            pytest.param({"extensions": [("foo", [("a", "b c")])]}, id="extension"),
            pytest.param({"origin": "a\r\nX: y"}, id="origin"),
            pytest.param({"origin": "null", "headers": {"Origin": "null"}}, id="origin twice"),
            pytest.param({"headers": [("Origin", "null"), ("origin", "null")]}, id="origin twice in headers"),
            pytest.param({"headers": [("Host", "a"), ("host", "b")]}, id="host twice"),
            pytest.param({"headers": {"X-A": "1\r\n"}}, id="line break in a value"),
            *(pytest.param({"headers": {name: "1"}}, id=name) for name in OWN_FIELDS),
        ],
    )
    def test_other_illegal_arguments(self, arguments):
        with pytest.raises(
            ValueError, match=r"is not a token|the value holds|given twice|set by the opening handshake"
        ):
            serialize_request("a.example", "/", KEY, **arguments)


class TestParseResponse:
    def test_example_of_the_rfc(self):
        assert parse_response(RESPONSE) == Response(
            101,
            "Switching Protocols",
            {
                "upgrade": ["websocket"],
                "connection": ["Upgrade"],
                "sec-websocket-accept": [ACCEPT],
                "sec-websocket-protocol": ["chat"],
            },
        )

    @pytest.mark.parametrize(
        ("head", "response"),
        [
            pytest.param(b"HTTP/1.1 404 Not Found\r\n\r\n", Response(404, "Not Found", {}), id="no fields"),
            pytest.param(b"HTTP/1.0 503 \r\n\r\n", Response(503, "", {}), id="empty reason"),
            pytest.param(b"HTTP/1.1 503\r\n\r\n", Response(503, "", {}), id="no reason"),
            pytest.param(b"HTTP/1.1 403 \xe9\r\n\r\n", Response(403, "\u00e9", {}), id="reason not ASCII"),
            pytest.param(
                b"HTTP/1.1 403 No\r\nX-A:1\r\nx-a: \t2 \r\nX-B:\r\n\r\n",
                Response(403, "No", {"x-a": ["1", "2"], "x-b": [""]}),
                id="repeated field",
            ),
            pytest.param(
                b"HTTP/1.1 403 No\r\nX-A: 1\r\n\t2\r\n\r\n", Response(403, "No", {"x-a": ["1 2"]}), id="folded field"
            ),
        ],
    )
    def test_heads(self, head, response):
        assert parse_response(head) == response

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            pytest.param(b"", "blank line", id="empty"),
            pytest.param(b"HTTP/1.1 101 OK\r\n", "blank line", id="unfinished"),
            pytest.param(b"HTTP/1.1 101 OK\n\n", "blank line", id="bare LF"),
            pytest.param(b"HTTP/1.1 101 OK\r\n\r\n\x81\x00", "blank line", id="octets behind it"),
            pytest.param(b"\r\n\r\n", "status line", id="blank line only"),
            pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", "status line", id="another protocol"),
            pytest.param(b"HTTP/2 101 OK\r\n\r\n", "status line", id="HTTP/2"),
            pytest.param(b"HTTP/1.1 1010 OK\r\n\r\n", "status line", id="four digits"),
            pytest.param(b"HTTP/1.1 001 OK\r\n\r\n", "status line", id="leading zero"),
            pytest.param(b"HTTP/1.1 101 O\0K\r\n\r\n", "status line", id="NUL in the reason"),
            pytest.param(b"HTTP/1.1 101 OK\nX: y\r\n\r\n", "status line", id="LF in the status line"),
            pytest.param(b"HTTP/1.1 101 OK\r\nUpgrade\r\n\r\n", "header field", id="no colon"),
            pytest.param(b"HTTP/1.1 101 OK\r\nUpgrade : a\r\n\r\n", "header field", id="blank before the colon"),
            pytest.param(b"HTTP/1.1 101 OK\r\n: a\r\n\r\n", "header field", id="no name"),
            pytest.param(b"HTTP/1.1 101 OK\r\nX: a\rb\r\n\r\n", "header field", id="bare CR"),
            pytest.param(b"HTTP/1.1 101 OK\r\nX: a\nY: b\r\n\r\n", "header field", id="bare LF in the fields"),
            pytest.param(b"HTTP/1.1 101 OK\r\nX: a\0\r\n\r\n", "header field", id="NUL"),
        ],
    )
    def test_junk(self, head, message):
        with pytest.raises(HandshakeError, match=message):
            parse_response(head)

    @given(
        st.binary(max_size=60)
        | st.binary(max_size=40).map(lambda octets: b"HTTP/1.1 101 OK\r\n" + octets + b"\r\n\r\n")
    )
    def test_anything_is_parsed_or_a_handshake_error(self, head):
        with contextlib.suppress(HandshakeError):
            assert 100 <= parse_response(head).status <= 999


class TestCheckResponse:
    def check(self, *changes, subprotocols=("chat", "superchat"), extensions=()):
        head = RESPONSE
        for old, new in changes:
            assert old in head
            head = head.replace(old, new)
        return check_response(parse_response(head), KEY, subprotocols, extensions)

    def test_example_of_the_rfc(self):
        assert self.check() == "chat"

    def test_no_subprotocol_chosen(self):
        assert self.check((b"Sec-WebSocket-Protocol: chat\r\n", b"")) is None

    def test_lists_in_any_case(self):
        assert self.check((b"websocket", b"WebSocket"), (b"Connection: Upgrade", b"Connection: keep-alive, upgrade"))

    def test_offered_extension(self):
        offered = [("foo", []), ("bar", [("a", None)])]
        changes = (b"Upgrade: websocket", b"Upgrade: websocket\r\nSec-WebSocket-Extensions: bar; a=1")
        assert self.check(changes, extensions=offered) == "chat"

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            pytest.param(b"Upgrade: websocket\r\n", b"", "Upgrade header", id="no Upgrade"),
            pytest.param(b"Upgrade: websocket", b"Upgrade: h2c", "Upgrade header", id="another Upgrade"),
            pytest.param(b"Connection: Upgrade\r\n", b"", "Connection header", id="no Connection"),
            pytest.param(b"Connection: Upgrade", b"Connection: close", "Connection header", id="another Connection"),
            pytest.param(b"Sec-WebSocket-Accept", b"X-Accept", "does not match the key", id="no Accept"),
            pytest.param(b"s3pP", b"S3pP", "does not match the key", id="wrong Accept"),
            pytest.param(
                b"Connection",
                f"Sec-WebSocket-Accept: {ACCEPT}\r\nConnection".encode(),
                "does not match the key",
                id="two Accepts",
            ),
            pytest.param(b": chat", b": Chat", "subprotocol that was not offered", id="other spelling"),
            pytest.param(b": chat", b": chat2", "subprotocol that was not offered", id="another subprotocol"),
            pytest.param(b": chat", b": chat, superchat", "subprotocol that was not offered", id="two subprotocols"),
            pytest.param(b": chat", b":", "subprotocol that was not offered", id="empty subprotocol"),
            pytest.param(
                b": chat", b": chat\r\nSec-WebSocket-Protocol: chat", "or more than one", id="two subprotocol fields"
            ),
            pytest.param(
                b"Connection", b"Sec-WebSocket-Extensions: bar\r\nConnection", "extension that was not", id="extension"
            ),
            pytest.param(
                b"Connection", b"Sec-WebSocket-Extensions: foo;\r\nConnection", "malformed", id="malformed extension"
            ),
        ],
    )
    def test_bad(self, old, new, message):
        with pytest.raises(HandshakeError, match=message):
            self.check((old, new), extensions=[("foo", [])])

    def test_subprotocol_without_any_offered(self):
        with pytest.raises(HandshakeError, match="subprotocol that was not offered"):
            self.check(subprotocols=())

    def test_refusal(self):
        head = b"HTTP/1.1 403 \x9bNo\r\nX-A: 1\r\nX-A: 2\r\nConnection: close\r\n\r\n"
        with pytest.raises(HandshakeError, match=r"^the server answered 403 '\\x9bNo'$") as caught:
            check_response(parse_response(head), KEY, [])
        assert caught.value.status == 403
        assert caught.value.headers == [("x-a", "1"), ("x-a", "2"), ("connection", "close")]


class TestBothSides:
    def test_server_understands_client_and_client_understands_server(self):
        key = make_key()
        extensions = [("permessage-deflate", [("client_max_window_bits", None)])]
        request = serialize_request("a.example", "/", key, subprotocols=["Chat"], extensions=extensions, origin="null")
        _, _, fields = request.decode("latin-1").partition("\r\n")
        headers = {}
        for line in fields.rstrip("\r\n").split("\r\n"):
            name, _, value = line.partition(": ")
            headers.setdefault(name.lower(), []).append(value)
        parsed = parse_opening("GET", "HTTP/1.1", headers)
        assert parsed == Opening("a.example", key, 13, "null", ["Chat"], extensions, None)

        subprotocol = choose_subprotocol("chat", parsed.subprotocols)
        switch = serialize_switch(parsed.key, subprotocol, parsed.extensions, parsed.origin, (), ())
        head = (
            "HTTP/1.1 101 Switching Protocols\r\n" + "".join(f"{name}: {value}\r\n" for name, value in switch) + "\r\n"
        )
        assert check_response(parse_response(head.encode("latin-1")), key, ["Chat"], extensions) == "Chat"
