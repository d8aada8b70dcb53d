"""Metadata of every message: folder by folder, read-only, several folders' commands in flight.

Each folder is bracketed: its UIDVALIDITY before and after, and as many messages described as it said it has; otherwise it is listed again.
Of a folder that an earlier listing told of, only what changed is asked for where the server can tell (`places.mail_changes`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from hostbackup.errors import ConnectionFailed, LineCut, ProtocolBroken
from hostbackup.model import Changes, Failure, Folder, Listing, Message
from hostbackup.places.mail_changes import Difference, can_differ, has_fewer, is_unchanged
from hostbackup.places.mail_line import Line
from hostbackup.protocols.imap.channel import mailbox
from hostbackup.protocols.imap.framer import Data, Fetch, Number, Tagged, Untagged
from hostbackup.protocols.imap.session import ImapSession, Selected
from hostbackup.protocols.imap.wire import plain

RANGE = 4096  # UIDs of one Listing
HOLD = 32_768  # messages of one folder kept before the first is given out: up to here a folder can be listed again as if nothing had happened
_AHEAD = 4  # folders in flight
_TRIES = 3
_FLAGS_CACHED = 4096
_HINTS = {"folder": "let this user read it, or ask the provider to, then run again"}


@dataclass(slots=True, eq=False)
class _FolderScan:
    folder: Folder
    since: int = 1  # the first UID that is asked for
    difference: Difference | None = None  # to an earlier listing; None: everything is listed
    tries: int = 0
    cuts: int = 0
    uidvalidity: int = 0
    highestmodseq: int = 0  # from before anything was listed
    given: int = 0  # messages given out
    next_range: int = 0  # the first range not given out
    ranges: dict[int, dict[int, Message]] = field(default_factory=dict)
    held: int = 0
    disordered: bool = False
    opened: bool = False  # its counters are known

    @property
    def first(self) -> int:
        return max(1, self.since, self.next_range * RANGE)

    def restart(self) -> None:
        self.ranges.clear()
        self.held = 0
        self.disordered = False

    def list_all(self) -> None:
        """The difference cannot be had: everything is listed instead."""
        self.difference, self.since = None, 1


@dataclass(slots=True, eq=False)
class _Started:
    scan: _FolderScan
    examine: bytes
    fetch: bytes
    status: bytes | None
    enable: bytes | None = None


class Scanner:
    """Lists messages; `side` and `part` are what failures are told with. `hold` bounds the messages of a folder kept in memory."""

    def __init__(self, line: Line, side: str, part: str, hold: int = HOLD) -> None:
        self._line = line
        self._side = side
        self._part = part
        self._hold = hold
        self._flags: dict[tuple[str, ...], tuple[str, ...]] = {}

    def run(
        self, folders: Iterable[Folder], since: int = 1, known: Mapping[bytes, Folder] | None = None, counters: Mapping[bytes, Selected] | None = None
    ) -> Iterator[Listing[Message]]:
        """Listings as `scan` gives them; of messages from UID `since` on. Raises ConnectionFailed where the line is lost for good.

        `known` are folders that were listed whole before, `counters` what all have now: of those in both, what changed is told.
        """
        waiting: deque[_FolderScan] = deque()
        for folder in folders:
            old, now = (known or {}).get(folder.name), (counters or {}).get(folder.name)
            if old is not None and now is not None and is_unchanged(old, now):
                yield Listing(folder.name, [], None, _with_counters(folder, old), True, Changes())
            elif old is not None and now is not None and can_differ(old, now, self._hold):
                waiting.append(_FolderScan(folder, old.uidnext, Difference(old, has_fewer(old, now))))
            else:
                waiting.append(_FolderScan(folder, since))
        flight: deque[_Started] = deque()
        try:
            while waiting or flight:
                try:
                    session = self._line.session()
                    self._start(session, waiting, flight)
                    yield from self._finish(session, flight, waiting)
                except (LineCut, ProtocolBroken) as error:
                    yield from self._recover(error, waiting, flight)
        finally:
            if flight:
                self._line.drop()

    def _start(self, session: ImapSession, waiting: deque[_FolderScan], flight: deque[_Started]) -> None:
        channel = session.channel
        while waiting and len(flight) < _AHEAD:
            name = mailbox(waiting[0].folder.name)
            at_once = channel.at_once(name)
            if flight and not at_once:
                return
            scan = waiting.popleft()
            scan.restart()
            enable = None
            if scan.difference is not None and not session.qresync and not flight and session.offers("QRESYNC") and session.offers("ENABLE"):
                enable = channel.start(b"ENABLE QRESYNC")
                session.qresync = True
            examine = channel.start(b"EXAMINE", name, b"(CONDSTORE)") if session.condstore else channel.start(b"EXAMINE", name)
            if scan.difference is not None:
                scan.difference.start(session)
            fetch = channel.start(b"UID FETCH %d:* (UID FLAGS INTERNALDATE RFC822.SIZE)" % scan.first)
            status = channel.start(b"STATUS", name, session.status_items) if at_once else None
            flight.append(_Started(scan, examine, fetch, status, enable))

    def _finish(self, session: ImapSession, flight: deque[_Started], waiting: deque[_FolderScan]) -> Iterator[Listing[Message]]:
        """Reads all that answers the first folder in flight."""
        started = flight[0]
        scan = started.scan
        channel = session.channel
        if started.enable is not None:
            session.qresync = channel.finish(started.enable).ok
        selected = Selected()
        examined = channel.finish(started.examine, selected.take)
        first = scan.first
        scan.opened = scan.opened or examined.ok
        before, told = selected.uidvalidity, selected.exists
        selected.moved, selected.expunged = False, 0
        again = scan.given and before != scan.uidvalidity
        if not scan.given:
            scan.uidvalidity, scan.highestmodseq = before, selected.highestmodseq if session.condstore else 0
        after = Selected()
        if scan.difference is not None:
            scan.difference.finish(session, selected, after, self._sorted, lambda fetch: self._take(scan, fetch, first))
        for response in channel.responses(started.fetch):
            if isinstance(response, Data) and response.kind == "STATUS":  # answered before its turn
                after.take(response)
            elif isinstance(response, (Number, Untagged, Data)):
                selected.take(response)
            elif isinstance(response, Fetch) and examined.ok and not again:
                self._take(scan, response, first)
                if scan.held > self._hold and len(scan.ranges) > 1:
                    yield self._give(scan, self._counted(scan, selected), min(scan.ranges))
        fetched = channel.result(started.fetch)
        if started.status is not None and not channel.finish(started.status, after.take).ok:
            after = Selected()
        flight.popleft()
        if scan.difference is not None and examined.ok:
            if (changed := self._changed(scan, scan.difference, selected, fetched)) is None:
                waiting.appendleft(scan)
            else:
                self._line.progress()
                yield changed
            return
        if not selected.uidnext and after.exists == scan.given + scan.held:  # a server that does not tell it earlier; nothing came since
            selected.uidnext = after.uidnext
        trouble = self._trouble(scan, examined, fetched, selected, told)
        if trouble is None and {before, selected.uidvalidity, after.uidvalidity or before} != {before}:
            trouble = ("changing", "its UIDVALIDITY changed while it was listed")
        if again:
            trouble = ("uidvalidity", "its UIDVALIDITY changed while it was listed")
        elif trouble is not None and not scan.given and self._may_do_better(scan, trouble, examined if not examined.ok else fetched):
            waiting.appendleft(scan)
            return
        self._line.progress()
        yield from self._conclude(scan, self._counted(scan, selected, whole=trouble is None), trouble)

    def _may_do_better(self, scan: _FolderScan, trouble: tuple[str, str], answer: Tagged) -> bool:
        """Whether the folder is worth being listed again from the start; waits first where the server asks for that."""
        if not answer.ok and self._line.rest(answer.answer.text):
            return True
        if trouble[0] != "changing" or scan.tries + 1 >= _TRIES:
            return False
        scan.tries += 1
        return True

    def _changed(self, scan: _FolderScan, difference: Difference, selected: Selected, fetched: Tagged) -> Listing[Message] | None:
        """The difference where it adds up; else None, and the folder is to be asked more thoroughly."""
        whole = fetched.ok or (selected.exists == 0 and scan.held == 0)
        changes = difference.changes(scan.held, selected) if whole and not scan.disordered else None
        if changes is None:
            if difference.listing or difference.refused or not difference.fewer:
                scan.list_all()
            difference.listing = True
            return None
        items = [bucket[uid] for _, bucket in sorted(scan.ranges.items()) for uid in sorted(bucket)]
        return Listing(scan.folder.name, items, None, self._counted(scan, selected, whole=True), True, changes)

    def _take(self, scan: _FolderScan, fetch: Fetch, first: int) -> None:
        uid = fetch.uid
        if uid is None or uid < first:  # `n:*` also gives the last message where that is below n
            return
        number = uid // RANGE
        if number < scan.next_range:
            scan.disordered = True
            return
        bucket = scan.ranges.setdefault(number, {})
        flags = self._sorted(fetch.flags or ())
        known = bucket.get(uid)
        if fetch.size is None and fetch.internaldate is None:  # unsolicited: another client changed flags
            if known is not None and fetch.flags is not None:
                bucket[uid] = replace(known, flags=flags)
            elif not bucket:
                del scan.ranges[number]
            return
        scan.held += known is None
        bucket[uid] = Message(scan.folder.name, scan.uidvalidity, uid, fetch.size or 0, fetch.internaldate or "", flags)

    def _sorted(self, flags: tuple[str, ...]) -> tuple[str, ...]:
        """Sorted without doubles and \\Recent; equal ones are one object, which saves memory."""
        found = self._flags.get(flags)
        if found is None:
            if len(self._flags) >= _FLAGS_CACHED:
                self._flags.clear()
            found = self._flags[flags] = tuple(sorted({flag for flag in flags if flag.lower() != "\\recent"}))
        return found

    @staticmethod
    def _trouble(scan: _FolderScan, examined: Tagged, fetched: Tagged, selected: Selected, told: int) -> tuple[str, str] | None:
        """Code and reason where the folder was not seen whole."""
        if not examined.ok:
            return "folder", f"the server does not open it: {plain(examined.answer.text)}"
        seen = scan.given + scan.held
        if not fetched.ok and not (told == 0 and seen == 0) and fetched.answer.code != "EXPUNGEISSUED":
            return "changing", f"the server did not describe all its messages: {plain(fetched.answer.text)}"
        if scan.disordered:
            return "changing", "the server described messages out of order"
        missed = told - seen if scan.since <= 1 else 0
        if selected.moved or fetched.answer.code == "EXPUNGEISSUED":
            missed -= selected.expunged
        if missed > 0 or (missed < 0 and not selected.moved):
            return "changing", f"the server says it holds {told} messages and described {seen}"
        return None

    @staticmethod
    def _counted(scan: _FolderScan, selected: Selected, *, whole: bool = False) -> Folder:
        """The folder with counters that fit what was listed, if that is `whole`: mail that came meanwhile is beyond them, for the next time."""
        highest = max((max(bucket, default=0) for bucket in scan.ranges.values()), default=0)
        uidnext = max(selected.uidnext, highest + 1) if highest else selected.uidnext
        exists = scan.given + scan.held if whole and scan.difference is None else selected.exists
        return replace(scan.folder, uidvalidity=scan.uidvalidity, uidnext=uidnext, exists=exists, highestmodseq=scan.highestmodseq if whole else 0)

    @staticmethod
    def _give(scan: _FolderScan, folder: Folder, number: int, *, failure: Failure | None = None, last: bool = False) -> Listing[Message]:
        bucket = scan.ranges.pop(number)
        scan.held -= len(bucket)
        scan.given += len(bucket)
        scan.next_range = number + 1
        return Listing(folder.name, [bucket[uid] for uid in sorted(bucket)], failure, folder, last)

    def _conclude(self, scan: _FolderScan, folder: Folder, trouble: tuple[str, str] | None) -> Iterator[Listing[Message]]:
        failure = None
        if trouble is not None:
            failure = Failure(self._side, self._part, folder.name, trouble[0], trouble[1], _HINTS.get(trouble[0], "run again"))
        # Each range says that it may lack messages: what is not in it must not be taken for deleted.
        numbers = sorted(number for number, bucket in scan.ranges.items() if bucket)
        for number in numbers:
            yield self._give(scan, folder, number, failure=failure, last=number == numbers[-1])
        if not numbers:
            yield Listing(folder.name, [], failure, folder if scan.opened else None, True)

    def _recover(self, error: ConnectionFailed, waiting: deque[_FolderScan], flight: deque[_Started]) -> Iterator[Listing[Message]]:
        """What was in flight waits again. A folder that cut the line twice is told as failed, so that the rest goes on."""
        while flight:
            waiting.appendleft(flight.pop().scan)
        self._line.cut(error)
        if waiting:
            waiting[0].cuts += 1
            if waiting[0].difference is not None:
                waiting[0].list_all()  # what changed may be more than a line holds, and would be the next time, too
            if waiting[0].cuts >= 2:
                scan = waiting.popleft()
                scan.restart()
                self._line.progress()
                yield from self._conclude(scan, scan.folder, ("line-cut", error.reason))


def _with_counters(folder: Folder, old: Folder) -> Folder:
    return replace(folder, uidvalidity=old.uidvalidity, uidnext=old.uidnext, exists=old.exists, highestmodseq=old.highestmodseq)
