"""One SFTP channel: numbered requests, replies matched to them, nothing that blocks.

A channel is driven by `hostbackup.protocols.sftp.pump.Pump`, which waits on many at once. The bytes go over any ByteChannel.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from hostbackup.errors import LineCut, ProtocolBroken
from hostbackup.protocols.sftp import packets
from hostbackup.protocols.sftp.packets import UNHEARD, Attrs, Reply, Request, Status, Type
from hostbackup.protocols.sftp.quirks import Look

T = TypeVar("T")

Steps: TypeAlias = Generator[Sequence[Request], Reply, T]
"""Work on one file or folder: yields requests to be sent (none: I only wait), is resumed with each reply, one at a time, and returns its result."""

DEFAULT_CHUNK = 32768  # what every server must take (draft, section 3: packets of 34000 bytes)
_CHUNK_LIMIT = 255 * 1024
_ANSWERS: dict[int, type] = {  # beside a status, which answers anything
    Type.OPEN: bytes,
    Type.OPENDIR: bytes,
    Type.READ: memoryview,
    Type.LSTAT: Attrs,
    Type.STAT: Attrs,
    Type.FSTAT: Attrs,
    Type.READDIR: list,
    Type.REALPATH: list,
    Type.READLINK: list,
    Type.EXTENDED: memoryview,
}
_RECEIVE = 1 << 24  # all that is there: paramiko moves the rest of its buffer at each partial read


class ByteChannel(Protocol):
    """A two-way stream to an SFTP server that never blocks."""

    selects_writes: bool  # whether a selector on `fileno` also tells when `send` may go on

    def fileno(self) -> int:
        """A descriptor that is readable while `recv` has something to give (bytes or the end)."""
        ...

    def recv(self, limit: int, /) -> bytes | None:
        """Up to `limit` bytes; None where there are none yet; b"" at the end. Raises OSError where the line is gone."""
        ...

    def send(self, data: bytes, /) -> int:
        """Sends what the line takes now, perhaps nothing, and tells how many bytes that were. Raises OSError where the line is gone."""
        ...

    def close(self) -> None:
        """Ends the channel, whatever is under way. Never blocks for long; may be called twice."""
        ...


class SocketChannel:
    """A connected socket as a ByteChannel: a socket pair to `sftp-server`, or to a subprocess."""

    selects_writes = True

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv(self, limit: int, /) -> bytes | None:
        try:
            return self._socket.recv(min(limit, 1 << 20))
        except BlockingIOError:
            return None

    def send(self, data: bytes, /) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@dataclass(slots=True)
class Limits:
    """What the server can take: bytes a READ and a WRITE, and files open at once (0: not told)."""

    read: int = DEFAULT_CHUNK
    write: int = DEFAULT_CHUNK
    handles: int = 0


class Connection:
    """SFTP on one channel.

    `extensions` are those of VERSION. `outstanding` counts requests without a reply, those still to be sent included; of them `most` are on the
    line at once (0: all). `moved` counts the bytes of both ways. `mistakes_links`: LSTAT and READLINK must not be trusted as they are
    (`hostbackup.protocols.sftp.quirks`). `login` is whose channel it is, where anybody asks. Work (`Steps`) is bound to one connection,
    as handles are.
    """

    def __init__(self, channel: ByteChannel) -> None:
        self.channel = channel
        self.most = 0
        self.mistakes_links = False
        self.login: object = None
        self.moved = 0
        self.extensions: dict[bytes, bytes] = {}
        self.limits = Limits()
        self.quiet = 0.0  # seconds spent waiting for this channel since it last gave bytes
        self._framer = packets.Framer()
        self._number = 0
        self._owners: dict[int, tuple[Steps[Any] | Look | None, Any, type]] = {}
        self._owned = 0
        self._out: list[bytes] = []
        self._unsent = b""
        self._sent = 0

    @classmethod
    def start(cls, channel: ByteChannel, timeout: float) -> Connection:
        """A connection after INIT/VERSION, the server's limits asked for where it offers them. Raises LineCut or ProtocolBroken."""
        connection = cls(channel)
        try:
            connection._handshake(timeout)
        except BaseException:
            channel.close()
            raise
        return connection

    def _handshake(self, timeout: float) -> None:
        self._out.append(packets.init())
        first = self._await(timeout)
        version, self.extensions = packets.parse_version(first)
        if version < packets.VERSION:
            raise ProtocolBroken(f"the server speaks SFTP version {version}; version 3 is needed")
        if b"limits@openssh.com" in self.extensions:
            self.post(None, packets.extended(b"limits@openssh.com", b""))
            number, value = packets.parse_reply(self._await(timeout))
            self._owners.pop(number, None)
            if isinstance(value, memoryview):
                self._take_limits(*packets.parse_limits(value))

    def _take_limits(self, _longest: int, reading: int, writing: int, handles: int) -> None:
        def sane(told: int) -> int:
            return min(max(told, DEFAULT_CHUNK), _CHUNK_LIMIT) if told else DEFAULT_CHUNK

        self.limits = Limits(sane(reading), sane(writing), handles)

    def _await(self, timeout: float) -> memoryview:
        """The next packet, waiting for it. For the handshake only."""
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self.channel.fileno(), selectors.EVENT_READ)
            while True:
                self.flush()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise LineCut(f"the SFTP server did not answer within {timeout:.0f} seconds")
                selector.select(min(left, 0.05 if self.unsent else left))
                try:
                    bodies = self._bodies()
                except ProtocolBroken as error:
                    hint = "if the server's login scripts (.bashrc, .profile) print something, that must end"
                    raise ProtocolBroken(error.reason, hint=error.hint or hint) from error
                if len(bodies) > 1:
                    raise ProtocolBroken("the server answered more than was asked")
                if bodies:
                    return bodies[0]

    @property
    def outstanding(self) -> int:
        return len(self._owners)

    @property
    def unsent(self) -> bool:
        """Whether there is something that the line did not take yet. What `most` holds back does not count."""
        return self._sent < len(self._unsent) or (bool(self._out) and self._room() > 0)

    @property
    def idle(self) -> bool:
        """Whether nothing is owed to anybody: only replies that nobody waits for may still come."""
        return not self._owned and not self._out and self._sent >= len(self._unsent)

    def _room(self) -> int:
        """How many of the queued requests may go out now."""
        waiting = len(self._out)
        return min(waiting, self.most - (len(self._owners) - waiting)) if self.most else waiting

    def post(self, owner: Steps[Any] | None, request: Request) -> None:
        """Queues a request; its reply resumes `owner` (None: nobody waits for it, as for one marked UNHEARD)."""
        if self.mistakes_links and request.type == Type.LSTAT and owner is not None and request.mark is not UNHEARD:
            look = Look(owner, request.mark)
            self._queue(look, Request(Type.LSTAT, request.body, Type.LSTAT))
            self._queue(look, Request(Type.READLINK, request.body, Type.READLINK))
        else:
            self._queue(owner, request)

    def _queue(self, owner: Steps[Any] | Look | None, request: Request) -> None:
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        if owner is None or request.mark is UNHEARD:
            self._owners[number] = (None, None, object)
        else:
            self._owners[number] = (owner, request.mark, _ANSWERS.get(request.type, Status))
            self._owned += 1
        self._out.append(packets.packet(number, request))

    def flush(self) -> None:
        """Sends as much as the line takes. Raises LineCut."""
        try:
            while self._out or self._sent < len(self._unsent):
                if self._sent >= len(self._unsent):
                    room = self._room()
                    if room <= 0:
                        break
                    self._unsent, self._sent = b"".join(self._out[:room]), 0
                    del self._out[:room]
                part = self._unsent if self._sent == 0 else self._unsent[self._sent : self._sent + 262144]
                sent = self.channel.send(part)
                if not sent:
                    return
                self._sent += sent
                self.moved += sent
        except (OSError, EOFError) as error:
            raise LineCut(f"the line was cut: {error}") from error
        self._unsent, self._sent = b"", 0

    def _bodies(self) -> list[memoryview]:
        try:
            data = self.channel.recv(_RECEIVE)
        except (OSError, EOFError) as error:
            raise LineCut(f"the line was cut: {error}") from error
        if data is None:
            return []
        if not data:
            raise LineCut("the server ended the SFTP channel" + ("" if self._framer.between else " in the middle of a packet"))
        self.quiet = 0.0
        self.moved += len(data)
        return self._framer.feed(data)

    def receive(self) -> Generator[tuple[Steps[Any], Reply], None, None]:
        """The replies that have come, each with the work it belongs to. Raises LineCut or ProtocolBroken."""
        owners = self._owners
        for body in self._bodies():
            number, value = packets.parse_reply(body)
            try:
                owner, mark, expected = owners.pop(number)
            except KeyError:
                raise ProtocolBroken(f"the server answered request {number}, which was not asked") from None
            if not isinstance(value, (expected, Status)):
                raise ProtocolBroken("the server answered a request with something that does not belong to it")
            if owner is not None:
                self._owned -= 1
                if not isinstance(owner, Look):
                    yield owner, Reply(mark, value)
                elif owner.take(value, mark):
                    yield owner.owner, Reply(owner.mark, owner.value)

    def close(self) -> None:
        self._owners.clear()
        self._owned = 0
        self._out.clear()
        self._unsent = b""
        self.channel.close()


def ask(*requests: Request, also: Request | None = None) -> Steps[list[Any]]:
    """Sends the requests at once and returns the values of the replies in the order of the requests, whichever way they come.

    `also` goes out after them, and nobody waits for its reply.
    """
    values: list[Any] = [None] * len(requests)
    marked = [Request(request[0], request[1], place) for place, request in enumerate(requests)]
    if also is not None:
        marked.append(Request(also[0], also[1], UNHEARD))
    reply = yield marked
    for left in range(len(requests) - 1, -1, -1):
        values[reply[0]] = reply[1]
        if left:
            reply = yield ()
    return values


def ask_one(request: Request) -> Steps[Any]:
    """Sends one request and returns the value of its reply."""
    reply = yield [request]
    return reply.value
