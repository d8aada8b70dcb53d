"""Responses of a server as a stream (RFC 3501 §7): one typed value a response, message bodies handed on while they come.

Only a FETCH's `BODY[]` is streamed. Any other literal is kept up to INLINE bytes and dropped above that, so memory stays bounded whatever a
server sends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from hostbackup.errors import ProtocolBroken
from hostbackup.protocols.imap import lexer
from hostbackup.protocols.imap.lexer import Streamed, Value

INLINE = 64 * 1024  # bytes
MAX_RESPONSE = 4 * 1024 * 1024  # bytes of one response, streamed and dropped literals not counted


class Source(Protocol):
    """Where the bytes come from; a `Wire`, or anything like it."""

    @property
    def where(self) -> str: ...

    def readline(self) -> bytes: ...

    def chunks(self, size: int) -> Iterator[memoryview]: ...


class Writer(Protocol):
    """Takes a body's bytes."""

    def write(self, data: bytes | bytearray | memoryview, /) -> object: ...


Taker: TypeAlias = "Callable[[int], Writer | None]"  # given a body's size in bytes; None drops it


@dataclass(frozen=True, slots=True)
class Answer:
    """What OK, NO, BAD, BYE and PREAUTH say: an upper-case response code with its arguments, and text for people."""

    status: str
    code: str = ""
    args: tuple[Value, ...] = ()
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class Tagged:
    tag: bytes
    answer: Answer

    @property
    def ok(self) -> bool:
        return self.answer.status == "OK"


@dataclass(frozen=True, slots=True)
class Untagged:
    """`* OK …`, `* NO …`, `* BAD …`, `* BYE …`, `* PREAUTH …`."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Continue:
    text: bytes


@dataclass(frozen=True, slots=True)
class Body:
    """A message's bytes as they came: `writer` is what the taker gave, None where it declined. `nil`: the server has none.

    `origin`: where in the message they begin, as the server says of a part of it.
    """

    size: int
    writer: Writer | None
    nil: bool = False
    origin: int = 0


@dataclass(frozen=True, slots=True)
class Fetch:
    """One FETCH response; what it did not tell is None. An unsolicited one has no more than a UID and flags."""

    sequence: int
    uid: int | None = None
    flags: tuple[str, ...] | None = None
    internaldate: str | None = None
    size: int | None = None
    body: Body | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """`* 23 EXISTS`, `* 5 RECENT`, `* 44 EXPUNGE`."""

    kind: str
    value: int


@dataclass(frozen=True, slots=True)
class Data:
    """Any other untagged response: LIST, STATUS, CAPABILITY, …"""

    kind: str
    values: tuple[Value, ...]


Response: TypeAlias = Tagged | Untagged | Continue | Fetch | Number | Data

_LITERAL = re.compile(rb"(?:^|(?<=[ (\]>]))~?\{(\d{1,19})\+?\}$")
_FETCH_HEAD = re.compile(rb"\* \d+ FETCH ", re.IGNORECASE)
_BODY_TAIL = re.compile(rb"[ (]BODY\[\](?:<\d+>)? $", re.IGNORECASE)
# The two responses that come by the hundred thousand, in the shape that they nearly always have. What does not fit goes the long way.
_PLAIN = re.compile(
    rb'\* (\d{1,10}) FETCH \(UID (\d{1,10}) FLAGS \(([^()"{}\x00]*)\)'
    rb'(?: INTERNALDATE "([^"\\\r\n]*)" RFC822\.SIZE (\d{1,19}))?(?: MODSEQ \(\d{1,19}\))?\)\r\n'
)
_WHOLE = re.compile(rb"\* (\d{1,10}) FETCH \(UID (\d{1,10}) BODY\[\] \{(\d{1,19})\}\r\n")
_KNOWN_FLAGS = 4096
_STATUS = re.compile(rb"(?P<status>OK|NO|BAD|BYE|PREAUTH)(?:\r?\n| (?P<rest>.*))", re.IGNORECASE | re.DOTALL)
_CODE = re.compile(rb'\[(?P<code>[^\] ]+)(?: (?P<args>(?:"(?:[^"\\]|\\.)*"|\([^()]*\)|[^\]"])*))?\] ?(?P<text>.*)', re.DOTALL)
_TAG = re.compile(rb'[^\x00-\x20(){%*"\\\x7f+]+')


class Framer:
    """Reads responses one by one. Raises ProtocolBroken for what the RFC does not allow, and what the source raises."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._flags: dict[bytes, tuple[str, ...]] = {}  # as they stood in a response

    def next(self, taker: Taker | None = None) -> Response:
        """The next response. `taker` is asked for a writer when a body begins, before the UID may be known."""
        line = self._source.readline()
        try:
            if (found := _WHOLE.fullmatch(line)) is not None:
                return self._whole(found, line, taker)
            if (found := _PLAIN.fullmatch(line)) is not None:
                return self._plain(found)
            line = _bare(line)
            if line.startswith(b"* "):
                return self._untagged(line, taker)
            if line.startswith(b"+"):
                return Continue(line[1:].strip())
            tag, _, rest = line.partition(b" ")
            answer = _answer(rest) if _TAG.fullmatch(tag) else None
            if answer is None or answer.status in ("BYE", "PREAUTH"):
                raise ValueError("a line that is no response")
            return Tagged(tag, answer)
        except ValueError as error:
            line = _bare(line) if line.endswith(b"\n") else line
            raise ProtocolBroken(f"the server sent {error}: {line[:60]!r}", where=self._source.where) from None

    def _line(self) -> bytes:
        return _bare(self._source.readline())

    def _plain(self, found: re.Match[bytes]) -> Fetch:
        sequence, uid, flags, date, size = found.groups()
        known = self._flags.get(flags)
        if known is None:
            if len(self._flags) >= _KNOWN_FLAGS:
                self._flags.clear()
            known = self._flags[flags] = lexer.words(lexer.values([b"(" + flags + b")"])[0])
        told = None if date is None else lexer.word(date)
        return Fetch(int(sequence), int(uid), known, told, None if size is None else int(size))

    def _whole(self, found: re.Match[bytes], line: bytes, taker: Taker | None) -> Response:
        """A body that comes last in its response, as it does where it was asked for last."""
        size = int(found[3])
        writer = taker(size) if taker is not None else None
        self._hand_on(size, writer)
        body = Body(size, writer)
        rest = self._source.readline()
        if rest == b")\r\n":
            return Fetch(int(found[1]), int(found[2]), body=body)
        return self._untagged(_bare(line), taker, body, _bare(rest))

    def _untagged(self, line: bytes, taker: Taker | None, begun: Body | None = None, rest: bytes = b"") -> Response:
        """`begun`: the body that the line announces came already, and `rest` behind it."""
        answer = _answer(line[2:])
        if answer is not None:
            return Untagged(answer)
        taken: list[Body] = []
        if begun is None:
            parts = self._parts(line, taker, taken)
        else:
            taken.append(begun)
            parts = [line[: line.rindex(b"{")], Streamed(begun.size), *self._parts(rest, taker, taken, is_fetch=True)]
        values = lexer.values(parts)
        if len(values) < 2:
            raise ValueError("an empty response")
        first = values[1]
        if isinstance(first, lexer.Atom) and first.isdigit():
            if len(values) < 3:
                raise ValueError("a number alone")
            kind = lexer.word(values[2]).upper()
            if kind == "FETCH":
                return _fetch(lexer.number(first), values[3:], taken, taker)
            return Number(kind, lexer.number(first))
        return Data(lexer.word(first).upper(), tuple(values[2:]))

    def _parts(self, line: bytes, taker: Taker | None, taken: list[Body], *, is_fetch: bool = False) -> list[bytes | Streamed]:
        """A response's text and literals by turns; `taken` gets the body that was streamed."""
        parts: list[bytes | Streamed] = []
        is_fetch = is_fetch or _FETCH_HEAD.match(line) is not None
        total = 0
        while (match := _LITERAL.search(line)) is not None:
            size = int(match[1])
            text = line[: match.start()]
            parts.append(text)
            if is_fetch and _BODY_TAIL.search(text):
                if taken:
                    raise ValueError("two bodies in one response")
                writer = taker(size) if taker is not None else None
                self._hand_on(size, writer)
                taken.append(Body(size, writer))
                parts.append(Streamed(size))
            elif size <= INLINE:
                parts.append(b"".join(self._source.chunks(size)))
                total += size
            else:
                self._hand_on(size, None)
                parts.append(Streamed(size))
            line = self._line()
            total += len(line)
            if total > MAX_RESPONSE:
                raise ValueError("a response without end")
        parts.append(line)
        return parts

    def _hand_on(self, size: int, writer: Writer | None) -> None:
        for piece in self._source.chunks(size):
            if writer is not None:
                writer.write(piece)


def _bare(line: bytes) -> bytes:
    """A line without its end."""
    return line[:-2] if line.endswith(b"\r\n") else line[:-1]


def _fetch(sequence: int, rest: list[Value], taken: list[Body], taker: Taker | None) -> Fetch:
    if len(rest) != 1 or not isinstance(rest[0], list) or len(rest[0]) % 2:
        raise ValueError("a FETCH response without its list of items")
    uid = size = internaldate = flags = body = None
    items = rest[0]
    for place in range(0, len(items), 2):
        name = lexer.string(items[place]).upper()
        value = items[place + 1]
        if name == b"UID":
            uid = lexer.number(value)
        elif name == b"FLAGS":
            flags = lexer.words(value)
        elif name == b"RFC822.SIZE":
            size = lexer.number(value)
        elif name == b"INTERNALDATE":
            internaldate = None if value is None else lexer.word(value)
        elif name.startswith(b"BODY[]"):
            if body is not None:
                raise ValueError("two bodies in one response")
            body = _body(value, taken, taker)
            if len(name) > len(b"BODY[]"):
                body = replace(body, origin=int(name[len(b"BODY[]<") : -1]))
    return Fetch(sequence, uid, flags, internaldate, size, body)


def _body(value: Value, taken: list[Body], taker: Taker | None) -> Body:
    if isinstance(value, Streamed):
        return taken[0]
    if value is None:
        return Body(0, None, nil=True)
    if not isinstance(value, bytes) or isinstance(value, lexer.Atom):
        raise ValueError("a body that is neither string nor NIL")
    if taken:
        raise ValueError("two bodies in one response")
    writer = taker(len(value)) if taker is not None else None
    if writer is not None and value:
        writer.write(value)
    return Body(len(value), writer)


def _answer(text: bytes) -> Answer | None:
    """The status, code and text after a tag or `*`; None where there is no status."""
    match = _STATUS.fullmatch(text) or _STATUS.fullmatch(text + b" ")
    if match is None:
        return None
    status = match["status"].upper().decode("ascii")
    rest = match["rest"] or b""
    coded = _CODE.match(rest)
    if coded is None:
        return Answer(status, text=rest.strip())
    try:
        args = tuple(lexer.values([coded["args"]])) if coded["args"] else ()
    except ValueError:  # a code is a hint: one that cannot be read is as good as none
        args = ()
    return Answer(status, coded["code"].upper().decode("ascii", "replace"), args, coded["text"].strip())
