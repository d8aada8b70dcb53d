"""Whether known messages are still what they were: a UIDL is the server's word, and some servers give it again.

What costs little is done each time: the headers (TOP n 0) of some messages, which are other ones each time, are compared with what is stored; of all
messages where a message's name is nothing but its place in the list, or where one of the some turned out to be another. A message whose header
differs is read whole, and so are those that somebody doubts: only other bytes count.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from hostbackup.errors import Damaged, LineCut, ProtocolBroken, VaultError
from hostbackup.model import Claim, Failure, Message, Observer, Part, Proof, Status, Stored
from hostbackup.places.mail_compare import Fingerprint, Tier, fingerprint, same_letter
from hostbackup.places.pop3_fetch import MAX_EXTRA, Drop
from hostbackup.protocols.pop3.session import Pop3Session

SOME = 64  # messages of a run whose headers are looked at: one round trip, about 100 KB …
SOME_SLOWLY = 8  # … and where each is a round trip of its own
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Again:
    """What is to be looked at again. `reader` opens what is stored under a digest; `doubted`: messages to be read whole; `every`: all of them.

    `observer` hears how far that has come.
    """

    reader: Callable[[str], BinaryIO]
    every: bool = False
    doubted: Callable[[Message], bool] = lambda message: False
    observer: Observer = field(default_factory=Observer)


@dataclass(slots=True)
class Checker:
    """`messages`: those that are listed and were there before; `known` gives them as they are stored. `by_place`: the server names messages by their
    places in the list. `repeat` does work again after a cut. `run` finds `other`, the numbers of those that are others now, and what `failed`.
    """

    again: Again
    messages: list[Message]
    known: Callable[[], Iterable[Stored[Message]]]
    by_place: bool
    open_drop: Callable[[], Drop]
    prove: Callable[[Iterable[Claim[Message]]], Iterator[Proof[Message]]]
    fingerprints: Callable[[Iterable[Message]], Iterator[tuple[Message, Fingerprint]]]
    repeat: Callable[[Callable[[], list[Message]]], list[Message]]
    part: Part
    other: list[int] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    _stored: dict[int, tuple[str, int]] = field(default_factory=dict)  # digest and size by number, of those that are looked at

    def run(self) -> None:
        """Raises ConnectionFailed."""
        if self.again.every:
            self._compare(self._with_contents(self.messages))
            return
        self._compare(self._with_contents([message for message in self.messages if self.again.doubted(message)]))
        session = self.open_drop().session
        if not session.has_top:
            return
        some = self._some(session)
        if self._compare(self._suspects(self._with_contents(some))) and len(some) < len(self.messages):
            seen = {message.uid for message in some}
            rest = [message for message in self.messages if message.uid not in seen]
            self._compare(self._suspects(self._with_contents(rest)))

    def _some(self, session: Pop3Session) -> list[Message]:
        most = SOME if session.pipelining else SOME_SLOWLY
        if self.by_place or len(self.messages) <= most:
            return self.messages
        return sorted(random.sample(self.messages, most), key=lambda message: message.uid)

    def _with_contents(self, messages: list[Message]) -> list[Message]:
        """Those of which anything is stored."""
        wanted = {message.uid for message in messages}
        if wanted:
            self._stored |= {record.item.uid: (record.digest, record.size) for record in self.known() if record.digest and record.item.uid in wanted}
        return [message for message in messages if message.uid in self._stored]

    def _compare(self, messages: list[Message]) -> bool:
        """Reads messages whole; whether any of them is another one. What a server writes into a header makes no other message."""
        if not messages:
            return False
        self.again.observer.phase(f"{self.part}: reading known messages again", len(messages), sum(message.size for message in messages))
        before = len(self.other)
        rewritten: list[Message] = []
        for proof in self.prove(Claim(message, *self._stored[message.uid]) for message in messages):
            item = proof.claim.item
            self.again.observer.advance(1, item.size)
            if proof.status is Status.DIFFERENT:
                self.other.append(item.uid)
            elif proof.tier == Tier.BODY:
                rewritten.append(item)
            elif proof.status in (Status.FAILED, Status.UNVERIFIED) and proof.failure is not None:
                self.failed.append(proof.failure)
        for item, now in self.fingerprints(rewritten) if rewritten else ():
            with self.again.reader(self._stored[item.uid][0]) as stream:
                if not same_letter(fingerprint(stream), now):
                    self.other.append(item.uid)
        return len(self.other) > before

    def _suspects(self, messages: list[Message]) -> list[Message]:
        """Those whose header is not how the stored message begins; all of some of which one cuts the line each time."""
        found: list[Message] = []
        for at in range(0, len(messages), _AT_ONCE):
            group = messages[at : at + _AT_ONCE]
            try:
                found += self.repeat(lambda group=group: list(self._ask(group)))  # type: ignore[misc]
            except (LineCut, ProtocolBroken):
                found += group  # reading them whole finds the one, or that the server is gone
        return found

    def _ask(self, messages: list[Message]) -> Iterator[Message]:
        drop = self.open_drop()
        asked = [message for message in messages if message.uid in drop.numbers]
        step = len(asked) if drop.session.pipelining else 1
        for at in range(0, len(asked), step or 1):
            for message in asked[at : at + step]:
                drop.session.ask_header(drop.numbers[message.uid])
            for message in asked[at : at + step]:
                with _Beginning(self._open(message)) as beginning:
                    reply = drop.session.take(beginning.write, 4 * message.size + MAX_EXTRA)
                if reply.ok and beginning.differs:
                    yield message

    def _open(self, message: Message) -> BinaryIO | None:
        """None where it cannot be read: it is brought again for that, or told elsewhere."""
        try:
            return self.again.reader(self._stored[message.uid][0])
        except (Damaged, VaultError, OSError):
            return None


class _Beginning:
    """Takes bytes and compares them with how a file begins."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file
        self.differs = False

    def write(self, data: memoryview | bytes) -> None:
        if self._file is not None and not self.differs:
            self.differs = self._file.read(len(data)) != data

    def __enter__(self) -> _Beginning:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
