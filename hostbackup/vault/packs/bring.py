"""Bringing contents to a copy: small ones packed together, large ones on their own, encrypted where the copy is."""

from __future__ import annotations

import hashlib
import io
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import BinaryIO, NamedTuple

from hostbackup.errors import HostbackupError
from hostbackup.vault import pool
from hostbackup.vault.packs.catalog import Blob, Catalog
from hostbackup.vault.packs.pack import PACK_BYTES, SMALL, Member, PackBuilder
from hostbackup.vault.packs.seal import END, Keys, Recipients
from hostbackup.vault.stores import Outcome, SourceDamaged, Store, Upload, checked

_MOST = 16_384  # members of a pack: each costs a header
_BUILDERS = 2
_PACKS_AT_ONCE = 3  # with those being built, what the memory has to hold

Open = Callable[[str], BinaryIO]  # a content by its digest


class Brought(NamedTuple):
    """What became of one content that was to be brought. `code` is "" where it is in the copy; else as in an `Outcome`."""

    digest: str
    size: int
    code: str = ""
    reason: str = ""
    hint: str = ""


class _Pack(NamedTuple):
    key: str
    data: bytes
    members: Sequence[Member]
    troubles: list[Brought]


class Bringer:
    """Use from one thread. `noted` is called after each blob that arrived and that the catalog knows.

    A pack stands in the catalog before it goes up, so that it is known again when a run is killed before the store has answered.
    """

    def __init__(self, store: Store, catalog: Catalog, keys: Keys, noted: Callable[[], None]) -> None:
        self._store = store
        self._catalog = catalog
        self._keys = keys
        self._noted = noted

    def bring(self, kind: str, contents: Iterable[tuple[str, int]], open_it: Open) -> Iterator[Brought]:
        """Brings contents (digests and sizes) there, small ones in packs in the order they come in, large ones after them. One result for each."""
        large: list[tuple[str, int]] = []
        yield from self._packs(kind, _plans(contents, large), open_it)
        yield from self._large(kind, large, open_it)

    def _packs(self, kind: str, plans: Iterable[list[tuple[str, int]]], open_it: Open) -> Iterator[Brought]:
        troubles: deque[Brought] = deque()

        def uploads() -> Iterator[Upload]:
            for pack in pool.in_order(partial(self._build, kind, open_it), plans, workers=_BUILDERS, ahead=_BUILDERS):
                troubles.extend(pack.troubles)
                if pack.members:
                    digest = digest_in(pack.key)
                    self._catalog.expect(Blob(pack.key, len(pack.data), digest, kind), pack.members)
                    yield Upload(pack.key, len(pack.data), digest, partial(io.BytesIO, pack.data))

        for outcome in self._store.put(uploads(), at_once=_PACKS_AT_ONCE):
            while troubles:
                yield troubles.popleft()
            members = self._catalog.members(outcome.key)  # not held here: a store may gather many packs before it answers
            self._settle(outcome, Blob(outcome.key, outcome.size, digest_in(outcome.key), kind, outcome.checksum, outcome.until), members)
            for member in members:
                yield Brought(member.digest, member.size, outcome.code, outcome.reason, outcome.hint)
        yield from troubles

    def _settle(self, outcome: Outcome, blob: Blob, members: Sequence[Member]) -> None:
        if outcome.ok:
            self._catalog.add(blob, members)
            self._noted()
        else:
            self._catalog.unexpect(outcome.key)

    def _build(self, kind: str, open_it: Open, plan: list[tuple[str, int]]) -> _Pack:
        builder = PackBuilder(kind)
        troubles: list[Brought] = []
        for digest, size in plan:
            try:
                with open_it(digest) as stream:
                    data = stream.read(size + 1)
                if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
                    raise SourceDamaged("its bytes are not those its name stands for")
                builder.add(digest, data)
            except OSError as error:
                reason = f"cannot be read: {(error.strerror or str(error)).lower()}"
                troubles.append(Brought(digest, size, SourceDamaged.code, reason))
            except HostbackupError as error:
                troubles.append(Brought(digest, size, error.code, error.reason, error.hint))
        if not builder.members:
            return _Pack("", b"", (), troubles)
        members = builder.members
        data = self._keys.closed(builder.finish())
        digest = hashlib.sha256(data).hexdigest()
        return _Pack(f"packs/{digest[:2]}/{digest}.tar{self._keys.end}", data, members, troubles)

    def _large(self, kind: str, contents: list[tuple[str, int]], open_it: Open) -> Iterator[Brought]:
        by_key: dict[str, tuple[str, int]] = {}

        def uploads() -> Iterator[Upload]:
            for digest, size in contents:
                upload = self._alone(kind, digest, size, open_it)
                by_key[upload.key] = digest, size
                yield upload

        for outcome in self._store.put(uploads()):
            digest, size = by_key.pop(outcome.key)
            blob = Blob(outcome.key, outcome.size, outcome.digest, kind, outcome.checksum, outcome.until)
            if outcome.ok:
                self._settle(outcome, blob, [Member(digest, 0, outcome.size, size)])
            yield Brought(digest, size, outcome.code, outcome.reason, outcome.hint)

    def _alone(self, kind: str, digest: str, size: int, open_it: Open) -> Upload:
        recipients = self._keys.recipients
        if recipients is None:
            return Upload(f"{kind}/{digest[:2]}/{digest}", size, digest, partial(open_it, digest))
        name = secrets.token_hex(32)
        source = partial(_checked_source, open_it, digest, size)
        return Upload(f"large/{name[:2]}/{name}{END}", Recipients.sealed_size(size), "", partial(recipients.sealed, source))


def _plans(contents: Iterable[tuple[str, int]], large: list[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """What goes into each pack; what is too large for one is put into `large`."""
    plan: list[tuple[str, int]] = []
    total = 0
    for digest, size in contents:
        if size >= SMALL:
            large.append((digest, size))
            continue
        if plan and (total + size > PACK_BYTES or len(plan) >= _MOST):
            yield plan
            plan, total = [], 0
        plan.append((digest, size))
        total += size
    if plan:
        yield plan


def _checked_source(open_it: Open, digest: str, size: int) -> BinaryIO:
    return checked(open_it(digest), digest, digest, size)


def digest_in(key: str) -> str:
    """The SHA-256 that the name of a pack tells."""
    return key.rpartition("/")[2].partition(".")[0]
