"""The words every layer shares: parts, entries, messages, and what became of them.

Names are bytes, as the server gave them. Times are integers. Digests are SHA-256 in lower-case hex.
"""

from __future__ import annotations

import base64
import enum
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Generic, Protocol, TypeVar, runtime_checkable


class Kind(enum.StrEnum):
    """What an entry of a tree is. OTHER (socket, device, fifo) is listed, never read."""

    FILE = "file"
    DIR = "dir"
    LINK = "link"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Part:
    """One unit of a backup: a web tree, a mailbox, a mailbox's filters or a local folder."""

    kind: str  # "web", "mail", "sieve" or "local"
    name: str  # the profile's name of the tree, or the account's user

    @property
    def id(self) -> str:
        """Two path components, `kind/NAME` with NAME percent-encoded: unique in a vault, and a folder of the view."""
        return f"{self.kind}/{component(self.name)}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that `id` named. Raises ValueError where `text` is none."""
        kind, slash, name = text.partition("/")
        if kind not in ("web", "mail", "sieve", "local") or not slash or not name or "/" in name:
            raise ValueError(f"not a part: {text!r}")
        return cls(kind, urllib.parse.unquote(name))

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


def component(name: str) -> str:
    """`name` as one portable path component: RFC 3986 percent-encoding of UTF-8, `@` and `+` left as they are."""
    quoted = urllib.parse.quote(name, safe="@+")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder or symlink of a tree. `path` is relative to the tree's root, components joined by `/`; the root is b""."""

    path: bytes
    kind: Kind
    size: int = 0  # bytes; files only
    mtime_ns: int = 0  # since the epoch; whole seconds over SFTP v3
    mode: int = 0  # permission bits, 0o7777
    target: bytes = b""  # symlinks only, verbatim

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]

    @property
    def parent(self) -> bytes:
        return self.path.rpartition(b"/")[0]

    @property
    def label(self) -> bytes:
        """How lists and failures call it."""
        return self.path


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a mailbox as the server describes it. Its identity is (folder, uidvalidity, uid)."""

    folder: bytes  # the mailbox name on the wire (modified UTF-7), unquoted
    uidvalidity: int
    uid: int
    size: int = 0  # RFC822.SIZE as told: a hint, some servers lie
    internaldate: str = ""  # verbatim, without quotes: ` 1-Jul-2026 02:44:25 +0900`
    flags: tuple[str, ...] = ()  # sorted, keywords included, \Recent left out
    uidl: str = ""  # POP3 alone: what the server calls it (RFC 1939 §7); its `uid` is then a number of ours

    @property
    def label(self) -> bytes:
        return self.folder + b" UID %d" % self.uid


@dataclass(frozen=True, slots=True)
class Folder:
    """A mailbox folder. Counters are those of SELECT/EXAMINE (RFC 9051 §6.3.2)."""

    name: bytes  # on the wire, unquoted
    separator: bytes = b""  # b"" where the server has no hierarchy
    attributes: tuple[str, ...] = ()  # of LIST, sorted: "\\HasChildren", …
    special_use: str = ""  # RFC 6154: "\\Sent", …; "" where none
    subscribed: bool = False
    uidvalidity: int = 0
    uidnext: int = 0
    exists: int = 0
    highestmodseq: int = 0  # RFC 7162, as told before the folder was listed; 0 where not offered, or where the listing was not whole


Item = TypeVar("Item", Entry, Message)


@dataclass(frozen=True, slots=True)
class Failure:
    """One entry, account or server that did not do as asked. Never raised: collected, listed, and it keeps exit 0 away."""

    side: str  # "old", "new", "vault", "view", "copy:NAME"
    part: str  # Part.id, or "" where no part is concerned
    name: bytes  # the entry's label, or b""
    code: str  # stable: "permission", "vanished", "changing", "conflict", …
    reason: str
    hint: str = ""

    def as_json(self) -> dict[str, str]:
        told = {"side": self.side, "part": self.part, **name_json(self.name)}
        return {**told, "code": self.code, "reason": self.reason, "hint": self.hint}


def name_json(name: bytes, key: str = "name") -> dict[str, str]:
    """A name for JSON: `{key: text}` where it is UTF-8, else `{key_b64: base64}`."""
    try:
        return {key: name.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{key}_b64": base64.b64encode(name).decode("ascii")}


def name_from_json(record: dict[str, Any], key: str = "name") -> bytes:
    """The inverse of `name_json`. Raises KeyError or ValueError where the record holds no such name."""
    encoded = record.get(f"{key}_b64")
    if encoded is not None:
        return base64.b64decode(encoded, validate=True)
    text: str = record[key]
    return text.encode("utf-8")


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of the messages of a mail folder that an earlier scan told of. Those not named here are as they were then."""

    flags: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # by UID, sorted: as they are now; may name what did not change
    gone: tuple[tuple[int, int], ...] = ()  # runs of UIDs, both ends included, that are there no more


@dataclass(frozen=True, slots=True)
class Listing(Generic[Item]):
    """Part of a scan: some or all items of one container (a directory's path, or a mail folder's wire name).

    A tree gives exactly one Listing a directory, items sorted by name. A mail folder may come in several, UIDs ascending, `folder` set in each
    and `last` only in the final one. `failure` is set where the container could not be listed whole; `items` then holds what was seen.
    With `changes` a mail folder comes in one Listing, of any length: `items` has only what arrived since the scan that the folder was compared with.
    """

    container: bytes
    items: Sequence[Item]
    failure: Failure | None = None
    folder: Folder | None = None
    last: bool = True
    changes: Changes | None = None


class Receiver(Protocol):
    """Takes the bytes of one item. Exactly one of commit and abort ends it."""

    def write(self, data: bytes | bytearray | memoryview, /) -> object: ...

    def commit(self) -> tuple[str, int]:
        """Digest and size in bytes of what was written. The bytes need not be durable yet."""
        ...

    def abort(self) -> None: ...


class Sink(Protocol):
    """Where a read puts contents. Several receivers may be open at once; each is used by one thread at a time."""

    def open(self, size_hint: int = 0) -> Receiver: ...


@runtime_checkable
class ResumableReceiver(Receiver, Protocol):
    """A receiver that can be ended in a third way, so that another goes on where it ended."""

    @property
    def received(self) -> int:
        """Bytes that it has, those of earlier receivers included."""
        ...

    def sample(self, offset: int, length: int, /) -> bytes:
        """So many of the bytes that it had from the start; fewer where they cannot be read."""
        ...

    def suspend(self) -> None:
        """Ends it, and keeps what came for the next one of the same item."""
        ...


@runtime_checkable
class ResumingSink(Sink, Protocol):
    """A sink that knows whose contents it takes, and can go on with them after a cut line and in a later run."""

    def resume(self, item: Entry, /) -> ResumableReceiver:
        """A receiver that may have the first `received` bytes of an item described just so already, proven to be those that came."""
        ...


@dataclass(frozen=True, slots=True)
class Read(Generic[Item]):
    """What became of one item that was read.

    `item` carries the metadata that belong to the bytes (fstat after the read). `digest` is "" where nothing whole arrived. `failure` with a
    digest: the bytes are kept but did not stand still while being read (code "changing").
    """

    asked: Item
    item: Item
    digest: str = ""
    size: int = 0
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Write(Generic[Item]):
    """One item to be written to a target. `open` gives its contents from the start each time it is called (files and messages only).

    A file to be replaced without `open` keeps its contents: only its mode and time are brought, where the place can do that (SFTP can).
    """

    item: Item
    digest: str = ""
    size: int = 0
    open: Callable[[], BinaryIO] | None = None
    replace: bool = False  # may an existing file at that path be replaced (trees only)
    expected: Item | None = None  # with `replace`: only what still is as described here, by kind, size and time


@dataclass(frozen=True, slots=True)
class Written(Generic[Item]):
    """What became of one item that was written.

    `item` is as the target now describes it: mtime as kept there; UID from APPENDUID, 0 where unknown.
    """

    asked: Write[Item]
    item: Item
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Claim(Generic[Item]):
    """`item`, as last described by the place, is said to have these contents."""

    item: Item
    digest: str
    size: int


class Status(enum.StrEnum):
    VERIFIED = "verified"
    DIFFERENT = "different"  # metadata agree, bytes do not: damage
    CHANGED = "changed-since"  # the live side moved on: unverified
    MISSING = "missing"
    UNVERIFIED = "unverified"
    FAILED = "failed"


class Method(enum.StrEnum):
    """How something was proven (the contract, section 4.4). The stronger come first."""

    VAULT_REREAD = "vault-reread"
    SERVER_SHA256 = "server-sha256"
    SFTP_SECOND_READ = "sftp-second-read"
    LOCAL_SECOND_READ = "local-second-read"
    IMAP_FETCH = "imap-fetch"
    SIEVE_FETCH = "sieve-fetch"
    POP3_RETR = "pop3-retr"  # of the inbox alone
    BUCKET_SHA256 = "bucket-sha256"
    BUCKET_REREAD = "bucket-reread"
    SERVER_WEAK = "server-weak"  # digests below SHA-256, equal
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Proof(Generic[Item]):
    """What a place can say of a claim."""

    claim: Claim[Item]
    status: Status
    method: Method = Method.NONE
    failure: Failure | None = None  # set unless VERIFIED
    found: Item | None = None  # as the place describes it now, where that was asked along
    tier: str = ""  # mail: how far the bytes agree (`places.mail_compare.Tier`)
    altered: str = ""  # mail: in words, what the server made of it


@dataclass(frozen=True, slots=True)
class Stored(Generic[Item]):
    """An item as a manifest keeps it.

    `digest` is "" for folders, links and for items that never came whole. `stale`: the digest is the last good one, and this is why there is no
    newer. `vanished`: the time (`20261125T031500Z`) of the snapshot that first missed it. `racy`: too fresh when read to be trusted as unchanged
    by size and mtime. `failed`: no bytes at all, and why.
    """

    item: Item
    digest: str = ""
    size: int = 0  # bytes stored, true where item.size is a hint
    stale: str = ""
    failed: str = ""
    vanished: str = ""
    racy: bool = False


@dataclass(slots=True)
class Counts:
    """Sums for people and JSON. Bytes are those of contents, not of the wire."""

    entries: int = 0
    bytes: int = 0
    extra: dict[str, int] = field(default_factory=dict)


class Observer:
    """Hears how a job goes on; does nothing by default. Calls come from any thread."""

    def phase(self, title: str, entries: int | None = None, size: int | None = None) -> None:
        """A new stretch of work begins; totals in entries and bytes where known."""

    def retitle(self, title: str) -> None:
        """The stretch of work that is under way is called differently now."""

    def waiting(self, reason: str) -> None:
        """Nothing goes on for the moment, and why; "" once it does again."""

    def advance(self, entries: int = 0, size: int = 0) -> None:
        """So much more is done."""

    def note(self, text: str) -> None:
        """For --verbose and the log file."""

    def warn(self, text: str) -> None:
        """For everyone: an opt-in weakness, a surprise that is not a failure."""

    def failure(self, failure: Failure) -> None:
        """One entry failed; the job goes on."""


class Relaying(Observer):
    """Passes on what people are told, whatever becomes of phases and counts."""

    def __init__(self, listener: Observer) -> None:
        self._listener = listener

    def note(self, text: str) -> None:
        self._listener.note(text)

    def warn(self, text: str) -> None:
        self._listener.warn(text)

    def failure(self, failure: Failure) -> None:
        self._listener.failure(failure)
