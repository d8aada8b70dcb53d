"""A mail account on an IMAP server as a place. Reading never changes anything there: folders are opened by EXAMINE, bodies by BODY.PEEK."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from hostbackup.errors import ConnectionFailed, LineCut, ProtocolBroken
from hostbackup.model import Claim, Failure, Folder, Listing, Message, Observer, Part, Proof, Read, Sink, Write, Written
from hostbackup.places.mail_line import Line
from hostbackup.places.mail_scan import Scanner
from hostbackup.protocols.imap.names import display
from hostbackup.protocols.imap.session import ImapSession, Listed, Selected

if TYPE_CHECKING:  # what writes and proves is loaded by those who do
    from hostbackup.places.mail_compare import Fingerprint
    from hostbackup.places.mail_fetch import Got
    from hostbackup.places.mail_prepare import Naming
    from hostbackup.places.mail_prove import Reader
    from hostbackup.places.mail_room import Limits

SPECIAL_USES = ("\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash")  # RFC 6154 §2
_PASSING = ("\\marked", "\\unmarked")  # whether anybody looked since mail came: no property of the folder
_HINTS = {
    "uidvalidity": "run `backup` again: it lists the folder anew",
    "fetch-no": "the old server itself cannot read this message: ask the provider",
}
_Result = TypeVar("_Result")


class MailAccount:
    """`session_factory` connects and logs in; it is called when a connection is first needed, and again after a cut.

    `side` and `part` are what failures are told with. `reader` opens what is stored under a digest, for proofs where a server rewrote it.
    `spare` gives one more session where the server has one to spare. Nothing here is shared between threads but `give_up`.
    """

    protocol = "imap"

    def __init__(
        self,
        session_factory: Callable[[], ImapSession],
        *,
        side: str,
        part: Part,
        observer: Observer | None = None,
        pause: Callable[[float], None] = time.sleep,
        shared: bool = False,
        reader: Reader | None = None,
        spare: Callable[[], ImapSession | None] = lambda: None,
    ) -> None:
        self.side = side
        self.part = part
        self.losses: Counter[tuple[bytes, str]] = Counter()  # (folder, flag or "INTERNALDATE") that the target did not keep, in messages
        self.namespace_prefix = b""  # of the personal namespace; known once folders() has run
        self.separator = b""  # of the hierarchy, likewise; b"" where there is none
        self.foreign: list[bytes] = []  # folders that others share with this user; likewise
        self._shared = shared
        self._observer = observer or Observer()
        self._reader = reader
        self._spare = spare
        self._line = Line(session_factory, pause, lambda text: self._observer.note(f"{part}: {text}"))
        self._pause = pause

    # -- folders ------------------------------------------------------------------------------------------------------------------------

    def folders(self) -> list[Folder]:
        """The folders that can be opened and belong to this user, INBOX first, else sorted by name. Raises ConnectionFailed."""
        return self._again(self._folders)

    def _folders(self, session: ImapSession, counters: dict[bytes, Selected] | None = None) -> list[Folder]:
        listed, subscribed = session.list_folders(counters)
        self._learn_namespace(session, listed)
        known = {one.name for one in subscribed}
        found: dict[bytes, Folder] = {}
        foreign: list[bytes] = []
        for one in listed:
            if one.has("\\Noselect") or one.has("\\NonExistent"):
                continue
            if session.namespaces.is_foreign(one.name):
                foreign.append(one.name)
            if self._shared or not session.namespaces.is_foreign(one.name):
                use = next((use for use in SPECIAL_USES if one.has(use)), "")
                attributes = tuple(sorted(attribute for attribute in one.attributes if attribute.lower() not in _PASSING))
                found[one.name] = Folder(one.name, one.separator, attributes, use, one.has("\\Subscribed") or one.name in known)
        self.foreign = sorted(foreign)
        for name in () if self._shared else self.foreign:
            self._observer.note(f"{self.part}: folder {display(name)!r} belongs to somebody else and is not taken: shared = true takes it")
        for name in sorted(known - {one.name for one in listed}):
            self._observer.note(f"{self.part}: folder {display(name)!r} is subscribed but does not exist")
        return sorted(found.values(), key=lambda folder: (folder.name != b"INBOX", folder.name))

    def _learn_namespace(self, session: ImapSession, listed: list[Listed]) -> None:
        personal = session.namespaces.personal
        if personal:
            self.namespace_prefix, self.separator = personal[0].prefix, personal[0].separator
        if not self.separator:
            self.separator = next((one.separator for one in listed if one.separator), b"") or session.root_separator()

    def capabilities(self) -> list[str]:
        """What the server offers after login, sorted. Raises ConnectionFailed."""
        return sorted(self._line.session().capabilities)

    def status(self, folder: bytes) -> Selected | None:
        """Its uidvalidity, uidnext and exists, None where the server has no such folder. Raises ConnectionFailed."""
        return self._again(lambda session: session.status(folder))

    def counters(self, folders: Sequence[bytes]) -> dict[bytes, Selected | None]:
        """As `status`, of many folders in few round trips. Raises ConnectionFailed."""

        def ask(session: ImapSession) -> dict[bytes, Selected | None]:
            told = session.counters(folders)
            return {name: told[name] if name in told else session.status(name) for name in folders}

        return self._again(ask)

    def prepare(self, folders: Iterable[Folder], naming: Naming | None = None) -> list[Failure]:
        """Creates what is missing of these folders and subscribes those to be subscribed; gives what failed. Raises ConnectionFailed.

        `naming`: what they are called on this server, if not as they are; it finds other names where the server does not take the first ones.
        """
        from hostbackup.places.mail_prepare import AsTheyAre, Preparation

        return self._again(Preparation(folders, naming or AsTheyAre(), self._failure).run)

    def _again(self, work: Callable[[ImapSession], _Result]) -> _Result:
        """Work that may be repeated from the start, done once more where the line was cut: a session idles while contents are stored elsewhere."""
        while True:
            session = self._line.session()
            try:
                result = work(session)
            except (LineCut, ProtocolBroken) as error:
                self._line.cut(error)
            else:
                self._line.progress()
                return result

    # -- the four verbs -----------------------------------------------------------------------------------------------------------------

    def scan(self, since: Mapping[bytes, Folder] | None = None) -> Iterator[Listing[Message]]:
        """Folder by folder, UIDs ascending, at most one range of 4,096 UIDs a Listing.

        `since`: folders by name, as an earlier scan told of them, all of whose messages are still known. Of those, only the changes are told where
        the server can tell them (CONDSTORE, RFC 7162) and the counts agree: a Listing with `changes`. All others are listed in full.
        """
        if not since:
            yield from Scanner(self._line, self.side, self.part.id).run(self.folders())
            return
        counters: dict[bytes, Selected] = {}
        folders = self._again(lambda session: self._folders(session, counters))
        untold = [folder.name for folder in folders if folder.name in since and folder.name not in counters]
        if untold:
            counters |= self._again(lambda session: session.counters(untold) if session.condstore else {})
        yield from Scanner(self._line, self.side, self.part.id).run(folders, 1, since, counters)

    def read(self, wanted: Iterable[Message], sink: Sink) -> Iterator[Read[Message]]:
        """Bodies byte for byte. Failures: "vanished", "uidvalidity", "fetch-no", "empty", "no-body", "folder", "line-cut"."""
        from hostbackup.places.mail_fetch import Fetcher, batches

        for got in Fetcher(self._line, batches(wanted), sink).run():
            failure = None if not got.code else self._failure(got.item.label, got.code, got.reason, _HINTS.get(got.code, ""))
            yield Read(got.item, got.item, got.digest, got.size, failure)

    def write(self, items: Iterable[Write[Message]]) -> Iterator[Written[Message]]:
        """Appends each once; `item.folder` is the name on this server. Failures: "in-doubt", "cut-short", "too-big", "over-quota", "refused", …

        "in-doubt": the line was cut after all of it was sent; "cut-short": before, so that no server that keeps to RFC 3501 has it; "in-part":
        refused together with others, some of which the server may have taken all the same.

        Items are pulled one by one, at most 900 ahead of their outcomes (65 where the server takes one message a command). An outcome's item
        has the UID that the server told (0 where it does not) and the flags and date as they were sent.
        """
        from hostbackup.places.mail_write import Appender

        yield from Appender(self._line, self._failure, self.losses, self._pause).run(items)

    def prove(self, claims: Iterable[Claim[Message]]) -> Iterator[Proof[Message]]:
        """Fetches each message back and compares: equal bytes, or what a server adds to every message, are verified (`mail_compare`)."""
        from hostbackup.places.mail_prove import Prover

        yield from Prover(self._described, self._failure, self._reader).run(claims)

    def _described(self, wanted: Iterator[Message], sink: Sink) -> Iterator[Got]:
        """Messages with their flags and dates."""
        from hostbackup.places.mail_fetch import Fetcher, batches

        return Fetcher(self._line, batches(wanted), sink, described=True).run()

    def look(self, folders: Iterable[bytes]) -> Iterator[Listing[Message]]:
        """As `scan`, of these folders alone. A folder that is not there gives a Listing with a failure."""
        yield from Scanner(self._line, self.side, self.part.id).run([Folder(name) for name in folders])

    def fingerprints(self, wanted: Iterable[Message]) -> Iterator[tuple[Message, Fingerprint]]:
        """Fetches messages, for comparing them with many; flags and date as they are now. What cannot be had is left out. Raises ConnectionFailed."""
        from hostbackup.places.mail_prove import Prover

        yield from Prover(self._described, self._failure).fingerprints(wanted)

    def another(self) -> MailAccount | None:
        """The same account over one more connection, for another thread; None where the server has none to spare. It is not opened again after a
        cut."""
        session = self._spare()
        if session is None:
            return None
        return MailAccount(_once(session), side=self.side, part=self.part, observer=self._observer, pause=self._pause, reader=self._reader)

    def room(self, folders: Sequence[bytes]) -> Limits:
        """What the server says of the sizes it takes and of its quotas, for these folders that are there. Raises ConnectionFailed."""
        from hostbackup.places import mail_room

        return self._again(lambda session: mail_room.ask(session, folders))

    def listed(self, folder: bytes, since_uid: int, wanted: Callable[[Message], bool], on_failure: Callable[[Failure], object]) -> list[Message]:
        """The messages of a folder from `since_uid` on, as far as they are wanted; as for `find`."""
        chosen: list[Message] = []
        for listing in Scanner(self._line, self.side, self.part.id).run([Folder(folder)], since_uid):
            if listing.failure is not None and self._again(lambda session: session.exists(folder)):
                on_failure(listing.failure)
            chosen.extend(filter(wanted, listing.items))
        return chosen

    def find(
        self,
        folder: bytes,
        since_uid: int = 1,
        wanted: Callable[[Message], bool] = lambda message: True,
        on_failure: Callable[[Failure], object] = lambda failure: None,
    ) -> Iterator[tuple[Message, str]]:
        """Messages that stand in a folder from `since_uid` on, as far as they are wanted, with their digests.

        A folder that is not there has none. `on_failure` hears of what could not be looked at: a message that is not given may be there all the
        same then. Raises ConnectionFailed.
        """
        from hostbackup.places.mail_fetch import Fetcher, batches

        chosen = self.listed(folder, since_uid, wanted, on_failure)
        for got in Fetcher(self._line, batches(chosen), HashingSink()).run():
            if got.digest:
                yield replace(got.item, size=got.size), got.digest
            elif got.code != "vanished":
                on_failure(self._failure(got.item.label, got.code, got.reason, _HINTS.get(got.code, "")))

    def close(self) -> None:
        self._line.close()

    def give_up(self) -> None:
        """Cuts its connection, from whichever thread, and opens no other."""
        self._line.give_up()

    # -- outcomes -----------------------------------------------------------------------------------------------------------------------

    def _failure(self, label: bytes, code: str, reason: str, hint: str) -> Failure:
        return Failure(self.side, self.part.id, label, code, reason, hint)


def _once(session: ImapSession) -> Callable[[], ImapSession]:
    """A factory that has one session to give."""
    sessions = [session]

    def connect() -> ImapSession:
        if not sessions:
            raise ConnectionFailed("the second connection was cut, and is not opened again", where=session.where)
        return sessions.pop()

    return connect


class HashingSink:
    """Takes contents for their digest only."""

    def open(self, size_hint: int = 0) -> _Hashing:
        return _Hashing()


class _Hashing:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self._hash.update(data)
        self._size += len(data)

    def commit(self) -> tuple[str, int]:
        return self._hash.hexdigest(), self._size

    def abort(self) -> None:
        pass
