"""A message on its way out that is not frames yet.

Strategy: what waits is serialised when it moves to the wire, so that compressors see messages in the order in which the
peer inflates them, and a slow consumer may lose whole messages alone. A broadcast is one object for all connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geventws.protocol import Protocol

__all__ = ["PreparedMessage"]


class PreparedMessage:
    """Hold a message until it moves to the wire, and serialise it once for all connections that send the same octets.

    Attributes:
        is_droppable: Whether a slow consumer may lose it.
    """

    __slots__ = (
        "_compresses",
        "_first",
        "_is_fragment",
        "_made",
        "_payload",
        "_plain",
        "_plain_threshold",
        "is_droppable",
    )

    def __init__(
        self, first: int, payload: bytes, compresses: bool, *, is_droppable: bool = False, is_fragment: bool = False
    ) -> None:
        """Prepare a message, or one fragment.

        Args:
            first: The opcode; FIN is for fragments alone.
            payload: The octets, not compressed.
            compresses: False leaves it as it is although compression was agreed.
            is_droppable: As the attribute.
            is_fragment: Whether it is one frame of a message whose fragments are the caller's.
        """
        self._first = first
        self._payload = payload
        self._compresses = compresses
        self._is_fragment = is_fragment
        # What was made, by what the octets depend on; and the last for connections without compression, which most are:
        # no key has to be made for each of them.
        self._plain: bytes | None = None
        self._plain_threshold = 0
        self._made: dict[object, bytes] | None = None
        self.is_droppable = is_droppable

    def __len__(self) -> int:
        """Return the octets of the payload."""
        return len(self._payload)

    def serialize(self, protocol: Protocol) -> bytes:
        """Return the octets that go out; what protocols of the same parameters share is made once."""
        if self._is_fragment:
            return protocol.serialize_fragment(self._first, self._payload, self._compresses)
        threshold = protocol.plain_threshold
        if self._plain is not None and self._plain_threshold == threshold:
            return self._plain
        key = protocol.make_sharing_key()
        if key is None:
            return protocol.serialize(self._first, self._payload, self._compresses)
        if self._made is None:
            self._made = {}
        octets = self._made.get(key)
        if octets is None:
            octets = self._made[key] = protocol.serialize(self._first, self._payload, self._compresses)
        if threshold:
            self._plain = octets
            self._plain_threshold = threshold
        return octets
