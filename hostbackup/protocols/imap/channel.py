"""Commands out, responses in: tags, pipelining and literals (RFC 3501 §2.2, RFC 7888)."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from hostbackup.errors import LineCut, ProtocolBroken
from hostbackup.protocols.imap import names
from hostbackup.protocols.imap.deflate import Packing
from hostbackup.protocols.imap.framer import Continue, Framer, Response, Tagged, Taker, Untagged
from hostbackup.protocols.imap.wire import Wire, plain

_GATHER = 64 * 1024  # bytes of commands gathered before they are sent; waiting for a response sends them too
_LITERAL_MINUS = 4096  # bytes: RFC 7888 §5


@dataclass(frozen=True, slots=True)
class Lit:
    """A command argument that goes as a literal."""

    data: bytes


Argument: TypeAlias = bytes | Lit


class Channel:
    """The command stream of one logged-in connection. Used by one thread at a time."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.literals = 0  # bytes a literal may have without waiting for the server's leave: 0, 4096 or no bound
        self._framer = Framer(wire)
        self._count = 0
        self._open: set[bytes] = set()
        self._done: dict[bytes, Tagged] = {}
        self._out = bytearray()
        self._packing: Packing | None = None
        self._early: deque[Response] = deque()  # what came untagged while packing was agreed on
        self.in_mailbox = False  # whether a mailbox was opened, and may still be

    def pack(self, packing: Packing) -> None:
        """Lets `packing` decide when this connection is packed. The server must offer COMPRESS=DEFLATE."""
        self._packing = packing
        self.wire.measure(packing)

    @property
    def wants_rest(self) -> bool:
        """Whether it would be of use to have no command under way for a moment: only then can packing begin."""
        return self._packing is not None and self._packing.on and bool(self._open)

    def learn(self, capabilities: Iterable[str]) -> None:
        """Takes LITERAL+ or LITERAL- into use where they are offered."""
        offered = set(capabilities)
        self.literals = 1 << 62 if "LITERAL+" in offered else _LITERAL_MINUS if "LITERAL-" in offered else 0

    @property
    def busy(self) -> bool:
        """Whether a command still waits for its tagged response."""
        return bool(self._open)

    def start(self, *arguments: Argument) -> bytes:
        """Queues a command, its arguments joined by spaces; gives its tag. It leaves with the next `next`, or earlier."""
        tag = self.start_open(*arguments)
        if tag not in self._done:
            self._out.pop()
            self.put(b"\r\n")
        return tag

    def start_open(self, *arguments: Argument) -> bytes:
        """As `start`, but a space stands where the command would end: more of it follows by `literal_head` and `put`."""
        if self._packing is not None and self._packing.on and not self._open:
            self._compress()
        if arguments[0] in (b"SELECT", b"EXAMINE"):
            self.in_mailbox = True
        self._count += 1
        tag = b"h%d" % self._count
        self._open.add(tag)
        self._out += tag + b" "
        for argument in arguments:
            if isinstance(argument, Lit):
                refused = self.literal_head(len(argument.data))
                if refused is not None:
                    self._done[tag] = refused
                    return tag
                self._out += argument.data
            else:
                self._out += argument
            self._out += b" "
        return tag

    def at_once(self, *arguments: Argument) -> bool:
        """Whether a command with these arguments can leave while others still wait for their answers."""
        return all(len(argument.data) <= self.literals for argument in arguments if isinstance(argument, Lit))

    def early(self, tag: bytes) -> Tagged | None:
        """The tagged response of a command that the server refused before it was whole."""
        return self._done.pop(tag, None)

    def put(self, data: bytes | memoryview) -> None:
        """Queues raw bytes of the command that was begun."""
        if len(data) >= _GATHER:
            self.flush()
            self.wire.send(data)
            return
        self._out += data
        if len(self._out) >= _GATHER:
            self.flush()

    def literal_head(self, size: int, *, binary: bool = False) -> Tagged | None:
        """Announces a literal (RFC 3516 literal8 where `binary`) and waits for leave where it must, which needs an otherwise idle channel.

        Gives the tagged response where the server refuses the command instead; then nothing more of it may be sent.
        """
        at_once = size <= self.literals
        self._out += b"%s{%d%s}\r\n" % (b"~" if binary else b"", size, b"+" if at_once else b"")
        if at_once:
            return None
        if len(self._open) > 1:
            raise ValueError("a literal that waits for leave was begun behind other commands")
        while True:
            response = self.next()
            if isinstance(response, Continue):
                return None
            if isinstance(response, Tagged):
                return response

    def next(self, taker: Taker | None = None) -> Response:
        """The next response. Raises LineCut on BYE, ProtocolBroken on a tag that nobody waits for."""
        if self._early:
            return self._early.popleft()
        self.flush()
        response = self._framer.next(taker)
        if isinstance(response, Tagged):
            if response.tag not in self._open:
                raise ProtocolBroken("the server answered a command that was never sent", where=self.wire.where)
            self._open.discard(response.tag)
        elif isinstance(response, Untagged) and response.answer.status == "BYE":
            raise LineCut(f"the server ended the session: {plain(response.answer.text) or 'no reason given'}", where=self.wire.where)
        return response

    def responses(self, tag: bytes) -> Iterator[Response]:
        """The untagged responses up to the tagged one of `tag`, which `result` then gives."""
        while tag not in self._done:
            response = self.next()
            if isinstance(response, Tagged):
                self._done[response.tag] = response
            elif isinstance(response, Continue):
                raise ProtocolBroken("the server asks for more of a command that was whole", where=self.wire.where)
            else:
                yield response

    def result(self, tag: bytes) -> Tagged:
        """The tagged response of a command whose `responses` came to their end, once."""
        return self._done.pop(tag)

    def finish(self, tag: bytes, on: Callable[[Response], None] | None = None) -> Tagged:
        """Reads on to the tagged response of `tag`; `on` gets the untagged ones before it."""
        for response in self.responses(tag):
            if on is not None:
                on(response)
        return self.result(tag)

    def run(self, *arguments: Argument, on: Callable[[Response], None] | None = None) -> Tagged:
        """One command, start to end."""
        return self.finish(self.start(*arguments), on)

    def _compress(self) -> None:
        """COMPRESS (RFC 4978 §3), asked for once: a server that refuses stays plain."""
        self._packing = None
        early: list[Response] = []
        if self.finish(self.start(b"COMPRESS DEFLATE"), early.append).ok:
            self.wire.pack()
        self._early.extend(early)

    def flush(self) -> None:
        if self._out:
            data, self._out = self._out, bytearray()
            self.wire.send(memoryview(data))

    def late(self, seconds: float) -> Iterator[Response]:
        """What the server had said before the line was cut while sending; the last of it may be why. Gives up after so many seconds of silence."""
        self._out.clear()
        with contextlib.suppress(OSError):
            self.wire.sock.settimeout(seconds)
        with contextlib.suppress(LineCut, ProtocolBroken):
            while True:
                response = self._framer.next(None)
                if isinstance(response, Tagged):
                    self._open.discard(response.tag)
                yield response

    def logout(self) -> None:
        """Says goodbye, without waiting for the answer. Raises LineCut where the line is gone already."""
        self.start(b"LOGOUT")
        self.flush()


def mailbox(name: bytes) -> Argument:
    """A mailbox name as a command's argument."""
    quoted = names.quote(name)
    return Lit(name) if quoted is None else quoted
