"""Names to addresses, and TCP connections that say clearly why there is none."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Sequence

from hostbackup.errors import NameNotResolved, Unreachable


def resolve(host: str, port: int) -> tuple[str, ...]:
    """The IP addresses of `host` in the system's order, each once. An address as `host` gives itself. Raises NameNotResolved."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, socket.gaierror) and error.strerror else str(error)
        raise NameNotResolved(f"the name {host} leads to no address: {why}", hint="check the spelling, or set `address`") from error
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def connect_tcp(host: str, addresses: Sequence[str], port: int, timeout: float) -> tuple[socket.socket, str]:
    """A connected socket (TCP_NODELAY and keepalive on, `timeout` seconds set) and the address it goes to.

    The addresses are tried in turn, `timeout` seconds each; without any, DNS decides. `host` is for DNS and for messages. Raises NameNotResolved
    or Unreachable, the latter with the reason of each address.
    """
    reasons = []
    for address in addresses or resolve(host, port):
        started = time.monotonic()
        try:
            connected = socket.create_connection((address, port), timeout)
        except OSError as error:
            reasons.append(_why(host, address, port, error, time.monotonic() - started))
            continue
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connected, address
    raise Unreachable("; ".join(reasons), hint="check the address, the port and any firewall between here and there")


def _why(host: str, address: str, port: int, error: OSError, waited: float) -> str:
    there = f"port {port} of {host}" if address == host else f"port {port} of {host} ({address})"
    if isinstance(error, socket.gaierror):
        return f"{address} is not an IP address"
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return f"{there} did not answer within {waited:.0f} seconds"
    if error.errno == errno.ECONNREFUSED:
        return f"{there} refused the connection"
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"there is no route to {there}"
    return f"{there} cannot be reached: {error.strerror or error}"
