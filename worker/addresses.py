"""Addresses as people write them: host:port, with brackets around a host of IPv6."""

from __future__ import annotations


def host_and_port(address: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of an address.

    Raises:
        ValueError: the port is not a number.

    """
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def address_of(host: str, port: int) -> str:
    """Return the address of a host and a port, as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
