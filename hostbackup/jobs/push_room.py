"""Whether the new server has room for what is to be pushed: said before anything is appended, so that it can be made first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Message, Part, Stored, name_json
from hostbackup.places.mail import MailAccount
from hostbackup.places.mail_room import Limits, Quota


@dataclass(slots=True)
class Room:
    """What one account takes. A quota that is too small keeps nothing from being appended: the server has the last word on what fits."""

    part: Part
    target: MailAccount
    result: Result
    messages: Counter[bytes] = field(default_factory=Counter)  # planned, by target folder
    _limits: Limits = field(default_factory=Limits)
    _bytes: Counter[bytes] = field(default_factory=Counter)

    def ask(self, folders: Mapping[bytes, bool]) -> None:
        """Asks for what is told of these folders; `False` for those that are not there yet. Raises ConnectionFailed."""
        self._limits = self.target.room([b"INBOX", *(name for name, there in folders.items() if there and name != b"INBOX")])

    def count(self, name: bytes, record: Stored[Message]) -> None:
        """A message is to be appended to the folder."""
        self._count(name, record, 1)

    def too_big(self, name: bytes, record: Stored[Message]) -> Failure | None:
        """What is to be told of a message that is larger than the server takes; None where it is not."""
        largest = self._limits.largest.get(name)
        if largest is None or record.size <= largest:
            return None
        reason = f"it has {record.size} bytes, and the new server takes messages of at most {largest}: it was not sent"
        hint = "ask its provider for a larger limit; the vault has the message"
        return Failure("new", self.part.id, record.item.label, "too-big", reason, hint)

    def gives_back(self, name: bytes, record: Stored[Message]) -> None:
        """A message that was counted need not be appended."""
        self._count(name, record, -1)

    def _count(self, name: bytes, record: Stored[Message], many: int) -> None:
        self.messages[name] += many
        self._bytes[name] += many * record.size

    def tell(self, *, dry_run: bool) -> None:
        """Tells of each quota that cannot hold what was counted: in a dry run as a failure, else as a warning, since the server has the last word. A
        folder that is not there yet is taken to be under the quotas of INBOX."""
        needs: dict[Quota, int] = defaultdict(int)
        for name in self.messages:
            for quota in self._limits.quotas.get(name) or self._limits.quotas.get(b"INBOX", []):
                needs[quota] += (self._bytes if quota.resource == "bytes" else self.messages)[name]
        for quota, needed in needs.items():
            if needed <= quota.free:
                continue
            root = quota.root.decode("utf-8", "backslashreplace")
            what = "bytes of messages" if quota.resource == "bytes" else "messages"
            reason = (
                f"{needed} {what} are to be pushed, and the mailbox has room for {quota.free} (quota {root!r}: {quota.used} of {quota.limit} used)"
            )
            hint = "give the mailbox more room on the new server, then run `push` again; until then it takes what fits"
            if dry_run:
                self.result.fail(Failure("new", self.part.id, b"", "over-quota", reason, hint))
            else:
                self.result.observer.warn(f"{self.part}: {reason}; {hint}")
            row = {"part": self.part.id, **name_json(quota.root, "root"), "resource": quota.resource, "needed": needed, "free": quota.free}
            self.result.details.setdefault("room", []).append(row)
