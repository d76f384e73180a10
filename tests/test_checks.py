"""The checks that no option's test meets by itself: most are met in `test_config`, through the options."""

from __future__ import annotations

import pytest
from gevent.pywsgi import WSGIServer

from geventws.checks import check_http_servers
from geventws.errors import ConfigurationError

# Never started, so they own no socket.
HTTP = WSGIServer(("127.0.0.1", 0), None)
HTTPS = WSGIServer(("127.0.0.1", 0), None)


class TestHttpServers:
    @pytest.mark.parametrize(
        ("value", "servers"),
        [
            pytest.param(HTTP, (HTTP,), id="one"),
            pytest.param([HTTP], (HTTP,), id="list-of-one"),
            pytest.param((HTTPS, HTTP), (HTTPS, HTTP), id="two-in-order"),
        ],
    )
    def test_servers(self, value, servers):
        assert check_http_servers(value) == servers

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            pytest.param(None, "http_server is required", id="none"),
            pytest.param([], "http_server is required", id="empty-list"),
            pytest.param([HTTP, HTTPS, HTTP], "http_server must hold each WSGIServer once", id="twice"),
            pytest.param("8000", "http_server must be a gevent.pywsgi.WSGIServer or a list", id="str"),
            pytest.param([HTTP, 1], "http_server must be a gevent.pywsgi.WSGIServer or a list", id="int-among-them"),
        ],
    )
    def test_refused(self, value, message):
        with pytest.raises(ConfigurationError, match=f"^{message}"):
            check_http_servers(value)
