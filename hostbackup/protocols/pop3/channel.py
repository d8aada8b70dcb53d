"""Commands out, replies in: status lines with response codes, lists of lines, messages as streams (RFC 1939 §3, RFC 2449 §8, RFC 3206)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hostbackup.errors import ProtocolBroken
from hostbackup.protocols.imap.wire import Wire, plain
from hostbackup.protocols.pop3.dots import Unstuffer

MAX_STATUS = 8192  # bytes: RFC 2449 §4 allows 512
MAX_ITEM = 4096  # bytes of a line of LIST, UIDL or CAPA
MAX_ITEMS = 4_000_000  # lines of one list
_STATUS = re.compile(rb"(\+OK|-ERR)(?: +(.*))?", re.IGNORECASE | re.DOTALL)
_CODE = re.compile(rb"\[([A-Za-z0-9/_-]+)\] ?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reply:
    """A status line. `code` is upper-case, "" where there is none; `bare_lf`: the line ended without CR."""

    ok: bool
    code: str = ""
    text: bytes = b""
    bare_lf: bool = False

    @property
    def said(self) -> str:
        """For people."""
        shown = plain(self.text)
        return (f"[{self.code}] {shown}".strip() if self.code else shown) or "no reason given"


def parse_reply(line: bytes) -> Reply | None:
    """A status line with its end; None where it is none."""
    text = line.rstrip(b"\r\n")
    found = _STATUS.fullmatch(text)
    if found is None:
        return None
    rest = found[2] or b""
    coded = _CODE.match(rest)
    code = coded[1].decode("ascii").upper() if coded else ""
    return Reply(found[1].upper() == b"+OK", code, coded[2] if coded else rest, line.endswith(b"\n") and not line.endswith(b"\r\n"))


class Channel:
    """The commands of one connection, answered in the order they were sent. Used by one thread at a time."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._out = bytearray()

    def start(self, command: bytes) -> None:
        """Queues a command; it leaves with the next `reply`."""
        self._out += command + b"\r\n"

    def reply(self) -> Reply:
        """The next status line. Raises LineCut, or ProtocolBroken where it is none."""
        line = self.line()
        found = parse_reply(line)
        if found is None:
            raise ProtocolBroken(f"the server sent a line that is no answer: {plain(line, 60)}", where=self.wire.where)
        return found

    def line(self) -> bytes:
        """The next line as it came. Raises ProtocolBroken for one without end."""
        if self._out:
            data, self._out = self._out, bytearray()
            self.wire.send(memoryview(data))
        line = self.wire.readline()
        if len(line) > MAX_STATUS:
            raise ProtocolBroken(f"the server sent an answer of more than {MAX_STATUS} bytes", where=self.wire.where)
        return line

    def run(self, command: bytes) -> Reply:
        """One command that is answered by a status line."""
        self.start(command)
        return self.reply()

    def items(self) -> Iterator[bytes]:
        """The lines of a list, their ends taken off. To be read to its end before anything else."""
        for _ in range(MAX_ITEMS):
            line = self.wire.readline()
            if len(line) > MAX_ITEM:
                raise ProtocolBroken(f"the server sent a list with a line of more than {MAX_ITEM} bytes", where=self.wire.where)
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if line == b".":
                return
            yield line.removeprefix(b".") if line.startswith(b"..") else line
        raise ProtocolBroken("the server sent a list without end", where=self.wire.where)

    def message(self, reply: Reply, write: Callable[[memoryview | bytes], object], limit: int) -> None:
        """The message that follows a `reply`, as it comes. Raises ProtocolBroken where it has more than `limit` bytes."""
        left = limit

        def bounded(piece: memoryview | bytes) -> None:
            nonlocal left
            left -= len(piece)
            if left < 0:
                raise ProtocolBroken(f"the server sends a message without end: {limit} bytes so far", where=self.wire.where)
            write(piece)

        self.wire.feed(Unstuffer(bounded, bare_lf=reply.bare_lf).feed)
