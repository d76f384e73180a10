"""Who is connected and who waits; the registry looks at neither more closely than to tell them apart."""

from __future__ import annotations

import gevent
import pytest

from geventws.config import ServerConfig, list_limits
from geventws.registry import Registry


def in_another_thread(function, *args):
    return gevent.get_hub().threadpool.apply(function, args)


def test_a_connection_takes_the_place_of_its_request():
    registry = Registry()
    registry.add_request("request")
    assert list(registry.pending) == ["request"]
    registry.add_connection("request", "connection")
    assert not registry.pending
    assert list(registry.connections) == ["connection"]
    registry.remove_request("request")
    registry.remove_connection("connection")
    assert not registry.connections


def test_a_request_whose_client_was_gone_may_still_become_a_connection():
    registry = Registry()
    registry.add_request("request")
    registry.remove_request("request")
    registry.add_connection("request", "connection")
    assert list(registry.connections) == ["connection"]


def test_they_are_kept_in_order():
    registry = Registry()
    for number in range(10):
        registry.add_connection(None, number)
    registry.remove_connection(3)
    registry.add_connection(None, 3)
    assert list(registry.connections) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 3]


def test_whose_connections_they_are():
    registry = Registry()
    assert not registry.has_connections_of_others()
    registry.add_connection(None, "own")
    assert not registry.has_connections_of_others()
    assert in_another_thread(registry.has_connections_of_others)
    registry.add_connection(None, "own, too")
    registry.remove_connection("own")
    assert in_another_thread(registry.has_connections_of_others)
    registry.remove_connection("own, too")
    assert not in_another_thread(registry.has_connections_of_others)


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
