"""Putting one symlink in its place over SFTP."""

from __future__ import annotations

from hostbackup.model import Entry, Kind, Write
from hostbackup.places.sftp_expect import as_expected, sendable
from hostbackup.places.sftp_put import Put, Refused
from hostbackup.places.sftp_tree import Tree, entry
from hostbackup.protocols.sftp.client import Connection, Steps, ask, ask_one
from hostbackup.protocols.sftp.packets import Attrs, Status, Type, extended, on_path, set_attrs, two_paths

_LSETSTAT = b"lsetstat@openssh.com"


class Links:
    """How symlinks get their places. Temporary names are those of `put`."""

    def __init__(self, tree: Tree, put: Put) -> None:
        self._tree = tree
        self._put = put
        self._link_first: bool | None = None

    def link(self, connection: Connection, item: Write[Entry]) -> Steps[Entry]:
        """The symlink in its place. Raises Refused."""
        path, full, target = item.item.path, self._tree.full(item.item.path), item.item.target
        there = yield from ask_one(on_path(Type.LSTAT, full))
        if isinstance(there, Attrs):
            if there.kind is Kind.LINK:
                names = yield from ask_one(on_path(Type.READLINK, full))
                if isinstance(names, list) and names and self._tree.says(path, names[0].name, target):
                    return entry(path, there, target)
            if not item.replace or there.kind not in (Kind.FILE, Kind.LINK) or not as_expected(item, there):
                what = {Kind.DIR: "a folder", Kind.LINK: "another symlink", Kind.FILE: "a file"}.get(there.kind or Kind.OTHER, "something else")
                raise Refused(self._tree.tell(path, "exists", f"{what} is there, and is left as it is"))
            temporary = self._put.temporary(path)
            try:
                yield from self._make_link(path, target, temporary)
                yield from self._put.rename(connection, item, temporary, full, taken=True)
            except Refused:
                yield from self._put.discard(temporary)
                raise
        else:
            yield from self._make_link(path, target, full)
        looks = [on_path(Type.LSTAT, full), on_path(Type.READLINK, full)]
        if _LSETSTAT in connection.extensions and item.item.mtime_ns:
            seconds = sendable(item.item.mtime_ns)
            times = set_attrs(Type.SETSTAT, full, Attrs(atime=seconds, mtime=seconds))
            looks.insert(0, extended(_LSETSTAT, times.body))
        *_, now, names = yield from ask(*looks)
        if not isinstance(now, Attrs) or not isinstance(names, list) or len(names) != 1:
            raise Refused(self._put.refused(path, now if isinstance(now, Status) else names))
        return entry(path, now, target if self._tree.says(path, names[0].name, target) else names[0].name)

    def _make_link(self, path: bytes, target: bytes, where: bytes) -> Steps[None]:
        if self._link_first is None:
            self._link_first = yield from self._probe_order(path)
        first, second = (where, target) if self._link_first else (target, where)
        status = yield from ask_one(two_paths(Type.SYMLINK, first, second))
        if not (isinstance(status, Status) and status.ok):
            raise Refused(self._put.refused(path, status))

    def _probe_order(self, path: bytes) -> Steps[bool]:
        """Whether SYMLINK takes the link's own path first, as the draft says. OpenSSH and those who follow it take it second.

        Tried out with two temporary names where the server does not call itself OpenSSH: in the wrong order a link's target would become a place.
        """
        if self._put.openssh():
            return False
        one, two = self._put.temporary(path), self._put.temporary(path)
        yield from ask(two_paths(Type.SYMLINK, one, two))
        first, second = yield from ask(on_path(Type.LSTAT, one), on_path(Type.LSTAT, two))
        made = [name for name, value in ((one, first), (two, second)) if isinstance(value, Attrs)]
        yield from ask(*(on_path(Type.REMOVE, name) for name in made or [one]))
        if not made:
            raise Refused(self._tree.tell(path, "unsupported", "the server makes no symlinks"))
        return made == [one]
