from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws.proxies import DEFAULT_TRUSTED_PROXIES, parse_networks, resolve_addresses

DEFAULT = parse_networks(DEFAULT_TRUSTED_PROXIES)


class TestNetworks:
    @pytest.mark.parametrize(
        ("value", "network"),
        [
            pytest.param("10.0.0.0/8", "10.0.0.0/8", id="IPv4"),
            pytest.param("192.0.2.7", "192.0.2.7/32", id="one address"),
            pytest.param("2001:db8::/32", "2001:db8::/32", id="IPv6"),
            pytest.param("::ffff:192.0.2.0/120", "192.0.2.0/24", id="IPv4-mapped"),
            pytest.param("::/0", "::/0", id="all of IPv6"),
            pytest.param("2001:db8::7", "2001:db8::7/128", id="one IPv6 address"),
        ],
    )
    def test_parse(self, value, network):
        assert parse_networks([value]) == (ip_network(network),)

    def test_order_is_kept(self):
        assert parse_networks(iter(["::1", "127.0.0.1"])) == (ip_network("::1"), ip_network("127.0.0.1"))

    @pytest.mark.parametrize("value", ["", "localhost", "10.0.0.1/8", "10.0.0.0/33", "2001:db8::1/32", "10.0.0.0/8 "])
    def test_no_network(self, value):
        with pytest.raises(ValueError, match=r"network|netmask|host bits"):
            parse_networks([value])

    @pytest.mark.parametrize("values", ["10.0.0.0/8", [167772160], [None]])
    def test_wrong_types(self, values):
        with pytest.raises(TypeError, match="must be"):
            parse_networks(values)

    @pytest.mark.parametrize(
        ("address", "trusted"),
        [
            ("127.0.0.1", True),
            ("::1", True),
            ("10.1.2.3", True),
            ("172.16.0.1", True),
            ("172.31.255.255", True),
            ("172.32.0.0", False),
            ("192.168.1.1", True),
            ("169.254.1.1", True),
            ("fd00::1", True),
            ("fe80::1", True),
            ("100.64.0.1", False),
            ("192.0.2.1", False),
            ("2001:db8::1", False),
        ],
    )
    def test_default(self, address, trusted):
        assert any(ip_address(address) in network for network in DEFAULT) is trusted


class TestResolve:
    @pytest.mark.parametrize(
        ("peer", "forwarded_for", "client", "chain"),
        [
            pytest.param("192.0.2.1", None, "192.0.2.1", ["192.0.2.1"], id="no proxy"),
            pytest.param("10.0.0.1", None, "10.0.0.1", ["10.0.0.1"], id="no header"),
            pytest.param("10.0.0.1", "", "10.0.0.1", ["10.0.0.1"], id="empty header"),
            pytest.param("192.0.2.1", "203.0.113.9", "192.0.2.1", ["192.0.2.1"], id="peer is not trusted"),
            pytest.param("10.0.0.1", "203.0.113.9", "203.0.113.9", ["203.0.113.9", "10.0.0.1"], id="one proxy"),
            pytest.param(
                "10.0.0.1",
                "203.0.113.9, 192.168.0.4",
                "203.0.113.9",
                ["203.0.113.9", "192.168.0.4", "10.0.0.1"],
                id="two proxies",
            ),
            pytest.param(
                "10.0.0.1",
                "127.0.0.1, 203.0.113.9",
                "203.0.113.9",
                ["127.0.0.1", "203.0.113.9", "10.0.0.1"],
                id="forged item on the left",
            ),
            pytest.param(
                "10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3", ["10.0.0.3", "10.0.0.2", "10.0.0.1"], id="all trusted"
            ),
            pytest.param(
                "10.0.0.1",
                "203.0.113.9, unknown, 10.0.0.2",
                "10.0.0.2",
                ["203.0.113.9", "unknown", "10.0.0.2", "10.0.0.1"],
                id="item that is no address",
            ),
            pytest.param(
                "10.0.0.1", "203.0.113.9, _hidden", "10.0.0.1", ["203.0.113.9", "_hidden", "10.0.0.1"], id="first item"
            ),
            pytest.param("10.0.0.1", " ,203.0.113.9,, ", "203.0.113.9", ["203.0.113.9", "10.0.0.1"], id="empty items"),
            pytest.param(
                "10.0.0.1",
                "203.0.113.9,\r\n 10.0.0.2",
                "203.0.113.9",
                ["203.0.113.9", "10.0.0.2", "10.0.0.1"],
                id="folded",
            ),
            pytest.param("10.0.0.1", "203.0.113.9:1024", "203.0.113.9", ["203.0.113.9", "10.0.0.1"], id="port"),
            pytest.param("10.0.0.1", "2001:db8::7", "2001:db8::7", ["2001:db8::7", "10.0.0.1"], id="IPv6"),
            pytest.param("10.0.0.1", "[2001:db8::7]", "2001:db8::7", ["2001:db8::7", "10.0.0.1"], id="brackets"),
            pytest.param(
                "10.0.0.1", "[2001:db8::7]:443", "2001:db8::7", ["2001:db8::7", "10.0.0.1"], id="brackets and port"
            ),
            pytest.param(
                "10.0.0.1", "[2001:db8::7]x", "10.0.0.1", ["[2001:db8::7]x", "10.0.0.1"], id="text behind brackets"
            ),
            pytest.param("10.0.0.1", "203.0.113.9:x", "10.0.0.1", ["203.0.113.9:x", "10.0.0.1"], id="no port"),
            pytest.param(
                "10.0.0.1", "fe80::1%<script>", "10.0.0.1", ["fe80::1%<script>", "10.0.0.1"], id="zone in an item"
            ),
            pytest.param(
                "10.0.0.1",
                "203.0.113.9, ::ffff:10.0.0.2",
                "203.0.113.9",
                ["203.0.113.9", "::ffff:10.0.0.2", "10.0.0.1"],
                id="IPv4-mapped item",
            ),
            pytest.param(
                "::ffff:10.0.0.1",
                "203.0.113.9",
                "203.0.113.9",
                ["203.0.113.9", "::ffff:10.0.0.1"],
                id="IPv4-mapped peer",
            ),
            pytest.param(
                "::ffff:192.0.2.1", "203.0.113.9", "::ffff:192.0.2.1", ["::ffff:192.0.2.1"], id="IPv4-mapped stranger"
            ),
            pytest.param(
                "fe80::1%eth0", "203.0.113.9", "203.0.113.9", ["203.0.113.9", "fe80::1%eth0"], id="link-local peer"
            ),
            pytest.param("", None, "", [], id="Unix socket"),
            pytest.param("", "203.0.113.9", "203.0.113.9", ["203.0.113.9"], id="Unix socket and header"),
            pytest.param("", "unknown", "", ["unknown"], id="Unix socket and no address"),
            pytest.param("-", "203.0.113.9", "-", ["-"], id="peer that is no address"),
        ],
    )
    def test_default_proxies(self, peer, forwarded_for, client, chain):
        assert resolve_addresses(peer, forwarded_for, DEFAULT) == (client, chain)

    @pytest.mark.parametrize(
        ("peer", "forwarded_for", "client", "chain"),
        [
            pytest.param("192.0.2.1", None, "192.0.2.1", ["192.0.2.1"], id="no header"),
            pytest.param(
                "192.0.2.1",
                "203.0.113.9, 198.51.100.3",
                "203.0.113.9",
                ["203.0.113.9", "198.51.100.3", "192.0.2.1"],
                id="left-most item",
            ),
            pytest.param(
                "192.0.2.1",
                "unknown, 198.51.100.3",
                "198.51.100.3",
                ["unknown", "198.51.100.3", "192.0.2.1"],
                id="left-most address",
            ),
            pytest.param("-", "203.0.113.9", "203.0.113.9", ["203.0.113.9", "-"], id="any peer"),
        ],
    )
    def test_everybody_is_trusted(self, peer, forwarded_for, client, chain):
        assert resolve_addresses(peer, forwarded_for, None) == (client, chain)

    def test_nobody_but_unix_sockets_is_trusted(self):
        assert resolve_addresses("127.0.0.1", "203.0.113.9", ()) == ("127.0.0.1", ["127.0.0.1"])
        assert resolve_addresses("", "10.0.0.1, 203.0.113.9", ()) == ("203.0.113.9", ["10.0.0.1", "203.0.113.9"])

    @given(st.text(max_size=40))
    def test_a_stranger_cannot_forge_the_address(self, forged):
        assert resolve_addresses("192.0.2.1", forged, DEFAULT) == ("192.0.2.1", ["192.0.2.1"])
        assert resolve_addresses("10.0.0.1", f"{forged}, 203.0.113.9", DEFAULT)[0] == "203.0.113.9"
