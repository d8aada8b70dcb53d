"""Digests computed by the server itself: one remote command for thousands of files.

Names go in by standard input, NUL after each, and never into a command line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from hostbackup.errors import LineCut, ProtocolBroken

_PROBE_WAIT = 20.0  # seconds a command may take to hash nothing
_SLOWEST = 2_000_000  # bytes a second that a slow disk still hashes; a command is given the time for that
_PATIENCE = 120.0
_EMPTY = {
    "sha256": b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha1": b"da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "md5": b"d41d8cd98f00b204e9800998ecf8427e",
}
_LINE = re.compile(rb"(\\?)([0-9a-fA-F]{32,64}) [ *]?(\./.*)", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_PLAIN = {b"n": b"\n", b"r": b"\r", b"\\": b"\\"}


class RanCommand(Protocol):
    """What a remote command did."""

    @property
    def exit(self) -> int: ...
    @property
    def stdout(self) -> bytes: ...


class Runner(Protocol):
    """A login that runs commands."""

    def has_shell(self) -> bool: ...
    def run(self, command: bytes, stdin: Iterable[bytes], *, timeout: float) -> RanCommand: ...


@dataclass(frozen=True, slots=True)
class Tool:
    """A program on the server that prints `digest  name` lines."""

    algorithm: str
    command: bytes
    escapes: bool = False  # GNU's: a name with a line feed stays on one line


_TOOLS = (
    Tool("sha256", b"sha256sum --", True),
    Tool("sha256", b"shasum -a 256 --"),
    Tool("sha256", b"sha256 -r --"),
    Tool("sha256", b"openssl dgst -sha256 -r"),
    Tool("sha1", b"sha1sum --"),
    Tool("md5", b"md5sum --"),
)


def find_tool(session: Runner, *, weak: bool = False) -> Tool | None:
    """The best program the server has, or None. `weak` lets sha1 and md5 count."""
    if not session.has_shell():
        return None
    for tool in _TOOLS:
        if tool.algorithm != "sha256" and not weak:
            continue
        ran = _run(session, b"cd / && xargs -0 " + tool.command, [b"./dev/null\0"], _PROBE_WAIT)
        if ran is not None and parse_digests(ran.stdout, len(_EMPTY[tool.algorithm])).get(b"dev/null") == _EMPTY[tool.algorithm].decode():
            if tool.escapes:
                told = _run(session, b"sha256sum --version", [], _PROBE_WAIT)
                return tool if told is not None and b"GNU coreutils" in told.stdout else Tool(tool.algorithm, tool.command)
            return tool
    return None


def digests(session: Runner, tool: Tool, root: bytes, sizes: Mapping[bytes, int]) -> dict[bytes, str]:
    """Digests (lower-case hex) of files below `root`, by relative path. `sizes` are their bytes. Those the server tells nothing of are left out.

    Raises LineCut.
    """
    names = [name for name in sizes if tool.escapes or not (b"\n" in name or b"\r" in name)]
    if not names:
        return {}
    command = b"cd " + quote(root) + b" && xargs -0 " + tool.command
    patience = _PATIENCE + sum(sizes[name] for name in names) / _SLOWEST
    ran = _run(session, command, (b"./" + name + b"\0" for name in names), patience)
    return {} if ran is None else parse_digests(ran.stdout, len(_EMPTY[tool.algorithm]), frozenset(names))


def _run(session: Runner, command: bytes, stdin: Iterable[bytes], timeout: float) -> RanCommand | None:
    try:
        return session.run(command, _joined(stdin), timeout=timeout)
    except ProtocolBroken:
        return None
    except LineCut:
        if getattr(session, "alive", False):
            return None  # the command hung, the line did not
        raise


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


def parse_digests(output: bytes, length: int, names: frozenset[bytes] | None = None) -> dict[bytes, str]:
    """What `digest  ./name` lines tell, by name without `./`. `length` is that of a digest in hex; `names` are those asked for.

    A line that begins with a backslash has its name escaped, as GNU does it. Lines that are something else are passed over; a name told twice
    with different digests is not believed at all.
    """
    found: dict[bytes, str] = {}
    doubtful: set[bytes] = set()
    for line in output.split(b"\n"):
        match = _LINE.fullmatch(line)
        if match is None or len(match[2]) != length:
            continue
        name = (_ESCAPE.sub(lambda m: _PLAIN.get(m[1], m[0]), match[3]) if match[1] else match[3])[2:]
        digest = match[2].decode().lower()
        if names is not None and name not in names:
            continue
        if found.setdefault(name, digest) != digest:
            doubtful.add(name)
    return {name: digest for name, digest in found.items() if name not in doubtful}
