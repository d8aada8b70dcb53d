"""What the verbs of an SFTP tree share: where the tree stands, how entries and failures are made, and the logins and channels they work on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from hostbackup.errors import ConnectionFailed, LineCut, LoginRefused, NameNotResolved, PlaceMissing, ProtocolBroken, Unreachable
from hostbackup.model import Entry, Failure, Kind, Part
from hostbackup.protocols.sftp.client import Connection, Steps, ask_one
from hostbackup.protocols.sftp.packets import Attrs, Code, Status, Type, on_path
from hostbackup.protocols.sftp.pump import Pump, Work

if TYPE_CHECKING:
    from hostbackup.protocols.remote import Login

Result = TypeVar("Result")

SILENCE = 60.0  # seconds without a byte from a channel that owes answers: then the line counts as cut
BACK_OFF = (1.0, 2.0, 4.0)  # seconds before each new login after a cut, while nothing gets done in between
RECONNECTS = 20  # new logins in one call, however much gets done in between

_CODES = {
    Code.NO_SUCH_FILE: ("vanished", "it is not there any more", ""),
    Code.PERMISSION_DENIED: ("permission", "this login may not use it", "ask the provider, or change its mode there"),
    Code.OP_UNSUPPORTED: ("unsupported", "the server cannot do that", ""),
}


def proper(path: bytes) -> bool:
    """Whether `path` can only lead below the root: no empty, `.` or `..` component, no NUL."""
    return b"\0" not in path and all(part not in (b"", b".", b"..") for part in path.split(b"/"))


@dataclass(slots=True)
class Tree:
    """Where a tree stands on the server and what its failures are told with. `root` is absolute once a session has resolved it."""

    told_root: bytes
    side: str
    part: Part
    root: bytes = b""

    def full(self, path: bytes) -> bytes:
        if not path:
            return self.root
        return self.root + path if self.root.endswith(b"/") else self.root + b"/" + path

    @property
    def where(self) -> str:
        return self.told_root.decode("utf-8", "backslashreplace")

    def tell(self, name: bytes, code: str, reason: str, hint: str = "") -> Failure:
        return Failure(self.side, self.part.id, name, code, reason, hint)

    def refused(self, name: bytes, status: Status) -> Failure:
        """The failure that a status reply means."""
        try:
            code, reason, hint = _CODES[Code(status.code)]
        except (KeyError, ValueError):
            return self.tell(name, "refused", f"the server refused: {status}")
        return self.tell(name, code, reason, hint)


def entry(path: bytes, attrs: Attrs, target: bytes = b"") -> Entry:
    """The entry that attributes describe; what they do not tell is 0."""
    kind = attrs.kind or Kind.OTHER
    return Entry(path, kind, (attrs.size or 0) if kind is Kind.FILE else 0, attrs.mtime_ns, attrs.mode, target)


def same(before: Attrs, after: Attrs) -> bool:
    """Whether both describe the same, untouched file, as far as version 3 tells: no inode, whole seconds."""
    return before[:4] == after[:4] and before.mtime == after.mtime


def resolve_root(tree: Tree) -> Callable[[Connection], Steps[Attrs]]:
    """Makes `tree.root` absolute (symlinks on the way there are fine) and tells what is there. Raises PlaceMissing."""

    def steps(_: Connection) -> Steps[Attrs]:
        told = tree.told_root.removeprefix(b"~/") if tree.told_root != b"~" else b"."
        names = yield from ask_one(on_path(Type.REALPATH, told or b"."))
        if isinstance(names, list) and len(names) == 1 and names[0].name.startswith(b"/") and b"\0" not in names[0].name:
            tree.root = names[0].name
        elif isinstance(names, Status):
            tree.root = told
        else:
            raise ProtocolBroken("the server's answer to REALPATH is no absolute path", where=tree.where)
        there = yield from ask_one(on_path(Type.STAT, tree.root))
        if isinstance(there, Attrs):
            if there.kind not in (Kind.DIR, None):
                raise PlaceMissing("that is not a folder on the server", where=tree.where)
            return there
        if there.code == Code.PERMISSION_DENIED:
            raise PlaceMissing("this login may not look there", where=tree.where, hint="ask the provider, or use another login")
        if there.code == Code.NO_SUCH_FILE:
            raise PlaceMissing("there is no such folder on the server", where=tree.where, hint="is `path` right? it counts from the login folder")
        raise PlaceMissing(f"the server refused to show the folder: {there}", where=tree.where)

    return steps


@dataclass(slots=True)
class Lines:
    """Logins and channels: opened when needed, reused, opened anew after a cut. `pause` waits so many seconds."""

    factory: Callable[[], Login]
    channels: int = 4
    silence: float = SILENCE
    pause: Callable[[float], None] = time.sleep
    _session: Login | None = None
    _idle: list[tuple[Login, Connection]] = field(default_factory=list)
    _refused: LoginRefused | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def session(self) -> Login:
        """The login, made now if there is none. Raises as `hostbackup.protocols.ssh.connect`."""
        with self._lock:
            if self._session is not None and not self._session.alive:
                self.close()
            if self._refused is not None:
                raise self._refused
            if self._session is None:
                try:
                    self._session = self.factory()
                except LoginRefused as error:
                    self._refused = error  # never tried again, whichever verb comes next
                    raise
            return self._session

    def take(self, wanted: int | None = None) -> list[Connection]:
        """Up to `wanted` connections, one at least, for the caller alone."""
        with self._lock:
            session = self.session()
            count = min(wanted or self.channels, self.channels)
            taken: list[Connection] = []
            while self._idle and len(taken) < count:
                taken.append(self._idle.pop()[1])
            if not taken:
                taken.append(self._open(session))
            if len(taken) < count:
                with ThreadPoolExecutor(count) as pool:
                    opened = pool.map(self._try_open, [session] * (count - len(taken)))
                    more = [connection for connection in opened if connection is not None]
                # What the server refuses now it will refuse next time too.
                self.channels = max(1, min(self.channels, len(taken) + len(more))) if wanted is None else self.channels
                taken += more
            return taken

    def _open(self, session: Login) -> Connection:
        return Connection.start(session.open_sftp_channel(), self.silence)

    def _try_open(self, session: Login) -> Connection | None:
        try:
            return self._open(session)
        except ConnectionFailed:
            return None  # fewer channels do too; a line that is cut shows on the first

    def give_back(self, connections: list[Connection]) -> None:
        with self._lock:
            for connection in connections:
                if self._session is None or connection.outstanding or connection.unsent:
                    connection.close()
                else:
                    self._idle.append((self._session, connection))

    def one(self, steps: Callable[[Connection], Steps[Result]]) -> Result:
        """The result of a single work. Raises as `carry_out`, and what the work raises."""
        works = [Work(steps)]
        (result,) = self.carry_out(lambda: works.pop() if works else None, channels=1)
        return result

    def carry_out(self, source: Callable[[], Work[Result] | None], channels: int | None = None) -> Iterator[Result]:
        """The results of all works, over new logins where the line is cut; what was under way is begun anew.

        A login is made again up to three times in a row without a result in between. Then, or where the server refuses the login, the error is
        raised, after the results that came.
        """
        again: deque[Work[Result]] = deque()
        attempts, total, source_broke = 0, 0, False

        def next_work() -> Work[Result] | None:
            nonlocal source_broke
            if again:
                return again.popleft()
            source_broke = True  # should `source` itself raise, that is no cut of this line
            work = source()
            source_broke = False
            return work

        while True:
            pump: Pump[Result] | None = None
            try:
                connections = self.take(channels)
                pump = Pump(connections, timeout=self.silence)
                with contextlib.closing(pump.run(next_work)) as results:
                    for result in results:
                        attempts = 0
                        yield result
                self.give_back(connections)
                return
            except (LineCut, Unreachable, NameNotResolved):
                if source_broke or (pump is None and not total) or attempts >= len(BACK_OFF) or total >= RECONNECTS:
                    raise
                if pump is not None:
                    again.extend(pump.unfinished())
            self.close()
            self.pause(BACK_OFF[attempts])
            attempts, total = attempts + 1, total + 1

    def close(self) -> None:
        """Ends the login and all channels. May be called twice; the next use logs in anew."""
        with self._lock:
            idle, self._idle = self._idle, []
            session, self._session = self._session, None
        for _, connection in idle:
            connection.close()
        if session is not None:
            session.close()
