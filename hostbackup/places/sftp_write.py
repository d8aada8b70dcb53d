"""Writing a tree over SFTP: many entries at a time, each whole under its name or not at all.

A file goes to a temporary name beside its place, is synced where the server can, and renamed. Folders get their modes and times last.
"""

from __future__ import annotations

import functools
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hostbackup.errors import ConnectionFailed, PlaceMissing
from hostbackup.model import Entry, Failure, Kind, Write, Written
from hostbackup.places.sftp_expect import sendable
from hostbackup.places.sftp_link import Links
from hostbackup.places.sftp_put import Put, Refused
from hostbackup.places.sftp_rename import keeps
from hostbackup.places.sftp_tree import Lines, Tree, entry, proper, resolve_root
from hostbackup.places.stream import Streams
from hostbackup.places.stream_write import Stage
from hostbackup.protocols.sftp.client import Connection, Steps, ask
from hostbackup.protocols.sftp.packets import Attrs, Code, Status, Type, on_path, set_attrs
from hostbackup.protocols.sftp.pump import Work, light, works

PREFIX = b".hostbackup-"  # of every temporary name
_WAITING = 4096  # entries held back until their folder is there
_MANY = 32  # new files from which on it is worth finding out how the server renames


def new_prefix() -> bytes:
    """What the temporary names of one run begin with."""
    return PREFIX + secrets.token_hex(4).encode()


@dataclass(frozen=True, slots=True)
class _Looked:
    """A folder that nobody asked to write was looked at, because something goes into it."""

    folder: bytes
    failure: Failure | None


_Result = Written[Entry] | _Looked | None  # None: nothing that anybody asked for
_PENDING = "pending"


class Writer:
    """One call of write."""

    def __init__(self, lines: Lines, tree: Tree, prefix: bytes, streams: Streams) -> None:
        self._lines = lines
        self._tree = tree
        self._put = Put(tree, prefix, lines.session)
        self._links = Links(tree, self._put)
        self._stage = Stage(lines, tree, prefix, streams, self._put)
        self._folders: dict[bytes, str | Failure | None] = {}  # _PENDING; why nothing can go there; None: it is there
        self._waiting: dict[bytes, list[Write[Entry]]] = {}
        self._held = 0
        self._new = 0  # files that replace nothing
        self._ready: deque[Work[_Result]] = deque()
        self._made: list[Write[Entry]] = []
        self._cut = False  # while tidying up

    def write(self, items: Iterable[Write[Entry]]) -> Iterator[Written[Entry]]:
        """Exactly one outcome an item. Raises PlaceMissing where the root is missing and not among the items, and ConnectionFailed."""
        source = self._stage.through(items)
        first = next(source, None)
        if first is None:
            return
        self._prepare_root(first)
        self._admit(first)
        try:
            for result in self._lines.carry_out(lambda: self._next(source)):
                outcome = self._settle(result)
                if outcome is not None:
                    yield outcome
            self._tidy()  # while folders still wait for their times
            yield from self._finish()
        finally:
            self._tidy()

    # -- in which order ---------------------------------------------------------------------------------------------------------------

    def _prepare_root(self, first: Write[Entry]) -> None:
        try:
            self._lines.one(resolve_root(self._tree))
        except PlaceMissing:
            if first.item.path or first.item.kind is not Kind.DIR:
                raise
            self._lines.one(self._make_root)
        self._folders[b""] = None

    def _make_root(self, _: Connection) -> Steps[None]:
        """The root with what leads to it. Raises PlaceMissing."""
        parts = self._tree.root.split(b"/")
        paths = [b"/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        values = yield from ask(*(set_attrs(Type.MKDIR, path, Attrs(permissions=0o755)) for path in paths if path))
        there = yield from ask(on_path(Type.STAT, self._tree.root))
        if not isinstance(there[0], Attrs) or there[0].kind is not Kind.DIR:
            raise PlaceMissing(f"the folder is missing on the server and cannot be made: {values[-1]}", where=self._tree.where)

    def _next(self, source: Iterator[Write[Entry]]) -> Work[_Result] | None:
        while not self._ready:
            if self._held >= _WAITING:
                return None
            item = next(source, None)
            if item is None:
                return None
            self._admit(item)
        return self._ready.popleft()

    def _admit(self, item: Write[Entry]) -> None:
        """Makes work of an item as soon as its folder is there."""
        path = item.item.path
        if path and not proper(path):
            self._tell(item, self._tree.tell(path, "name-refused", "its name could lead out of the folder"))
            return
        if not path:
            if item.item.kind is not Kind.DIR:
                self._tell(item, self._tree.tell(path, "exists", "the root is a folder"))
            else:
                self._ready.append(light(lambda: self._root_made(item)))
            return
        if item.item.kind is Kind.DIR:
            self._folders[path] = _PENDING  # from now on: what goes into it may be asked for before its turn comes
        parent = item.item.parent
        state = self._state(parent)
        if state == _PENDING:
            self._waiting.setdefault(parent, []).append(item)
            self._held += 1
        elif isinstance(state, Failure):
            code = "permission" if state.code == "permission" else "parent"
            self._tell(item, self._tree.tell(path, code, f"its folder is not usable: {state.reason}"))
        elif item.item.kind is Kind.DIR:
            self._ready.appendleft(self._work(item))  # others may wait for it
        else:
            self._ready.append(self._work(item))

    def _state(self, folder: bytes) -> str | Failure | None:
        """What is known of a folder. One that nobody asked to write is looked at."""
        if folder not in self._folders:
            self._folders[folder] = _PENDING
            self._ready.appendleft(light(lambda: self._look(folder)))
        return self._folders[folder]

    def _tell(self, item: Write[Entry], failure: Failure) -> None:
        def steps() -> Steps[_Result]:
            return Written(item, item.item, failure)
            yield  # a generator that asks nothing

        self._ready.append(light(steps))

    def _settle(self, result: _Result) -> Written[Entry] | None:
        """Takes note of a folder that is there now, or is not. Gives what can be told at once."""
        if result is None:
            return None
        if isinstance(result, Written) and result.asked.item.kind is not Kind.DIR:
            return result
        folder = result.folder if isinstance(result, _Looked) else result.asked.item.path
        self._folders[folder] = result.failure
        waiting = self._waiting.pop(folder, [])
        self._held -= len(waiting)
        for item in waiting:
            self._admit(item)
        if isinstance(result, _Looked):
            return None
        if result.failure is not None:
            return result
        self._made.append(result.asked)
        return None

    # -- what is done -----------------------------------------------------------------------------------------------------------------

    def _work(self, item: Write[Entry]) -> Work[_Result]:
        kind = item.item.kind
        if kind is Kind.DIR:
            return light(lambda: self._folder(item))
        if kind is Kind.LINK:
            return Work(lambda connection: self._attempt(item, self._links.link(connection, item)))
        if kind is Kind.FILE and item.open is None and item.replace:
            return light(lambda: self._attempt(item, self._put.dress(item)))
        if kind is Kind.FILE:
            if not item.replace:
                self._new += 1
                if self._new == _MANY:
                    self._ready.appendleft(light(self._try_out))
            return Work(lambda connection: self._attempt(item, self._put.file(connection, item)), self._put.weight(item))
        failure = self._tree.tell(item.item.path, "unsupported", "only files, folders and symlinks can be written")
        return light(lambda: self._attempt(item, _raise(failure)))

    def _try_out(self) -> Steps[_Result]:
        if self._put.openssh():
            self._put.keeps = yield from keeps(self._put)
        return None

    def _attempt(self, item: Write[Entry], steps: Steps[Entry]) -> Steps[_Result]:
        try:
            there = yield from steps
        except Refused as refused:
            return Written(item, item.item, refused.failure)
        return Written(item, there)

    def _root_made(self, item: Write[Entry]) -> Steps[_Result]:
        return Written(item, item.item)
        yield  # a generator that asks nothing

    def _folder(self, item: Write[Entry]) -> Steps[_Result]:
        """There, and usable for its owner until `_finish`."""
        path, full = item.item.path, self._tree.full(item.item.path)
        wanted = item.item.mode & 0o7777 | 0o700
        made, there = yield from ask(set_attrs(Type.MKDIR, full, Attrs(permissions=wanted)), on_path(Type.LSTAT, full))
        if isinstance(there, Status):
            cause = made if isinstance(made, Status) and not made.ok else there
            return Written(item, item.item, self._tree.refused(path, cause))
        if there.kind is not Kind.DIR:
            return Written(item, item.item, self._tree.tell(path, "exists", "something that is no folder is there, and is left as it is"))
        if there.mode & 0o700 != 0o700:
            yield from ask(set_attrs(Type.SETSTAT, full, Attrs(permissions=there.mode | 0o700)))
        return Written(item, entry(path, there))

    def _look(self, folder: bytes) -> Steps[_Result]:
        """Whether it and all above it are folders: a symlink among them would lead elsewhere."""
        parts = folder.split(b"/")
        chain = [b"/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        values = yield from ask(*(on_path(Type.LSTAT, self._tree.full(path)) for path in chain))
        for path, there in zip(chain, values, strict=True):
            if isinstance(there, Status):
                return _Looked(folder, self._tree.refused(path, there))
            if there.kind is not Kind.DIR:
                return _Looked(folder, self._tree.tell(path, "exists", "something that is no folder is there"))
        return _Looked(folder, None)

    def _finish(self) -> Iterator[Written[Entry]]:
        """Modes and times of folders, once nothing more is put into them. Those that their mode shuts come after all others, the deepest first."""
        yield from self._dress_all(item for item in self._made if item.item.mode & 0o700 == 0o700)
        shut: dict[int, list[Write[Entry]]] = {}
        for item in self._made:
            if item.item.mode & 0o700 != 0o700:
                shut.setdefault(item.item.path.count(b"/") + 1 if item.item.path else 0, []).append(item)
        for level in sorted(shut, reverse=True):
            yield from self._dress_all(shut[level])

    def _dress_all(self, items: Iterable[Write[Entry]]) -> Iterator[Written[Entry]]:
        yield from self._lines.carry_out(works(functools.partial(self._dress, item) for item in items))

    def _dress(self, item: Write[Entry]) -> Steps[Written[Entry]]:
        path, full = item.item.path, self._tree.full(item.item.path)
        times = sendable(item.item.mtime_ns) if item.item.mtime_ns else None
        done, there = yield from ask(
            set_attrs(Type.SETSTAT, full, Attrs(permissions=item.item.mode & 0o7777, atime=times, mtime=times)),
            on_path(Type.LSTAT if path else Type.STAT, full),
        )
        if isinstance(there, Attrs):
            # A server that keeps no modes or times still has the folder: what it has is told as it is.
            return Written(item, entry(path, there))
        return Written(item, item.item, self._tree.refused(path, done if isinstance(done, Status) and not done.ok else there))

    def _tidy(self) -> None:
        """Removes what is left under temporary names and ends swaps that were interrupted, as far as the line still goes."""
        self._stage.close()
        put = self._put
        if self._cut:
            return
        try:
            for step, paths in ((put.discard, put.orphans), (put.discard_folder, put.folders), (put.bring_back, put.stepped)):
                if paths:
                    for _ in self._lines.carry_out(works([functools.partial(step, path) for path in paths])):
                        pass
        except ConnectionFailed:  # a line that is cut for good was told already; `remove_temporaries` finds the names in a later run
            self._cut = True

    @property
    def untidy(self) -> bool:
        """Whether anything may stand under a temporary name yet."""
        return bool(self._put.orphans or self._put.folders or self._put.stepped)


def _raise(failure: Failure) -> Steps[Entry]:
    raise Refused(failure)
    yield  # a generator that asks nothing


def missing(value: object) -> bool:
    """Whether a reply says that nothing is there."""
    return isinstance(value, Status) and value.code == Code.NO_SUCH_FILE
