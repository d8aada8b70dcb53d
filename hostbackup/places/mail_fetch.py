"""Bodies of many messages: UIDs in batches bounded by bytes, a few commands in flight, each literal straight into a receiver.

One `UID FETCH set (UID BODY.PEEK[])` asks for a batch, with flags and date where they are wanted too. What it leaves unanswered is asked for
again one by one. A cut line is opened again and only the unfinished rest repeated; a message that cuts the line each time is told as failed.
Very large ones come last, each in pieces (`places.mail_large`).
"""

from __future__ import annotations

import contextlib
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hostbackup.errors import ConnectionFailed, LineCut, ProtocolBroken
from hostbackup.model import Message, Receiver, Sink
from hostbackup.places.mail_large import LARGE, PIECE, LargeMessage
from hostbackup.places.mail_line import Line
from hostbackup.protocols.imap import sets
from hostbackup.protocols.imap.channel import mailbox
from hostbackup.protocols.imap.framer import Answer, Data, Fetch, Response, Tagged
from hostbackup.protocols.imap.session import ImapSession, Selected, listed
from hostbackup.protocols.imap.wire import plain

BATCH_BYTES = 12 * 1024 * 1024  # by RFC822.SIZE
BATCH_MESSAGES = 500
_UNKNOWN_SIZE = 32 * 1024  # what a message counts whose server tells size 0
_IN_FLIGHT = 2  # batches
_SINGLES_IN_FLIGHT = 16
_LEFTOVER = 1000  # unanswered messages gathered before they are asked for one by one
_SINGLE_CUTS = 2


@dataclass(frozen=True, slots=True)
class Got:
    """What became of one message: digest and size in bytes, or a failure's code and reason. `flags` is None where they were not told."""

    item: Message
    digest: str = ""
    size: int = 0
    code: str = ""
    reason: str = ""
    flags: tuple[str, ...] | None = None
    internaldate: str = ""


@dataclass(slots=True, eq=False)
class Batch:
    """Messages of one folder still to come, by UID."""

    folder: bytes
    uidvalidity: int
    items: dict[int, Message]
    single: bool = False  # one message, asked for alone
    last: bool = False  # known to exist: what is not answered now has failed
    cuts: int = 0


@dataclass(slots=True, eq=False)
class _Examine:
    tag: bytes
    folder: bytes
    selected: Selected
    refused: Answer | None = None
    rested: bool = False  # refused for now: it is to be opened again
    done: bool = False
    looked: bytes = b""  # tag of the LIST that tells a folder that is gone from one that cannot be opened
    there: bool = False

    def objection(self, uidvalidity: int) -> tuple[str, str] | None:
        """Why messages of that UIDVALIDITY cannot be had from this folder: code and reason."""
        if self.refused is not None:
            gone = self.refused.code in ("NONEXISTENT", "TRYCREATE") or (self.looked and not self.there)
            return "folder-missing" if gone else "folder", f"the server does not open the folder: {plain(self.refused.text)}"
        if self.selected.uidvalidity != uidvalidity:
            return "uidvalidity", f"the folder's UIDVALIDITY is {self.selected.uidvalidity} now, not {uidvalidity}: its messages were numbered anew"
        return None


@dataclass(slots=True, eq=False)
class _Fetching:
    tag: bytes
    batch: Batch
    opened: _Examine


def known_flags(flags: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Sorted, without doubles and \\Recent (RFC 3501 §2.3.2), which no client can set."""
    return None if flags is None else tuple(sorted({flag for flag in flags if flag.lower() != "\\recent"}))


def batches(wanted: Iterable[Message], most: int = BATCH_MESSAGES, size: int = BATCH_BYTES) -> Iterator[Batch]:
    """Consecutive messages of one folder, up to `most` and about `size` bytes at a time; lazily."""
    batch: Batch | None = None
    total = 0
    for item in wanted:
        if batch is not None:
            fits = (batch.folder, batch.uidvalidity) == (item.folder, item.uidvalidity) and item.uid not in batch.items
            if not fits or len(batch.items) >= most or total >= size:
                yield batch
                batch = None
        if batch is None:
            batch, total = Batch(item.folder, item.uidvalidity, {}), 0
        batch.items[item.uid] = item
        total += item.size or _UNKNOWN_SIZE
    if batch is not None:
        yield batch


class Fetcher:
    """Fetches bodies over one line. `run` may be used once. `described`: flags and date are told with them.

    Messages of `large` bytes and more are read in pieces of `piece` bytes, unless they are `described`.
    """

    def __init__(self, line: Line, source: Iterator[Batch], sink: Sink, *, described: bool = False, large: int = LARGE, piece: int = PIECE) -> None:
        self._items = b"(UID FLAGS INTERNALDATE BODY.PEEK[])" if described else b"(UID BODY.PEEK[])"
        self._line = line
        self._source = source if described else self._without_large(source, large, piece)
        self._large: deque[LargeMessage] = deque()
        self._sink = sink
        self._again: deque[Batch] = deque()  # before anything new from the source
        self._flight: deque[_Examine | _Fetching] = deque()
        self._folder: _Examine | None = None  # the last EXAMINE sent on this line
        self._receiver: Receiver | None = None  # of the body that is coming in
        self._leftover: list[tuple[Message, str, str]] = []  # message, code and reason if it stays so
        self._told: dict[tuple[bytes, int, int], tuple[str, str]] = {}  # what a body that was none turned out to be
        self._folder_cuts: dict[bytes, int] = defaultdict(int)

    def run(self) -> Iterator[Got]:
        """One outcome a message, in any order. Raises ConnectionFailed where the line is lost for good, and what the sink raises."""
        try:
            while True:
                try:
                    session = self._line.session()
                    yield from self._work(session)
                    return
                except (LineCut, ProtocolBroken) as error:
                    yield from self._recover(error)
        finally:
            self._abort()
            busy = bool(self._flight or (self._large and self._large[0].busy))
            while self._large:
                self._large.popleft().leave()
            if busy:
                self._line.drop()

    def _without_large(self, source: Iterator[Batch], large: int, piece: int) -> Iterator[Batch]:
        """What is to be read in pieces waits until the rest is done."""
        for batch in source:
            for item in [item for item in batch.items.values() if item.size >= large]:
                del batch.items[item.uid]
                self._large.append(LargeMessage(item, self._sink, piece))
            if batch.items:
                yield batch

    def _work(self, session: ImapSession) -> Iterator[Got]:
        while True:
            yield from self._fill(session)
            if not self._flight:
                if self._leftover:
                    yield from self._sort_out(session)
                elif self._large:
                    yield from self._read_large(session, self._large[0])
                else:
                    return
                continue
            yield from self._receive(session)

    def _receive(self, session: ImapSession) -> Iterator[Got]:
        """What comes until a command has ended, and more can be asked for."""
        while True:
            response = session.channel.next(self._take_body)
            if isinstance(response, Fetch):
                got = self._fetched(response)
                if got is not None:
                    self._line.progress()
                    yield got
            elif isinstance(response, Tagged):
                yield from self._finished(response)
                return
            else:
                self._heard(response)

    # -- sending ------------------------------------------------------------------------------------------------------------------------

    def _fill(self, session: ImapSession) -> Iterator[Got]:
        while len(self._leftover) < _LEFTOVER:
            if session.channel.wants_rest:
                return
            fetching = [step for step in self._flight if isinstance(step, _Fetching)]
            if len(fetching) >= (_SINGLES_IN_FLIGHT if fetching and fetching[-1].batch.single else _IN_FLIGHT):
                return
            batch = self._again.popleft() if self._again else next(self._source, None)
            if batch is None:
                return
            name = mailbox(batch.folder)
            if self._folder is None or self._folder.folder != batch.folder:
                if self._flight and not session.channel.at_once(name):
                    self._again.appendleft(batch)
                    return
                looked = session.channel.start(b"LIST", b'""', name) if session.channel.at_once(name) else b""
                self._folder = _Examine(session.channel.start(b"EXAMINE", name), batch.folder, Selected(), looked=looked)
                self._flight.append(self._folder)
            elif self._folder.done and (objection := self._folder.objection(batch.uidvalidity)):
                yield from (Got(item, code=objection[0], reason=objection[1]) for item in batch.items.values())
                continue
            tag = session.channel.start(b"UID FETCH", sets.compress(batch.items), self._items)
            self._flight.append(_Fetching(tag, batch, self._folder))

    # -- receiving ----------------------------------------------------------------------------------------------------------------------

    def _take_body(self, size: int) -> Receiver | None:
        step = self._flight[0]
        if isinstance(step, _Examine) or step.opened.objection(step.batch.uidvalidity):
            return None
        self._receiver = self._sink.open(size)
        return self._receiver

    def _heard(self, response: Response) -> None:
        """An untagged response that is no FETCH. A LIST may be answered before its turn: servers run at once what cannot disturb each other."""
        steps = [step for step in self._flight if isinstance(step, _Examine)]
        if isinstance(response, Data) and response.kind == "LIST":
            with contextlib.suppress(ValueError):
                one = listed(response.values)
                for step in steps:
                    step.there = step.there or one.is_mailbox(step.folder)
        elif steps and steps[0] is self._flight[0]:
            steps[0].selected.take(response)

    def _waiting_for(self, uid: int) -> Batch | None:
        """The batch in flight, in the folder that is open now, that asked for this UID."""
        for step in self._flight:
            if isinstance(step, _Examine):
                return None
            if uid in step.batch.items:
                return step.batch
        return None

    def _fetched(self, fetch: Fetch) -> Got | None:
        if fetch.body is None:
            return None  # unsolicited: flags that another client set
        batch = self._waiting_for(fetch.uid) if fetch.uid is not None else None
        if batch is None or fetch.uid is None or (fetch.body.writer is None and not fetch.body.nil):
            self._abort()
            return None
        item = batch.items[fetch.uid]
        key = (item.folder, item.uidvalidity, item.uid)
        receiver = self._receiver
        if fetch.body.nil or receiver is None:
            self._told[key] = ("no-body", "the server gives no contents (NIL) for this message")
            return None
        if fetch.body.size == 0 and item.size > 0:
            self._abort()
            self._told[key] = ("empty", f"the server gives an empty message where it told of {item.size} bytes")
            return None
        self._receiver = None
        digest, size = receiver.commit()
        del batch.items[fetch.uid]
        self._told.pop(key, None)
        if size != fetch.body.size:
            return Got(item, code="short", reason=f"{size} bytes were stored of the {fetch.body.size} that came")
        return Got(item, digest, size, flags=known_flags(fetch.flags), internaldate=fetch.internaldate or "")

    def _abort(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.abort()

    def _finished(self, tagged: Tagged) -> Iterator[Got]:
        if any(isinstance(step, _Examine) and step.looked == tagged.tag for step in self._flight):
            return
        step = next((step for step in self._flight if step.tag == tagged.tag), None)
        if step is None or (step is not self._flight[0] and (isinstance(step, _Examine) or isinstance(self._flight[0], _Examine))):
            raise ProtocolBroken("the server answered commands out of order", where="IMAP")
        self._flight.remove(step)
        if isinstance(step, _Examine):
            step.done = True
            step.refused = None if tagged.ok else tagged.answer
            step.rested = not tagged.ok and self._line.rest(tagged.answer.text)
            if step.rested and self._folder is step:
                self._folder = None
            return
        if step.opened.rested or (not tagged.ok and step.batch.items and step.opened.refused is None and self._line.rest(tagged.answer.text)):
            self._again.append(step.batch)
            return
        objection = step.opened.objection(step.batch.uidvalidity)
        for item in step.batch.items.values():
            key = (item.folder, item.uidvalidity, item.uid)
            if objection is not None:
                yield Got(item, code=objection[0], reason=objection[1])
                continue
            said = plain(tagged.answer.text) or "no reason given"
            code, reason = self._told.pop(key, ("fetch-no", f"the server does not hand it out: {tagged.answer.status} {said}"))
            if step.batch.last:
                yield Got(item, code=code, reason=reason)
            else:
                self._leftover.append((item, code, reason))
        if step.batch.last or objection is not None:
            self._line.progress()

    def _read_large(self, session: ImapSession, message: LargeMessage) -> Iterator[Got]:
        """One message in pieces. Where the server does not do them well it is asked for like any other; so is one that cannot be had."""
        item, before = message.item, message.came
        selected, answer = session.open_mailbox(item.folder)
        self._folder = None
        if answer.ok and selected.uidvalidity == item.uidvalidity:
            try:
                whole = message.read(session)
            finally:
                if message.came > before:
                    self._line.progress()
            if whole:
                self._large.popleft()
                yield Got(item, *message.commit())
                return
        self._large.popleft().leave()
        self._again.append(Batch(item.folder, item.uidvalidity, {item.uid: item}, single=True))

    # -- what went wrong ----------------------------------------------------------------------------------------------------------------

    def _sort_out(self, session: ImapSession) -> Iterator[Got]:
        """Asks which of the leftover messages still exist; those are asked for one by one, the others are told as vanished."""
        by_folder: dict[tuple[bytes, int], list[Message]] = defaultdict(list)
        for item, _, _ in self._leftover:
            by_folder[item.folder, item.uidvalidity].append(item)
        outcomes: list[Got] = []
        again: list[Batch] = []
        self._folder = None
        for (folder, uidvalidity), items in by_folder.items():
            selected, answer = session.open_mailbox(folder)
            opened = _Examine(b"", folder, selected, None if answer.ok else answer.answer, done=True, looked=answer.tag)
            opened.there = answer.ok or session.exists(folder)
            objection = opened.objection(uidvalidity)
            if objection is not None:
                outcomes.extend(Got(item, code=objection[0], reason=objection[1]) for item in items)
                continue
            there = _existing(session, [item.uid for item in items])
            for item in items:
                if item.uid in there:
                    again.append(Batch(folder, uidvalidity, {item.uid: item}, single=True, last=True))
                else:
                    outcomes.append(Got(item, code="vanished", reason="the message is not on the server any more"))
        self._leftover.clear()
        self._again.extend(again)
        yield from outcomes

    def _recover(self, error: ConnectionFailed) -> Iterator[Got]:
        """Queues what was in flight once more. The message that was coming in is the suspect, and is asked for alone from now on."""
        self._abort()
        outcomes: list[Got] = []
        flight, self._flight, self._folder = list(self._flight), deque(), None
        told = ("line-cut", f"the line was cut each time it was asked for: {error.reason}")
        if not flight and self._large and self._large[0].busy:
            self._large[0].cuts += 1
            if self._large[0].cuts > _SINGLE_CUTS:
                lost = self._large.popleft()
                lost.leave()
                outcomes.append(Got(lost.item, code=told[0], reason=told[1]))
        again = [step.batch for step in flight if isinstance(step, _Fetching) and step.batch.items]
        if flight and isinstance(flight[0], _Examine):
            folder = flight[0].folder
            self._folder_cuts[folder] += 1
            if self._folder_cuts[folder] >= _SINGLE_CUTS:
                outcomes += [Got(item, code=told[0], reason=told[1]) for batch in again if batch.folder == folder for item in batch.items.values()]
                again = [batch for batch in again if batch.folder != folder]
        elif again and flight and again[0] is getattr(flight[0], "batch", None):
            head = again[0]
            head.cuts += 1
            if not head.single:
                uid = min(head.items)
                suspect = Batch(head.folder, head.uidvalidity, {uid: head.items.pop(uid)}, single=True, cuts=1)
                again = [*again[1:], suspect] if not head.items else [*again, suspect]
            elif head.cuts >= _SINGLE_CUTS:
                outcomes += [Got(item, code=told[0], reason=told[1]) for item in head.items.values()]
                again = again[1:]
        self._again.extendleft(reversed(again))
        if outcomes:
            self._line.progress()
        self._line.cut(error)
        yield from outcomes


def _existing(session: ImapSession, uids: list[int]) -> set[int]:
    """Those of the UIDs that the open mailbox holds."""
    found: set[int] = set()
    for at in range(0, len(uids), BATCH_MESSAGES):
        chunk = uids[at : at + BATCH_MESSAGES]
        tag = session.channel.start(b"UID FETCH", sets.compress(chunk), b"(UID)")
        for response in session.channel.responses(tag):
            if isinstance(response, Fetch) and response.uid is not None:
                found.add(response.uid)
        session.channel.result(tag)
    return found
