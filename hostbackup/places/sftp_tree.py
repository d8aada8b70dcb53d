"""What the verbs of an SFTP tree share: where the tree stands, how entries and failures are made, and the logins and channels they work on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from hostbackup.errors import ConnectionFailed, LineCut, LoginRefused, NameNotResolved, PlaceMissing, ProtocolBroken, Unreachable
from hostbackup.model import Entry, Failure, Kind, Part
from hostbackup.places.sftp_large import Reading
from hostbackup.protocols.limits import UNLIMITED, Limits
from hostbackup.protocols.sftp.client import Connection, Steps, ask
from hostbackup.protocols.sftp.packets import Attrs, Code, Status, Type, on_path
from hostbackup.protocols.sftp.pump import Pump, Work
from hostbackup.protocols.sftp.quirks import as_written, leads_to, mistakes_links

if TYPE_CHECKING:
    from hostbackup.protocols.remote import Login

Result = TypeVar("Result")

BACK_OFF = (1.0, 2.0, 4.0)  # seconds before each new login after a cut, while nothing gets done in between
RECONNECTS = 20  # new logins in one call, and at most so many without one result in between …
WORTH_A_LOGIN = 8 << 20  # … and one more for so many bytes: a long transfer over a bad line may go on, a server is not worn out for nothing

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
    reading: Reading = field(default_factory=Reading)  # how its server is best asked for large files
    absolute_links: bool = False  # whether the server tells relative links as absolute paths

    def full(self, path: bytes) -> bytes:
        if not path:
            return self.root
        return self.root + path if self.root.endswith(b"/") else self.root + b"/" + path

    def target(self, path: bytes, attrs: Attrs, told: bytes) -> bytes:
        """What the link at `path` says, from its attributes as its folder lists them and what READLINK tells."""
        return as_written(self.full(path), told, attrs.size) if self.absolute_links else told

    def doubts(self, attrs: Attrs, target: bytes) -> bool:
        """Whether a link cannot be what `target` returned: what it says is not as long."""
        return self.absolute_links and bool(attrs.size) and attrs.size != len(target)

    def says(self, path: bytes, told: bytes, target: bytes) -> bool:
        """Whether READLINK tells this of a link that says `target`."""
        return told == target or (self.absolute_links and leads_to(self.full(path), told, target))

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


def entry(path: bytes, attrs: Attrs, target: bytes = b"", *, kind: Kind | None = None) -> Entry:
    """The entry that attributes describe; what they do not tell is 0. `kind`: theirs, if it is known already."""
    kind = kind or attrs.kind or Kind.OTHER
    size, _, _, permissions, _, mtime = attrs
    return Entry(path, kind, (size or 0) if kind is Kind.FILE else 0, (mtime or 0) * 1_000_000_000, (permissions or 0) & 0o7777, target)


def same(before: Attrs, after: Attrs) -> bool:
    """Whether both describe the same, untouched file, as far as version 3 tells: no inode, whole seconds."""
    return before[:4] == after[:4] and before.mtime == after.mtime


def resolve_root(tree: Tree) -> Callable[[Connection], Steps[Attrs]]:
    """Makes `tree.root` absolute (symlinks on the way there are fine) and tells what is there. Raises PlaceMissing."""

    def steps(connection: Connection) -> Steps[Attrs]:
        there, _ = yield from enter_root(tree, connection)
        return there

    return steps


def enter_root(tree: Tree, connection: Connection, *also: Type) -> Steps[tuple[Attrs, list[Any]]]:
    """As `resolve_root`, with the answers to what is `also` asked of the root, in the same round trip."""
    tree.absolute_links = connection.mistakes_links
    told = tree.told_root.removeprefix(b"~/") if tree.told_root != b"~" else b"."
    names, there, *more = yield from ask(*(on_path(kind, told or b".") for kind in (Type.REALPATH, Type.STAT, *also)))
    if isinstance(names, list) and len(names) == 1 and names[0].name.startswith(b"/") and b"\0" not in names[0].name:
        tree.root = names[0].name
    elif isinstance(names, Status):
        tree.root = told
    else:
        raise ProtocolBroken("the server's answer to REALPATH is no absolute path", where=tree.where)
    if isinstance(there, Attrs):
        if there.kind not in (Kind.DIR, None):
            raise PlaceMissing("that is not a folder on the server", where=tree.where)
        return there, more
    if there.code == Code.PERMISSION_DENIED:
        raise PlaceMissing("this login may not look there", where=tree.where, hint="ask the provider, or use another login")
    if there.code == Code.NO_SUCH_FILE:
        raise PlaceMissing("there is no such folder on the server", where=tree.where, hint="is `path` right? it counts from the login folder")
    raise PlaceMissing(f"the server refused to show the folder: {there}", where=tree.where)


def overloaded(result: object) -> bool:
    """Whether an outcome may only mean that the server had too many files open: version 3 has no status of its own for that."""
    failure = getattr(result, "failure", None)
    began = getattr(result, "items", None)  # of a listing: its folder was open
    return isinstance(failure, Failure) and failure.code == "refused" and not began


@dataclass(slots=True)
class Lines:
    """Logins and channels: opened when needed, reused, opened anew after a cut.

    `channels` are used at once on each of up to `limits.connections` logins. `pause` waits so many seconds.
    """

    factory: Callable[[], Login]
    channels: int = 4
    limits: Limits = UNLIMITED
    pause: Callable[[float], None] = time.sleep
    _sessions: list[Login] = field(default_factory=list)
    _most: int = 0  # logins that the server bore last time; 0: not known
    _idle: list[Connection] = field(default_factory=list)
    _cuts: int = 0  # lines in a row that were cut while channels were opening
    _refused: LoginRefused | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def another(self) -> Lines:
        """Lines of their own, with the same settings."""
        return Lines(self.factory, self.channels, self.limits, self.pause)

    def session(self) -> Login:
        """The first login, made now if there is none. Raises as `hostbackup.protocols.ssh.connect`."""
        with self._lock:
            if not all(session.alive for session in self._sessions):
                self.close()
            if self._refused is not None:
                raise self._refused
            if not self._sessions:
                try:
                    self._sessions.append(self.factory())
                except LoginRefused as error:
                    self._refused = error  # never tried again, whichever verb comes next
                    raise
            return self._sessions[0]

    def _all_sessions(self) -> list[Login]:
        """As many logins as are allowed and the server bears. One that is refused beside a good one is not tried again."""
        first = self.session()
        wanted = min(self.limits.connections, self._most or self.limits.connections)
        while len(self._sessions) < wanted:
            try:
                self._sessions.append(self.factory())
            except ConnectionFailed:
                if not first.alive:
                    raise
                self._most = wanted = len(self._sessions)
        return self._sessions

    def take(self, wanted: int | None = None) -> list[Connection]:
        """Up to `wanted` connections (all there may be, if not told), one at least, for the caller alone."""
        with self._lock:
            sessions = [self.session()] if wanted is not None else self._all_sessions()
            count = min(wanted or self.channels, self.channels) * len(sessions)
            taken = [self._idle.pop() for _ in range(min(count, len(self._idle)))]
            if len(taken) < count:
                try:
                    taken += self._open([sessions[place % len(sessions)] for place in range(len(taken), count)], needed=not taken)
                finally:
                    if all(session.alive for session in sessions):
                        self._cuts = 0
                        if wanted is None and 0 < len(taken) < count:  # what the server refuses now it will refuse next time too
                            self.channels = max(1, len(taken) // len(sessions))
                    elif 1 < count > len(taken):
                        self._cuts += 1  # the line may be bad; or else the server drops who asks for so many channels
                        self.channels = self.channels if self._cuts == 1 else 1
            return taken

    def _open(self, sessions: Sequence[Login], *, needed: bool) -> list[Connection]:
        """Connections on these, all opened at once: each takes several round trips. Raises why there is none at all, if one is `needed`."""
        if len(sessions) == 1 and needed:
            return [self._open_one(sessions[0])]
        opened: list[Connection] = []
        failed: list[ConnectionFailed] = []
        with ThreadPoolExecutor(len(sessions), "sftp-channel") as pool:
            try:
                for one in [pool.submit(self._open_one, session) for session in sessions]:
                    try:
                        opened.append(one.result())
                    except ConnectionFailed as error:
                        failed.append(error)  # fewer channels do too; a line that is cut shows on the others
            except BaseException:
                for session in sessions:
                    session.abort()  # else the end of the pool would wait for a server that may never answer
                raise
        if needed and not opened:
            raise next((error for error in failed if isinstance(error, LineCut)), failed[0])
        return opened

    def _open_one(self, session: Login) -> Connection:
        connection = Connection.start(session.open_sftp_channel(), self.limits.stall)
        connection.mistakes_links = mistakes_links(session.server_version)
        connection.login = session
        return connection

    def give_back(self, connections: list[Connection]) -> None:
        with self._lock:
            for connection in connections:
                if connection.idle and self._current(connection):
                    self._idle.append(connection)
                else:
                    connection.close()

    def _current(self, connection: Connection) -> bool:
        """Whether it is of a login that is used, and not of a line that was cut since."""
        return any(session is connection.login for session in self._sessions)

    def one(self, steps: Callable[[Connection], Steps[Result]]) -> Result:
        """The result of a single work. Raises as `carry_out`, and what the work raises."""
        works = [Work(steps)]
        (result,) = self.carry_out(lambda: works.pop() if works else None, channels=1)
        return result

    def carry_out(self, source: Callable[[], Work[Result] | None], channels: int | None = None, *, stall: float | None = None) -> Iterator[Result]:
        """The results of all works, over new logins where the line is cut; what was under way is begun anew.

        `stall`: seconds without an answer before the line counts as cut, where the server may need longer than `limits` say.

        A login is made again up to three times in a row with nothing moved in between, and within a budget that grows with what moves. Then, or where
        the server refuses the login, the error is raised, after the results that came.
        """
        again: deque[Work[Result]] = deque()
        attempts, fruitless, spent, gained, source_broke = 0, 0, 0, 0, False

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
                before = sum(connection.moved for connection in connections)
                limits = self.limits
                pump = Pump(connections, timeout=stall or limits.stall, requests=limits.requests, rate=limits.rate, overloaded=overloaded)
                with contextlib.closing(pump.run(next_work)) as results:
                    for result in results:
                        attempts = fruitless = 0
                        yield result
                self.give_back(connections)
                return
            except (LineCut, Unreachable, NameNotResolved):
                if pump is not None:
                    gained += pump.moved - before
                    attempts = 0 if pump.moved - before >= WORTH_A_LOGIN else attempts
                worn = attempts >= len(BACK_OFF) or fruitless >= RECONNECTS or spent >= RECONNECTS + gained // WORTH_A_LOGIN
                if source_broke or (pump is None and not spent and not 0 < self._cuts < 3) or worn:
                    raise
                if pump is not None:
                    again.extend(pump.unfinished())
            if pump is None or any(map(self._current, connections)):  # else whoever was quicker has logged in anew
                self.close()
            self.pause(BACK_OFF[attempts])
            attempts, fruitless, spent = attempts + 1, fruitless + 1, spent + 1

    def close(self) -> None:
        """Ends the logins and all channels. May be called twice; the next use logs in anew."""
        with self._lock:
            idle, self._idle = self._idle, []
            sessions, self._sessions = self._sessions, []
        for connection in idle:
            connection.close()
        for session in sessions:
            session.close()
