"""A mail account on a POP3 server as a place: one folder, INBOX, to be read only.

POP3 shows neither folders nor flags nor when a message came, so what is proven here is less than over IMAP. Nothing is ever deleted: no DELE is
sent, and no QUIT, without which a server may change nothing (RFC 1939 §6). Some do all the same: where the line is cut, messages may stay marked as
read that were only retrieved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from hostbackup.errors import ConnectionFailed, LineCut, ProtocolBroken
from hostbackup.model import Claim, Failure, Folder, Listing, Message, Method, Observer, Part, Proof, Read, Sink, Write, Written
from hostbackup.places.mail import HashingSink
from hostbackup.places.mail_fetch import Got
from hostbackup.places.mail_line import AnyLine
from hostbackup.places.pop3_fetch import Drop, Retriever, as_told, with_arrival
from hostbackup.places.pop3_numbers import INBOX, UIDVALIDITY, Known, Numbers, nothing
from hostbackup.protocols.imap.session import Selected
from hostbackup.protocols.pop3.session import Pop3Session, Slot

if TYPE_CHECKING:
    from hostbackup.places.mail_prove import Comparing, Prover, Reader
    from hostbackup.places.pop3_check import Again

RANGE = 4096  # numbers of one Listing
_HINTS = {
    "refused": "the old server itself does not hand out this message: ask the provider",
    "line-cut": "ask the provider to look at this message",
    "short": "run again: it will be asked for again",
    "changing": "run again",
}
_Result = TypeVar("_Result")


class Pop3Account:
    """`session_factory` connects and logs in; it is called when a connection is first needed, and again after a cut.

    `side` and `part` are what failures are told with. `reader` opens what is stored under a digest, for proofs where a server rewrote it.
    `allow_expire_0`: read also from a server that says it deletes what was retrieved.
    Nothing here is shared between threads but `close`.
    """

    protocol = "pop3"
    namespace_prefix = b""
    separator = b""

    def __init__(
        self,
        session_factory: Callable[[], Pop3Session],
        *,
        side: str,
        part: Part,
        observer: Observer | None = None,
        reader: Reader | None = None,
        allow_expire_0: bool = False,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.side = side
        self.part = part
        self._observer = observer or Observer()
        self._reader = reader
        self._allow_expire_0 = allow_expire_0
        self._line = AnyLine(session_factory, pause, lambda text: self._observer.note(f"{part}: {text}"))
        self._numbers = Numbers()
        self._drop: Drop | None = None
        self._known_digests: tuple[Pop3Session, dict[int, str]] | None = None
        self._told: set[str] = set()
        self._known: Known = nothing
        self._look_again: Again | None = None
        self.by_place = False  # the server calls messages by their places in its list
        self.unchecked = 0  # messages that the last scan had to read again, and could not

    def recall(self, known: Known, uidnext: int, again: Again | None = None) -> None:
        """The messages that had a number before: `known` gives them each time it is called, `uidnext` is above all numbers ever given.

        `again`: which of them the next scan looks at again; without it a UIDL and a size are believed.
        """
        self._numbers = Numbers(known, uidnext)
        self._known, self._look_again = known, again
        self._drop = None

    # -- the mailbox --------------------------------------------------------------------------------------------------------------------

    def folders(self) -> list[Folder]:
        """INBOX. Raises ConnectionFailed where the server does not let us in."""
        self._session()
        return [Folder(INBOX)]

    def capabilities(self) -> list[str]:
        """What the server offers after login, sorted. Raises ConnectionFailed."""
        return sorted(" ".join((name, *arguments)) for name, arguments in self._session().capabilities.items())

    def status(self, folder: bytes) -> Selected | None:
        """How many messages there are; None for a folder other than INBOX. UIDVALIDITY is 0: nothing of that kind tells one server from another."""
        return Selected(exists=self.totals()[0]) if folder == INBOX else None

    def counters(self, folders: Sequence[bytes]) -> dict[bytes, Selected | None]:
        """As `status`, of many folders. Raises ConnectionFailed."""
        return {name: self.status(name) for name in folders}

    def totals(self) -> tuple[int, int]:
        """Messages and octets, as the server tells them. Raises ConnectionFailed."""
        return self._again(lambda: self._session().stat())

    # -- the four verbs -----------------------------------------------------------------------------------------------------------------

    def scan(self, since: Mapping[bytes, Folder] | None = None) -> Iterator[Listing[Message]]:
        """INBOX, our numbers ascending, at most one range of 4,096 a Listing. Dates are not known before a message is read.

        `since` makes no difference: POP3 tells of no changes, so all is listed each time.
        """
        messages, told = self._again(self._list)
        failure = self._check(messages)
        messages, told = self._again(self._list) if self._drop is None else (messages, told)
        folder = Folder(INBOX, uidvalidity=UIDVALIDITY, uidnext=self._numbers.uidnext, exists=told)
        if len(messages) != told:
            reason = f"the server says it holds {told} messages and listed {len(messages)}"
            failure = Failure(self.side, self.part.id, INBOX, "changing", reason, "run again")
        at = 0
        while at < len(messages) or at == 0:
            end = next((place for place in range(at, len(messages)) if messages[place].uid // RANGE != messages[at].uid // RANGE), len(messages))
            yield Listing(INBOX, messages[at:end], failure, folder, end == len(messages))
            at = end or 1

    def read(self, wanted: Iterable[Message], sink: Sink) -> Iterator[Read[Message]]:
        """Messages byte for byte, with the date that each tells of itself. Failures: "vanished", "refused", "short", "line-cut", "changing"."""
        shorter = 0
        for got in Retriever(self._line, self._open_drop, wanted, sink).run():
            failure = self._failure(got.item.label, got.code, got.reason) if got.code else None
            if got.code == "vanished" and self._drop is not None and self._drop.may_hold(got.item):
                reason = "in a new session the server lists it otherwise, or it cannot be told from others there"
                failure = self._failure(got.item.label, "changing", reason)
            shorter += not got.code and not as_told(got)
            yield Read(got.item, with_arrival(got), got.digest, got.size, failure)
        if shorter:
            what = "message is" if shorter == 1 else "messages are"
            self._observer.warn(f"{self.part}: {shorter:,} {what} shorter than the server says: the same bytes came in two sessions, so that is all")

    def write(self, items: Iterable[Write[Message]]) -> Iterator[Written[Message]]:
        """Nothing: POP3 takes no mail."""
        for item in items:
            yield Written(item, item.item, self._failure(item.item.label, "read-only", "POP3 takes no mail"))

    def prove(self, claims: Iterable[Claim[Message]]) -> Iterator[Proof[Message]]:
        """Retrieves each message again and compares it with what is stored, as over IMAP (`mail_prove`)."""
        yield from self._prover().run(claims)

    def _prover(self) -> Prover:
        from hostbackup.places.mail_prove import Prover

        def retrieve(wanted: Iterator[Message], sink: Comparing) -> Iterator[Got]:
            return Retriever(self._line, self._open_drop, wanted, sink, lambda got: sink.expected(got.digest) or as_told(got)).run()

        return Prover(retrieve, self._failure, self._reader, Method.POP3_RETR)

    def close(self) -> None:
        self._line.close()
        self._drop = None

    # -- sessions -----------------------------------------------------------------------------------------------------------------------

    def _session(self) -> Pop3Session:
        """Raises ConnectionFailed, also where looking at messages might delete them."""
        session = self._line.session()
        if session.expire == "0" and not self._allow_expire_0:
            self._line.close()
            raise ConnectionFailed(
                "the server says that it deletes what was retrieved (EXPIRE 0), and the old server is only ever read",
                where=session.where,
                hint="ask the provider for IMAP, or to keep the mail; to read all the same, set `allow_expire_0 = true` in [old.pop3]",
            )
        if session.expire:
            self._tell(f"the server deletes mail after {session.expire} days (EXPIRE)")
        return session

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._observer.warn(f"{self.part}: {text}")

    def _again(self, work: Callable[[], _Result]) -> _Result:
        """Work that may be repeated from the start, done once more where the line was cut."""
        while True:
            self._session()  # who cannot be reached at all is not looked for again here
            try:
                result = work()
            except (LineCut, ProtocolBroken) as error:
                self._line.cut(error)
            else:
                self._line.progress()
                return result

    def _open_drop(self) -> Drop:
        """What the open session holds. A new session is listed anew, as its numbers count in it alone."""
        session = self._session()
        if self._drop is None or self._drop.session is not session:
            self._list()
            assert self._drop is not None
        return self._drop

    def _list(self) -> tuple[list[Message], int]:
        """The messages, by our numbers ascending, and how many the server says there are."""
        session = self._session()
        told, slots = session.contents()
        nameless = self._numbers.nameless(slots)
        if nameless:
            self._tell(f"{len(nameless)} messages have no name of their own (UIDL) and are told apart by their contents, each fetched every time")
        self.by_place = bool(slots) and all(slot.uidl == str(slot.number) for slot in slots)
        messages, numbers = self._numbers.give(slots, self._digests(session, nameless))
        self._drop = Drop(session, numbers, told, frozenset(slot.uidl for slot in slots if slot.uidl))
        return messages, told

    def _digests(self, session: Pop3Session, slots: list[Slot]) -> dict[int, str]:
        """Of the contents, by the session's number, fetched once a session; what the server refuses is left out."""
        if not self._known_digests or self._known_digests[0] is not session:
            at_once = Drop(session, {slot.number: slot.number for slot in slots}, len(slots))
            wanted = [Message(INBOX, UIDVALIDITY, slot.number, slot.size) for slot in slots]
            found = {got.item.uid: got.digest for got in Retriever(self._line, lambda: at_once, wanted, HashingSink()).once()}
            self._known_digests = session, found
        return self._known_digests[1]

    def _check(self, messages: list[Message]) -> Failure | None:
        """Looks again at messages that were there before. Those that are others get new numbers, and the list is to be made anew then."""
        again, self._look_again = self._look_again, None
        if again is None:
            return None
        from hostbackup.places.pop3_check import Checker

        known = [message for message in messages if self._numbers.knew(message)]
        checker = Checker(
            again,
            known,
            self._known,
            self.by_place,
            self._open_drop,
            self.prove,
            self._prover().fingerprints,
            self._again,
            self.part,
        )
        checker.run()
        if checker.other:
            self._observer.note(
                f"{self.part}: {len(checker.other):,} messages are others now than when they were listed under the same UIDL and size"
            )
            self._numbers.renew(checker.other)
            self._drop = None
        self.unchecked = len(checker.failed)
        if not checker.failed:
            return None
        first = checker.failed[0]
        reason = f"{len(checker.failed):,} messages that were to be read again could not be: {first.reason}"
        return self._failure(INBOX, "unread", reason, first.hint)

    # -- outcomes -----------------------------------------------------------------------------------------------------------------------

    def _failure(self, label: bytes, code: str, reason: str, hint: str = "") -> Failure:
        return Failure(self.side, self.part.id, label, code, reason, hint or _HINTS.get(code, ""))
