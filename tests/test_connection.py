"""What is known of a connection: its attributes, and its events' names."""

from __future__ import annotations

import pytest
from gevent.event import AsyncResult

from tests.support import open_client, paired, serve


def test_attributes_of_an_open_connection():
    with serve() as (http, server):
        accepted = AsyncResult()
        server.on("request", lambda request: accepted.set(request.accept("Chat")))
        headers = ("Sec-WebSocket-Protocol: superchat, chat", "X-Forwarded-For: 192.0.2.1")
        with open_client(http, "/a%20b?c=d", *headers):
            connection = accepted.get()
            assert connection.subprotocol == "chat"
            assert connection.extensions == []
            assert connection.request_path == "/a%20b?c=d"
            assert connection.remote_address == "192.0.2.1"
            assert connection.remote_addresses == ["192.0.2.1", "127.0.0.1"]
            assert connection.websocket_version == 13
            assert (connection.state, connection.connected) == ("OPEN", True)
            assert (connection.close_code, connection.close_reason, connection.sent_close_code) == (None, "", None)
            assert (connection.closed_by, connection.close_cause) == (None, "")
            assert (connection.buffered_amount, connection.output_buffer_full, connection.latency) == (0, False, None)
            assert connection.data is None
            connection.data = {"user": 1}
            assert connection.data == {"user": 1}
            assert repr(connection) == "<WebSocketConnection OPEN 192.0.2.1 /a%20b?c=d>"


def test_an_unknown_event_is_refused():
    with paired() as (_, connection), pytest.raises(ValueError, match="message"):
        connection.on("mesage", print)
