"""Who the client is when proxies stand between it and the server: ``X-Forwarded-For``.

Anybody can write into that header; only what a trusted proxy appended to it is worth something.
Strategy: the chain is walked from the server's end, and goes on past an address only if it is trusted.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

from geventws.headers import parse_list, unfold

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DEFAULT_TRUSTED_PROXIES", "Network", "parse_networks", "resolve_addresses"]

Network = IPv4Network | IPv6Network

#: Networks that the public Internet cannot send from: a peer there runs within one's own infrastructure, so that the
#: usual reverse proxy needs no configuration. The carriers' 100.64.0.0/10 is not among them: strangers share it.
DEFAULT_TRUSTED_PROXIES: tuple[str, ...] = (
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "fc00::/7",
    "169.254.0.0/16",
    "fe80::/10",
)

_with_brackets = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?").fullmatch
_with_port = re.compile(r"([0-9.]+):[0-9]{1,5}").fullmatch


def parse_networks(values: Iterable[str]) -> tuple[Network, ...]:
    """Parse networks in CIDR notation; a single address is a network of one.

    Raises:
        TypeError: The argument is a ``str``, or one of its items is none.
        ValueError: An item is no network, or has bits set behind its prefix.
    """
    if isinstance(values, str):
        raise TypeError("networks must be a list of str, not one str")
    return tuple(map(_parse_network, values))


def _parse_network(value: str) -> Network:
    if not isinstance(value, str):
        raise TypeError(f"a network must be a str, not {type(value).__name__}")
    network = ip_network(value)
    # Addresses are compared in their IPv4 form, so a network has to be brought into it as well.
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network


def resolve_addresses(
    peer: str, forwarded_for: str | None, trusted: tuple[Network, ...] | None
) -> tuple[str, list[str]]:
    """Resolve the client's address from the TCP peer and ``X-Forwarded-For``.

    Args:
        peer: The peer's address as its socket tells it; ``""`` for a Unix socket, which is always trusted.
        forwarded_for: The header's value, repeated ones joined with commas; None when absent.
        trusted: Where proxies are believed; None believes everybody.

    Returns:
        The right-most address of the chain that is not trusted, or the left-most if all are; and
        the chain: the header's items in order, without ports and brackets, then the peer. The walk
        ends before an item that is no address. The header of a peer that is not trusted does not count.
    """
    chain = [peer] if peer else []
    if forwarded_for is None or not _is_trusted_peer(peer, trusted):
        return peer, chain
    items = [_strip_port(item) for item in parse_list(unfold(forwarded_for))]
    return _find_client(peer, items, trusted), items + chain


def _is_trusted_peer(peer: str, trusted: tuple[Network, ...] | None) -> bool:
    # A link-local peer comes with the name of its interface.
    address = _parse_address(peer.partition("%")[0])
    return not peer or trusted is None or (address is not None and _is_trusted(address, trusted))


def _find_client(peer: str, items: list[str], trusted: tuple[Network, ...] | None) -> str:
    client = peer
    for item in reversed(items):
        address = _parse_address(item)
        if address is None:
            break
        client = item
        if not _is_trusted(address, trusted):
            break
    return client


def _is_trusted(address: IPv4Address | IPv6Address, trusted: tuple[Network, ...] | None) -> bool:
    return trusted is None or any(address in network for network in trusted)


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    # A zone means nothing to another host, and any text at all may stand in it.
    if "%" in text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _strip_port(item: str) -> str:
    match = _with_brackets(item) or _with_port(item)
    return match[1] if match else item
