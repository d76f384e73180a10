"""The targets of tests/fuzz on their corpus, on a few changed inputs, and on a parser that has a fault."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest

from geventws.deflate import Compressors, Deflate, DeflateOptions, DeflateParameters
from geventws.errors import InvalidPayload, ProtocolError
from geventws.protocol import Protocol
from tests.fuzz import engine, protocol, seeds, targets

CASES = [
    pytest.param(name, path, id=f"{name}-{path.name}")
    for name in targets.TARGETS
    for path in sorted((engine.SEEDS / name).iterdir())
]


@pytest.mark.parametrize(("name", "path"), CASES)
def test_corpus(name, path):
    targets.TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_files_of_the_corpus_hold_what_the_seeds_say(name):
    folder = engine.SEEDS / name
    assert {seed: folder.joinpath(seed).read_bytes() for seed in seeds.SEEDS[name]} == seeds.SEEDS[name]


@pytest.mark.parametrize("name", targets.TARGETS)
def test_changed_inputs(name):
    runs = 20 if name == "growth" else 500
    figures = engine.run(name, targets.TARGETS[name], engine.load(name, engine.SEEDS), runs=runs, seed=1)
    assert figures.runs == runs


@pytest.mark.parametrize("name", targets.TARGETS)
def test_tiny_inputs(name):
    for data in [b"", *(bytes([octet]) for octet in range(256)), b"\0\0", b"\xff\xff", b"\3\0", b"\4\0"]:
        targets.TARGETS[name](data)


class TestFindings:
    """A target that finds nothing in a parser with a fault would find nothing at all."""

    def test_a_finding_is_kept(self, tmp_path, monkeypatch):
        monkeypatch.setattr(engine, "FOUND", tmp_path)

        def check(data):
            assert len(data) < 8

        with pytest.raises(engine.Finding) as finding:
            engine.run("target", check, [b"", b"12345678"], runs=100, seed=1)
        data = finding.value.path.read_bytes()
        assert finding.value.path.parent == tmp_path / "findings"
        with pytest.raises(AssertionError):
            check(data)

    @pytest.mark.parametrize("number", range(6))
    def test_a_run_is_repeatable(self, number):
        corpus = engine.load("frames", engine.SEEDS)
        seen = [[], []]
        for inputs in seen:
            engine.run("frames", inputs.append, corpus, runs=20, seed=number)
        assert seen[0] == seen[1]
        assert len(set(seen[0])) > 10

    def test_faults(self):
        for fault in (LosesMessages, Miscounts, Raises, TakesAnyText, MindsTheCut, GoesOn, WritesBehind, SwapsTheCode):
            found = [name for name, data in seeds.PROTOCOL.items() if not is_well(data, fault)]
            assert found, fault.__name__


def is_well(data, protocol_type):
    try:
        protocol.check_protocol(data, protocol_type)
    except AssertionError:
        return False
    return True


class Faulty:
    """Be a protocol, but for what a subclass does otherwise; the real one cannot be a base where it is compiled."""

    def __init__(self, **options):
        self.__dict__["inner"] = Protocol(**options)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __setattr__(self, name, value):
        setattr(self.inner, name, value)


class LosesMessages(Faulty):
    def take(self):
        event = self.inner.take()
        return self.inner.take() if self.inner.has_events() else event


class Miscounts(Faulty):
    @property
    def queued_size(self):
        return self.inner.queued_size + self.inner.has_events()


class Raises(Faulty):
    def receive(self, buffer, start, stop):
        self.inner.receive(buffer, start, stop)
        assert self.inner.failure is None


class TakesAnyText(Faulty):
    @property
    def failure(self):
        return None if isinstance(self.inner.failure, InvalidPayload) else self.inner.failure


class MindsTheCut(Faulty):
    def receive(self, buffer, start, stop):
        self.inner.receive(buffer, start, stop)
        if buffer[start:stop] == b"\x89":
            self.inner.discard()


class GoesOn(Faulty):
    def receive_octets(self, octets):
        # What the target gives after the end.
        self.inner.is_close_received = False
        self.inner.receive_octets(octets)


class WritesBehind(Faulty):
    def receive(self, buffer, start, stop):
        self.inner.receive(buffer, start, stop)
        buffer[stop] = 0


class SwapsTheCode(Faulty):
    @property
    def failure(self):
        failure = self.inner.failure
        return InvalidPayload("swapped") if type(failure) is ProtocolError else failure


class TestMemory:
    """What a peer sends costs no more than the limits allow; in the compiled build the allocator alone can tell."""

    LIMIT = 20_000
    FLOOD = 400_000

    def measure(self, octets, **options):
        """Return the most octets that were held while a peer's octets came again and again."""
        receiver = Protocol(is_client=True, max_message_size=self.LIMIT, **options)
        receiver.is_output_blocked = True
        pieces = [octets[start : start + 4096] for start in range(0, len(octets), 4096)]
        count = self.FLOOD // len(octets)
        tracemalloc.start()
        try:
            for _ in range(count):
                for piece in pieces:
                    receiver.receive_octets(piece)
                while receiver.has_events():
                    receiver.take()
                    if receiver.has_backlog() and not receiver.has_events():
                        receiver.parse_backlog()
            return receiver, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "octets",
        [
            pytest.param(b"\x01\x7e\x27\x10" + b"x" * 10000 + b"\0\x7e\x27\x0f" + b"x" * 9999, id="without an end"),
            pytest.param(b"\x01\x7e\x27\x10" + b"x" * 10000 + b"\x80\x7e\x27\x10" + b"x" * 10000, id="messages"),
            pytest.param(b"\x89\x7d" + b"x" * 125, id="pings"),
            pytest.param(b"\x02\x00" + b"\x00\x00" * 2000 + b"\x80\x00", id="empty fragments"),
            pytest.param(b"\x81\x00" * 2048, id="empty messages"),
            pytest.param(b"\xff" * 4096, id="rubbish"),
        ],
    )
    def test_flood(self, octets):
        _, held = self.measure(octets)
        # The payload as octets and as text, and what the bytearray has in reserve; 4096 octets may be 2048 messages.
        assert held < 4 * self.LIMIT

    @pytest.mark.parametrize("takes_over", [False, True])
    def test_bomb(self, takes_over):
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        payload = (compressor.compress(bytes(self.LIMIT - 1)) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        frame = b"\xc2" + bytes([len(payload)]) + payload
        assert len(payload) < 126
        agreed = DeflateParameters(server_no_context_takeover=not takes_over)
        deflate = Deflate(agreed, DeflateOptions(), Compressors(), is_client=True, max_message_size=self.LIMIT)
        # 4096 octets hold a hundred messages.
        receiver, held = self.measure(frame * (4096 // len(frame)), deflate=deflate, max_queued_size=self.LIMIT)
        assert receiver.failure is None
        assert held < 6 * self.LIMIT
