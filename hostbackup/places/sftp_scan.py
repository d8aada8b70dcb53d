"""Listing a tree over SFTP: many folders at a time."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator

from hostbackup.model import Entry, Failure, Kind, Listing
from hostbackup.places.exclude import Excludes
from hostbackup.places.sftp_tree import Lines, Tree, enter_root, entry
from hostbackup.protocols.sftp.client import Connection, Steps, ask
from hostbackup.protocols.sftp.packets import Attrs, Code, Name, Status, Type, on_handle, on_path
from hostbackup.protocols.sftp.pump import Work

_AHEAD = 8  # READDIRs under way in one folder
_GROUP = 128  # LSTATs or READLINKs under way for one folder
_MOST = 4_000_000  # names in one folder: a list that goes on beyond is taken for one without end …
_IDLE = 100  # … as is one that gave no new name in so many answers in a row


class Scanner:
    """One scan. `root_entry` is there once the first listing is."""

    def __init__(self, lines: Lines, tree: Tree, excludes: Excludes) -> None:
        self._lines = lines
        self._tree = tree
        self._excludes = excludes
        self.root_entry: Entry | None = None

    def listings(self) -> Iterator[Listing[Entry]]:
        """One Listing a folder, a folder before what is in it."""
        waiting = [b""]

        def source() -> Work[Listing[Entry]] | None:
            return Work(functools.partial(self._list, waiting.pop())) if waiting else None

        for listing in self._lines.carry_out(source):
            waiting.extend(item.path for item in reversed(listing.items) if item.kind is Kind.DIR)
            yield listing

    def _list(self, folder: bytes, connection: Connection) -> Steps[Listing[Entry]]:
        if folder:
            path = self._tree.full(folder)
            # OPENDIR follows a link that took the folder's place meanwhile; LSTAT tells. The root may be reached through links.
            there, handle = yield from ask(on_path(Type.LSTAT, path), on_path(Type.OPENDIR, path))
        else:
            there, (handle,) = yield from enter_root(self._tree, connection, Type.OPENDIR)
            self.root_entry = entry(b"", there)
        if isinstance(there, Attrs) and there.kind not in (Kind.DIR, None):
            if isinstance(handle, bytes):
                connection.post(None, on_handle(Type.CLOSE, handle))
            return Listing(folder, [], self._tree.tell(folder, "changed-kind", "it became something else"))
        if not isinstance(handle, bytes):
            return Listing(folder, [], self._tree.refused(folder, _status(handle)))
        names, trouble = yield from self._names(folder, handle)
        connection.post(None, on_handle(Type.CLOSE, handle))  # what is below need not wait for the answer
        items, unclear = yield from self._entries(folder, names)
        items.sort(key=operator.attrgetter("path"))
        return Listing(folder, items, trouble or unclear)

    def _names(self, folder: bytes, handle: bytes) -> Steps[tuple[list[Name], Failure | None]]:
        """All names of an open folder that may stand below it, each once, READDIRs overlapping."""
        names: dict[bytes, Name] = {}
        trouble: Failure | None = None
        more = on_handle(Type.READDIR, handle, 0)
        idle, due, ahead, ended = 0, 2, 2, False  # two do for most folders: the names, and the end of them
        reply = yield [more, more]
        while True:
            due -= 1
            requests = []
            if isinstance(reply.value, list) and reply.value:
                before = len(names)
                trouble = self._sift(folder, reply.value, names) or trouble
                idle = 0 if len(names) > before else idle + 1
                if idle >= _IDLE or len(names) >= _MOST:
                    ended = True
                    trouble = self._tree.tell(folder, "endless", "the server's list of this folder has no end; what came first is listed")
                # Only when it takes more than those two are further ones sent: their answers would be waited for.
                requests = [] if ended or (due and ahead == 2) else [more] * (min(ahead + 1, _AHEAD) - due)
                ahead = max(ahead, due + len(requests))
            elif not ended:
                ended = True
                status = _status(reply.value)
                if status.code not in (Code.EOF, Code.OK):
                    trouble = self._tree.refused(folder, status)
            due += len(requests)
            if not due:
                return list(names.values()), trouble
            reply = yield requests

    def _sift(self, folder: bytes, told: list[Name], names: dict[bytes, Name]) -> Failure | None:
        trouble = None
        for name in told:
            raw = name.name
            if raw in (b".", b".."):
                continue
            if not raw or b"/" in raw or b"\0" in raw:
                trouble = self._tree.tell(folder, "unsafe-name", f"the server gave a name that could lead out of the folder, left out: {raw[:80]!r}")
            elif raw in names:
                trouble = self._tree.tell(folder, "duplicate-name", f"the server gave a name twice: {raw[:80]!r}")
            else:
                names[raw] = name
        return trouble

    def _entries(self, folder: bytes, names: list[Name]) -> Steps[tuple[list[Entry], Failure | None]]:
        prefix = folder + b"/" if folder else b""
        known: list[tuple[bytes, Attrs, Kind]] = []
        vague: list[bytes] = []
        for name, attrs in names:
            kind = attrs.kind
            if kind is None or attrs.size is None or attrs.mtime is None:
                vague.append(prefix + name)
            else:
                known.append((prefix + name, attrs, kind))
        trouble: Failure | None = None
        if vague:
            for path, value in (yield from self._ask_each(Type.LSTAT, vague)):
                if isinstance(value, Attrs) and value.kind is not None:
                    known.append((path, value, value.kind))
                elif isinstance(value, Attrs):
                    trouble = self._tree.tell(path, "unknown-kind", "the server does not tell what it is")
                elif _status(value).code != Code.NO_SUCH_FILE:
                    trouble = self._tree.refused(path, _status(value))
        if self._excludes:
            known = [one for one in known if not self._excludes.matches(one[0], one[2] is Kind.DIR)]
        items = [entry(path, attrs, kind=kind) for path, attrs, kind in known if kind is not Kind.LINK]
        links = {path: attrs for path, attrs, kind in known if kind is Kind.LINK} if len(items) < len(known) else {}
        if links:
            for path, value in (yield from self._ask_each(Type.READLINK, list(links))):
                if isinstance(value, list) and len(value) == 1:
                    target = self._tree.target(path, links[path], value[0].name)
                    items.append(entry(path, links[path], target))
                    if self._tree.doubts(links[path], target):
                        reason, hint = "the server tells in other words where the link leads", "it is kept as told: compare it before relying on it"
                        trouble = self._tree.tell(path, "unclear-link", reason, hint)
                elif _status(value).code != Code.NO_SUCH_FILE:  # else it went while the folder was being listed
                    trouble = self._tree.refused(path, _status(value))
        return items, trouble

    def _ask_each(self, kind: Type, paths: list[bytes]) -> Steps[list[tuple[bytes, object]]]:
        answers: list[tuple[bytes, object]] = []
        for at in range(0, len(paths), _GROUP):
            group = paths[at : at + _GROUP]
            values = yield from ask(*(on_path(kind, self._tree.full(path)) for path in group))
            answers.extend(zip(group, values, strict=True))
        return answers


def _status(value: object) -> Status:
    """The status in a reply; a reply of a kind that makes no sense here counts as a refusal."""
    return value if isinstance(value, Status) else Status(Code.OK if value == [] else Code.FAILURE, b"an answer of the wrong kind")
