"""A relay in a thread that keeps what a client says, piece by piece as it came."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def overheard(listener: socket.socket, port: int, said: list[bytes]) -> Iterator[None]:
    """Relays the next connection of `listener` to `port` on loopback; each piece that the client sends is added to `said`."""

    def serve() -> None:
        near, _ = listener.accept()
        with near, socket.create_connection(("127.0.0.1", port), 10) as far, selectors.DefaultSelector() as selector:
            selector.register(near, selectors.EVENT_READ, far)
            selector.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in selector.select(20):
                    assert isinstance(key.fileobj, socket.socket)
                    with contextlib.suppress(OSError):
                        data = key.fileobj.recv(1 << 16)
                        if data:
                            said.extend([data] if key.fileobj is near else [])
                            key.data.sendall(data)
                            continue
                    return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    thread.join(20)
    assert not thread.is_alive()
