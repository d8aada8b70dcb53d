"""Appending many messages: pipelined where the server takes literals without asking (LITERAL+), bytes as they are.

Nothing on the target is ever deleted. A message whose answer never came is told as in doubt and not repeated here.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from hostbackup.errors import ConnectionFailed, HostbackupError, LineCut, ProtocolBroken
from hostbackup.model import Failure, Message, Write, Written
from hostbackup.places.mail_line import Line
from hostbackup.places.mail_prepare import create
from hostbackup.protocols.imap import lexer, sets
from hostbackup.protocols.imap.channel import mailbox
from hostbackup.protocols.imap.dates import is_well_formed
from hostbackup.protocols.imap.framer import Answer, Tagged
from hostbackup.protocols.imap.session import ImapSession
from hostbackup.protocols.imap.wire import plain

WINDOW_MESSAGES = 64
WINDOW_BYTES = 16 * 1024 * 1024
_WHOLE = 1024 * 1024  # bytes: up to here a message is checked in memory, above it is read twice
_CHUNK = 256 * 1024
_SYSTEM_FLAGS = frozenset(("\\answered", "\\flagged", "\\deleted", "\\seen", "\\draft"))
_FLAG = re.compile(r'\\?[^\x00-\x20\x7f-\U0010ffff(){%*"\\\]]+')
# Response codes (RFC 3501, 4469, 5530, 7889, 9208) of refusals that another date would not change.
_CODES = {"TOOBIG": "too-big", "OVERQUOTA": "over-quota", "TRYCREATE": "folder-missing", "NONEXISTENT": "folder-missing", "NOPERM": "permission"}
_FOR_NOW = ("LIMIT", "INUSE", "UNAVAILABLE", "SERVERBUG", "THROTTLED", "CONTACTADMIN")
_HINTS = {
    "too-big": "the new server takes no message of this size",
    "over-quota": "give the mailbox more room there, then run `push` again",
    "in-doubt": "run `push` again: it looks for the message before it appends it",
    "folder-missing": "run `push` again: it makes the folder",
    "damaged": "run `verify`",
}
FailureFor = Callable[[bytes, str, str, str], Failure]  # label, code, reason, hint


@dataclass(slots=True, eq=False)
class _Folder:
    """A target folder as prepared: the flags it keeps (None: all), or why nothing can be written to it."""

    flags: frozenset[str] | None = None
    trouble: tuple[str, str] | None = None

    def keeps(self, flag: str) -> bool:
        low = flag.lower()
        if _FLAG.fullmatch(flag) is None or (low.startswith("\\") and low not in _SYSTEM_FLAGS):
            return False
        return self.flags is None or low in self.flags or ("\\*" in self.flags and not low.startswith("\\"))


@dataclass(slots=True, eq=False)
class _Wanted:
    write: Write[Message]
    dateless: bool = False  # the server refused it with its date


@dataclass(slots=True, eq=False)
class _Sent:
    tag: bytes
    wanted: _Wanted
    item: Message  # as it was sent

    @property
    def size(self) -> int:
        return self.wanted.write.size


class _Unfit(Exception):
    """The stored bytes of one message cannot be sent: code and reason."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Appender:
    """Appends over one line. `failure` makes the place's Failure; `losses` counts (folder, flag or "INTERNALDATE") that the target does not keep."""

    def __init__(self, line: Line, failure: FailureFor, losses: Counter[tuple[bytes, str]]) -> None:
        self._line = line
        self._failure = failure
        self._losses = losses
        self._folders: dict[bytes, _Folder] = {}
        self._window: deque[_Sent] = deque()
        self._again: deque[_Wanted] = deque()
        self._next: _Wanted | None = None  # pulled, and no byte of it sent
        self._halves: list[Written[Message]] = []  # given up in mid-message by this side

    def run(self, items: Iterable[Write[Message]]) -> Iterator[Written[Message]]:
        """One outcome an item, as they come. Raises ConnectionFailed where the line is lost for good."""
        source = iter(items)
        try:
            while True:
                try:
                    session = self._line.session()
                    yield from self._work(session, source)
                    return
                except (LineCut, ProtocolBroken) as error:
                    yield from self._recover(error)
        finally:
            if self._window:
                self._line.drop()

    def _work(self, session: ImapSession, source: Iterator[Write[Message]]) -> Iterator[Written[Message]]:
        while True:
            if self._next is None:
                self._next = self._pull(source)
            if self._next is None and not self._window:
                return
            if self._next is None or (self._window and self._must_wait(session, self._next.write)):
                yield from self._receive(session)
            elif len(self._window) >= WINDOW_MESSAGES or sum(sent.size for sent in self._window) >= WINDOW_BYTES:
                # Half of a full window is taken in before it is filled again: fewer and larger packets both ways.
                for _ in range(len(self._window) // 2 + 1):
                    yield from self._receive(session)
            else:
                outcome = self._send(session, self._next)
                self._next = None
                if outcome is not None:
                    yield outcome

    def _pull(self, source: Iterator[Write[Message]]) -> _Wanted | None:
        if self._again:
            return self._again.popleft()
        write = next(source, None)
        return None if write is None else _Wanted(write)

    def _must_wait(self, session: ImapSession, write: Write[Message]) -> bool:
        """Whether all answers must be in before this one can be sent: its folder is not prepared, it is large, or the server wants to be asked."""
        at_once = write.size <= session.channel.literals and session.channel.at_once(mailbox(write.item.folder))
        return write.item.folder not in self._folders or write.size > _WHOLE or not at_once

    # -- sending ------------------------------------------------------------------------------------------------------------------------

    def _send(self, session: ImapSession, wanted: _Wanted) -> Written[Message] | None:
        """Sends one APPEND (RFC 3501 §6.3.11). An outcome only where nothing was sent or the server refused to hear it."""
        write = wanted.write
        folder = self._folders.get(write.item.folder)
        if folder is None:
            folder = self._folders[write.item.folder] = _prepare(session, write.item.folder)
        if folder.trouble is not None:
            return self._failed(write, *folder.trouble)
        try:
            data, has_nul = _checked(write)
            item = self._as_sent(wanted, folder)
            refused = self._append(session, wanted, item, data, binary=has_nul and session.offers("BINARY"))
        except _Unfit as unfit:
            return self._failed(write, unfit.code, unfit.reason)
        return None if refused is None else self._settled(self._window.pop(), refused)

    def _as_sent(self, wanted: _Wanted, folder: _Folder) -> Message:
        item = wanted.write.item
        flags = tuple(flag for flag in item.flags if folder.keeps(flag))
        date = item.internaldate if is_well_formed(item.internaldate) and not wanted.dateless else ""
        return replace(item, uid=0, uidvalidity=0, flags=flags, internaldate=date)

    def _append(self, session: ImapSession, wanted: _Wanted, item: Message, data: bytes | None, *, binary: bool) -> Tagged | None:
        channel = session.channel
        date = b' "%s"' % item.internaldate.encode("ascii") if item.internaldate else b""
        options = b"(" + " ".join(item.flags).encode("ascii") + b")" + date
        size = wanted.write.size
        # From the first byte on it is in flight: whatever happens now, it has an outcome of its own.
        tag = channel.start_open(b"APPEND", mailbox(item.folder), options)
        self._window.append(_Sent(tag, wanted, item))
        self._next = None
        refused = channel.early(tag) or channel.literal_head(size, binary=binary)
        if refused is not None:
            return refused
        if data is not None:
            channel.put(data)
        else:
            self._stream(session, wanted.write)
        channel.put(b"\r\n")
        return None

    def _stream(self, session: ImapSession, write: Write[Message]) -> None:
        """A large message, straight from its store. Where the store fails now, only cutting the line keeps half a message off the server."""
        assert write.open is not None
        left = write.size
        try:
            with write.open() as stream:
                while left:
                    chunk = stream.read(min(_CHUNK, left))
                    if not chunk:
                        raise _Unfit("damaged", f"its stored bytes ended {left} bytes early")
                    session.channel.put(chunk)
                    left -= len(chunk)
        except ConnectionFailed:
            raise
        except (_Unfit, OSError, HostbackupError) as error:
            self._window.pop()
            self._halves.append(self._failed(write, "damaged", f"its stored bytes could not be read to the end: {error}"))
            self._line.progress()
            raise LineCut("given up in mid-message", where=session.where) from error

    # -- receiving ----------------------------------------------------------------------------------------------------------------------

    def _receive(self, session: ImapSession) -> Iterator[Written[Message]]:
        """Takes in the next tagged response."""
        while True:
            response = session.channel.next()
            if not isinstance(response, Tagged):
                continue
            sent = next((sent for sent in self._window if sent.tag == response.tag), None)
            if sent is None:
                raise ProtocolBroken("the server answered a command out of order", where=session.where)
            self._window.remove(sent)
            self._line.progress()
            outcome = self._settled(sent, response)
            if outcome is not None:
                yield outcome
            return

    def _settled(self, sent: _Sent, tagged: Tagged) -> Written[Message] | None:
        """The outcome of a tagged response; None where the message is to be sent once more without its date."""
        write, answer = sent.wanted.write, tagged.answer
        if tagged.ok:
            self._losses.update((sent.item.folder, flag) for flag in write.item.flags if flag not in sent.item.flags)
            if write.item.internaldate and not sent.item.internaldate:
                self._losses[sent.item.folder, "INTERNALDATE"] += 1
            uidvalidity, uid = _appenduid(answer)
            return Written(write, replace(sent.item, uidvalidity=uidvalidity, uid=uid))
        code = _CODES.get(answer.code, "for-now" if answer.code in _FOR_NOW else "refused")
        if code == "folder-missing":
            self._folders.pop(write.item.folder, None)
        if code == "refused" and sent.item.internaldate:
            self._again.append(_Wanted(write, dateless=True))
            return None
        return self._failed(write, code, f"the server does not take it: {answer.status} {plain(answer.text) or 'no reason given'}")

    def _recover(self, error: ConnectionFailed) -> Iterator[Written[Message]]:
        yield from self._halves
        self._halves.clear()
        doubtful, self._window = list(self._window), deque()
        for sent in doubtful:
            yield self._failed(sent.wanted.write, "in-doubt", f"the line was cut before the server confirmed it: {error.reason}")
        self._line.cut(error)

    def _failed(self, write: Write[Message], code: str, reason: str) -> Written[Message]:
        return Written(write, write.item, self._failure(write.item.folder, code, reason, _HINTS.get(code, "")))


def _prepare(session: ImapSession, name: bytes) -> _Folder:
    """Makes the folder where it is missing and asks which flags it keeps.

    Only SELECT tells PERMANENTFLAGS. The mailbox is left by UNSELECT or EXAMINE, never by CLOSE, which would expunge.
    """
    selected, answer = session.open_mailbox(name, writable=True)
    if not answer.ok:
        trouble = create(session, name, "")
        if trouble is not None:
            return _Folder(trouble=("folder", trouble))
        selected, answer = session.open_mailbox(name, writable=True)
        if not answer.ok:
            return _Folder(trouble=("folder", f"the server does not open the folder: {plain(answer.answer.text)}"))
    if session.offers("UNSELECT"):
        session.channel.run(b"UNSELECT")
    else:
        session.open_mailbox(name)
    flags = selected.permanent_flags
    return _Folder(None if flags is None else frozenset(flag.lower() for flag in flags))


def _checked(write: Write[Message]) -> tuple[bytes | None, bool]:
    """The message's bytes (None for a large one) once size and digest are known to be right, and whether NUL is among them. Raises _Unfit."""
    if write.open is None:
        raise _Unfit("damaged", "it has no stored bytes")
    digest = hashlib.sha256()
    kept = b""
    total = 0
    has_nul = False
    try:
        with write.open() as stream:
            while chunk := stream.read(_WHOLE):
                digest.update(chunk)
                total += len(chunk)
                has_nul = has_nul or b"\0" in chunk
                if write.size <= _WHOLE:
                    kept += chunk
                if total > write.size:
                    break
    except OSError as error:
        raise _Unfit("damaged", f"its stored bytes cannot be read: {error.strerror or error}") from None
    except HostbackupError as error:
        raise _Unfit(error.code, error.reason) from None
    if total != write.size or (write.digest and digest.hexdigest() != write.digest):
        raise _Unfit("damaged", "its stored bytes are not what was recorded")
    return (kept if write.size <= _WHOLE else None), has_nul


def _appenduid(answer: Answer) -> tuple[int, int]:
    """UIDVALIDITY and UID (RFC 4315), zeros where the server does not tell them."""
    if answer.code == "APPENDUID" and len(answer.args) == 2:
        try:
            uids = sets.expand(lexer.string(answer.args[1]), 1)
            return lexer.number(answer.args[0]), uids[0]
        except ValueError:
            pass
    return 0, 0
