"""One message on its way to a server: what is sent of it, and that its stored bytes are those that were recorded."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from hostbackup.errors import HostbackupError
from hostbackup.model import Message, Write
from hostbackup.places.mail_dates import HEADER_BYTES, Dated, first_choice, is_ordinary, next_choice

WHOLE = 1024 * 1024  # bytes: up to here a message is checked in memory, above it is read twice
_SYSTEM_FLAGS = frozenset(("\\answered", "\\flagged", "\\deleted", "\\seen", "\\draft"))
_FLAG = re.compile(r'\\?[^\x00-\x20\x7f-\U0010ffff(){%*"\\\]]+')


class Unfit(Exception):
    """The stored bytes of one message cannot be sent: code and reason."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(slots=True, eq=False)
class TargetFolder:
    """A target folder as prepared: the flags it keeps (None: all), or why nothing can be written to it. `taken`: messages since it had `uidnext`."""

    flags: frozenset[str] | None = None
    trouble: tuple[str, str] | None = None
    uidvalidity: int = 0
    uidnext: int = 0  # 0: not told
    taken: int = 0
    _kept: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)

    def has_grown(self, uidvalidity: int, uidnext: int) -> bool:
        """Whether more stands there than what was taken, by the counters it has now. False where that cannot be told."""
        return uidvalidity == self.uidvalidity and bool(self.uidnext) and uidnext > self.uidnext + self.taken

    def keeps(self, flag: str) -> bool:
        low = flag.lower()
        if _FLAG.fullmatch(flag) is None or (low.startswith("\\") and low not in _SYSTEM_FLAGS):
            return False
        return self.flags is None or low in self.flags or ("\\*" in self.flags and not low.startswith("\\"))

    def kept(self, flags: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the flags that the folder keeps."""
        found = self._kept.get(flags)
        if found is None:
            found = tuple(flag for flag in flags if self.keeps(flag))
            if len(self._kept) < 1024:
                self._kept[flags] = found
        return found


@dataclass(slots=True, eq=False)
class Wanted:
    """A message to be appended. `alone`: not together with others in one command, for it may be refused, or needs a command of its own."""

    write: Write[Message]
    date: str = ""
    dated: Dated = Dated.ORIGINAL
    alone: bool = False
    waited: bool = False  # it was put off as often as anybody waits for

    @classmethod
    def of(cls, write: Write[Message]) -> Wanted:
        date, dated = first_choice(write.item)
        if dated is Dated.HEADER:
            date, dated = next_choice(write.item, Dated.NORMALISED, beginning(write)) or ("", Dated.NONE)
        return cls(write, date, dated, write.size > WHOLE or (bool(date) and not is_ordinary(date)))

    def with_another_date(self) -> Wanted | None:
        """The same after its date may have been refused; None where no other date is left to try."""
        choice = next_choice(self.write.item, self.dated, beginning(self.write))
        return None if choice is None else Wanted(self.write, *choice, alone=True)

    def as_sent(self, folder: TargetFolder) -> Message:
        item = self.write.item
        return Message(item.folder, 0, 0, item.size, self.date, folder.kept(item.flags))


def beginning(write: Write[Message]) -> bytes:
    """The first bytes of a message, b"" where they cannot be read."""
    if write.open is None:
        return b""
    try:
        with write.open() as stream:
            return stream.read(HEADER_BYTES)
    except (OSError, HostbackupError):
        return b""


def checked(write: Write[Message]) -> tuple[bytes | None, bool]:
    """The message's bytes (None for a large one) once size and digest are known to be right, and whether NUL is among them. Raises Unfit."""
    if write.open is None:
        raise Unfit("damaged", "it has no stored bytes")
    try:
        with write.open() as stream:
            if write.size <= WHOLE:
                data = stream.read(write.size + 1)
                while len(data) < write.size and (more := stream.read(write.size - len(data))):
                    data += more
                total, digest, has_nul = len(data), hashlib.sha256(data).hexdigest(), b"\0" in data
            else:
                data = None
                running, total, has_nul = hashlib.sha256(), 0, False
                while total <= write.size and (chunk := stream.read(WHOLE)):
                    running.update(chunk)
                    total += len(chunk)
                    has_nul = has_nul or b"\0" in chunk
                digest = running.hexdigest()
    except OSError as error:
        raise Unfit("damaged", f"its stored bytes cannot be read: {error.strerror or error}") from None
    except HostbackupError as error:
        raise Unfit(error.code, error.reason) from None
    if total != write.size or (write.digest and digest != write.digest):
        raise Unfit("damaged", "its stored bytes are not what was recorded")
    return data, has_nul
