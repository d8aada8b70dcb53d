"""Objects that stand under their names: looking them up, reading and proving them, and setting aside what is damaged."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from hostbackup import osal
from hostbackup.errors import Damaged, VaultError
from hostbackup.vault.faults import told
from hostbackup.vault.hashing import hash_file, is_digest
from hostbackup.vault.pool import in_order
from hostbackup.vault.shelves import Shelves

_READERS = 4  # threads that read objects again: small files cost waiting, not work


class StandingObjects:
    """A folder of objects, `ab/abcd…` each, and the one where damaged ones go. Both on one file system."""

    def __init__(self, objects: Path, damaged: Path) -> None:
        self.folder = objects
        self.damaged = damaged
        self._prefix = f"{os.fspath(objects)}{os.sep}"
        self._shelves = Shelves(self._prefix)

    def _at(self, digest: str) -> str:
        return f"{self._prefix}{digest[:2]}{os.sep}{digest}"

    def where(self, digest: str) -> str:
        """The path where the object stands or would stand; nothing is looked up. Raises VaultError where `digest` is none."""
        if not is_digest(digest):
            raise VaultError(f"not a SHA-256 digest: {digest[:80]!r}", where=str(self.folder))
        return self._at(digest)

    def look_anew(self) -> None:
        """What stands is looked up again: for those who look for what the disk, or somebody, has taken away."""
        self._shelves.forget_all()

    @functools.cached_property
    def device(self) -> int:
        """The device that the objects are on."""
        return self.folder.stat().st_dev

    def inode(self, digest: str) -> int | None:
        """Of the file that stands under the digest, as a listing told it; None where there is none. Raises VaultError where `digest` is none."""
        if not is_digest(digest):
            raise VaultError(f"not a SHA-256 digest: {digest[:80]!r}", where=str(self.folder))
        try:
            return self._shelves.inode(digest)
        except OSError as error:
            raise told(error, self._at(digest)) from error

    def path(self, digest: str) -> Path:
        """Where the object's file is; it stands under its name when this returns, unless there is no such object."""
        return Path(self._standing(digest))

    def _standing(self, digest: str) -> str:
        return self.where(digest)

    def read(self, digest: str) -> BinaryIO:
        """The object's bytes from the start. Raises Damaged where it is missing."""
        try:
            return open(self._standing(digest), "rb")  # noqa: PTH123 - str paths: this runs once a folder of a tree, and the caller closes it
        except FileNotFoundError as error:
            raise self.missing(digest) from error
        except OSError as error:
            raise told(error, self.where(digest)) from error

    def missing(self, digest: str) -> Damaged:
        hint = "run backup to fetch it again, or `copy --repair` to bring it from a copy"
        return Damaged("the vault has lost this object", where=self.where(digest), hint=hint)

    def list(self) -> Iterator[tuple[str, int]]:
        """All named objects and their sizes in bytes, sorted by digest. What is pending is not among them."""
        for number in range(256):
            try:
                with os.scandir(self.folder / f"{number:02x}") as found:
                    shard = sorted((entry.name, entry.stat(follow_symlinks=False).st_size) for entry in found if is_digest(entry.name))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise told(error, self.folder / f"{number:02x}") from error
            yield from shard

    def prove(self, digests: Iterable[str]) -> Iterator[tuple[str, bool, str]]:
        """Reads each object again, from the disk where the system can: digest, whether it is whole, and if not, why. In the order asked."""
        yield from in_order(self._prove, digests, workers=_READERS)

    def _prove(self, digest: str) -> tuple[str, bool, str]:
        try:
            found, size = hash_file(self.path(digest), medium=True)
        except FileNotFoundError:
            return digest, False, "missing"
        except OSError as error:
            return digest, False, (error.strerror or str(error)).lower()
        good = found == digest
        return digest, good, "" if good else f"its {size} bytes have the SHA-256 {found}"

    def set_aside(self, digest: str, reason: str) -> None:
        """Moves a damaged object to `damaged/<digest>.<n>`, with a text beside it that says why. Does nothing where there is none."""
        source = Path(self.where(digest))
        try:
            self.damaged.mkdir(mode=0o700, parents=True, exist_ok=True)
            target = next(path for n in itertools.count(1) if not os.path.lexists(path := self.damaged / f"{digest}.{n}"))
            source.rename(target)
            self._shelves.forget(digest[:2])
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            text = f"what: {self.folder.name}/{digest[:2]}/{digest}\nwhen: {when}\nwhy: {reason}\n"
            osal.write_durably(self.damaged / f"{target.name}.txt", text.encode("utf-8", "backslashreplace"), mode=0o400)
            osal.sync_folder(source.parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise told(error, source) from error
