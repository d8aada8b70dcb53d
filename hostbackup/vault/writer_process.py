"""The process that writes small objects: run by its path, so it may import nothing of the package, and starts in milliseconds.

    python writer_process.py PARENT INCOMING OBJECTS

On standard input come frames: a header as in `HEADER`, and for WRITE the contents. WRITE makes `INCOMING/<digest>`; NAME renames that to
`OBJECTS/ab/<digest>`; MARK is answered on standard output by a `REPLY` with code 0. The first thing that goes wrong is answered by its errno and the
digest it befell, and is the end. So is the end of the input, and of the parent: nothing is written for one that is gone.
"""

from __future__ import annotations

import os
import signal
import struct
import sys

HEADER = struct.Struct(">B32sI")  # what to do, SHA-256, length of the contents in bytes
REPLY = struct.Struct(">H32s")
WRITE, NAME, MARK = 1, 2, 3
NO_DIGEST = bytes(32)
READ_AHEAD = 1 << 20

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


def store(path: str, data: bytes) -> None:
    """A new file, read-only. One of the same name is what a killed run left."""
    try:
        fd = os.open(path, _CREATE, 0o400)
    except FileExistsError:
        os.unlink(path)  # noqa: PTH108
        fd = os.open(path, _CREATE, 0o400)
    try:
        done = os.write(fd, data)
        while done < len(data):
            done += os.write(fd, data[done:])
    finally:
        os.close(fd)


def serve(parent: int, incoming: str, objects: str) -> None:
    """Does what is asked until the input ends, or fails."""
    digest = NO_DIGEST
    with open(0, "rb", buffering=READ_AHEAD) as coming:
        try:
            while len(head := coming.read(HEADER.size)) == HEADER.size and os.getppid() == parent:
                what, digest, length = HEADER.unpack(head)
                if what == MARK:
                    os.write(1, REPLY.pack(0, NO_DIGEST))
                    continue
                name = digest.hex()
                if what == NAME:
                    os.rename(f"{incoming}/{name}", f"{objects}/{name[:2]}/{name}")  # noqa: PTH104
                elif len(data := coming.read(length)) == length:
                    store(f"{incoming}/{name}", data)
        except OSError as error:
            os.write(1, REPLY.pack(error.errno or 5, digest))


if __name__ == "__main__":
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)  # the parent is told too, and decides what is brought to an end
    serve(int(sys.argv[1]), sys.argv[2], sys.argv[3])
