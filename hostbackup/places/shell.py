"""Digests computed by the server's own programs: one remote command for thousands of files.

Names go in by standard input, NUL after each, and never into a command line.
"""

from __future__ import annotations

import re
import shlex
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from hostbackup.errors import LineCut, ProtocolBroken
from hostbackup.protocols.limits import STALL

PARALLEL = 2  # commands at once: a server hashes on several cores
SLOWEST = 4_000_000  # bytes a second that a slow disk still hashes
_LONGEST_LINE = 1 << 16
_TALK = 1 << 20  # bytes a server may say beside what was asked

_EMPTY = {
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha1": "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "md5": "d41d8cd98f00b204e9800998ecf8427e",
    "cksum": "4294967295 0",
}
_LINE = re.compile(rb"(\\?)([0-9a-fA-F]{32,64}) [ *]?(\.?/.*)", re.DOTALL)
_CKSUM_LINE = re.compile(rb"()(\d{1,10} \d{1,20}) (\.?/.*)", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_PLAIN = {b"n": b"\n", b"r": b"\r", b"\\": b"\\"}


class Command(Protocol):
    """A remote command under way, as `hostbackup.protocols.remote.Running`."""

    def __iter__(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


class Runner(Protocol):
    """A login that runs commands, as `hostbackup.protocols.remote.Login`."""

    @property
    def alive(self) -> bool: ...
    def has_shell(self) -> bool: ...
    def start(self, command: bytes, stdin: Iterable[bytes] = (), *, timeout: float | None = None) -> Command: ...


@dataclass(frozen=True, slots=True)
class Tool:
    """A program on the server that prints `digest  name` lines (cksum: `crc size name`). `escapes`: like GNU's, it keeps odd names on one line."""

    algorithm: str
    command: bytes
    escapes: bool = False

    def parse(self, line: bytes) -> tuple[bytes, str] | None:
        """Name and digest (lower-case hex; cksum: CRC and size in decimal) of a line; None where it is something else."""
        match = (_CKSUM_LINE if self.algorithm == "cksum" else _LINE).fullmatch(line)
        if match is None or (self.algorithm != "cksum" and len(match[2]) != len(_EMPTY[self.algorithm])):
            return None
        name = _ESCAPE.sub(lambda m: _PLAIN.get(m[1], m[0]), match[3]) if match[1] else match[3]
        return name, match[2].decode().lower()


TOOLS = (  # the strongest first
    Tool("sha256", b"sha256sum"),
    Tool("sha256", b"shasum -a 256"),
    Tool("sha256", b"sha256 -r"),
    Tool("sha256", b"openssl dgst -sha256 -r"),
    Tool("sha1", b"sha1sum"),
    Tool("md5", b"md5sum"),
    Tool("cksum", b"cksum"),
)
# One command tries them all on an empty file. `sh`, since the login's own shell may be any; no character here means something to one of them.
_PROBE = (
    b"sh -c 'exec 2>/dev/null; for t in "
    + b" ".join(b'"%s"' % tool.command for tool in TOOLS)
    + b'; do echo "=$t"; printf "/dev/null\\0" | xargs -0 $t; $t --version </dev/null | head -n 1; done\''
)


def find_tools(session: Runner, stall: float = STALL) -> tuple[Tool, ...]:
    """The programs that the server has and that hash nothing to what it must be, the strongest first. Raises LineCut, ProtocolBroken.

    `stall`: seconds without a word.
    """
    if not session.has_shell():
        return ()
    works: set[bytes] = set()
    escapes: set[bytes] = set()
    current = TOOLS[0]
    for line in _lines(session, session.start(_PROBE, timeout=stall), _TALK):
        current = next((tool for tool in TOOLS if line == b"=" + tool.command), current)
        if current.parse(line) == (b"/dev/null", _EMPTY[current.algorithm]):
            works.add(current.command)
        elif b"GNU coreutils" in line and current.algorithm != "cksum":
            escapes.add(current.command)
    return tuple(Tool(tool.algorithm, tool.command, tool.command in escapes) for tool in TOOLS if tool.command in works)


def digests(
    session: Runner, tool: Tool, sizes: Mapping[bytes, int], running: Callable[[Command], object] = lambda _: None, stall: float = STALL
) -> dict[bytes, str]:
    """Digests of files by their path, as `Tool.parse` gives them. `sizes` are their bytes. What the server tells nothing of is left out.

    Paths are absolute, or count from the login folder. A name told twice with different digests is not believed at all. Raises LineCut, and
    ProtocolBroken where the server runs no commands. `stall`: seconds without a word, beside the time for the bytes.
    """
    asked = {_guarded(path): path for path in sizes if tool.escapes or not (b"\n" in path or b"\r" in path)}
    if not asked:
        return {}
    patience = stall + sum(sizes.values()) / SLOWEST
    most = _TALK + sum(2 * len(name) + 100 for name in asked)
    found: dict[bytes, str] = {}
    doubtful: set[bytes] = set()
    command = session.start(b"xargs -0 " + tool.command, _joined(name + b"\0" for name in asked), timeout=patience)
    running(command)
    for line in _lines(session, command, most):
        told = tool.parse(line)
        if told is not None and (path := asked.get(told[0])) is not None and found.setdefault(path, told[1]) != told[1]:
            doubtful.add(path)
    return {path: digest for path, digest in found.items() if path not in doubtful}


def _guarded(path: bytes) -> bytes:
    return path if path.startswith(b"/") else b"./" + path


def _lines(session: Runner, started: Command, most: int) -> Iterator[bytes]:
    """The lines a command prints: fewer where it hangs, or says more than `most` bytes. Raises LineCut."""
    rest = b""
    try:
        for data in started:
            most -= len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from lines
            if most < 0 or len(rest) > _LONGEST_LINE:
                return
    except LineCut:
        if not session.alive:  # else the command hung, the line did not
            raise
    finally:
        started.close()


def _joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces worth sending."""
    held = bytearray()
    for part in parts:
        held += part
        if len(held) > 24000:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def quote(path: bytes) -> bytes:
    """A path as one word of a POSIX shell, whatever its bytes; one that begins with a dash is still a path."""
    guarded = b"./" + path if path.startswith(b"-") else path
    return shlex.quote(guarded.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


class Shell:
    """What one server's shell can do for digests: found out once, whichever login asks."""

    def __init__(self, session: Callable[[], Runner], stall: float = STALL) -> None:
        self.session = session
        self._stall = stall
        self._tools: tuple[Tool, ...] | None = None
        self._lock = threading.Lock()
        self._alone = threading.Lock()

    def tool(self, *, weak: bool) -> Tool | None:
        """The best program, or None. `weak` lets those below SHA-256 count. Raises as logging in does."""
        with self._lock:
            if self._tools is None:
                try:
                    self._tools = find_tools(self.session(), self._stall)
                except ProtocolBroken:
                    self._tools = ()
            best = next(iter(self._tools), None)
        return best if best is not None and (weak or best.algorithm == "sha256") else None

    def digests(self, tool: Tool, sizes: Mapping[bytes, int], running: Callable[[Command], object]) -> dict[bytes, str]:
        """As the function; begun anew once where the line is cut. A server that refuses another command beside one gets them one by one."""
        for last in (False, True):
            session = self.session()
            try:
                try:
                    return digests(session, tool, sizes, running, self._stall)
                except ProtocolBroken:
                    with self._alone:
                        return digests(session, tool, sizes, running, self._stall)
            except ProtocolBroken:
                return {}
            except LineCut:
                if last:
                    return {}
        raise AssertionError("the last attempt has an outcome")


class Commands:
    """Batches being hashed, PARALLEL at a time, each by a command of its own that a thread listens to. Used by one thread."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="hashes")
        self._pending: deque[Future[dict[bytes, str]]] = deque()
        self._running: weakref.WeakSet[Command] = weakref.WeakSet()
        self._over = False

    def __len__(self) -> int:
        return len(self._pending)

    def begin(self, tool: Tool, sizes: Mapping[bytes, int]) -> None:
        self._pending.append(self._pool.submit(self._shell.digests, tool, sizes, self._note))

    def _note(self, command: Command) -> None:
        self._running.add(command)
        if self._over:
            command.close()

    def next(self) -> dict[bytes, str]:
        """The digests of the batch begun first. Raises as logging in does."""
        return self._pending.popleft().result()

    def close(self) -> None:
        """Ends what is under way."""
        self._over = True
        for command in list(self._running):
            command.close()
        self._pool.shutdown(cancel_futures=True)
