"""Names that a file system refuses, mapped so that the mapping can be undone: bytes in question become `%XX`, as in a URL.

On a file system that needs no mapping every name stays as it is. Where any name may need one, a `%` that could be read as such an escape is
escaped too; so decoding a mapped name always gives the original back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import sys
import unicodedata
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_WINDOWS = b'<>:"|?*\\'
_DEVICES = re.compile(rb"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
_ESCAPE_LIKE = re.compile(rb"%(?=[0-9A-Fa-f]{2})")
_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-@+ ")
_CUT = 32  # hex digits of a hash that stands for the end of a name that is too long


@dataclass(frozen=True, slots=True)
class Names:
    """What the names of one file system may be. The defaults are those of Linux."""

    windows: bool = False  # no <>:"|?*\, control characters, device names, final dots or spaces
    utf8: bool = False  # only valid UTF-8
    ascii: bool = False  # only ASCII
    case: bool = True  # does it tell A from a
    longest: int = 255  # bytes, or UTF-16 units where `windows`

    @classmethod
    def probe(cls, folder: Path) -> Names:
        """Found out by trying in `folder`; nothing stays there."""
        token = secrets.token_hex(6)
        windows = sys.platform == "win32" or not _can(folder, f"probe-{token}-a:b?".encode())
        utf8 = windows or not _can(folder, f"probe-{token}-".encode() + b"\xff\xfe")
        ascii_only = not _can(folder, f"probe-{token}-é".encode())
        return cls(windows, utf8, ascii_only, _tells_case(folder, token))

    @property
    def plain(self) -> bool:
        """Whether any name of a sensible length will do."""
        return self.case and not (self.windows or self.utf8 or self.ascii)

    def fit(self, name: bytes) -> bytes:
        """The name to use. Different names give different ones, but for those that only differ in case: see `Taken`."""
        if not self.plain:
            name = _ESCAPE_LIKE.sub(b"%25", name)
            name = b"".join(_percent(byte) if self._refuses(byte) else bytes((byte,)) for byte in name)
            if self.windows:
                name = _windows_name(name)
            if (self.utf8 or self.windows) and not _is_utf8(name):
                name = _escape(name, lambda byte: byte < 0x80)
        return self.shorten(name)

    def _refuses(self, byte: int) -> bool:
        return (self.windows and (byte < 32 or byte == 127 or byte in _WINDOWS)) or (self.ascii and byte >= 0x80)

    def last_resort(self, name: bytes) -> bytes:
        """For a name that was refused although it looked right: nothing but letters, digits and a few marks."""
        return self.shorten(_escape(_ESCAPE_LIKE.sub(b"%25", name), lambda byte: byte in _SAFE or byte == ord("%")), 200)

    def shorten(self, name: bytes, longest: int = 0) -> bytes:
        """A name that is too long ends in `~` and a hash of all of it. What it was is in the list of mapped names alone."""
        longest = longest or self.longest
        if self._length(name) <= longest:
            return name
        tail = f"~{hashlib.sha256(name).hexdigest()[:_CUT]}".encode()
        kept = name[: longest - len(tail)]
        return re.sub(rb"%[0-9A-F]?$", b"", _whole_characters(kept) if _is_utf8(name) else kept) + tail

    def _length(self, name: bytes) -> int:
        if self.windows and len(name) > self.longest:
            return len(name.decode("utf-8", "replace").encode("utf-16-le")) // 2
        return len(name)

    def key(self, name: bytes) -> bytes:
        """Two names with equal keys are one name to this file system."""
        if self.case:
            return name
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError:
            return name.lower()
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).encode()


class Taken:
    """The names of one folder as they are given out."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._keys: set[bytes] = set()

    def claim(self, name: bytes) -> bytes:
        """The name under which `name` can stand. Of two that differ only in case, the later has letters escaped until it differs in more."""
        fitting = self._names.fit(name)
        if self._names.case:
            return fitting
        if self._names.key(fitting) in self._keys:
            fitting = self._apart(fitting)
        self._keys.add(self._names.key(fitting))
        return fitting

    def _apart(self, name: bytes) -> bytes:
        escaped = b""
        rest = name
        while rest:
            if rest[:1] == b"%" and len(rest) >= 3:
                escaped, rest = escaped + rest[:3], rest[3:]
                continue
            escaped, rest = escaped + _percent(rest[0]), rest[1:]
            while rest and rest[0] & 0xC0 == 0x80:  # never half a character
                escaped, rest = escaped + _percent(rest[0]), rest[1:]
            if self._names.key(candidate := self._names.shorten(escaped + rest)) not in self._keys:
                return candidate
        return self._names.shorten(name + b"~" + hashlib.sha256(name).hexdigest()[:_CUT].encode())


def decode(name: bytes) -> bytes:
    """The original of a mapped name that was not shortened."""
    return urllib.parse.unquote_to_bytes(name)


def _percent(byte: int) -> bytes:
    return b"%%%02X" % byte


def _escape(name: bytes, keeps: Callable[[int], bool]) -> bytes:
    return b"".join(bytes((byte,)) if keeps(byte) else _percent(byte) for byte in name)


def _windows_name(name: bytes) -> bytes:
    if _DEVICES.match(name):
        name = _percent(name[0]) + name[1:]
    if name.endswith((b".", b" ")):
        name = name[:-1] + _percent(name[-1])
    return name


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _whole_characters(name: bytes) -> bytes:
    return name.decode("utf-8", "ignore").encode()


def _can(folder: Path, name: bytes) -> bool:
    """Whether a file of that name can be made, and is then listed under it."""
    path = os.path.join(os.fsencode(folder), name)  # noqa: PTH118 - names are bytes here
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except (OSError, ValueError):
        return False
    try:
        return name in os.listdir(os.fsencode(folder))  # noqa: PTH208
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108


def _tells_case(folder: Path, token: str) -> bool:
    small, large = folder / f"probe-{token}-case", folder / f"PROBE-{token.upper()}-CASE"
    try:
        small.touch()
        return not large.exists()
    finally:
        small.unlink(missing_ok=True)
