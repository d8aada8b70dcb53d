"""What a copy says of itself: `format.json` and `README.txt`, both in the clear."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from hostbackup.errors import VaultError, VaultTooNew
from hostbackup.vault import vault

VERSION = 2
LAYOUT = "hostbackup copy"


class Format(NamedTuple):
    """`sealed`: everything but this and the README is encrypted, to `recipients` when the copy was last written to."""

    version: int
    sealed: bool = False
    recipients: tuple[str, ...] = ()


def format_document(recipients: Sequence[str] = ()) -> bytes:
    """The contents of a copy's `format.json`."""
    told = {"layout": LAYOUT, "version": VERSION} | ({"sealed": True, "recipients": list(recipients)} if recipients else {})
    return (json.dumps(told) + "\n").encode("ascii", "backslashreplace")


def parse_format(data: bytes, where: str) -> Format:
    """Raises VaultTooNew or VaultError where these are not the contents of a copy's `format.json`.

    Copies of version 1 have that of a vault: they hold no packs, and each content on its own.
    """
    try:
        value = json.loads(data)
        layout, version = value["layout"], value["version"]
        found = Format(version, bool(value.get("sealed")), tuple(str(one) for one in value.get("recipients", ())))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        hint = f"it should hold {format_document().decode().strip()}: `copy --repair` writes it again"
        raise VaultError("this file is damaged", where=where, hint=hint) from error
    if layout == vault.LAYOUT:
        vault.check_format(data, where)
        return Format(1)
    if layout != LAYOUT or not isinstance(version, int):
        raise VaultError("this is no copy of a vault of hostbackup", where=where, hint="check the bucket's prefix, or the path")
    if version > VERSION:
        reason = f"made by a newer hostbackup (layout {version}; this one reads up to {VERSION})"
        raise VaultTooNew(reason, where=where, hint="install a newer hostbackup")
    return found


_README = """\
This is a copy of a hostbackup vault, for the day when everything else is gone. To get files and mail out of it:

    hostbackup restore --from THIS-FOLDER-OR-BUCKET --to SOME-FOLDER{identity}

It can be read without hostbackup too.
{age}packs/ holds plain tar archives: unpack them all into one folder, take what ends in .zst through `zstd -d`, and put objects/
of this copy beside what came out. Then objects/ has the contents of every file and message under the SHA-256 of its bytes,
manifests/ says which name belongs to which contents, and snapshots/ what there was at which time. The format is described in
hostbackup's docs/vault-format.md. Do not change or delete anything here.
"""
_AGE = """\
What ends in .age is encrypted: `age -d -i KEY-FILE` opens it, with the secret key to one of the recipients in format.json.
The files in large/ are objects then, to be named by their SHA-256.
"""


def readme(*, sealed: bool) -> bytes:
    """The contents of a copy's `README.txt`."""
    return _README.format(identity=" --identity KEY-FILE" if sealed else "", age=_AGE if sealed else "").encode()
