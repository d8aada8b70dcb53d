"""Manifests by digest: canonical JSON lines, kept just as objects are, in a folder of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from hostbackup.errors import Damaged
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.records import Line, canonical, parse_lines


class Manifests(ObjectFolder):
    """Each is small enough to be held in memory: thousands of lines, not millions."""

    def put(self, lines: Iterable[Line]) -> str:
        """Stores the lines; the digest. Durable after the next flush."""
        return self.put_bytes(b"".join(map(canonical, lines)))

    def put_bytes(self, data: bytes) -> str:
        """Stores lines that are canonical already."""
        receiver = self.open(len(data))
        receiver.write(data)
        return receiver.commit()[0]

    def get(self, digest: str) -> Iterator[Line]:
        """As `lines`, which it reads when the first one is asked for."""
        yield from self.lines(digest)

    def lines(self, digest: str) -> list[Line]:
        """The lines, after the whole manifest was proven against its digest. Raises Damaged where it is missing or is not what it was."""
        where = self.where(digest)
        with self.read(digest) as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != digest:
            raise Damaged("this manifest is not what was written", where=where, hint="run `verify`, then `copy --repair` to bring it from a copy")
        return parse_lines(data, where)
