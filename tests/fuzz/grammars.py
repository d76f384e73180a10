"""Targets for the grammars of the opening handshake: headers, handshake, cookies, proxies, and for a request's head.

The head is the input itself. Any other input is one octet that chooses what is called, then text, each octet a
character as WSGI has it. Where several texts are needed, 0xFF, which no header of ours needs, stands between them.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import ipaddress
import re
import urllib.parse
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

from geventws import cookies, handshake, head, headers, proxies
from geventws.errors import CookieError, HandshakeError, SubprotocolError

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
TRUSTED = proxies.parse_networks(proxies.DEFAULT_TRUSTED_PROXIES)


def read_input(data):
    """Return the number that chooses, and the text."""
    return (data[0], data[1:].decode("latin-1")) if data else (0, "")


def is_clean(text):
    """Tell whether a text may stand in a field without starting another one."""
    return not re.search("[\r\n\0]", text)


# headers


def check_headers(data):
    number, text = read_input(data)
    value = headers.unfold(text)
    assert is_clean(value)
    assert headers.unfold(value) == value == value.strip(" \t")
    check_list(value)
    check_extensions(text if number & 1 else value)
    for piece in text.split("\xff")[:4]:
        check_field(piece, value)


def check_list(value):
    items = headers.parse_list(value)
    assert all(item and item == item.strip(" \t") and "," not in item for item in items)
    assert headers.parse_list(", ".join(items)) == items
    for item in items[:3]:
        assert not item.isascii() or headers.has_token([value], item.swapcase())
    assert squeeze("".join(items)) == squeeze(value)


def squeeze(text):
    return re.sub("[, \t]", "", text)


def check_extensions(text):
    try:
        extensions = headers.parse_extensions(text)
    except ValueError:
        return
    for name, parameters in extensions:
        assert headers.is_token(name)
        assert all(headers.is_token(key) and (value is None or headers.is_token(value)) for key, value in parameters)
    assert headers.parse_extensions(headers.serialize_extensions(extensions)) == extensions


def check_field(name, value):
    try:
        headers.check_field(name, value)
    except ValueError:
        assert not (headers.is_token(name) and headers.is_field_value(value))
    else:
        line = f"{name}: {value}"
        assert is_clean(line)
        assert line.isprintable() or re.search("[\t\x80-\xff]", line)


# handshake


def check_handshake(data):
    number, text = read_input(data)
    HANDSHAKES[number % len(HANDSHAKES)](text)


def split_head(text):
    """Return a start line and the fields of a head, as leniently as no server does it."""
    start, *lines = text.replace("\xff", "\r\n").split("\r\n")
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), []).append(value)
    return start, fields


def check_request(text):
    """Parse what a client might send; what is accepted is a good handshake by the plainest reading of 4.2.1."""
    start, fields = split_head(text)
    method, _, version = start.partition(" ")
    opening = handshake.parse_opening(method, version.rpartition(" ")[2], fields)
    assert opening.error is None or isinstance(opening.error, HandshakeError)
    assert handshake.parse_opening(method, version, fields, parse_extensions=False).extensions == []
    if opening.error is None:
        check_good_opening(method, fields, opening)
    else:
        check_answer(opening.error)
    for wanted in [*opening.subprotocols[:2], "chat"]:
        with contextlib.suppress(SubprotocolError):
            chosen = handshake.choose_subprotocol(wanted, opening.subprotocols)
            assert chosen in opening.subprotocols
            assert chosen.lower() == wanted.lower()


def check_good_opening(method, fields, opening):
    assert (method, opening.version) == ("GET", 13)
    assert len(base64.b64decode(opening.key, validate=True)) == 16
    assert "websocket" in ",".join(fields["upgrade"]).lower()
    assert "upgrade" in ",".join(fields["connection"]).lower()
    assert opening.host
    assert handshake.is_upgrade(fields)
    assert "transfer-encoding" not in fields
    assert all(map(headers.is_token, fields))
    # What was offered can be accepted.
    with contextlib.suppress(SubprotocolError):
        subprotocol = handshake.choose_subprotocol(next(iter(opening.subprotocols), None), opening.subprotocols)
        check_switch(opening, subprotocol)


def check_switch(opening, subprotocol):
    """Answer a handshake, and see that a client takes the answer."""
    pairs = handshake.serialize_switch(opening.key, subprotocol, opening.extensions, opening.origin, (), ())
    head = "\r\n".join(["HTTP/1.1 101 Switching Protocols", *map(": ".join, pairs), "", ""]).encode("latin-1")
    response = handshake.parse_response(head)
    assert response.status == 101
    chosen = handshake.check_response(response, opening.key, opening.subprotocols, opening.extensions)
    assert chosen == subprotocol


def check_answer(error):
    assert 400 <= error.status < 500
    assert headers.is_field_value(str(error)), "the reason for a refusal goes into a header"
    for name, value in error.headers:
        headers.check_field(name, value)


def check_response(text):
    """Parse what a server might answer."""
    head = text.replace("\xff", "\r\n").encode("latin-1")
    for octets in (head, b"HTTP/1.1 101 x\r\n" + head + b"\r\n\r\n", head + b"\r\n\r\n"):
        try:
            response = handshake.parse_response(octets)
        except HandshakeError:
            continue
        assert 100 <= response.status <= 999
        assert is_clean(response.reason)
        for name, values in response.headers.items():
            assert headers.is_token(name)
            assert name == name.lower()
            assert all(map(headers.is_field_value, values))
        check_checked_response(response)


def check_checked_response(response):
    try:
        chosen = handshake.check_response(response, KEY, ["chat", "superchat"], [("permessage-deflate", [])])
    except HandshakeError as error:
        check_text_of(error)
        return
    assert response.status == 101
    assert response.headers["sec-websocket-accept"] == ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]
    assert chosen in (None, "chat", "superchat")


def check_text_of(error):
    assert str(error).isprintable()


def check_fields_of_response(text):
    """Check what a server answers to a good request, but for the fields of the input."""
    lines = text.replace("\xff", "\r\n")
    head = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{lines}\r\n\r\n"
    )
    with contextlib.suppress(HandshakeError):
        check_checked_response(handshake.parse_response(head.encode("latin-1")))


def check_own_request(text):
    """Serialize a client's request; what does not raise is one good request."""
    host, target, origin, subprotocol, name, value = (text.split("\xff") + [""] * 6)[:6]
    try:
        head = handshake.serialize_request(
            host,
            target,
            KEY,
            subprotocols=[subprotocol] if subprotocol else [],
            extensions=[(name, [(subprotocol, value or None)])] if value == "x" else [],
            origin=origin or None,
            headers=[(name, value)] if name else [],
        )
    except (ValueError, TypeError):
        return
    text, end, rest = head.decode("latin-1").partition("\r\n\r\n")
    assert end
    assert not rest, "a head within a head"
    start, fields = split_head(text)
    assert start == f"GET {target} HTTP/1.1"
    assert sum(map(len, fields.values())) == text.count("\r\n")
    opening = handshake.parse_opening("GET", "HTTP/1.1", fields)
    assert opening.error is None, opening.error
    assert opening.subprotocols == ([subprotocol] if subprotocol else [])


def check_own_response(text):
    """Serialize a server's answer; what does not raise is one good answer."""
    key, subprotocol, origin, name, value, extension = (text.split("\xff") + [""] * 6)[:6]
    try:
        pairs = handshake.serialize_switch(
            key,
            subprotocol,
            [(extension, [(name, None)])] if extension else [],
            origin,
            (),
            [(name, value)] if name else (),
        )
    except (ValueError, TypeError):
        return
    assert all(is_clean(name + field) for name, field in pairs)
    head = "\r\n".join(["HTTP/1.1 101 x", *map(": ".join, pairs), "", ""]).encode("latin-1")
    response = handshake.parse_response(head)
    assert sum(map(len, response.headers.values())) == len(pairs)
    offered = [(extension, [])] if extension else []
    assert handshake.check_response(response, key, [subprotocol], offered) == (subprotocol or None)


HANDSHAKES = (check_request, check_response, check_fields_of_response, check_own_request, check_own_response)


# head


def check_head(octets):
    """Parse a request's head; what is taken is what http.client makes of it, and within its limits."""
    parsed = head.parse_upgrade(octets, len(octets), 99)
    if parsed is None:
        return
    file = io.BytesIO(octets)
    assert file.readline().decode("latin-1").split() == ["GET", parsed.target, "HTTP/1.1"]
    message = http.client.parse_headers(file)
    assert (file.tell(), message.items(), message.defects) == (parsed.size, parsed.fields, [])
    assert "Upgrade" in message
    assert "Content-Length" not in message
    assert "Transfer-Encoding" not in message
    for name, value in parsed.fields:
        headers.check_field(name, value)
    assert head.parse_upgrade(octets[: parsed.size], parsed.size, len(parsed.fields)) == parsed
    assert head.parse_upgrade(octets, parsed.size - 1, 99) is None
    assert head.parse_upgrade(octets, parsed.size, len(parsed.fields) - 1) is None


# cookies


def check_cookies(data):
    number, text = read_input(data)
    if number & 1:
        check_own_cookie(number, text)
        return
    pairs = cookies.parse_cookies(text)
    assert len(pairs) <= text.count(";") + 1
    for name, value in pairs:
        assert value is None or isinstance(value, str)
        assert ";" not in name
        # Decoded text is text: it can go out again.
        (name + (value or "")).encode()


def check_own_cookie(number, text):
    fields = make_cookie(number, text.split("\xff"))
    cookie = fields if number & 2 else SimpleNamespace(**fields)
    try:
        (line,) = cookies.serialize_cookies([cookie])
    except CookieError as error:
        check_secrecy(error, fields)
        return
    assert headers.is_field_value(line)
    pair, *attributes = line.split("; ")
    assert pair == f"{fields['name']}={fields['value']}"
    assert len(attributes) == len({attribute.partition("=")[0].lower() for attribute in attributes})
    check_echo(fields, pair)


def check_secrecy(error, fields):
    """See that an error, which is logged, does not tell a cookie's value, which is often a secret."""
    text = str(error).replace(repr(fields["name"]), "")
    assert len(fields["value"]) < 12 or fields["value"] not in text


def check_echo(fields, pair):
    """See that a cookie that a client sends back is the one that was set."""
    ((name, value),) = cookies.parse_cookies(pair)
    assert name == fields["name"]
    sent = fields["value"]
    sent = sent[1:-1] if len(sent) > 1 and sent[0] == sent[-1] == '"' else sent
    assert value in {sent, urllib.parse.unquote(sent)}


def make_cookie(number, texts):
    name, value, path, domain, same_site, rest = (texts + [""] * 6)[:6]
    age = sum(map(ord, rest)) - 100
    fields = {"name": name, "value": value}
    fields |= {"path": path} if path else {}
    fields |= {"domain": domain} if domain else {}
    fields |= {"same_site": same_site} if same_site else {}
    fields |= {"max_age": age if number & 4 else timedelta(seconds=age / 3)} if number & 8 else {}
    fields |= {"secure": True} if number & 16 else {}
    fields |= {"http_only": bool(number & 4)} if number & 32 else {}
    if number & 64:
        zone = timezone(timedelta(hours=age % 24 - 12)) if number & 4 else None
        fields["expires"] = datetime(max(1, min(9999, 1600 + age)), 1 + age % 12, 1 + age % 28, tzinfo=zone)
    return fields


# proxies


def check_proxies(data):
    number, text = read_input(data)
    peer, _, value = text.partition("\xff") if number & 1 else (PEERS[number >> 1 & 7], "", text)
    peer = peer[:60]
    trusted = parse_trusted(value) if number & 64 else None if number & 128 else TRUSTED
    client, chain = proxies.resolve_addresses(peer, value, trusted)
    assert not peer or chain[-1] == peer
    assert client in {peer, *chain}
    items = headers.parse_list(headers.unfold(value))
    if len(chain) > 1:
        # The header counts, each item in its place.
        assert len(chain) == len(items) + bool(peer)
        assert all(item in sent for item, sent in zip(chain, items, strict=False))
    check_client(client, chain, peer, trusted)


def check_client(client, chain, peer, trusted):
    """See that everybody between the client and us is trusted, and an address."""
    if client == peer:
        return
    assert is_address(client), "the client's address is none"
    place = len(chain) - 1 - chain[::-1].index(client)
    between = chain[place + 1 : len(chain) - bool(peer)]
    assert all(map(is_address, between))
    if trusted is not None:
        assert all(any(to_address(address) in network for network in trusted) for address in between)


def parse_trusted(text):
    try:
        return proxies.parse_networks(text.split(",")[:3])
    except ValueError:
        return ()


def to_address(text):
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def is_address(text):
    try:
        return "%" not in text and bool(ipaddress.ip_address(text))
    except ValueError:
        return False


PEERS = ("", "127.0.0.1", "::1", "10.1.2.3", "8.8.8.8", "fe80::1%eth0", "::ffff:10.0.0.1", "2001:db8::1")
