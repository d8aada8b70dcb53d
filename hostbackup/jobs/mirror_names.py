"""Under which keys the files of a web tree stand in a mirror: `NAME/path…`, just as they are called wherever the store can hold that.

A name that is no UTF-8, or has control characters in it, is percent-encoded as in a URL, its own `%` included. On a disk that refuses further names
they are mapped as a restore would map them. Decoding gives the original back, but for names that had to be cut; each of them is told.
"""

from __future__ import annotations

from dataclasses import dataclass

from hostbackup.errors import UsageError
from hostbackup.jobs.restore_names import Names
from hostbackup.model import Part, component
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.disk_errors import disk_error
from hostbackup.vault.disk_paths import reserved
from hostbackup.vault.stores import KEY_BYTES, Store

_OURS = ("locks", "checksum-probe")  # what a copy of ours may have at the top of a bucket for a while
_MARKS = {"space": b" ", "plus": b"+"}
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@ ")  # pchar of RFC 3986 without %, and blanks


@dataclass(frozen=True, slots=True)
class Keys:
    """How one store has it. `names`: what its file system takes, None in a bucket; `ascii`: it loses all others in keys, and these `refused`."""

    names: Names | None = None
    ascii: bool = False
    refused: bytes = b""

    @classmethod
    def of(cls, store: Store) -> Keys:
        """As `check --probe` found a bucket to be, or else as buckets are; on a disk found out by trying, and nothing stays there.

        Raises VaultError where a disk cannot be written to.
        """
        from hostbackup.vault.bucket import BucketStore

        if isinstance(store, BucketStore):
            told = store.facts.keys
            return cls(ascii=told.get("unicode") is False, refused=b"".join(mark for name, mark in _MARKS.items() if told.get(name) is False))
        if not isinstance(store, FolderStore):
            return cls()
        try:
            return cls(Names.probe(store.root))
        except OSError as error:
            raise disk_error(error, store.root) from error

    @property
    def rule(self) -> str:
        """Stands for all that decides about keys: as long as it is the same, so are they."""
        return repr(self)

    def prefix(self, part: Part) -> str:
        """`NAME/`, as in `latest/web/`. Raises UsageError for a tree whose name the top of a mirror has another use for."""
        name = self.name(component(part.name).encode())
        if reserved(name) or name.lower() in _OURS:
            reason = f"no tree in a mirror can be called {part.name!r}: that name has another use there"
            raise UsageError(reason, where=str(part), hint="give the tree another `name` in the profile")
        return name + "/"

    def key(self, prefix: str, path: bytes) -> str:
        """Of a file of the tree that `prefix` stands for."""
        return prefix + "/".join(map(self.name, path.split(b"/")))

    def name(self, name: bytes) -> str:
        """One component."""
        if self.names is not None and not self.names.plain:
            name = self.names.fit(name)
        refused = (self.ascii and not name.isascii()) or not set(self.refused).isdisjoint(name)
        fitting = name if _is_text(name) and not refused else _percent(name, self.refused)
        if self.names is not None:
            fitting = self.names.shorten(fitting)
        return fitting.decode()

    def folded(self, key: str) -> bytes:
        """Two keys with an equal one of these are one file to the store."""
        return key.encode() if self.names is None else self.names.key(key.encode())

    @property
    def tells_case(self) -> bool:
        return self.names is None or self.names.case


def too_long(key: str) -> bool:
    """Whether no bucket takes it."""
    return len(key.encode()) > KEY_BYTES


def _is_text(name: bytes) -> bool:
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return False
    return text.isprintable() or not any(ord(character) < 32 or 127 <= ord(character) < 160 or character in "\ufffe\uffff" for character in text)


def _percent(name: bytes, refused: bytes) -> bytes:
    return b"".join(bytes((byte,)) if byte in _PLAIN and byte not in refused else b"%%%02X" % byte for byte in name)
