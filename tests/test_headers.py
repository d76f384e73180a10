from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geventws.headers import (
    check_field,
    has_token,
    is_field_value,
    is_token,
    parse_extensions,
    parse_list,
    serialize_extensions,
    unfold,
)

TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
tokens = st.text(TOKEN_CHARACTERS, min_size=1, max_size=3)
extension_lists = st.lists(st.tuples(tokens, st.lists(st.tuples(tokens, st.none() | tokens), max_size=2)), max_size=2)


class TestTokens:
    def test_every_character_below_256(self):
        assert "".join(filter(is_token, map(chr, range(256)))) == "".join(sorted(TOKEN_CHARACTERS))

    @pytest.mark.parametrize("text", ["", "a b", "chat\n", "chät", "a/b", "soap;v=1"])
    def test_not_a_token(self, text):
        assert not is_token(text)


class TestFieldValues:
    def test_every_character_below_256(self):
        refused = [code for code in range(256) if not is_field_value(chr(code))]
        assert refused == [*range(9), *range(10, 32), 127]

    def test_outside_latin_1(self):
        assert not is_field_value("\u20ac")

    def test_unfold(self):
        assert unfold(" chat,\r\n\tsuperchat\0 \r\n") == "chat,  \tsuperchat"

    def test_unfold_keeps_octets_of_utf_8(self):
        assert unfold("\u00c3\u00a0") == "\u00c3\u00a0"

    @pytest.mark.parametrize("value", ["", "max-age=1; x", "a\tb", "caf\u00e9"])
    def test_check_field(self, value):
        check_field("X-Anything", value)

    @pytest.mark.parametrize("name", ["", "X Y", "X:", "X\r\nY", "\u00c9tag"])
    def test_check_field_refuses_a_name(self, name):
        with pytest.raises(ValueError, match="the name is not a token"):
            check_field(name, "1")

    @pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\0b", "a\x1bb", "a\x7fb", "\u20ac", "a\r\nSet-Cookie: b=c"])
    def test_check_field_refuses_a_value(self, value):
        with pytest.raises(ValueError, match="'X-Anything': the value holds a control octet"):
            check_field("X-Anything", value)

    @pytest.mark.parametrize(("name", "value"), [("X-Anything", 1), (b"X-Anything", "1"), ("X-Anything", None)])
    def test_check_field_refuses_other_types(self, name, value):
        with pytest.raises(TypeError, match="must be str, not"):
            check_field(name, value)


class TestLists:
    @pytest.mark.parametrize(
        ("value", "items"),
        [
            pytest.param("", [], id="empty"),
            pytest.param(" , \t,", [], id="empty items"),
            pytest.param("keep-alive, Upgrade", ["keep-alive", "Upgrade"], id="two"),
            pytest.param("SuperChat ,\tchat\t", ["SuperChat", "chat"], id="blanks before the comma"),
            pytest.param("chat,,chat", ["chat", "chat"], id="duplicates"),
            pytest.param("a b, c/d", ["a b", "c/d"], id="not validated"),
            pytest.param("\u00a0", ["\u00a0"], id="no-break space is not trimmed"),
        ],
    )
    def test_parse_list(self, value, items):
        assert parse_list(value) == items

    @pytest.mark.parametrize(
        ("values", "found"),
        [
            pytest.param([], False, id="absent"),
            pytest.param(["WebSocket"], True, id="other case"),
            pytest.param(["h2c", "foo, websocket"], True, id="second field"),
            pytest.param(["websocket/13"], False, id="longer"),
            pytest.param(["web socket"], False, id="blank inside"),
        ],
    )
    def test_has_token(self, values, found):
        assert has_token(values, "websocket") is found
        assert has_token(values, "WEBSOCKET") is found


class TestExtensions:
    @pytest.mark.parametrize(
        ("value", "extensions"),
        [
            pytest.param("", [], id="empty"),
            pytest.param(" , ", [], id="empty items"),
            # The examples of RFC 6455, 9.1.
            pytest.param("foo", [("foo", [])], id="foo"),
            pytest.param("bar; baz=2", [("bar", [("baz", "2")])], id="parameter"),
            pytest.param("foo, bar; baz=2", [("foo", []), ("bar", [("baz", "2")])], id="foo and bar"),
            pytest.param(
                "deflate-stream, mux; max-channels=4; flow-control, deflate-stream",
                [
                    ("deflate-stream", []),
                    ("mux", [("max-channels", "4"), ("flow-control", None)]),
                    ("deflate-stream", []),
                ],
                id="duplicates",
            ),
            # RFC 7692, 7.1.2.
            pytest.param(
                'permessage-deflate; client_max_window_bits; server_max_window_bits="10"',
                [("permessage-deflate", [("client_max_window_bits", None), ("server_max_window_bits", "10")])],
                id="quoted",
            ),
            pytest.param(r'foo; a="\1\0"', [("foo", [("a", "10")])], id="quoted pairs"),
            pytest.param("\tFoo ;\tA = b ,bar;C", [("Foo", [("A", "b")]), ("bar", [("C", None)])], id="blanks, case"),
            pytest.param("foo; a=1; a=2", [("foo", [("a", "1"), ("a", "2")])], id="repeated parameter"),
        ],
    )
    def test_parse(self, value, extensions):
        assert parse_extensions(value) == extensions

    @pytest.mark.parametrize(
        ("value", "fault"),
        [
            pytest.param("foo bar", "name of an extension is not a token", id="blank in a name"),
            pytest.param("; a", "name of an extension is not a token", id="no name"),
            pytest.param("=", "name of an extension is not a token", id="equals alone"),
            pytest.param('"foo"', "name of an extension is not a token", id="quoted name"),
            pytest.param("foo;", "name of an extension parameter", id="trailing semicolon"),
            pytest.param("foo; =1", "name of an extension parameter", id="value without a name"),
            pytest.param("foo; a b=1", "name of an extension parameter", id="blank in a parameter"),
            pytest.param("foo; a=", "value of an extension parameter is not a token", id="no value"),
            pytest.param("foo; a=b=c", "value of an extension parameter is not a token", id="two equals"),
            pytest.param("foo; a=b c", "value of an extension parameter is not a token", id="blank in a value"),
            pytest.param('foo; a=""', "value of an extension parameter is not a token", id="quoted, empty"),
            pytest.param('foo; a="b c"', "value of an extension parameter is not a token", id="quoted blank"),
            pytest.param(r'foo; a="b\"c"', "value of an extension parameter is not a token", id="quoted quote"),
            pytest.param(r'foo; a="b\"', "value of an extension parameter is not a token", id="escaped closing quote"),
            pytest.param(r'foo; a="b\\c"', "value of an extension parameter is not a token", id="escaped backslash"),
            pytest.param('foo; a="', "not closed", id="quote alone"),
            pytest.param('foo; a="b', "not closed", id="unclosed"),
            pytest.param('foo; a="b"c', "not closed", id="text behind the quotes"),
            pytest.param('foo; a="b,c"', "not closed", id="quoted comma"),
            pytest.param(r'foo; a="b\;c"', "not closed", id="escaped semicolon"),
            pytest.param("foo; a=b\u00e9", "value of an extension parameter is not a token", id="not ASCII"),
        ],
    )
    def test_parse_malformed(self, value, fault):
        with pytest.raises(ValueError, match=fault):
            parse_extensions(value)

    def test_unclosed_quote_before_many_backslashes(self):
        with pytest.raises(ValueError, match="not closed"):
            parse_extensions('foo; a="' + "\\" * 60_000)

    @pytest.mark.parametrize(
        ("extensions", "value"),
        [
            pytest.param([], "", id="none"),
            pytest.param([("foo", [])], "foo", id="bare"),
            pytest.param([("foo", ()), ("bar", [("a", None), ("b", "2")])], "foo, bar; a; b=2", id="parameters"),
        ],
    )
    def test_serialize(self, extensions, value):
        assert serialize_extensions(extensions) == value

    @pytest.mark.parametrize(
        "extension",
        [
            pytest.param(("foo\r\nbar", []), id="name"),
            pytest.param(("foo", [("a b", None)]), id="parameter"),
            pytest.param(("foo", [("a", "")]), id="value"),
        ],
    )
    def test_serialize_refuses(self, extension):
        with pytest.raises(ValueError, match="is not a token"):
            serialize_extensions([extension])

    @settings(max_examples=50)
    @given(extension_lists)
    def test_parse_what_serialize_writes(self, extensions):
        assert parse_extensions(serialize_extensions(extensions)) == extensions

    @given(st.text('ab"\\=;, \t\u00e9', max_size=30))
    def test_anything_is_parsed_or_a_value_error(self, value):
        try:
            extensions = parse_extensions(value)
        except ValueError:
            return
        assert parse_extensions(serialize_extensions(extensions)) == extensions
