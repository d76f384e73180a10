"""Who is connected and who waits: places that are taken, handed over and freed, and what is counted of them."""

from __future__ import annotations

import gevent
import pytest

from geventws.config import ServerConfig, list_limits
from geventws.registry import Registry


class Peer:
    """Be a request or a connection, as far as the registry looks at it."""

    def __init__(self, address="192.0.2.1", **options):
        self.remote_address = address
        self.config = ServerConfig(**options)


def in_another_thread(function):
    return gevent.get_hub().threadpool.apply(function)


def test_a_connection_takes_the_place_of_its_request():
    registry, request, connection = Registry(), Peer(max_connections=1), Peer()
    assert registry.admit(request) is None
    assert list(registry.pending) == [request]
    registry.add_connection(request, connection)
    assert not registry.pending
    assert list(registry.connections) == [connection]
    registry.remove_request(request)
    assert registry.admit(Peer(max_connections=1)).status == 503
    registry.remove_connection(connection)
    assert registry.admit(Peer(max_connections=1)) is None


def test_a_request_whose_client_was_gone_may_still_become_a_connection():
    registry, request, connection = Registry(), Peer(max_connections_per_address=1), Peer()
    registry.admit(request)
    registry.remove_request(request)
    registry.add_connection(request, connection)
    assert list(registry.connections) == [connection]
    registry.remove_connection(connection)
    assert registry.admit(Peer(max_connections_per_address=1)) is None


def test_they_are_kept_in_order():
    registry, peers = Registry(), [Peer() for _ in range(5)]
    for peer in peers:
        registry.add_connection(Peer(), peer)
    registry.remove_connection(peers[1])
    registry.add_connection(Peer(), peers[1])
    assert list(registry.connections) == [peers[0], peers[2], peers[3], peers[4], peers[1]]


@pytest.mark.parametrize(
    ("options", "addresses", "full"),
    [
        pytest.param({"max_connections": 2}, ["192.0.2.1", "192.0.2.2"], "max_connections", id="all"),
        pytest.param(
            {"max_connections_per_address": 2}, ["192.0.2.1"] * 2, "max_connections_per_address", id="address"
        ),
        pytest.param({"max_pending_requests": 2}, ["192.0.2.1", "192.0.2.2"], "max_pending_requests", id="pending"),
        pytest.param(
            {"max_connections": 2, "max_connections_per_address": 2, "max_pending_requests": 2},
            ["192.0.2.1"] * 2,
            "max_connections_per_address",
            id="the one that names the culprit",
        ),
        pytest.param({"max_connections_per_address": 2}, ["192.0.2.1", "192.0.2.2"], None, id="other addresses"),
        pytest.param({"max_connections_per_address": 2}, [""] * 3, None, id="Unix sockets have none"),
        pytest.param({"max_pending_requests": None}, ["192.0.2.1"] * 1025, None, id="no limit"),
        pytest.param({}, ["192.0.2.1"] * 1024, "max_pending_requests", id="default"),
    ],
)
def test_places(options, addresses, full):
    registry = Registry()
    taken = [Peer(address, **options) for address in addresses]
    assert [registry.admit(peer) for peer in taken] == [None] * len(taken)
    one_more = Peer(addresses[0], **options)
    error = registry.admit(one_more)
    assert (error is not None) is (full is not None)
    assert registry.limit_counts == dict.fromkeys(list_limits(), 0) | ({full: 1} if full else {})
    if error is not None:
        assert error.status == 503
        assert str(len(taken)) in str(error)
        assert one_more not in registry.pending
        registry.remove_request(taken.pop())
        assert registry.admit(one_more) is None


def test_pending_requests_that_were_decided_count_no_more():
    registry, first, second = Registry(), Peer(max_pending_requests=1), Peer(max_pending_requests=1)
    registry.admit(first)
    registry.add_connection(first, Peer())
    assert registry.admit(second) is None


def test_whose_connections_they_are():
    registry, one, two = Registry(), Peer(), Peer()
    assert not registry.has_connections_of_others()
    registry.add_connection(Peer(), one)
    assert not registry.has_connections_of_others()
    assert in_another_thread(registry.has_connections_of_others)
    registry.add_connection(Peer(), two)
    registry.remove_connection(one)
    assert in_another_thread(registry.has_connections_of_others)
    registry.remove_connection(two)
    assert not in_another_thread(registry.has_connections_of_others)


def test_nothing_is_kept_of_an_address_without_places():
    """The addresses of a year would fill the memory."""
    registry, request, connection = Registry(), Peer(), Peer()
    registry.admit(request)
    registry.add_connection(request, connection)
    registry.remove_connection(connection)
    assert registry._address_counts == {}


def test_limits_are_counted():
    registry = Registry()
    assert registry.limit_counts == dict.fromkeys(list_limits(ServerConfig), 0)
    registry.count_limit("accept_timeout")
    registry.count_limit("accept_timeout")
    assert registry.limit_counts["accept_timeout"] == 2
    assert sum(registry.limit_counts.values()) == 2


def test_what_is_no_limit_is_not_counted():
    with pytest.raises(KeyError):
        Registry().count_limit("keepalive")
