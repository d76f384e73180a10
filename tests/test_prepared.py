from __future__ import annotations

import pytest

from geventws.deflate import Compressors, DeflateParameters
from geventws.frames import Opcode
from geventws.prepared import PreparedMessage
from geventws.protocol import Protocol
from tests.octets import FORGETFUL, NOISE, inflate_frames, make_compressed, receive


class TestPreparedMessage:
    def test_what_it_holds(self):
        message = PreparedMessage(Opcode.TEXT, b"Hello", True)
        assert (len(message), message.is_droppable) == (5, False)
        assert PreparedMessage(Opcode.TEXT, b"Hello", True, is_droppable=True).is_droppable

    def test_made_once_for_those_that_share(self):
        compressors = Compressors()
        message = PreparedMessage(Opcode.BINARY, b"Hello" * 100, True)
        plain = [message.serialize(Protocol()) for _ in range(2)]
        compressed = [message.serialize(make_compressed(compressors=compressors)) for _ in range(3)]
        assert plain[0] is plain[1]
        assert compressed[0] is compressed[1] is compressed[2]
        assert plain[0] == Protocol().serialize(Opcode.BINARY, b"Hello" * 100)
        assert inflate_frames(compressed[0]) == ([0xC2], b"Hello" * 100)

    def test_made_for_each_set_of_parameters(self):
        message = PreparedMessage(Opcode.TEXT, b"Hello" * 10, True)
        assert message.serialize(Protocol(fragmentation_threshold=30))[0] == 0x01
        assert message.serialize(Protocol())[0] == 0x81
        assert message.serialize(make_compressed())[0] == 0xC1
        assert message.serialize(make_compressed(deflate={"threshold": 1000}))[0] == 0x81

    def test_a_context_of_its_own(self):
        agreed = DeflateParameters()
        servers, clients = (
            [make_compressed(agreed) for _ in range(2)],
            [make_compressed(agreed, is_client=True) for _ in range(2)],
        )
        # The second connection has sent it before.
        message = PreparedMessage(Opcode.BINARY, NOISE[:300], True)
        assert receive(clients[1], message.serialize(servers[1])) == [NOISE[:300]]
        octets = [message.serialize(server) for server in servers]
        assert len(octets[0]) > 300 > 50 > len(octets[1])
        for client, each in zip(clients, octets, strict=True):
            assert receive(client, each) == [NOISE[:300]]

    def test_client_masks_each_time(self):
        message = PreparedMessage(Opcode.TEXT, b"Hello" * 10, True)
        for client in (Protocol(is_client=True), make_compressed(is_client=True)):
            octets = {message.serialize(client) for _ in range(3)}
            assert len(octets) > 1
            for each in octets:
                assert receive(make_compressed(), each) == ["Hello" * 10]

    def test_not_compressed(self):
        message = PreparedMessage(Opcode.TEXT, b"Hello" * 10, False)
        for server in (make_compressed(), make_compressed(DeflateParameters()), Protocol()):
            assert message.serialize(server) == b"\x81\x32" + b"Hello" * 10

    @pytest.mark.parametrize("agreed", [None, FORGETFUL, DeflateParameters()], ids=["plain", "forgets", "takes over"])
    @pytest.mark.parametrize("compresses", [True, False])
    def test_fragments(self, compresses, agreed):
        server = Protocol() if agreed is None else make_compressed(agreed)
        client = Protocol(is_client=True) if agreed is None else make_compressed(agreed, is_client=True)
        fragments = [
            PreparedMessage(first, payload, compresses, is_fragment=True)
            for first, payload in ((2, NOISE[:30_000]), (0, b"a"), (0x80, b""))
        ]
        assert list(map(len, fragments)) == [30_000, 1, 0]
        octets = [fragment.serialize(server) for fragment in fragments]
        # One frame each, whatever the threshold is.
        assert [each[0] for each in octets] == [0x42 if compresses and agreed else 0x02, 0x00, 0x80]
        assert receive(client, b"".join(octets)) == [NOISE[:30_000] + b"a"]
