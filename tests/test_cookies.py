from __future__ import annotations

import enum
from datetime import date, datetime, timedelta, timezone
from http.cookies import Morsel
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws.cookies import parse_cookies, serialize_cookie, serialize_cookies
from geventws.errors import CookieError


def cookie(**fields):
    return {"name": "a", "value": "b", **fields}


class TestParse:
    @pytest.mark.parametrize(
        ("header", "cookies"),
        [
            pytest.param("", [], id="empty"),
            pytest.param(
                "SID=31d4d96e407aad42; lang=en-US", [("SID", "31d4d96e407aad42"), ("lang", "en-US")], id="two"
            ),
            pytest.param("a=1; b=2; a=3", [("a", "1"), ("b", "2"), ("a", "3")], id="order and duplicates"),
            pytest.param("d=%20z,e=5", [("d", " z,e=5")], id="comma does not split"),
            pytest.param("f=g=h", [("f", "g=h")], id="first equals splits"),
            pytest.param(" a = 1 ;b=\t2", [("a", "1"), ("b", "2")], id="trimmed"),
            pytest.param("a=1\r\n ; b=2", [("a", "1"), ("b", "2")], id="folded"),
            pytest.param("c", [("c", None)], id="no equals"),
            pytest.param("a=1;; ;", [("a", "1")], id="empty pieces"),
            pytest.param("a=", [("a", "")], id="empty value"),
            pytest.param("=b", [("", "b")], id="empty name"),
            pytest.param('b="x y"', [("b", "x y")], id="quoted"),
            pytest.param('b=""x""', [("b", '"x"')], id="one pair only"),
            pytest.param('h="abc', [("h", '"abc')], id="unclosed quote"),
            pytest.param('h="', [("h", '"')], id="one quote"),
            pytest.param('"q"=1', [('"q"', "1")], id="quotes in a name"),
            pytest.param("a%3D=1", [("a%3D", "1")], id="name is not decoded"),
            pytest.param("a=1+2", [("a", "1+2")], id="plus"),
        ],
    )
    def test_grammar(self, header, cookies):
        assert parse_cookies(header) == cookies

    @pytest.mark.parametrize(
        ("octets", "value"),
        [
            pytest.param(b"%C3%A9t%c3%a9", "\u00e9t\u00e9", id="escapes"),
            pytest.param(b'"%22"', '"', id="quotes go before escapes"),
            pytest.param(b"%E9", "%E9", id="escapes that are not UTF-8"),
            pytest.param(b"50%", "50%", id="lone percent sign"),
            pytest.param(b"%20%zz", "%20%zz", id="wholly or not at all"),
            pytest.param(b"\xc3\xa9", "\u00e9", id="octets of UTF-8"),
            pytest.param(b"\xc3\xa0", "\u00e0", id="octet that looks like a no-break space"),
            pytest.param(b"\xe9", "\u00e9", id="octets that are not UTF-8"),
            pytest.param(b"\xc3\xa9%20", "\u00e9 ", id="octets and escapes"),
            pytest.param(b"\xe9%20", "\u00e9%20", id="bad octets and escapes"),
            pytest.param(b"\xc3\xa9%", "\u00e9%", id="octets and a lone percent sign"),
        ],
    )
    def test_characters(self, octets, value):
        assert parse_cookies(f"a={octets.decode('latin-1')}") == [("a", value)]

    def test_octets_in_names(self):
        assert parse_cookies("\u00c3\u00a9=1; \u00c3\u00a9; \u00e9=2") == [
            ("\u00e9", "1"),
            ("\u00e9", None),
            ("\u00e9", "2"),
        ]

    def test_text_that_wsgi_cannot_hand_over(self):
        assert parse_cookies("\u20ac=\u20ac%20") == [("\u20ac", "\u20ac%20")]

    @given(st.text('a=;"% ,\\\u00c3\u00a9\r\n', max_size=30) | st.text(max_size=30))
    def test_nothing_fails(self, header):
        assert all(name or value is not None for name, value in parse_cookies(header))


class TestSerialize:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            pytest.param({}, "a=b", id="plain"),
            pytest.param({"value": ""}, "a=", id="empty value"),
            pytest.param({"value": '"b"'}, 'a="b"', id="quoted value"),
            pytest.param({"value": '""'}, 'a=""', id="empty quoted value"),
            pytest.param(
                {"name": "^|~", "value": "%20!#$&'()*+-./:<=>?@[]^_`{|}~"},
                "^|~=%20!#$&'()*+-./:<=>?@[]^_`{|}~",
                id="characters",
            ),
            pytest.param({"path": "/a b,c"}, "a=b; Path=/a b,c", id="path"),
            pytest.param({"domain": "Example.com"}, "a=b; Domain=Example.com", id="domain"),
            pytest.param({"domain": ".example.com"}, "a=b; Domain=.example.com", id="leading dot"),
            pytest.param({"domain": "127.0.0.1"}, "a=b; Domain=127.0.0.1", id="digits"),
            pytest.param({"domain": "xn--bcher-kva.example"}, "a=b; Domain=xn--bcher-kva.example", id="international"),
            pytest.param(
                {"expires": datetime(1994, 11, 6, 8, 49, 37)}, "a=b; Expires=Sun, 06 Nov 1994 08:49:37 GMT", id="naive"
            ),
            pytest.param(
                {"expires": datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))},
                "a=b; Expires=Wed, 31 Dec 2025 23:30:00 GMT",
                id="aware",
            ),
            pytest.param(
                {"expires": datetime(1601, 1, 1)}, "a=b; Expires=Mon, 01 Jan 1601 00:00:00 GMT", id="earliest"
            ),
            pytest.param({"max_age": 3600}, "a=b; Max-Age=3600", id="max_age"),
            pytest.param({"max_age": 0}, "a=b; Max-Age=0", id="delete"),
            pytest.param({"max_age": -1}, "a=b; Max-Age=-1", id="negative"),
            pytest.param({"max_age": timedelta(days=1)}, "a=b; Max-Age=86400", id="timedelta"),
            pytest.param({"max_age": timedelta(milliseconds=1)}, "a=b; Max-Age=1", id="timedelta is rounded up"),
            pytest.param({"secure": True, "http_only": True}, "a=b; Secure; HttpOnly", id="flags"),
            pytest.param({"secure": False, "http_only": False}, "a=b", id="flags off"),
            pytest.param({"same_site": "strict"}, "a=b; SameSite=Strict", id="strict"),
            pytest.param({"same_site": "LAX"}, "a=b; SameSite=Lax", id="lax"),
            pytest.param({"same_site": "none", "secure": True}, "a=b; Secure; SameSite=None", id="none"),
            pytest.param({"name": "__Secure-a", "secure": True}, "__Secure-a=b; Secure", id="secure prefix"),
            pytest.param(
                {"name": "__Host-a", "secure": True, "path": "/"}, "__Host-a=b; Path=/; Secure", id="host prefix"
            ),
            pytest.param(
                dict.fromkeys(("path", "domain", "expires", "max_age", "secure", "http_only", "same_site")),
                "a=b",
                id="None",
            ),
        ],
    )
    def test_cookie(self, fields, expected):
        assert serialize_cookie(cookie(**fields)) == expected
        assert serialize_cookie(SimpleNamespace(**cookie(**fields))) == expected

    def test_all_attributes_in_order(self):
        fields = cookie(
            same_site="Lax",
            http_only=True,
            secure=True,
            max_age=5,
            expires=datetime(1970, 1, 1),
            domain="example.com",
            path="/p",
        )
        assert serialize_cookie(fields) == (
            "a=b; Path=/p; Domain=example.com; Expires=Thu, 01 Jan 1970 00:00:00 GMT; "
            "Max-Age=5; Secure; HttpOnly; SameSite=Lax"
        )

    def test_members_of_an_enumeration(self):
        class Text(str, enum.Enum):
            NAME = "a"
            VALUE = "b"
            PATH = "/"

        assert serialize_cookie({"name": Text.NAME, "value": Text.VALUE, "path": Text.PATH}) == "a=b; Path=/"

    @pytest.mark.parametrize(
        ("fields", "rule"),
        [
            pytest.param({"name": ""}, "^cookie '': the name must be a token", id="empty name"),
            pytest.param({"name": "a b"}, "^cookie 'a b': the name must be a token", id="blank in the name"),
            pytest.param({"name": "a\r\nX: y"}, "the name must be a token", id="line break in the name"),
            pytest.param({"name": "\u00e9"}, "the name must be a token", id="name not ASCII"),
            pytest.param({"name": b"a"}, "name must be a str, not bytes", id="type of name"),
            pytest.param({"name": None}, "with a name and a value", id="no name"),
            pytest.param({"value": None}, "^cookie 'a': value must be a str, not NoneType", id="no value"),
            pytest.param({"value": 5}, "value must be a str, not int", id="type of value"),
            pytest.param({"value": "b c"}, "^cookie 'a': value holds ' '", id="blank in the value"),
            pytest.param({"value": "b;c"}, "value holds ';'", id="semicolon in the value"),
            pytest.param({"value": "b,c"}, "value holds ','", id="comma in the value"),
            pytest.param({"value": "b\\c"}, r"value holds '\\\\'", id="backslash in the value"),
            pytest.param({"value": 'b"c'}, "value holds '\"'", id="quote in the value"),
            pytest.param({"value": '"b'}, "value holds '\"'", id="unclosed quote"),
            pytest.param({"value": '"'}, "value holds '\"'", id="one quote"),
            pytest.param({"value": "b\r\nX: y"}, r"value holds '\\r'", id="line break in the value"),
            pytest.param({"value": "b\n"}, r"value holds '\\n'", id="line break at the end"),
            pytest.param({"value": "\u00e9"}, "value holds '\u00e9'", id="value not ASCII"),
            pytest.param({"path": ""}, "path is empty", id="empty path"),
            pytest.param({"path": "/a;b"}, "path holds ';'", id="semicolon in the path"),
            pytest.param({"path": "/\r\n"}, r"path holds '\\r'", id="line break in the path"),
            pytest.param({"path": "/\x7f"}, r"path holds '\\x7f'", id="DEL in the path"),
            pytest.param({"path": 1}, "path must be a str, not int", id="type of path"),
            pytest.param({"domain": ""}, "domain is not a host name", id="empty domain"),
            pytest.param({"domain": "a..b"}, "domain is not a host name", id="empty label"),
            pytest.param({"domain": "example.com."}, "domain is not a host name", id="trailing dot"),
            pytest.param({"domain": "-a.example"}, "domain is not a host name", id="leading hyphen"),
            pytest.param({"domain": "a-.example"}, "domain is not a host name", id="trailing hyphen"),
            pytest.param({"domain": "a; Secure"}, "domain is not a host name", id="semicolon in the domain"),
            pytest.param({"domain": "a\n"}, "domain is not a host name", id="line break in the domain"),
            pytest.param({"domain": "b\u00fccher.example"}, "in their xn-- form", id="domain not ASCII"),
            pytest.param({"domain": "a" * 64 + ".example"}, "domain is not a host name", id="long label"),
            pytest.param({"domain": ".".join(["abcd"] * 52)}, "domain is not a host name", id="long domain"),
            pytest.param({"domain": 1}, "domain must be a str, not int", id="type of domain"),
            pytest.param(
                {"expires": "Thu, 01 Jan 1970 00:00:00 GMT"}, "expires must be a datetime, not str", id="text"
            ),
            pytest.param({"expires": date(2026, 1, 1)}, "expires must be a datetime, not date", id="date"),
            pytest.param({"expires": datetime(1600, 12, 31)}, "before the year 1601", id="early"),
            pytest.param(
                {"expires": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
                "outside the years",
                id="overflow",
            ),
            pytest.param({"max_age": 1.5}, "max_age must be an int", id="float"),
            pytest.param({"max_age": True}, "max_age must be an int", id="bool"),
            pytest.param({"max_age": "5"}, "max_age must be an int", id="str"),
            pytest.param({"secure": 1}, "secure must be a bool, not int", id="type of secure"),
            pytest.param({"http_only": "yes"}, "http_only must be a bool, not str", id="type of http_only"),
            pytest.param({"same_site": "always"}, 'same_site must be "Strict", "Lax" or "None"', id="same_site"),
            pytest.param({"same_site": True}, "same_site must be a str, not bool", id="type of same_site"),
            pytest.param({"same_site": "None"}, "needs secure", id="None without secure"),
            pytest.param({"same_site": "none", "secure": False}, "needs secure", id="None with secure off"),
            pytest.param({"name": "__Secure-a"}, "needs secure", id="secure prefix"),
            pytest.param({"name": "__HOST-a", "path": "/"}, "needs secure", id="host prefix without secure"),
            pytest.param(
                {"name": "__Host-a", "secure": True}, 'the path "/" and no domain', id="host prefix without path"
            ),
            pytest.param(
                {"name": "__Host-a", "secure": True, "path": "/", "domain": "example.com"},
                'the path "/" and no domain',
                id="host prefix with domain",
            ),
        ],
    )
    def test_illegal_cookie(self, fields, rule):
        with pytest.raises(CookieError, match=rule):
            serialize_cookie(cookie(**fields))

    @pytest.mark.parametrize(
        ("field", "hint"),
        [
            pytest.param("maxage", "the name here is 'max_age'", id="maxage"),
            pytest.param("maxAge", "the name here is 'max_age'", id="maxAge"),
            pytest.param("Max-Age", "the name here is 'max_age'", id="Max-Age"),
            pytest.param("httponly", "the name here is 'http_only'", id="httponly"),
            pytest.param("sameSite", "the name here is 'same_site'", id="sameSite"),
            pytest.param("comment", "known are name, value, path, domain, expires, max_age", id="comment"),
            pytest.param(1, "known are name", id="not a str"),
        ],
    )
    def test_unknown_field(self, field, hint):
        with pytest.raises(CookieError, match=rf"^cookie 'a': unknown field {field!r}; {hint}"):
            serialize_cookie({"name": "a", "value": "b", field: None})

    @pytest.mark.parametrize("other", [None, "a=b", ("a", "b"), {}])
    def test_not_a_cookie(self, other):
        with pytest.raises(CookieError, match="a cookie is a mapping or an object with a name and a value"):
            serialize_cookie(other)

    def test_values_stay_out_of_messages(self):
        with pytest.raises(CookieError) as caught:
            serialize_cookie(cookie(value="top secret"))
        assert "secret" not in str(caught.value)


class TestSerializeSeveral:
    def test_each_has_its_value(self):
        several = iter([cookie(), SimpleNamespace(name="c", value="d", path="/")])
        assert serialize_cookies(several) == ["a=b", "c=d; Path=/"]

    def test_none(self):
        assert serialize_cookies([]) == []

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            pytest.param({}, {"name": "A"}, id="name"),
            pytest.param({}, {"domain": "example.com"}, id="domain"),
            pytest.param({"path": "/a"}, {"path": "/A"}, id="path"),
        ],
    )
    def test_different_cookies(self, first, second):
        assert len(serialize_cookies([cookie(**first), cookie(**second)])) == 2

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            pytest.param({}, {"value": "c", "secure": True}, id="name"),
            pytest.param({"domain": "example.com"}, {"domain": ".EXAMPLE.com"}, id="domain"),
            pytest.param({"path": "/"}, {"path": "/"}, id="path"),
        ],
    )
    def test_same_cookie_twice(self, first, second):
        with pytest.raises(CookieError, match=r"^cookie 'a': given twice"):
            serialize_cookies([cookie(**first), cookie(**second)])

    @pytest.mark.parametrize("argument", ["a=b", b"a=b", {"name": "a", "value": "b"}, Morsel(), None, 5])
    def test_not_a_list(self, argument):
        with pytest.raises(CookieError, match=rf"must be a list of cookies, not {type(argument).__name__}$"):
            serialize_cookies(argument)

    def test_one_is_illegal(self):
        with pytest.raises(CookieError, match="value holds ' '"):
            serialize_cookies([cookie(), cookie(name="c", value=" ")])
