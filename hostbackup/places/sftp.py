"""A web tree on an SSH server, as a place: SFTP for everything, a shell for digests where there is one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from hostbackup.model import Claim, Entry, Kind, Listing, Part, Proof, Read, Sink, Write, Written
from hostbackup.places.exclude import Excludes
from hostbackup.places.sftp_prove import Means, Prover
from hostbackup.places.sftp_put import OLD
from hostbackup.places.sftp_read import REREADS, FileRead
from hostbackup.places.sftp_scan import Scanner
from hostbackup.places.sftp_tree import Lines, Tree, resolve_root
from hostbackup.places.sftp_write import PREFIX, Writer, missing, new_prefix
from hostbackup.places.stream import Streams
from hostbackup.places.stream_read import StreamReader
from hostbackup.protocols.limits import UNLIMITED, Limits
from hostbackup.protocols.sftp.client import Connection, Steps, ask
from hostbackup.protocols.sftp.packets import Type, extended, on_path, parse_statvfs, text, two_paths
from hostbackup.protocols.sftp.pump import Work, works

if TYPE_CHECKING:
    from hostbackup.protocols.remote import Login

_STATVFS = b"statvfs@openssh.com"


class SftpTree:
    """The tree below `root` (absolute, or from the login folder; reached through symlinks or not) as a Place. No symlink below it is followed.

    `session_factory` logs in; what it gives belongs to the tree. `exclude` are gitignore patterns (UsageError where one is no pattern);
    files that match `volatile` are read once only, even if they do not stand still. `channels` are used at once on each login;
    `limits` bound what the server and its line are asked to bear. `reader` and `weak` say what proofs may rest on
    (`hostbackup.places.sftp_prove.Means`). `temporary_prefix` begins the name of everything half-written;
    `untidy` tells whether the last `write` or `remove_temporaries` may have left something under such a name.
    A `witness` proves what another tree wrote: its login is one of its own already. `streams` says when many files go as one tar stream,
    where the server runs commands.
    """

    def __init__(
        self,
        session_factory: Callable[[], Login],
        root: bytes | str,
        *,
        side: str,
        part: Part,
        exclude: Sequence[str] = (),
        volatile: Sequence[str] = (),
        channels: int = 4,
        limits: Limits = UNLIMITED,
        reader: Callable[[str], BinaryIO] | None = None,
        weak: bool = False,
        pause: Callable[[float], None] | None = None,
        streams: Streams | None = None,
        witness: bool = False,
    ) -> None:
        told = root if isinstance(root, bytes) else os.fsencode(root)
        self._tree = Tree(told, side, part)
        self._excludes = Excludes(exclude)
        self._volatile = Excludes(volatile)
        self._lines = Lines(session_factory, channels, limits)
        if pause is not None:
            self._lines.pause = pause
        self._means = Means.of(self._lines, self._tree, reader, weak)
        self._streams = streams or Streams()
        self._witness = witness
        self.root_entry: Entry | None = None
        self.temporary_prefix = new_prefix()
        self.untidy = False

    @property
    def session(self) -> Login:
        """The login, made now if there is none."""
        return self._lines.session()

    def scan(self) -> Iterator[Listing[Entry]]:
        """One Listing a folder, the root's (b"") first, a folder before what is in it, names sorted. Raises PlaceMissing, ConnectionFailed.

        `root_entry` is the root itself, from the first listing on.
        """
        scanner = Scanner(self._lines, self._tree, self._excludes)
        for listing in scanner.listings():
            self.root_entry = scanner.root_entry
            yield listing

    def read(self, wanted: Iterable[Entry], sink: Sink) -> Iterator[Read[Entry]]:
        """Contents of files, hundreds at a time. One written to meanwhile is read again, up to three times, then kept with a failure "changing"."""
        self._lines.one(resolve_root(self._tree))

        def by_sftp(entries: Iterator[Entry]) -> Iterator[Read[Entry]]:
            return self._read_each(entries, sink)

        yield from StreamReader(self._lines, self._tree, sink, self._streams, by_sftp).read(wanted)

    def _read_each(self, entries: Iterator[Entry], sink: Sink) -> Iterator[Read[Entry]]:
        """Over SFTP."""

        def next_work() -> Work[Read[Entry]] | None:
            entry = next(entries, None)
            if entry is None:
                return None
            rereads = 0 if self._volatile.covers(entry.path, False) else REREADS
            return FileRead(self._tree, entry, sink, rereads=rereads).work

        yield from self._lines.carry_out(next_work)

    def write(self, items: Iterable[Write[Entry]]) -> Iterator[Written[Entry]]:
        """Brings entries there: each under a temporary name first, synced where the server can, then renamed. Folders get modes and times last.

        The root is made only if the first item is the root. Raises PlaceMissing, ConnectionFailed. Where the server lacks
        posix-rename@openssh.com, a file to be replaced first steps aside under a name that `remove_temporaries` can bring back.
        """
        writer = Writer(self._lines, self._tree, self.temporary_prefix, self._streams)
        try:
            yield from writer.write(items)
        finally:
            self.untidy = writer.untidy

    def prove(self, claims: Iterable[Claim[Entry]]) -> Iterator[Proof[Entry]]:
        """Digests the server computes (by shell or check-file), else a second read over a login of its own. Links by target; folders by kind."""
        second = self._lines if self._witness else self._lines.another()
        yield from Prover(self._lines, second, self._tree, self._means).prove(claims)

    def remove_temporaries(self, prefixes: Iterable[bytes]) -> int:
        """Tidies what writes that were killed left behind, and tells how much that was. `prefixes` are those runs' `temporary_prefix`.

        Half-written files and links are removed. A file that had stepped aside comes back, unless its place is taken: then the new one stands.
        """
        own = tuple(prefix for prefix in prefixes if prefix.startswith(PREFIX) and len(prefix) > len(PREFIX))
        if not own:
            return 0
        found: list[Entry] = []
        folders: list[Entry] = []  # into which streams were unpacked: all in them is ours
        inside: list[Entry] = []
        unseen = False
        for listing in Scanner(self._lines, self._tree, Excludes()).listings():
            unseen = unseen or listing.failure is not None
            ours = any(listing.container == folder.path for folder in folders)
            for entry in listing.items:
                if ours:
                    inside.append(entry)
                elif entry.name.startswith(own):
                    (folders if entry.kind is Kind.DIR else found).append(entry)
        steps = [functools.partial(self._tidy, entry) for entry in found if entry.kind in (Kind.FILE, Kind.LINK)]
        steps += [functools.partial(self._remove, Type.REMOVE, entry) for entry in inside]
        last = [functools.partial(self._remove, Type.RMDIR, entry) for entry in folders]
        removed = sum(sum(self._lines.carry_out(works(some))) for some in (steps, last))
        self.untidy = unseen or removed < len(steps) + len(last)
        return removed

    def _remove(self, kind: Type, entry: Entry) -> Steps[int]:
        (done,) = yield from ask(on_path(kind, self._tree.full(entry.path)))
        return int(done.ok)

    def _tidy(self, entry: Entry) -> Steps[int]:
        path = self._tree.full(entry.path)
        _, aside, name = entry.name.partition(OLD)
        if aside and name:
            place = self._tree.full(entry.parent + b"/" + name if entry.parent else name)
            (there,) = yield from ask(on_path(Type.LSTAT, place))
            (done,) = yield from ask(two_paths(Type.RENAME, path, place) if missing(there) else on_path(Type.REMOVE, path))
            return int(done.ok)
        return (yield from self._remove(Type.REMOVE, entry)) if entry.name.endswith(b".part") else 0

    def free(self) -> int | None:
        """Bytes this login can still write below the root, or None where the server does not tell. Raises PlaceMissing, ConnectionFailed."""
        self._lines.one(resolve_root(self._tree))

        def steps(connection: Connection) -> Steps[int | None]:
            if _STATVFS not in connection.extensions:
                return None
            (told,) = yield from ask(extended(_STATVFS, text(self._tree.root)))
            return parse_statvfs(told) if isinstance(told, memoryview) else None

        return self._lines.one(steps)

    def close(self) -> None:
        """Ends connections. May be called twice."""
        self._lines.close()
