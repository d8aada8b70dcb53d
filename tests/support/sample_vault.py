"""A small vault with every kind of part, written without any server."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostbackup.model import Entry, Failure, Folder, Kind, Message, Part, Stored
from hostbackup.vault.layout import mail_meta, tree_meta
from hostbackup.vault.mailbox import RANGE, MailWriter
from hostbackup.vault.records import PartTotals, order
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.tree import TreeWriter
from hostbackup.vault.vault import Vault

WEB = Part("web", "public_html")
MAIL = Part("mail", "taro@example.jp")
LOCAL = Part("local", "by-hand")
NOW = datetime.datetime(2026, 11, 25, 3, 15, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class File:
    """What stands under a path: bytes, or None for a folder, or a link's target."""

    data: bytes | None = None
    mode: int = 0o644
    mtime_ns: int = 1_700_000_000_000_000_000
    target: bytes = b""
    vanished: str = ""
    stale: str = ""
    failed: str = ""


@dataclass(frozen=True)
class Mail:
    uid: int
    data: bytes
    internaldate: str = " 1-Jul-2026 02:44:25 +0900"
    flags: tuple[str, ...] = ()
    vanished: str = ""
    uidvalidity: int = 7


def keep(vault: Vault, data: bytes) -> tuple[str, int]:
    receiver = vault.objects.open(len(data))
    receiver.write(data)
    return receiver.commit()


def write_tree(vault: Vault, part: Part, files: Mapping[bytes, File], root: File | None = None) -> PartTotals:
    """The manifest of a tree. Folders in between need not be named: they are 0755 then. `root`: mode and time of the top folder, else not told."""
    whole = dict(files)
    for path in files:
        while path := path.rpartition(b"/")[0]:
            whole.setdefault(path, File(mode=0o755))
    by_folder: dict[bytes, list[Stored[Entry]]] = {b"": []}
    for path, file in whole.items():
        if file.data is None and not file.target:
            by_folder.setdefault(path, [])
        by_folder.setdefault(path.rpartition(b"/")[0], []).append(_entry(vault, path, file))
    meta = tree_meta(Entry(b"", Kind.DIR, 0, root.mtime_ns, root.mode) if root is not None else None)
    writer = TreeWriter(vault.manifests, part, meta)
    for folder in sorted(by_folder, key=order):
        writer.add(folder, sorted(by_folder[folder], key=lambda record: record.item.name))
    return writer.finish()


def _entry(vault: Vault, path: bytes, file: File) -> Stored[Entry]:
    if file.target:
        return Stored(Entry(path, Kind.LINK, 0, file.mtime_ns, 0o777, file.target), vanished=file.vanished)
    if file.data is None:
        kind = Kind.FILE if file.failed else Kind.DIR
        return Stored(Entry(path, kind, 0, file.mtime_ns, file.mode), vanished=file.vanished, failed=file.failed)
    digest, size = keep(vault, file.data)
    return Stored(Entry(path, Kind.FILE, size, file.mtime_ns, file.mode), digest, size, vanished=file.vanished, stale=file.stale)


def write_mail(vault: Vault, part: Part, folders: Sequence[tuple[Folder, Iterable[Mail]]], prefix: bytes = b"INBOX.") -> PartTotals:
    writer = MailWriter(vault.manifests, part, mail_meta(part.name, prefix, b"."))
    for folder, mails in folders:
        writer.folder(folder)
        ranges: dict[tuple[int, int], list[Stored[Message]]] = {}
        for mail in sorted(mails, key=lambda mail: (mail.uidvalidity, mail.uid)):
            digest, size = keep(vault, mail.data)
            message = Message(folder.name, mail.uidvalidity, mail.uid, size, mail.internaldate, tuple(sorted(mail.flags)))
            ranges.setdefault((mail.uidvalidity, mail.uid // RANGE), []).append(Stored(message, digest, size, vanished=mail.vanished))
        for key in sorted(ranges):
            writer.add(ranges[key])
    return writer.finish()


def state_of(part: Part, totals: PartTotals) -> PartState:
    return PartState(
        part, totals.root, totals.entries, totals.bytes, totals.folders, totals.links, totals.failed, totals.stale, totals.vanished, totals.racy
    )


def snapshot(vault: Vault, *parts: tuple[Part, PartTotals], minute: int = 0, failures: Sequence[Failure] = ()) -> Snapshot:
    states = {part.id: state_of(part, totals) for part, totals in parts}
    now = NOW + datetime.timedelta(minutes=minute)
    return vault.snapshots.write(states, failures, command="backup", exit=0, profile="example.jp", now=now)


SITE: dict[bytes, File] = {
    b"index.html": File(b"<h1>example</h1>\n", mode=0o604),
    b"img/logo.png": File(bytes(range(256)) * 40, mtime_ns=1_600_000_000_123_456_789),
    b"img/copy of logo.png": File(bytes(range(256)) * 40),
    "会社案内/地図.html".encode(): File("地図".encode()),
    b"caf\xe9/men\xfc.txt": File(b"latin-1 name"),
    b"empty.txt": File(b""),
    b"emptydir": File(mode=0o711),
    b"cgi-bin": File(mode=0o500),
    b"cgi-bin/run.cgi": File(b"#!/bin/sh\n", mode=0o755),
    b"current": File(target=b"img"),
    b"dangling": File(target=b"../../etc/passwd"),
    b"gone.html": File(b"was here", vanished="20261125T031500Z"),
    b"unread.txt": File(failed="permission denied"),
}

INBOX = Folder(b"INBOX", b".", uidvalidity=7, uidnext=5000, exists=4, subscribed=True)
SENT = Folder(b"INBOX.Sent", b".", special_use="\\Sent", uidvalidity=7, uidnext=3, exists=1, subscribed=True)
JAPANESE = Folder(b"INBOX.&kAFP4W4IMH8-.2026&XnQ-", b".", uidvalidity=7, uidnext=3, exists=1)

MAILBOX: list[tuple[Folder, list[Mail]]] = [
    (
        INBOX,
        [
            Mail(
                1,
                b"Subject: =?ISO-2022-JP?B?GyRCJDM=?=\r\n\r\nFrom the start\r\n>From quoted\r\n",
                flags=("\\Seen", "$Label1"),
            ),
            Mail(2, b"From: b@example.jp\r\nSubject: two\r\n\r\nno newline at the end"),
            Mail(3, b"Subject: gone\r\n\r\n", vanished="20261125T031500Z"),
            Mail(4200, b"Subject: bare LF\n\nbody\n\n", flags=("\\Flagged",), internaldate="31-Jun-2026 00:00:00 +0000"),
        ],
    ),
    (SENT, [Mail(1, b"Subject: sent\r\n\r\nhello\r\n", flags=("\\Seen",))]),
    (JAPANESE, [Mail(2, "Subject: 日本\r\n\r\n本文\r\n".encode("shift_jis"))]),
]

BY_HAND: dict[bytes, File] = {b"dump.sql": File(b"CREATE TABLE x;\n" * 1000)}


def make_vault(root: Path) -> Vault:
    """An open vault with one snapshot of all three parts."""
    vault = Vault.open(root, "write", create=True, command="test")
    snapshot(
        vault,
        (WEB, write_tree(vault, WEB, SITE)),
        (MAIL, write_mail(vault, MAIL, MAILBOX)),
        (LOCAL, write_tree(vault, LOCAL, BY_HAND)),
    )
    return vault
