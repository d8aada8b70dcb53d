"""What the journal says of a message that was pushed: where it stands at the new server, or stood when anybody last looked."""

from __future__ import annotations

from typing import NamedTuple

from hostbackup.jobs.backup_mail import message_key
from hostbackup.jobs.keys import key_name
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.model import Message, Stored
from hostbackup.protocols.imap.session import Selected

SETTLED = ("done", "proven")
Spot = tuple[bytes, int, int]  # folder at the new server, UIDVALIDITY, UID


class Sent(NamedTuple):
    """A message of the snapshot, and what the journal knows of it: state `done` or `proven`."""

    record: Stored[Message]
    known: Record

    @property
    def spot(self) -> Spot:
        return key_name(self.known["folder"]), self.known["uidvalidity"], self.known["uid"]

    @property
    def target(self) -> bytes:
        """The folder it was appended to, also where it was moved since."""
        return key_name(self.known["appended"] if "appended" in self.known else self.known["folder"])

    @property
    def proven(self) -> bool:
        return bool(self.known["state"] == "proven")

    def message(self) -> Message:
        return Message(*self.spot, self.record.size)


class Missed(NamedTuple):
    """A sent message that is not where it was put. There may be very many: it holds no more than is needed."""

    record: Stored[Message]
    spot: Spot
    target: bytes
    proven: bool
    size: int  # as the new server told it, by which it may be found elsewhere


def known_of(ledger: Ledger, record: Stored[Message]) -> Record | None:
    """What the journal says of a message. Of other bytes, which the old server gave under the same number before, it says nothing about these."""
    known = ledger.get(message_key(record.item))
    return None if known is not None and record.digest and known["digest"] != record.digest else known


def was_taken_back(spot: Spot, now: Selected | None) -> bool:
    """Whether the server says of a number that it gave that it is still to be given, which no user can bring about (RFC 3501 §2.3.1.1)."""
    _, uidvalidity, uid = spot
    return now is not None and bool(uid) and now.uidvalidity == uidvalidity and 0 < now.uidnext <= uid
