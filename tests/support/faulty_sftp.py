"""An SFTP server that misbehaves on purpose: the real sftp-server, with something in front of it that knows the packets.

Runs as an SSH server's subsystem (`command`), or in threads over a socket (`tests.support.faulty_login`). What it does wrong is told in words:

    short-reads          gives less than a READ asked for, where there is more
    reorder              holds answers back and gives them in another order
    overtake             does requests on different names and handles in another order, too
    handles=N            refuses to open more than N files and folders at once
    refuse-reads=N       refuses READs of more than N bytes
    drop-reads=N         ends the connection over such a READ
    errors=SHARE         refuses that share of READ, WRITE, READDIR, FSTAT, CLOSE and RENAME, each once only: a repeat works
    broken=SHARE         refuses that share of the same requests however often they are repeated
    cut-after=N cuts=K   ends the connection after N bytes of both ways, in the middle of a packet; in all only K times
    no-extensions        knows nothing beyond version 3
    rename-replaces      puts a file over another at a plain RENAME, as rename(2) does
    garble-writes        keeps other bytes than those it is given
    trickle              answers in tiny pieces
    mutate=SHARE         garbles that share of its answers, from that to the first REALPATH on: upon it rests where a test writes
    seed=N state=FOLDER  which ones; where servers that run one after the other, or at once, remember what was done

What happens follows from the seed and from what is asked, not from time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import shlex
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SERVER = "/usr/lib/openssh/sftp-server"
INIT, VERSION, OPEN, CLOSE, READ, WRITE, FSTAT, OPENDIR, READDIR, REALPATH, RENAME = 1, 2, 3, 4, 5, 6, 8, 11, 12, 16, 18
STATUS, HANDLE, EXTENDED = 101, 102, 200
FAILURE = 4
_FSETSTAT = 10
_ON_HANDLE = {CLOSE, READ, WRITE, FSTAT, _FSETSTAT, READDIR}
_FALLIBLE = {READ, WRITE, READDIR, FSTAT, CLOSE, RENAME}
_TEMPORARY = re.compile(rb"\.hostbackup-[0-9a-f]+-[0-9a-f]+")
_HELD = 12  # answers held back at most
_POSIX_RENAME = b"posix-rename@openssh.com"


class Faults:
    """The words above, understood."""

    def __init__(self, words: Sequence[str]) -> None:
        told = dict(word.partition("=")[::2] for word in words)
        flags = ("short-reads", "reorder", "overtake", "no-extensions", "trickle", "rename-replaces", "garble-writes")
        self.short_reads, self.reorder, self.overtake, self.no_extensions, self.trickle = (flag in told for flag in flags[:5])
        self.rename_replaces, self.garble_writes = (flag in told for flag in flags[5:])
        self.handles, self.refuse_reads, self.drop_reads = (int(told.get(key, 0)) for key in ("handles", "refuse-reads", "drop-reads"))
        self.errors, self.broken, self.mutate = (float(told.get(key, 0)) for key in ("errors", "broken", "mutate"))
        self.cut_after, self.cuts = int(told.get("cut-after", 0)), int(told.get("cuts", 1))
        self.seed = told.get("seed", "0")
        self.state = Path(told["state"]) if "state" in told else None

    def falls(self, share: float, *key: object) -> bool:
        """Whether the lot falls on this key."""
        return bool(share) and self.lot(*key) < share

    def lot(self, *key: object) -> float:
        """From 0 to 1, always the same for a key."""
        digest = hashlib.blake2b(repr((self.seed, *key)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    def first_time(self, *key: object) -> bool:
        """Whether no server that shares this one's state has met with this key."""
        assert self.state is not None, "this fault needs a folder for its state"
        name = hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
        try:
            os.close(os.open(self.state / name, os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            return False
        return True


def _string(body: bytes, at: int = 0) -> bytes:
    (length,) = struct.unpack_from(">I", body, at)
    return body[at + 4 : at + 4 + length]


def _named(packet: bytes) -> bytes:
    """The name or handle that a request is about; an extension's stands behind its own name."""
    if packet[4] == INIT:
        return b""
    first = _string(packet, 9)
    return _string(packet, 13 + len(first)) if packet[4] == EXTENDED and len(packet) >= 17 + len(first) else first


def _packet(kind: int, number: int, body: bytes) -> bytes:
    return struct.pack(">IBI", len(body) + 5, kind, number) + body


def _failure(number: int) -> bytes:
    return _packet(STATUS, number, struct.pack(">II", FAILURE, 7) + b"Failure" + struct.pack(">I", 0))


def _packets(take: Callable[[], bytes]) -> Iterator[list[bytes]]:
    """What comes, packet by packet: all that are whole at a time."""
    rest = b""
    while data := take():
        rest += data
        whole, at = [], 0
        while len(rest) - at >= 4 and len(rest) - at >= (length := 4 + struct.unpack_from(">I", rest, at)[0]):
            whole.append(rest[at : at + length])
            at += length
        rest = rest[at:]
        if whole:
            yield whole


class Front:
    """One connection. `take` reads what the client sends, `give` sends to it all of something, `hang_up` ends the line.

    `turn` makes one connection's chances differ from another's.
    """

    def __init__(
        self, faults: Faults, take: Callable[[], bytes], give: Callable[[bytes], object], hang_up: Callable[[], object], turn: int = 0
    ) -> None:
        self._faults = faults
        self._take = take
        self._give = give
        self._hang_up = hang_up
        self._rng = random.Random(f"{faults.seed} {turn}")
        self._lock = threading.RLock()
        self._due = 0  # requests without an answer
        self._held: list[bytes] = []
        self._ready: list[bytes] = []
        self._opening: dict[int, bytes] = {}  # paths by request
        self._paths: dict[bytes, bytes] = {}  # and by handle
        self._open = 0
        self._resolving: set[int] = set()
        self._told: dict[bytes, int] = {}  # READDIRs by handle
        self._swallowed: set[int] = set()  # requests done, whose answer is replaced
        self._moved = 0
        self._over = False
        self._server = subprocess.Popen([SERVER, "-e"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._server.stdin is not None and self._server.stdout is not None
        self._to, self._from = self._server.stdin, self._server.stdout

    def serve(self) -> None:
        """Until either side ends."""
        answers = threading.Thread(target=self._answers, daemon=True)
        answers.start()
        with contextlib.suppress(OSError, EOFError, ValueError):
            self._requests()
        with contextlib.suppress(OSError, ValueError):
            self._to.close()
        answers.join()
        self._from.close()
        self._server.wait()

    # -- from the client ----------------------------------------------------------------------------------------------------------------

    def _requests(self) -> None:
        for packets in _packets(self._take):
            with self._lock:
                self._due += len(packets)
            for packet in self._overtaken(packets) if self._faults.overtake else packets:
                self._request(packet)
            self._to.flush()

    def _overtaken(self, packets: list[bytes]) -> list[bytes]:
        """Another order, in which what concerns one name or one handle stays in turn."""
        queues: dict[bytes, list[bytes]] = {}
        for packet in packets:
            queues.setdefault(_named(packet), []).append(packet)
        order: list[bytes] = []
        while queues:
            subject = self._rng.choice(list(queues))
            order.append(queues[subject].pop(0))
            if not queues[subject]:
                del queues[subject]
        return order

    def _request(self, packet: bytes) -> None:
        kind, number = struct.unpack_from(">BI", packet, 4)
        body = packet[9:]
        self._count(packet, self._forward)
        if kind == INIT:
            self._forward(packet)
            return
        if kind in (OPEN, OPENDIR):
            with self._lock:
                if self._faults.handles and self._open >= self._faults.handles:
                    self._refuse(number)
                    return
                self._open += 1
                self._opening[number] = _string(body)
        if kind == CLOSE:
            with self._lock:
                self._open -= 1
        if kind == REALPATH:
            self._resolving.add(number)
        if kind == READ:
            changed = self._read(number, body)
            if changed is None:
                return
            packet = changed
        if self._refuses(kind, body):
            if kind != CLOSE:
                self._refuse(number)
                return
            self._swallowed.add(number)  # a handle that stays open would be another fault
        if kind == RENAME and self._faults.rename_replaces:
            packet = _packet(EXTENDED, number, struct.pack(">I", len(_POSIX_RENAME)) + _POSIX_RENAME + body)
        if kind == WRITE and self._faults.garble_writes:
            packet = packet[:-1] + bytes([packet[-1] ^ 1])
        self._forward(packet)

    def _read(self, number: int, body: bytes) -> bytes | None:
        """The READ to forward, None where it was dealt with."""
        faults = self._faults
        offset, length = struct.unpack(">QI", body[-12:])
        if faults.drop_reads and length > faults.drop_reads:
            raise EOFError
        if faults.refuse_reads and length > faults.refuse_reads:
            self._refuse(number)
            return None
        if faults.short_reads and length > 1:
            least = 8192 if length > 8192 else 1
            length = least + int((length - least) * faults.lot(self._paths.get(_string(body)), offset, length))
        return _packet(READ, number, body[:-4] + struct.pack(">I", length))

    def _refuses(self, kind: int, body: bytes) -> bool:
        renames = kind == EXTENDED and _string(body) == _POSIX_RENAME
        if not (kind in _FALLIBLE or renames) or not (self._faults.errors or self._faults.broken):
            return False
        key: tuple[object, ...] = (RENAME if renames else kind, self._subject(kind, body))
        if kind == READDIR:
            handle = _string(body)
            self._told[handle] = self._told.get(handle, 0) + 1
            key = (*key, self._told[handle])
        elif kind == READ:
            key = (*key, body[-12:-4])
        elif kind == WRITE:
            key = (kind, body[4 + len(_string(body)) :])
        if self._faults.falls(self._faults.broken, *key):
            return True
        return self._faults.falls(self._faults.errors, *key) and self._faults.first_time(*key)

    def _subject(self, kind: int, body: bytes) -> bytes:
        """What it is about, under a name that does not change from run to run."""
        if kind in _ON_HANDLE:
            path = self._paths.get(_string(body), b"")
        elif kind == EXTENDED:
            path = body[4 + len(_POSIX_RENAME) :]
        else:
            path = body
        return _TEMPORARY.sub(b"", path)

    def _forward(self, packet: bytes) -> None:
        self._to.write(packet)

    # -- from the server ----------------------------------------------------------------------------------------------------------------

    def _answers(self) -> None:
        """Until the server ends: what was asked before a cut is done."""
        for packets in _packets(lambda: os.read(self._from.fileno(), 1 << 18)):
            if self._over:
                continue
            try:
                with self._lock:
                    for packet in packets:
                        self._answered(packet)
                    self._flush()
            except (OSError, EOFError):
                self._over = True
                self._server.kill()
        self._hang_up()

    def _answered(self, packet: bytes) -> None:
        kind, number = struct.unpack_from(">BI", packet, 4)
        if kind == VERSION:
            self._answer(_packet(VERSION, 3, b"") if self._faults.no_extensions else packet)
            return
        path = self._opening.pop(number, None)
        if path is not None and kind == HANDLE:
            self._paths[_string(packet, 9)] = path
            self._told.pop(_string(packet, 9), None)
        elif path is not None:
            self._open -= 1
        if number in self._swallowed:
            self._swallowed.discard(number)
            packet = _failure(number)
        self._answer(packet)

    def _refuse(self, number: int) -> None:
        with self._lock:
            self._answer(_failure(number))
            self._flush()

    def _answer(self, packet: bytes) -> None:
        """Gives an answer, now or later."""
        self._held.append(packet)
        if self._faults.reorder and len(self._held) < min(_HELD, self._due):
            return
        if self._faults.reorder:
            self._rng.shuffle(self._held)
        held, self._held = self._held, []
        self._due -= len(held)
        for one in held:
            self._send(one)

    def _flush(self) -> None:
        ready, self._ready = self._ready, []
        if ready:
            self._give(b"".join(ready))

    def _send(self, packet: bytes) -> None:
        (number,) = struct.unpack_from(">I", packet, 5)
        if self._resolving and number not in self._resolving and self._rng.random() < self._faults.mutate:
            packet = garbled(self._rng, packet)
        self._count(packet, self._ready.append)
        if not self._faults.trickle:
            self._ready.append(packet)
            return
        at = 0
        while at < len(packet):
            step = self._rng.choice((1, 3, 7, 64, 1000, 50_000))
            self._give(packet[at : at + step])
            at += step

    def _count(self, packet: bytes, pass_on: Callable[[bytes], object]) -> None:
        """Cuts the line within this packet, if it is its turn. Raises EOFError then."""
        faults = self._faults
        if not faults.cut_after:
            return
        with self._lock:
            before, self._moved = self._moved, self._moved + len(packet)
            if before <= faults.cut_after < self._moved and any(faults.first_time("cut", place) for place in range(faults.cuts)):
                pass_on(packet[: faults.cut_after - before])
                with contextlib.suppress(OSError):
                    self._flush()
                self._over = True
                raise EOFError


def garbled(rng: random.Random, packet: bytes) -> bytes:
    """The same answer, wrong in one of many ways; half of them leave it a packet of its kind."""
    made = bytearray(packet)
    inside = rng.randrange(9, len(made)) if len(made) > 9 else len(made) - 1
    how = rng.choice((*range(12), *[0] * 10))
    if how == 0 and made[4] == STATUS:
        made[9:13] = struct.pack(">I", rng.choice((0, 1, 2, 3, 4, 8, 9, 2**32 - 1)))
    elif how == 0:
        made[inside] ^= 1 << rng.randrange(8)
    elif how == 1:
        made[4] = rng.choice((0, 2, 101, 102, 103, 104, 105, 201, 255))
    elif how == 2:
        made[5:9] = rng.randbytes(4)
    elif how == 3:
        made[8] ^= 1
    elif how == 4:
        made[0:4] = struct.pack(">I", rng.choice((0, 4, 5, len(made), 2**16, 2**20, 2**20 + 1, 2**31, 2**32 - 1)))
    elif how == 5:
        del made[inside:]
        made[0:4] = struct.pack(">I", len(made) - 4)
    elif how == 6:
        made[9:13] = struct.pack(">I", rng.choice((0, 1, 10**6, 2**31, 2**32 - 1)))
        made[0:4] = struct.pack(">I", len(made) - 4)
    elif how == 7:
        made += packet
    elif how == 8:
        made[9:] = rng.randbytes(rng.randrange(200))
        made[0:4] = struct.pack(">I", len(made) - 4)
    elif how == 9:
        return rng.randbytes(rng.randrange(1, 100))
    elif how == 10:
        made += bytes(rng.randrange(1, 20))
        made[0:4] = struct.pack(">I", len(made) - 4)
    else:
        for place in range(9, len(made)):
            if rng.random() < 0.2:
                made[place] = rng.choice((0, 0x7F, 0x80, 0xFF))
    return bytes(made)


def command(*words: str) -> str:
    """For `tests.support.sshd.sshd(sftp=…)`."""
    return shlex.join([sys.executable, "-I", "-S", __file__, *words])


def _main() -> None:
    def hang_up() -> None:
        os._exit(1)

    def give(data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(1, left) :]

    Front(Faults(sys.argv[1:]), lambda: os.read(0, 1 << 18), give, hang_up).serve()


if __name__ == "__main__":
    _main()
