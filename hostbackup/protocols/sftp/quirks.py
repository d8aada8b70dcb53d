"""What some servers do otherwise than version 3 says, put right at the edge.

ProFTPD's mod_sftp (1.3.8 and what is developed after it) answers LSTAT with what a link leads to, and READLINK with an absolute path where the
link says a relative one. Only READDIR tells links as they are.
"""

from __future__ import annotations

import posixpath
import stat
from typing import Any

from hostbackup.protocols.sftp.packets import Attrs, Type

_LINK = Attrs(permissions=stat.S_IFLNK | 0o777)  # no time is told: that of LSTAT is another file's


def mistakes_links(server_version: str) -> bool:
    """Whether a server with this identification string is such a one."""
    return "mod_sftp" in server_version


class Look:
    """An LSTAT that tells links: READLINK is asked beside it, which only a link answers. `mark` belongs to the LSTAT it stands for."""

    __slots__ = ("_left", "_link", "_value", "mark", "owner")

    def __init__(self, owner: Any, mark: Any) -> None:
        self.owner = owner
        self.mark = mark
        self._left = 2
        self._link = False
        self._value: Any = None

    def take(self, value: Any, kind: int) -> bool:
        """Takes one of the two answers; whether that was the last."""
        if kind == Type.LSTAT:
            self._value = value
        else:
            self._link = isinstance(value, list)
        self._left -= 1
        return not self._left

    @property
    def value(self) -> Any:
        """What LSTAT should have answered."""
        seen = self._value
        honest = isinstance(seen, Attrs) and stat.S_ISLNK(seen.permissions or 0)
        return _LINK if self._link and not honest else seen


def as_written(link: bytes, told: bytes, size: int | None) -> bytes:
    """What the link at a full path says, from what the server tells of it and the link's own size: the length of what it says.

    Of all relative ways to the same place no two are equally long, but for those with empty, `.` or needless `..` parts in the middle. What is
    told is believed where it can be right.
    """
    if not size or size == len(told) or not told.startswith(b"/"):
        return told
    folder, up = posixpath.dirname(link), b""
    while True:
        if told == folder or told.startswith(folder.rstrip(b"/") + b"/"):
            way = (up + told[len(folder) :].lstrip(b"/")).rstrip(b"/") or b"."
            for said in (way, way + b"/", b"./" + way):
                if len(said) == size:
                    return said
        if folder in (b"", b"/"):
            return told
        folder, up = posixpath.dirname(folder), up + b"../"


def leads_to(link: bytes, told: bytes, target: bytes) -> bool:
    """Whether what the server tells of the link at a full path can be said of one that says `target`."""
    return told in (target, posixpath.normpath(posixpath.join(posixpath.dirname(link), target)))
