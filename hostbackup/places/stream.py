"""What streams from and to a server's own `tar` share: the commands, how their answers begin, and what is known of the server's tar.

The commands are one line for `sh`, whatever the login's own shell is, without a single quote or an exclamation mark inside, so that csh and fish
hand them on unharmed too. No name of a file ever stands in one.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hostbackup.errors import ConnectionFailed
from hostbackup.places.shell import quote
from hostbackup.places.stream_pack import Packing
from hostbackup.protocols.tar import TarBroken

if TYPE_CHECKING:
    from hostbackup.protocols.limits import RateLimit
    from hostbackup.protocols.remote import Running

LEAST = 64  # files worth a stream: for fewer, starting commands takes as long as SFTP
LARGEST = 16 << 20  # bytes of a file that goes in a stream
BREAKS = 2  # streams of one tree that may break or lie; then SFTP does the rest
NO_TAR = 98  # the exit code where the server has no tar that can be used
NO_FOLDER = 97  # and where it does not see the folder
_AHEAD = 4 << 20  # bytes held of what a command wrote and nobody took yet
_NOISE = 1 << 16  # bytes that login scripts may print before a command's own output
_ENVIRONMENT = (
    b"LC_ALL=C; export LC_ALL; unset TAR_OPTIONS TAR_READER_OPTIONS TAR_WRITER_OPTIONS CDPATH; COPYFILE_DISABLE=1; export COPYFILE_DISABLE; "
)
_WHICH = b'case "$(tar --version 2>/dev/null)" in *"GNU tar"*) k=gnu;; *bsdtar*) k=bsd;; *) k=none;; esac; '


def _unheard(text: str) -> None:
    pass


@dataclass(slots=True)
class Streams:
    """What one tree knows of its server's tar. `why_not` is set once streams are given up."""

    least: int = LEAST
    note: Callable[[str], object] = _unheard  # hears what becomes of streams
    breaks: int = 0
    why_not: str = ""
    files: int = 0  # that came or went in streams, and stood
    packing: Packing = field(default_factory=Packing)

    def broke(self, reason: str) -> None:
        if self.why_not:
            return  # one that was under way when streams were given up
        self.breaks += 1
        self.note(f"a tar stream broke: {reason}")
        if self.breaks >= BREAKS:
            self.give_up(reason)

    def give_up(self, reason: str) -> None:
        if not self.why_not:
            self.why_not = reason
            self.note(f"no more tar streams, SFTP does the rest: {reason}")


def in_sh(script: bytes, *words: bytes) -> bytes:
    """A command line that runs `script` with `words` as `$1`, `$2`, …"""
    assert b"'" not in script and b"!" not in script and b"\n" not in script
    return b" ".join([b"exec sh -c '" + script + b"' sh", *map(quote, words)])


def new_token() -> bytes:
    """What marks the beginning of a command's own output."""
    return b"hostbackup-" + secrets.token_hex(8).encode()


def send_files(root: bytes, token: bytes, *, packed: bool) -> bytes:
    """A command that reads names (each `./…` with NUL after it) and writes a tar archive of those files below `root`.

    First it writes a line: `token`, which tar it has (gnu, bsd, none), its clock (seconds since the epoch), and whether gzip packs what follows.
    Packed, tar's exit code comes on standard error after the token.
    """
    gnu = b"--null --no-recursion --no-unquote --hard-dereference --format=gnu -b 64 -T - -cf -"
    bsd = b"--null -n --format gnutar -b 64 -T - -cf -"
    pick = b"case $k in gnu) tar %s;; bsd) tar %s;; *) exit %d;; esac" % (gnu, bsd, NO_TAR)
    z = b"z=plain; " + (b"command -v gzip >/dev/null 2>&1 && z=gzip; " if packed else b"")
    script = _ENVIRONMENT + _WHICH + z + b'cd "$1" || exit 97; printf "%s %s %s %s\\n" "$2" $k "$(date +%s)" $z; '
    script += b"if [ $z = gzip ]; then { (" + pick + b'); echo "$2 $?" >&2; } | gzip -1 -c; else ' + pick + b"; fi"
    return in_sh(script, root, token)


def take_files(root: bytes, folder: bytes) -> bytes:
    """A command that unpacks a tar archive into `folder`, which stands below `root`, and brings it to the disk. Exit 0: all of that.

    NO_FOLDER where the shell does not find it: it may see another tree than SFTP does, and must not write there.
    `sync -f` is for one file system; without it, Linux waits for `sync` to end, others do not.
    """
    sync = b'sync -f . 2>/dev/null || { [ "$(uname -s)" = Linux ] && sync; } || exit 96'
    unpack = b"case $k in gnu|bsd) tar -xpof -;; *) exit %d;; esac || exit 94; " % NO_TAR
    script = _ENVIRONMENT + _WHICH + b'umask 077; cd "$1" && cd "$2" || exit %d; ' % NO_FOLDER + unpack + sync
    return in_sh(script, root, folder)


class Ahead:
    """What a command writes, taken by a thread of its own: its input is fed and the line kept busy whatever the consumer does meanwhile."""

    def __init__(self, running: Running, rate: RateLimit | None = None) -> None:
        self.running = running
        self.waited = 0.0  # seconds for which there was nothing to take
        self._rate = rate
        self._held: deque[bytes] = deque()
        self._size = 0
        self._over = self._unwanted = False
        self._changed = threading.Condition()
        pool = ThreadPoolExecutor(1, "stream")
        self._end = pool.submit(self._take)
        pool.shutdown(wait=False)

    def _take(self) -> None:
        try:
            for chunk in self.running:
                if self._rate is not None and not self._pay(len(chunk), self._rate):
                    return
                with self._changed:
                    self._held.append(chunk)
                    self._size += len(chunk)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._size < _AHEAD or self._unwanted)
                    if self._unwanted:
                        return
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _pay(self, count: int, rate: RateLimit) -> bool:
        """Waits as the rate wants it, in short steps; whether the bytes are still wanted after that."""
        step = max(1, rate.rate // 10)
        for at in range(0, count, step):
            rate.spend(min(step, count - at))
            if self._unwanted:
                return False
        return True

    def __iter__(self) -> Iterator[bytes]:
        """What the command writes. Raises TarBroken where the line or the command fails."""
        while True:
            with self._changed:
                if not self._held and not self._over:
                    began = time.monotonic()
                    self._changed.wait_for(lambda: self._held or self._over)
                    self.waited += time.monotonic() - began
                if not self._held:
                    break
                chunk = self._held.popleft()
                self._size -= len(chunk)
                self._changed.notify_all()
            yield chunk
        try:
            self._end.result()
        except ConnectionFailed as error:
            raise TarBroken(error.reason) from error

    def close(self) -> None:
        """Ends the command."""
        with self._changed:
            self._unwanted = True
            self._changed.notify_all()
        self.running.close()


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a command said before its output."""

    tar: str  # "gnu", "bsd" or "none"
    clock: int  # the server's, in seconds since the epoch; 0 where it did not tell
    packed: bool


SILENT = Greeting("none", 0, False)


def greeting(chunks: Iterator[bytes], token: bytes) -> tuple[Greeting, bytes]:
    """The command's first line, whatever login scripts printed before it, and what came with it. Raises TarBroken."""
    seen = b""
    for chunk in chunks:
        seen += chunk
        _, found, rest = seen.partition(token + b" ")
        line, ended, rest = rest.partition(b"\n")
        if found and ended:
            words = line.decode("ascii", "replace").split()
            if len(words) != 3:
                raise TarBroken("its first line makes no sense")
            return Greeting(words[0], int(words[1]) if words[1].isdecimal() else 0, words[2] == "gzip"), rest
        if len(seen) > _NOISE:
            break
    raise TarBroken("it did not begin as asked")
