"""Whether a server's RENAME leaves alone what stands where it leads, as version 3 says it must.

Many rename by rename(2), which replaces; and what calls itself OpenSSH may have another SFTP server behind it. So it is tried out, and only on what
calls itself that: others may do one thing here and another in the next folder.
"""

from __future__ import annotations

from hostbackup.places.sftp_put import PRIVATE, Put
from hostbackup.protocols.sftp.client import Steps, ask, ask_one
from hostbackup.protocols.sftp.packets import Attrs, Flag, Status, Type, on_handle, on_path, open_file, two_paths


def keeps(put: Put) -> Steps[bool]:
    """Tried out with two empty files of our own below the root. Where that cannot be seen: False."""
    one, two, free = (put.temporary(b"") for _ in range(3))
    handles = yield from ask(*(open_file(name, Flag.WRITE | Flag.CREAT | Flag.EXCL, PRIVATE) for name in (one, two)))
    opened = [handle for handle in handles if isinstance(handle, bytes)]
    if opened:
        yield from ask(*(on_handle(Type.CLOSE, handle) for handle in opened))
    refuses = False
    if len(opened) == 2:
        status = yield from ask_one(two_paths(Type.RENAME, one, two))
        both = yield from ask(on_path(Type.LSTAT, one), on_path(Type.LSTAT, two))
        refuses = isinstance(status, Status) and not status.ok and all(isinstance(there, Attrs) for there in both)
        if refuses:  # because of what is there, or always?
            status = yield from ask_one(two_paths(Type.RENAME, one, free))
            refuses = isinstance(status, Status) and status.ok
            if refuses:
                put.orphans.discard(one)
    for name in put.orphans.intersection((one, two, free)):
        yield from put.discard(name)
    return refuses
