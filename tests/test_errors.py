from __future__ import annotations

import copy
import pickle

import pytest

import geventws
from geventws import errors


class TestHierarchy:
    # CONTRACT 5 of the project: what else each one is, so that callers who know nothing of geventws catch it too.
    @pytest.mark.parametrize(
        ("error", "bases"),
        [
            ("ConfigurationError", (ValueError,)),
            ("HandshakeError", ()),
            ("SubprotocolError", (ValueError,)),
            ("CookieError", (ValueError,)),
            ("InvalidState", (RuntimeError,)),
            ("ConnectionClosed", ()),
            ("ConnectError", (OSError,)),
            ("ProtocolError", ()),
            ("InvalidPayload", (errors.ProtocolError,)),
            ("MessageTooBig", (errors.ProtocolError,)),
        ],
    )
    def test_bases(self, error, bases):
        kind = getattr(errors, error)
        assert issubclass(kind, errors.WebSocketError)
        others = {ValueError, RuntimeError, OSError, TypeError, errors.ProtocolError} - {kind}
        assert {other for other in others if issubclass(kind, other)} == set(bases)

    def test_the_package_exports_them_all(self):
        assert set(errors.__all__) <= set(geventws.__all__)
        assert all(getattr(geventws, name) is getattr(errors, name) for name in errors.__all__)

    @pytest.mark.parametrize(
        ("error", "code"),
        [(errors.ProtocolError, 1002), (errors.InvalidPayload, 1007), (errors.MessageTooBig, 1009)],
    )
    def test_close_codes(self, error, code):
        assert error("anything").close_code == code


class TestHandshakeError:
    def test_defaults(self):
        error = errors.HandshakeError("the key is missing")
        assert (str(error), error.status, error.headers) == ("the key is missing", 400, [])

    def test_status_and_headers(self):
        error = errors.HandshakeError("version 8", 426, iter([("Sec-WebSocket-Version", "13")]))
        assert (error.status, error.headers) == (426, [("Sec-WebSocket-Version", "13")])


class TestConnectionClosed:
    def test_cause_is_the_message(self):
        error = errors.ConnectionClosed(1006, "", "the peer ended the connection without a Close")
        assert str(error) == "the peer ended the connection without a Close"
        assert (error.code, error.reason) == (1006, "")

    def test_without_cause(self):
        error = errors.ConnectionClosed(None)
        assert (str(error), error.code, error.reason, error.cause) == ("connection closed (None)", None, "", "")

    @pytest.mark.parametrize(
        "clone", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
    )
    @pytest.mark.parametrize("cause", ["", "the peer closed with 4001"])
    def test_survives_a_copy(self, clone, cause):
        error = clone(errors.ConnectionClosed(4001, "bye", cause))
        assert type(error) is errors.ConnectionClosed
        assert (error.code, error.reason, error.cause) == (4001, "bye", cause)
        assert str(error) == (cause or "connection closed (4001)")
