"""Numbers for messages that have none: POP3 counts anew in each session, and names a message by a UIDL, where it names it at all.

A message that was seen before keeps its number. It is known by UIDL and size together, so that a server which gives an old UIDL to other contents
is found out where their size differs. Where UIDLs are lacking, or several messages share one, the contents' digest is the name; equal contents
are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hostbackup.model import Message, Stored
from hostbackup.protocols.pop3.session import Slot

INBOX = b"INBOX"
UIDVALIDITY = 1
BY_DIGEST = "sha256:"  # with 64 digits this is longer than any UIDL (RFC 1939 §7: 70 characters)
Known = Callable[[], Iterable[Stored[Message]]]


def nothing() -> Iterable[Stored[Message]]:
    return ()


class Numbers:
    """Gives numbers. `known` gives all messages that ever had one, each time it is called; `uidnext` is above all that were ever given."""

    def __init__(self, known: Known = nothing, uidnext: int = 1) -> None:
        self._known = known
        self._by_name: dict[str, int] = {}
        self._by_digest: dict[str, list[int]] = {}
        self._next = max(1, uidnext)
        for record in known():
            self._learn(record.item)
        self._first = self._next  # that is given by this object

    @property
    def uidnext(self) -> int:
        return self._next

    def _learn(self, item: Message) -> None:
        self._next = max(self._next, item.uid + 1)
        if item.uidl and not item.uidl.startswith(BY_DIGEST):
            self._by_name[_name(item.uidl, item.size)] = item.uid

    def knew(self, item: Message) -> bool:
        """Whether a message was there before, by a name that the server gave it."""
        return item.uid < self._first and not item.uidl.startswith(BY_DIGEST)

    def renew(self, uids: Iterable[int]) -> None:
        """What is there under the UIDLs of these is something else now: it gets numbers of its own."""
        names = {uid: name for name, uid in self._by_name.items()}
        for uid in uids:
            self._by_name[names[uid]] = self._new()

    def nameless(self, slots: Iterable[Slot]) -> list[Slot]:
        """Those that no UIDL tells from the others: their contents must be looked at."""
        seen: dict[str, Slot | None] = {}
        found = []
        for slot in slots:
            if not slot.uidl:
                found.append(slot)
                continue
            first = seen.setdefault(slot.uidl, slot)
            if first is not slot:
                found.append(slot)
                if first is not None:
                    found.append(first)
                    seen[slot.uidl] = None
        return found

    def give(self, slots: Iterable[Slot], digests: dict[int, str]) -> tuple[list[Message], dict[int, int]]:
        """The messages, by our numbers ascending, and the session's number of each by ours.

        `digests` has those of `nameless`, by the session's number. A nameless message without one is left out: nobody knows which it is.
        """
        numbers: dict[int, int] = {}
        messages: list[Message] = []
        unnamed: list[tuple[Slot, str]] = []
        listed = sorted(slots, key=lambda slot: slot.number)
        nameless = {slot.number for slot in self.nameless(listed)}
        for slot in listed:
            if slot.number not in nameless:
                name = _name(slot.uidl, slot.size)
                uid = self._by_name.get(name)
                if uid is None:
                    uid = self._by_name[name] = self._new()
                numbers[uid] = slot.number
                messages.append(Message(INBOX, UIDVALIDITY, uid, slot.size, uidl=slot.uidl))
            elif slot.number in digests:
                unnamed.append((slot, digests[slot.number]))
        if unnamed:
            free = {digest: [uid for uid in uids if uid not in numbers] for digest, uids in self._counted({digest for _, digest in unnamed}).items()}
            for slot, digest in unnamed:
                if free[digest]:
                    uid = free[digest].pop(0)
                else:
                    uid = self._new()
                    self._by_digest[digest].append(uid)
                numbers[uid] = slot.number
                messages.append(Message(INBOX, UIDVALIDITY, uid, slot.size, uidl=BY_DIGEST + digest))
        messages.sort(key=lambda message: message.uid)
        return messages, numbers

    def _counted(self, digests: set[str]) -> dict[str, list[int]]:
        """The numbers that contents have, by digest, those that were there last time first."""
        found: dict[str, list[tuple[bool, int]]] = {digest: [] for digest in digests if digest not in self._by_digest}
        if found:
            for record in self._known():
                if record.digest in found:
                    found[record.digest].append((bool(record.vanished), record.item.uid))
            self._by_digest.update({digest: [uid for _, uid in sorted(rows)] for digest, rows in found.items()})
        return {digest: self._by_digest[digest] for digest in digests}

    def _new(self) -> int:
        self._next += 1
        return self._next - 1


def _name(uidl: str, size: int) -> str:
    return f"{uidl}\n{size}"
