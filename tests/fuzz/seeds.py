"""The seed corpus in words: ``python -m fuzz.seeds`` writes its files anew."""

from __future__ import annotations

import zlib

from . import engine, protocol

# Heads of the target `protocol`: flags, limits, cut, filler, two actions.
SERVER = b"\0\0\0\0\0\0\0\0"
CLIENT = b"\1\0\0\0\0\0\0\0"
#: Another way of cutting the octets, on the client's side, where nothing is masked.
CLIENT_CUT = b"\5\0\x2b\0\0\0\0\0"
FRAMES = b"\7\0\x19\0\0\0\0\0"
GREEK = "κόσμε".encode()


def mask(payload, key=b"\x37\xfa\x21\x3d"):
    return bytes(octet ^ key[index & 3] for index, octet in enumerate(payload))


def masked(first, payload=b"", key=b"\x37\xfa\x21\x3d"):
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([first]) + size + key + mask(payload, key)


def plain(first, payload=b""):
    size = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2, "big")
    return bytes([first]) + size + payload


def act(head, *actions):
    """Return a head with up to two actions, each with the number of octets before it."""
    numbers = {action.__name__: number for number, action in enumerate(protocol.ACTIONS)}
    octets = b"".join(bytes([numbers[name], before]) for name, before in actions)
    return head[:4] + octets.ljust(4, b"\0")


def limit(head, frame, message):
    return head[:1] + bytes([protocol.FRAME_SIZES.index(frame) | protocol.MESSAGE_SIZES.index(message) << 4]) + head[2:]


def fill(head, size):
    return head[:3] + bytes([240 + protocol.FILLERS.index(size)]) + head[4:]


RFC_EXAMPLES = {
    "rfc-text": CLIENT + b"\x81\x05Hello",
    "rfc-masked-text": SERVER + masked(0x81, b"Hello"),
    "rfc-fragments": CLIENT_CUT + b"\x01\x03Hel\x80\x02lo",
    "rfc-ping": CLIENT_CUT + b"\x89\x05Hello",
    "rfc-masked-pong": b"\4" + SERVER[1:] + masked(0x8A, b"Hello"),
    "rfc-256-octets": CLIENT_CUT + plain(0x82, bytes(range(256))),
    "rfc-64-kib": fill(CLIENT, 65536) + b"\x82\x7f\0\0\0\0\0\1\0\0",
}
# As in the sections 1 to 7 of Autobahn's test suite.
AUTOBAHN = {
    "1-empty": CLIENT_CUT + plain(0x81) + plain(0x82),
    "1-125-octets": SERVER + masked(0x81, b"*" * 125),
    "1-126-octets": CLIENT_CUT + plain(0x81, b"*" * 126),
    "1-65536-octets-cut": fill(CLIENT_CUT, 65536) + b"\x81\x7f\0\0\0\0\0\1\0\0",
    "2-ping-125-octets": SERVER + masked(0x89, b"\xfe" * 125),
    "2-ping-126-octets": CLIENT_CUT + plain(0x89, b"\xfe" * 126),
    "2-pings": b"\4" + SERVER[1:] + b"".join(masked(0x89, b"payload-%d" % number) for number in range(10)),
    "2-unsolicited-pong": CLIENT_CUT + plain(0x8A, b"unsolicited") + plain(0x89, b"ping"),
    "3-rsv": CLIENT_CUT + plain(0x81, b"good") + plain(0xC1, b"bad"),
    "3-rsv-of-ping": SERVER + masked(0x81, b"good") + masked(0xD9, b"bad"),
    "4-opcode-3": CLIENT_CUT + plain(0x83),
    "4-opcode-11": SERVER + masked(0x8B, b"reserved"),
    "5-ping-fragmented": CLIENT_CUT + plain(0x09, b"1") + plain(0x80, b"2"),
    "5-ping-between": SERVER + masked(0x01, b"fragment1") + masked(0x89, b"ping") + masked(0x80, b"fragment2"),
    "5-continuation-of-nothing": CLIENT_CUT + plain(0x80, b"nothing") + plain(0x81, b"a"),
    "5-text-within": SERVER + masked(0x01, b"a") + masked(0x81, b"b"),
    "6-utf-8": SERVER + masked(0x81, b"Hello-\xc2\xb5@\xc3\x9f" + GREEK),
    "6-utf-8-in-pieces": CLIENT + b"".join(plain(bool(n) ^ 1, GREEK[n : n + 1]) for n in range(11)) + plain(0x80),
    "6-beyond-unicode": SERVER + masked(0x81, GREEK + b"\xf4\x90\x80\x80edited"),
    "6-surrogate": CLIENT + plain(0x01, b"\xed") + plain(0x80, b"\xa0\x80"),
    "6-surrogate-cut": CLIENT + plain(0x81, b"\xed\xa0\x80"),
    "6-overlong": SERVER + masked(0x81, b"\xc0\xaf\xe0\x80\xaf"),
    "6-cut-short": CLIENT_CUT + plain(0x01, b"\xf0\x9f") + plain(0x80, b"\x98"),
    "6-noncharacters": CLIENT_CUT + plain(0x81, "\ufffe\uffff\U0001ffff\U0010ffff".encode()),
    "7-close": SERVER + masked(0x88, b"\x03\xe8bye") + masked(0x81, b"behind"),
    "7-close-empty": CLIENT_CUT + plain(0x88) + plain(0x89),
    "7-close-one-octet": CLIENT_CUT + plain(0x88, b"\3"),
    "7-close-1005": CLIENT_CUT + plain(0x88, b"\x03\xed"),
    "7-close-4999": SERVER + masked(0x88, b"\x13\x87" + GREEK),
    "7-close-reason-no-utf-8": CLIENT_CUT + plain(0x88, b"\x03\xe8" + GREEK + b"\xce"),
    "7-close-reason-123": CLIENT_CUT + plain(0x88, b"\x03\xe8" + b"*" * 123),
}
RULES = {
    "unmasked-by-a-client": SERVER + plain(0x81, b"a"),
    "masked-by-a-server": CLIENT + masked(0x81, b"a"),
    "not-shortest-16": CLIENT_CUT + b"\x82\x7e\x00\x7d" + bytes(125),
    "not-shortest-64": CLIENT_CUT + b"\x82\x7f\0\0\0\0\0\0\xff\xff",
    "length-sign-bit": CLIENT_CUT + b"\x82\x7f\x80\0\0\0\0\0\0\0",
    "length-all-bits": limit(SERVER, (1 << 63) - 1, (1 << 63) - 1) + b"\x82\xff" + b"\xff" * 8,
    "length-huge": limit(CLIENT_CUT, (1 << 63) - 1, (1 << 63) - 1) + b"\x02\x01a\x80\x7f\x7f" + b"\xff" * 7,
    "header-alone": SERVER + b"\x81\xfe\x01\x00\1\2\3",
    "frame-too-big": limit(CLIENT_CUT, 5, 20) + plain(0x81, b"12345") + plain(0x81, b"123456"),
    "message-too-big": limit(SERVER, 5, 7) + masked(0x01, b"12345") + masked(0x00) + masked(0x80, b"678"),
    "message-just-not-too-big": limit(CLIENT_CUT, 5, 7) + plain(0x01, b"12345") + plain(0x00, b"67") + plain(0x80),
    "many": CLIENT_CUT + b"".join(plain(0x81, b"%d" % number) for number in range(40)),
    "frames": FRAMES + plain(0x01, b"a") + plain(0x89, b"p") + plain(0x80, b"b") + plain(0x82, b"c") + plain(0x88),
    "frames-masked": b"\6" + SERVER[1:] + masked(0x02, b"\xff") + masked(0x00) + masked(0x80, b"b") + masked(0x8A),
    "no-auto-pong": b"\x0c" + SERVER[1:] + masked(0x89, b"a") + masked(0x89, b"b"),
    "output-blocked": b"\x15" + CLIENT[1:] + plain(0x89, b"a") + plain(0x89, b"b") + plain(0x89, b"c"),
}
PIECES = plain(0x01, b"ab\xc3") + plain(0x89, b"p") + plain(0x00, b"\xa9cd") + plain(0x80, b"ef") + plain(0x81, b"next")
ACTIONS = {
    "take-between": act(CLIENT_CUT, ("take_one", 7), ("take_all", 9)) + plain(0x81, b"abc") * 3 + plain(0x89) + PIECES,
    "stream": act(CLIENT_CUT, ("stream", 0)) + PIECES,
    "stream-in-the-middle": act(CLIENT_CUT, ("stream", 8), ("take_all", 7)) + PIECES,
    "stream-masked": act(SERVER, ("stream", 0)) + masked(0x02, b"abc") + masked(0x00, b"de") + masked(0x80, b"f"),
    "stream-and-skip": act(CLIENT_CUT, ("stream", 0), ("skip_stream", 9)) + PIECES,
    "stream-and-stream-again": act(CLIENT_CUT, ("stream", 0), ("stream_again", 13)) + PIECES + PIECES,
    "stream-no-utf-8": act(CLIENT_CUT, ("stream", 0)) + plain(0x01, b"a\xe2\x82") + plain(0x80, b"b"),
    "discard": act(CLIENT_CUT, ("discard", 12)) + plain(0x81, b"abc") + PIECES + plain(0x88, b"\x03\xe9"),
    "discard-then-fail": act(SERVER, ("take_one", 20), ("discard", 3)) + masked(0x81, b"abc") * 3 + b"\xff\xff",
    "close-then-ping": act(CLIENT_CUT, ("close", 5)) + plain(0x89, b"a") * 3 + plain(0x88, b"\x03\xe8"),
    "block-output": act(b"\4" + SERVER[1:], ("block_output", 9)) + masked(0x89, b"a") * 4,
    "report-control-late": act(SERVER, ("report_control", 9)) + masked(0x89, b"a") * 3 + masked(0x8A, b"b"),
}
#: With permessage-deflate: the contexts are kept, or not.
DEFLATE = b"\x21" + CLIENT_CUT[1:]
DEFLATE_APART = b"\x61" + CLIENT_CUT[1:]
DEFLATE_MASKED = b"\x24" + SERVER[1:]
HELLO = b"\xf2\x48\xcd\xc9\xc9\x07\x00"


def deflated(payload, bits=15):
    compressor = zlib.compressobj(9, zlib.DEFLATED, -bits)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


# RFC 7692, 7.2.3, and what should be refused.
COMPRESSED = {
    "deflate-rfc": DEFLATE + plain(0xC1, HELLO),
    "deflate-rfc-fragments": DEFLATE + plain(0x41, HELLO[:3]) + plain(0x80, HELLO[3:]),
    "deflate-rfc-shared-window": DEFLATE + plain(0xC1, HELLO) + plain(0xC1, b"\xf2\x00\x11\x00\x00"),
    "deflate-rfc-window-not-shared": DEFLATE_APART + plain(0xC1, HELLO) + plain(0xC1, b"\xf2\x00\x11\x00\x00"),
    "deflate-rfc-no-compression": DEFLATE + plain(0xC1, b"\x00\x05\x00\xfa\xffHello\x00"),
    "deflate-rfc-bfinal": DEFLATE_APART + plain(0xC1, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00") + plain(0xC1, HELLO),
    "deflate-bfinal-alone": DEFLATE + plain(0xC1, b"\xf3\x48\xcd\xc9\xc9\x07\x00") + plain(0xC1, HELLO),
    "deflate-rfc-two-blocks": DEFLATE + plain(0xC1, b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"),
    "deflate-masked": DEFLATE_MASKED + masked(0xC1, HELLO) + masked(0x42, b"\x00") + masked(0x89) + masked(0x80),
    "deflate-empty": DEFLATE + plain(0xC1, b"\x00") + plain(0xC2) + plain(0x81) + plain(0xC1, HELLO),
    "deflate-no-octet": DEFLATE + plain(0xC1) + plain(0xC2) + plain(0xC1, HELLO) + plain(0x41) + plain(0x80),
    "deflate-mixed": DEFLATE + plain(0x81, b"Hello") + plain(0xC1, HELLO) + plain(0x01, b"a") + plain(0x80, b"b"),
    "deflate-corrupt": DEFLATE + plain(0xC2, b"\xff\xff\xff"),
    "deflate-cut-short": DEFLATE + plain(0xC1, HELLO[:4]) + plain(0xC1, HELLO),
    "deflate-no-utf-8": DEFLATE + plain(0xC1, deflated(GREEK + b"\xed\xa0\x80edited")),
    "deflate-no-utf-8-in-fragments": DEFLATE
    + plain(0x41, deflated(b"a\xc3")[:4])
    + plain(0x80, deflated(b"a\xc3")[4:]),
    "deflate-too-big": limit(DEFLATE, 65536, 400)
    + plain(0xC1, deflated(b"x" * 400))
    + plain(0xC2, deflated(b"x" * 401)),
    "deflate-too-big-and-no-utf-8": limit(DEFLATE, 65536, 400) + plain(0xC1, deflated(b"\xff" + b"x" * 401)),
    "deflate-bomb": DEFLATE + plain(0xC2, deflated(bytes(300000))) + plain(0xC2, b"\x00"),
    "deflate-bomb-refused": limit(DEFLATE_APART, 65536, 70000) + plain(0xC2, deflated(bytes(300000))),
    "deflate-longer-on-the-wire": limit(DEFLATE, 65536, 20) + plain(0xC2, b"\0\0\0\xff\xff" * 5 + HELLO),
    "deflate-final-blocks": DEFLATE_APART + plain(0xC2, b"\x03\x00" * 200),
    "deflate-rsv1-of-continuation": DEFLATE + plain(0x41, HELLO) + plain(0xC0),
    "deflate-rsv1-of-ping": DEFLATE + plain(0xC9),
    "deflate-rsv2": DEFLATE + plain(0xA1),
    "deflate-frames": b"\x23" + CLIENT_CUT[1:] + plain(0xC1, HELLO) + plain(0x41, HELLO[:3]) + plain(0x80, HELLO[3:]),
    "deflate-stream": act(DEFLATE, ("stream", 0), ("take_all", 8)) + plain(0x41, HELLO[:3]) + plain(0x80, HELLO[3:]),
    "deflate-skip": act(DEFLATE, ("stream", 0), ("skip_stream", 6)) + plain(0x41, HELLO[:3]) + plain(0x80, HELLO[3:]),
    "deflate-backlog": DEFLATE[:3] + b"\x20" + DEFLATE[4:] + plain(0xC1, HELLO) * 9 + plain(0x89) + plain(0x88),
    "deflate-backlog-frames": b"\x27" + CLIENT_CUT[1:3] + b"\x40" + CLIENT_CUT[4:] + plain(0xC1, HELLO) * 9,
    "deflate-discard": act(DEFLATE, ("discard", 12)) + plain(0xC1, HELLO) * 3 + plain(0xC2, b"\xff") + plain(0x88),
    "few-fragments": CLIENT_CUT[:3]
    + b"\2"
    + CLIENT_CUT[4:]
    + plain(0x01, b"a")
    + plain(0x00, b"b")
    + plain(0x80, b"c"),
    "few-fragments-just": CLIENT_CUT[:3] + b"\2" + CLIENT_CUT[4:] + plain(0x01, b"a") + plain(0x00, b"b") + plain(0x80),
    "blocked-three-pongs": b"\x15\0\7\x10" + CLIENT[4:] + b"".join(plain(0x89, b"%d" % n) for n in range(6)),
}
PROTOCOL = RFC_EXAMPLES | AUTOBAHN | RULES | ACTIONS | COMPRESSED


def say(name, payload=b"", *, by_client=True, is_heard=True, is_long=False):
    """Return a saying of the target `conversation`."""
    names = [saying.__name__.removeprefix("say_") for saying in protocol.SAYINGS]
    how = names.index(name) | 8 * by_client | 16 * is_heard | (0 if is_long else 64)
    return bytes([how, len(payload)]) + payload


def talk(*sayings, thresholds=(16384, 16384), step=255, deflate=(0, 0)):
    client, server = map(protocol.THRESHOLDS.index, thresholds)
    return bytes([client | server << 4, step, *deflate]) + b"".join(sayings)


CONVERSATION = {
    "hello": talk(say("text", b"Hello"), say("text", b"Hello", by_client=False)),
    "both-kinds": talk(say("text", GREEK), say("binary", b"\xff\0\xff"), say("binary", b"", by_client=False), step=0),
    "not-heard-at-once": talk(say("text", b"a", is_heard=False), say("ping", b"b", is_heard=False), say("text", b"c")),
    "fragments-by-threshold": talk(say("text", GREEK * 9), say("binary", GREEK * 9), thresholds=(3, 7), step=4),
    "fragments-of-one": talk(say("text", b"abc"), say("text", b"abc", by_client=False), thresholds=(1, 2), step=0),
    "fragments-by-hand": talk(say("first_piece", b"a"), say("piece", b"b"), say("ping", b"p"), say("last_piece", b"c")),
    "fragments-binary": talk(
        say("first_piece", b"\xff"), say("piece", b"", is_heard=False), say("last_piece", b"\xfe")
    ),
    "fragments-not-ended": talk(say("first_piece", b"a"), say("text", b"b"), say("piece", b"c"), say("close")),
    "edges": talk(*(say("binary", b"x" * size, by_client=bool(size & 1)) for size in (125, 126, 127, 128)), step=1),
    "long": talk(
        say("text", b"x" * 200, is_long=True), say("binary", b"y" * 255, by_client=False, is_long=True), step=99
    ),
    "long-in-fragments": talk(say("binary", b"x" * 200, is_long=True), thresholds=(65535, 100000), step=254),
    "pings": talk(*(say("ping", b"%d" % n, by_client=bool(n & 1), is_heard=n > 3) for n in range(6))),
    "pings-of-125": talk(say("ping", b"p" * 125), say("pong", b"q" * 125, by_client=False), step=7),
    "close": talk(say("text", b"a"), say("close", b"\x03\xe9bye"), say("text", b"behind", by_client=False)),
    "close-empty": talk(say("close", by_client=False), say("ping", b"behind")),
    "close-with-code-not-sendable": talk(say("close", b"\x03\xed"), say("close", b"\x0f\xa0")),
    "close-with-long-reason": talk(say("close", b"\x0f\xa0" + "é".encode() * 80)),
    "close-crossing": talk(say("close", b"\x03\xe8", is_heard=False), say("close", b"\x03\xe9", by_client=False)),
    "close-in-a-message": talk(say("first_piece", b"a"), say("close", b"\x03\xe8"), say("close", by_client=False)),
    "deflate": talk(
        say("text", b"Hello"), say("text", b"Hello"), say("text", b"Hello", by_client=False), deflate=(7, 6)
    ),
    "deflate-apart": talk(say("text", GREEK * 4), say("binary", GREEK * 4, by_client=False), step=3, deflate=(1, 0)),
    "deflate-small-windows": talk(say("text", GREEK * 20), say("binary", b"", by_client=False), deflate=(0x2F, 0x56)),
    "deflate-of-8-bits": talk(say("text", b"ab" * 120, by_client=False), say("text", b"aa" * 99), deflate=(0x2F, 0x2E)),
    "deflate-level-9": talk(say("text", b"x" * 19), say("text", b"x" * 20), thresholds=(3, 7), deflate=(0x87, 0x86)),
    "deflate-long": talk(say("text", b"ab" * 120, is_long=True), say("text", b"c", is_long=True), deflate=(7, 6)),
    "deflate-pieces": talk(
        say("first_piece", b"a"), say("piece"), say("piece", b"b"), say("last_piece"), deflate=(7, 6)
    ),
    "deflate-pieces-apart": talk(say("first_piece", b"a"), say("piece", b"aa"), say("last_piece"), deflate=(1, 0)),
    "deflate-not-compressed": talk(b"\x78\5Hello" + say("text", b"Hello") + b"\x7a\1a\x7b\1b\x7c\0", deflate=(7, 6)),
    "ping-then-close": talk(say("ping", b"a", is_heard=False), say("close", by_client=False), say("text", b"b")),
}

FRAME = {
    **{
        f"close-payload-{index}": b"\0\0" + payload
        for index, payload in enumerate(
            (b"", b"\3", b"\x03\xe8", b"\x03\xed", b"\x13\x88", b"\x0b\xb8ok", b"\x03\xe8\xff")
        )
    },
    **{
        f"own-close-{index}": bytes([1, flags]) + payload
        for index, (flags, payload) in enumerate(
            (
                (0, b"\x03\xe8"),
                (1, b"\x03\xe8"),
                (2, b"\x03\xe8\xff"),
                (0, b"\x03\xe8" + GREEK * 12),
                (0, b"\x0f\xa0" + b"x" * 124),
            )
        )
    },
    **{
        f"serialized-{flags}": bytes([2, flags]) + b"x" * size
        for flags, size in enumerate((0, 1, 125, 126, 127, 300, 4, 9))
    },
    **{
        f"serialized-unmasked-{flags}": bytes([2, 64 | flags]) + b"x" * size
        for flags, size in enumerate((0, 125, 126, 300))
    },
    **{f"message-{flags}": bytes([3, flags * 5]) + b"abcdefghij" * flags for flags in range(12)},
    **{f"masking-{at}": bytes([4, at * 17]) + b"\x37\xfa\x21\x3d" + bytes(range(at * 5)) for at in range(12)},
}

OFFERS = (
    b"permessage-deflate",
    b"permessage-deflate; client_max_window_bits",
    b"permessage-deflate; client_max_window_bits=9; server_max_window_bits=8",
    b"permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    b"permessage-deflate; server_max_window_bits=16, permessage-deflate; server_max_window_bits=10, permessage-deflate",
    b'permessage-deflate; server_max_window_bits="12"',
    b"permessage-deflate; server_max_window_bits",
    b"permessage-deflate; client_max_window_bits=010",
    b"permessage-deflate; server_no_context_takeover=1",
    b"permessage-deflate; server_no_context_takeover; server_no_context_takeover",
    b"permessage-deflate; unknown, x-webkit-deflate-frame",
)
CUT = b"\x81\x82\x83"
DEFLATE_INPUTS = {
    **{f"offer-{index}": bytes([0, index * 22 & 255]) + text for index, text in enumerate(OFFERS)},
    **{f"answer-{index}": bytes([0, 6 + index * 8]) + text for index, text in enumerate(OFFERS)},
    "inflate-twice": b"\1\0" + HELLO + CUT + b"\xf2\x00\x11\x00\x00",
    "inflate-apart": b"\1\x08" + HELLO + CUT + b"\xf2\x00\x11\x00\x00" + CUT + CUT + HELLO,
    "inflate-limit-2": b"\1\2" + HELLO,
    "inflate-final-blocks": b"\1\0" + b"\x03\x00" * 240,
    "inflate-bomb": b"\1\x16" + deflated(bytes(262144)) + CUT + deflated(bytes(262145)),
    "inflate-dynamic": b"\1\x20" + deflated(b"".join(b"%d," % number for number in range(120))),
    "inflate-window": b"\1\x40" + deflated(bytes(range(256)) * 3, 9),
    "compress": b"\2\6" + b"Hello" + CUT + b"Hello" + CUT + CUT + b"Hello" * 9,
    "compress-apart": b"\2\0" + GREEK * 4 + CUT + GREEK * 4 + CUT,
    "compress-8-bits": b"\2\x2e" + b"abc" * 99 + CUT + b"abc" * 60,
    "compress-9-bits-level-9": b"\2\xd6" + b"abc" * 99 + CUT + bytes(range(100)) * 2,
}

EXTENSIONS = (
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; client_max_window_bits; server_max_window_bits=10, permessage-deflate; client_max_window_bits",
    'permessage-deflate; server_max_window_bits="15"; server_no_context_takeover',
    "foo, bar; baz=2",
    'foo; a="b\\c" ; d, ,, bar',
    'foo; a="b;c"',
    'foo; a="',
    "foo; a=",
    "foo bar",
    "\tfoo\t;\ta\t=\tb\t",
    "foo;\r\n a=1\0",
    "x-webkit-deflate-frame; max_window_bits=8; no_context_takeover\xff",
    "Connection\xffX-Forwarded-For\xff\xfcber",
    ",",
    '; ="\\"\\',
)
HEADERS = {f"list-{index}": bytes([index & 1]) + text.encode("latin-1") for index, text in enumerate(EXTENSIONS)}

REQUEST = (
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
)
RESPONSE = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)
REQUESTS = {
    "good": REQUEST,
    "origin": f"{REQUEST}\r\nOrigin: https://example.com",
    "subprotocols": f"{REQUEST}\r\nSec-WebSocket-Protocol: chat, superchat\r\nsec-websocket-protocol: Chat",
    "extensions": f"{REQUEST}\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    "extensions-bad": f"{REQUEST}\r\nSec-WebSocket-Extensions: ;",
    "version-8": REQUEST.replace("13", "8"),
    "version-twice": f"{REQUEST}\r\nSec-WebSocket-Version: 13",
    "key-bad": REQUEST.replace("ZQ==", "ZR=="),
    "post": REQUEST.replace("GET", "POST"),
    "http-1.0": REQUEST.replace("1.1", "1.0"),
    "http-2": REQUEST.replace("1.1", "2.0"),
    "body": f"{REQUEST}\r\nContent-Length: 5",
    "chunked": f"{REQUEST}\r\nTransfer-Encoding: chunked",
    "lists": REQUEST.replace("Connection: Upgrade", "Connection: keep-alive, Upgrade").replace(
        "websocket", "h2c, WebSocket"
    ),
    "folded": REQUEST.replace("localhost", "\r\n localhost"),
    "origin-control": f"{REQUEST}\r\nOrigin: a\x01b",
}
RESPONSES = {
    "good": f"{RESPONSE}\r\n\r\n",
    "subprotocol": f"{RESPONSE}\r\nSec-WebSocket-Protocol: chat\r\n\r\n",
    "subprotocol-not-offered": f"{RESPONSE}\r\nSec-WebSocket-Protocol: other\r\n\r\n",
    "extension": f"{RESPONSE}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
    "accept-wrong": RESPONSE.replace("xOo", "xOp") + "\r\n\r\n",
    "forbidden": "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\r\n",
    "folded": f"{RESPONSE}\r\nX: a\r\n b\r\n\r\n",
    "no-reason": "HTTP/1.1 101\r\nUpgrade: websocket\r\n\r\n",
    "space-before-colon": f"{RESPONSE}\r\nX : a\r\n\r\n",
    "bare-cr": f"{RESPONSE}\r\nX: a\rb\r\n\r\n",
}
FIELDS = (
    "Sec-WebSocket-Protocol: chat",
    "Sec-WebSocket-Extensions: permessage-deflate; a=1",
    "Set-Cookie: a=b",
    ": b",
    "X",
)
OWN_REQUESTS = (
    "localhost\xff/\xff\xff\xff\xff",
    "example.com:8000\xff/chat?room=1\xffhttps://example.com\xffchat\xffX-Token\xffabc",
    "[::1]\xff/\xff\xff\xffHost\xffexample.com",
    "localhost\xff/ HTTP/1.1\r\nX: y\xff\xff\xff\xff",
    "localhost\r\nX: y\xff/#\xffnull\xffa b\xffX\xffa\r\nb",
    "user@host\xff/\xff\xffchat\xfffoo\xffx",
)
OWN_RESPONSES = (
    "dGhlIHNhbXBsZSBub25jZQ==\xffchat\xffhttps://example.com\xffX-Token\xffabc\xff",
    "dGhlIHNhbXBsZSBub25jZQ==\xff\xff\xffa\xffb\xffpermessage-deflate",
    "k\xffa b\xff\xff\xff\xff",
    "k\xff\xffa\r\nb\xff\xff\xff",
    "k\xff\xff\xffConnection\xffclose\xff",
    "k\xff\xff\xffSet-Cookie\xffa=b\r\nX: y\xff",
)
HANDSHAKE = {
    **{f"request-{name}": b"\0" + text.encode("latin-1") for name, text in REQUESTS.items()},
    **{f"response-{name}": b"\1" + text.encode("latin-1") for name, text in RESPONSES.items()},
    **{f"field-{index}": b"\2" + text.encode() for index, text in enumerate(FIELDS)},
    **{f"own-request-{index}": b"\3" + text.encode("latin-1") for index, text in enumerate(OWN_REQUESTS)},
    **{f"own-response-{index}": b"\4" + text.encode("latin-1") for index, text in enumerate(OWN_RESPONSES)},
}

COOKIES = {
    f"parse-{index}": b"\0" + text
    for index, text in enumerate(
        (
            b"a=b",
            b"a=b; c=d; a=e",
            b'name="quoted value"; n="',
            b"name=%41%c3%a9; bad=%zz; half=%c3",
            b"\xc3\xa9=\xff; =x; ; flag",
            b' a = b ;c\t=\t"d" ',
            b"a=b\r\n c; d=\0",
            b"__Host-id=1; theme=dark==; x=a=b",
        )
    )
}
COOKIES |= {
    f"own-{index}": bytes([flags]) + text
    for index, (flags, text) in enumerate(
        (
            (3, b"session\xffabc123"),
            (1, b"session\xffabc123\xff/app\xffexample.com\xffLax"),
            (0xFB, b"id\xff1\xff/\xff\xffNone\xffd"),
            (0x7F, b"__Host-id\xff1\xff/\xff\xffStrict\xff\x80"),
            (0x13, b'__Secure-id\xff"quoted"\xff/'),
            (3, b"a b\xffc"),
            (3, b"a\xffb;c"),
            (3, b"a\xffsecret, not to be logged"),
            (3, b"a\xff%41%zz\xff/a;b"),
            (3, b"a\xffb\xff/\xff.example.com"),
            (3, b"a\xffb\xff/\xff-bad-.com"),
            (3, b"a\xffb\xff\xff\xffnone"),
            (0x6B, b"a\xffb\xff\xff\xff\xffzzzzzzzz"),
        )
    )
}

PROXIES = {
    f"{index:02}": bytes([flags]) + text
    for index, (flags, text) in enumerate(
        (
            (2, b"1.2.3.4"),
            (2, b"1.2.3.4, 5.6.7.8"),
            (4, b"1.2.3.4, 10.0.0.1, 192.168.1.1"),
            (6, b"1.2.3.4:5678, [2001:db8::1]:443, [::1]"),
            (8, b"forged"),
            (0, b"unknown, 1.2.3.4"),
            (2, b"1.2.3.4, not an address, 10.0.0.1"),
            (10, b"fe80::1%eth0, ::ffff:1.2.3.4"),
            (12, b"::ffff:10.0.0.9, ::ffff:8.8.8.8"),
            (14, b"1.2.3.4"),
            (0x82, b"1.2.3.4, 5.6.7.8"),
            (1, b"127.0.0.1\xff1.2.3.4\r\n , 5.6.7.8"),
            (1, b"not an address\xff1.2.3.4"),
            (0x41, b"10.0.0.1\xff10.0.0.0/8"),
            (0x42, b"10.0.0.0/8, ::1, ::ffff:10.0.0.0/104"),
            (0x42, b"10.0.0.1/8, 300.0.0.0/8"),
            (2, b" , ,"),
            (2, b"01.2.3.4, 1.2.3, 1.2.3.4.5, 1::2::3"),
        )
    )
}

BEHIND = b"\r\nUpgrade: websocket\r\n\r\n"
HEAD = {
    **{f"request-{name}": text.encode("latin-1") + b"\r\n\r\n" for name, text in REQUESTS.items() if len(text) < 480},
    "frame-behind": REQUEST.encode() + b"\r\n\r\n\x81\x85\0\0\0\0Hello",
    "browser": b"GET /chat?a=%20 HTTP/1.1\r\nHost: example.com\r\nConnection: keep-alive, Upgrade\r\nPragma: no-cache"
    b'\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nCookie: a=1; b="2"\r\nX-Forwarded-For: 192.0.2.1' + BEHIND,
    "blanks": b"GET / HTTP/1.1\r\na:\r\nb: \t\r\nc: \td \t\r\n_!#$%&'*+-.^`|~0:\x85\xa0\xff" + BEHIND,
    "absolute-form": b"GET http://example.com/?a HTTP/1.1\r\nHost: x" + BEHIND,
    "length": b"GET / HTTP/1.1\r\nContent-Length: 5" + BEHIND,
    "length-behind-space": b"GET / HTTP/1.1\r\nContent-Length : 5" + BEHIND,
    "length-behind-lf": b"GET / HTTP/1.1\r\nX: a\nContent-Length: 5" + BEHIND,
    "length-behind-cr": b"GET / HTTP/1.1\r\nX: a\rContent-Length: 5" + BEHIND,
    "chunked": b"GET / HTTP/1.1\r\ntransfer-encoding: chunked" + BEHIND,
    "fold": b"GET / HTTP/1.1\r\nX: a\r\n\tb: c" + BEHIND,
    "nul": b"GET / HTTP/1.1\r\nX: a\0b" + BEHIND,
    "mailbox": b"GET / HTTP/1.1\r\nFrom a: b" + BEHIND,
    "two-heads": b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1" + BEHIND,
    "post": b"POST / HTTP/1.1" + BEHIND,
    "http-1.0": b"GET / HTTP/1.0" + BEHIND,
}

# First the number of what is called, then that of what it calls, then what is repeated.
GROWING = {
    "headers": (b"\0\0,", b"\0\0 ", b"\0\1;a", b'\0\1a;b="\\', b'\0\1"\\"', b"\0\0\r\n ", b"\0\0a=\t"),
    "handshake": (
        b"\1\0Sec-WebSocket-Protocol: a,\xff",
        b"\1\1HTTP/1.1 101 x\r\n \r\n\t",
        b"\1\2\r\n ",
        b"\1\2a: b\r\n",
    ),
    "cookies": (b"\2\0%", b"\2\0%c3", b"\2\0a=%41", b"\2\0;", b'\2\0="', b"\2\0 \t", b"\2\3a", b"\2\3a\xff"),
    "proxies": (
        b"\3\0021",
        b"\3\0021.2.3.4,",
        b"\3\2[",
        b"\3\2:",
        b"\3\0021.",
        b"\3\2::1,",
        b"\3\1a",
        b"\3\0421.2.3.4,",
    ),
    "frames": (b"\4\x81\0\x81", b"\4\x01\1\xc3\0\1\xa9\0", b"\4\2\0\0", b"\4\x89\0\x89", b"\4\x81\x7e\x7f\xf0\xc3\xa9"),
    "deflate": (
        b"\5\1\x00\x03\x00",
        b"\5\1\0\x00",
        b"\5\1\x20\0\0\0\xff\xff",
        b"\5\0; a",
        b"\5\2\6\x81\x82\x83",
        b"\5\2\0a",
    ),
}
GROWTH = {f"{name}-{index}": data for name, inputs in GROWING.items() for index, data in enumerate(inputs)}

SEEDS = {
    "protocol": PROTOCOL,
    "conversation": CONVERSATION,
    "frames": FRAME,
    "deflate": DEFLATE_INPUTS,
    "headers": HEADERS,
    "handshake": HANDSHAKE,
    "head": HEAD,
    "cookies": COOKIES,
    "proxies": PROXIES,
    "growth": GROWTH,
}


def write():
    """Write the files of `SEEDS`; others, which were findings once, stay."""
    for target, inputs in SEEDS.items():
        folder = engine.SEEDS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    write()
