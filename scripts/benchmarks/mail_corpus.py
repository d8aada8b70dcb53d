"""Mailboxes to move, made the same every time: a Maildir++ as an IMAP server keeps it, and the proof that all of it arrived elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from scripts.benchmarks.corpus import EPOCH, SEED, regular_files

_SPAN = 120_000_000  # seconds over which dates are spread
_MARK = ".mailbox.json"
_LARGEST = 4 << 20  # bytes of text and of attachments to cut from
_WIDTH = 76
_FLAGS = (("S", 70), ("RS", 12), ("", 10), ("FS", 5), ("FRS", 3))  # how many in a hundred

# A folder in modified UTF-7, its levels separated by dots as Maildir++ has them, and its share. The third is お客様.見積書.
FOLDERS = (("INBOX", 50), ("Sent", 20), ("&MEpbom,Y-.&iYt6TWb4-", 15), ("Archive.2025", 10), ("Trash", 5))


@dataclass(frozen=True)
class Shape:
    """What a mailbox is made of. Sizes of messages are log-normal; `mean` in bytes. `folders` is how many of FOLDERS there are."""

    messages: int
    mean: int = 16_000
    sigma: float = 1.2
    folders: int = len(FOLDERS)
    seed: int = SEED


@dataclass(frozen=True)
class Mailbox:
    """A Maildir++ at `path`; `size` in bytes as IMAP counts them, with CRLF at the end of each line. On disk lines end with LF."""

    path: Path
    messages: int
    folders: int
    size: int

    @property
    def files(self) -> int:
        return self.messages

    def letters(self, every: int = 1) -> Iterator[Path]:
        """The messages' files, or one of so many."""
        return (path for number, path in enumerate(sorted(_letters(self.path))) if number % every == 0)

    @cached_property
    def whole(self) -> Counter[str]:
        """Digests of the messages with CRLF."""
        return Counter(_digest(_crlf(path.read_bytes())) for path in self.letters())

    @cached_property
    def bodies(self) -> Counter[str]:
        """Digests of what follows the headers, with CRLF."""
        return Counter(_digest(_body(path)) for path in self.letters())


@dataclass(frozen=True)
class Whole:
    """Every message has arrived and no other, byte for byte: with CRLF, or with `lf` as servers keep them on disk."""

    mailbox: Mailbox
    lf: bool = False

    @property
    def files(self) -> int:
        return self.mailbox.messages

    def complaint(self, result: Path) -> str:
        found = (path.read_bytes() for path in _letters(result))
        return _complaint(self.mailbox.whole, Counter(_digest(_crlf(data) if self.lf else data) for data in found))


@dataclass(frozen=True)
class Bodies:
    """Of every message, or of one of so many, the body has arrived and no other, whatever was done to headers and line endings."""

    mailbox: Mailbox
    every: int = 1

    @property
    def files(self) -> int:
        return self.mailbox.messages

    def complaint(self, result: Path) -> str:
        wanted = self.mailbox.bodies if self.every == 1 else Counter(_digest(_body(path)) for path in self.mailbox.letters(self.every))
        return _complaint(wanted, Counter(_digest(_body(path)) for path in _letters(result)))


def _complaint(wanted: Counter[str], found: Counter[str]) -> str:
    missing, other = (wanted - found).total(), (found - wanted).total()
    return f"of {wanted.total():,} messages {missing:,} did not arrive as they were, and {other:,} are others" if missing or other else ""


def _letters(path: Path) -> Iterator[Path]:
    """Messages below a Maildir, or as files ending in .eml."""
    for entry in regular_files(path) if path.is_dir() else ():
        found = Path(entry.path)
        if found.parent.name in ("cur", "new") or found.suffix == ".eml":
            yield found


def _crlf(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def _body(path: Path) -> bytes:
    return _crlf(path.read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")[2])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- making them --------------------------------------------------------------------------------------------------------------------------------


def mailbox(path: Path, shape: Shape) -> Mailbox:
    """The mailbox of this shape at `path`; one that stands there already is taken as it is."""
    mark = path.with_name(path.name + _MARK)
    told = {"format": 1, **asdict(shape)}
    if mark.exists() and path.is_dir() and (kept := json.loads(mark.read_text()))["shape"] == told:
        return Mailbox(path, kept["messages"], kept["folders"], kept["size"])
    shutil.rmtree(path, ignore_errors=True)
    made = Mailbox(path, shape.messages, shape.folders, _fill(path, shape))
    mark.write_text(json.dumps({"shape": told, "messages": made.messages, "folders": made.folders, "size": made.size}))
    return made


def _fill(path: Path, shape: Shape) -> int:
    chance = random.Random(shape.seed)
    folders = [_folder(path, name) for name, _ in FOLDERS[: shape.folders]]
    shares = [share for _, share in FOLDERS[: shape.folders]]
    pools = _lines(_words(chance)), _lines(base64.b64encode(chance.randbytes(_LARGEST * 3 // 4)))
    flags, often = zip(*_FLAGS, strict=True)
    size = 0
    for number in range(shape.messages):
        length = int(chance.lognormvariate(math.log(shape.mean) - shape.sigma**2 / 2, shape.sigma))
        when = EPOCH + _SPAN * number // shape.messages  # as mail arrives: one after the other
        data = _message(chance, number, when, length, pools)
        crlf = len(data) + data.count(b"\n")
        # Dovecot takes both sizes from the name, as it puts them there when it delivers.
        name = f"{when}.M{number:06d}P1.bench,S={len(data)},W={crlf}:2,{chance.choices(flags, often)[0]}"
        file = chance.choices(folders, shares)[0] / name
        file.write_bytes(data)
        os.utime(file, (when, when))
        size += crlf
    return size


def single(path: Path, size: int) -> Mailbox:
    """An INBOX with one message of about `size` bytes: text, and an attachment that does not compress."""
    return mailbox(path, Shape(1, mean=size, sigma=0, folders=1))


def _folder(path: Path, name: str) -> Path:
    """A Maildir++ folder's `cur`."""
    made = path if name == "INBOX" else path / f".{name}"
    for part in ("cur", "new", "tmp"):
        (made / part).mkdir(parents=True)
    if name != "INBOX":
        (made / "maildirfolder").touch()
    return made / "cur"


def _message(chance: random.Random, number: int, when: int, length: int, pools: tuple[bytes, bytes]) -> bytes:
    """About `length` bytes with LF, in ASCII as most mail is on its way; no two are alike. `pools` are lines of text, and of attachments."""
    text, noise = pools
    mark = f"{number:x} {chance.getrandbits(64):016x}"
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(when))
    subject = base64.b64encode(f"お見積りの件 {number}".encode()).decode() if number % 2 else ""
    head = [
        f"Return-Path: <yamada{number % 97}@customer.example>",
        f"Received: from mx{number % 3}.customer.example (mx{number % 3}.customer.example [192.0.2.{number % 200}])",
        f"\tby mail.example.test (Postfix) with ESMTPS id {number:010X}; {date}",
        f"Date: {date}",
        f"From: Yamada Taro <yamada{number % 97}@customer.example>",
        "To: office@example.test",
        f"Subject: =?UTF-8?B?{subject}?=" if subject else f"Subject: Your order {number}",
        f"Message-ID: <{number}.{chance.getrandbits(32):08x}@customer.example>",
        "MIME-Version: 1.0",
    ]
    if length < 30_000:
        lines = [*head, "Content-Type: text/plain; charset=us-ascii", "", mark, ""]
        return _filled("\n".join(lines).encode(), length, chance, text)
    kind = 'Content-Type: multipart/mixed; boundary="=_bench"'
    first = "\n".join([*head, kind, "", "--=_bench", "Content-Type: text/plain; charset=us-ascii", "", mark, ""]).encode()
    kind = 'Content-Type: application/octet-stream; name="quote.bin"'
    second = "\n".join(["--=_bench", kind, "Content-Transfer-Encoding: base64", "", ""]).encode()
    return _filled(_filled(first, 2_000, chance, text) + second, length, chance, noise) + b"--=_bench--\n"


def _filled(head: bytes, length: int, chance: random.Random, lines: bytes) -> bytes:
    """The head and as many whole lines as make up the length, from somewhere."""
    count, step = max(1, (length - len(head)) // (_WIDTH + 1)), _WIDTH + 1
    begin = chance.randrange(len(lines) // step)
    parts, room = [head], count
    while room > 0:
        part = lines[begin * step : (begin + room) * step]
        parts.append(part)
        room -= len(part) // step
        begin = 0
    return b"".join(parts)


def _words(chance: random.Random) -> bytes:
    words = ["".join(chance.choices("etaoinsrhldcumfpgwybvk", k=chance.randint(2, 11))) for _ in range(3000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    some = " ".join(chance.choices(words, weights, k=200_000)).encode()
    return (some * (_LARGEST // len(some) + 1))[:_LARGEST]


def _lines(data: bytes) -> bytes:
    """In lines of one width; what is left over is left out. No line ends in a blank, which programs may take away."""
    rows = (data[begin : begin + _WIDTH] for begin in range(0, len(data) - _WIDTH + 1, _WIDTH))
    return b"".join(row.rstrip().ljust(_WIDTH, b".") + b"\n" for row in rows)
