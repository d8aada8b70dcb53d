"""Restores mailboxes: as Maildir++, as one mboxrd file a folder, or as one .eml file a message."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import partial

from hostbackup.errors import Damaged
from hostbackup.jobs.mboxrd import Quoter, from_line
from hostbackup.jobs.references import open_root, segments, warmed
from hostbackup.jobs.restore_names import Taken
from hostbackup.jobs.restore_run import FileJob, Run
from hostbackup.jobs.restore_select import Choice
from hostbackup.jobs.restore_write import Content, Exists, Meta, Where, write_all
from hostbackup.model import Folder, Message, Stored, name_json
from hostbackup.protocols.imap.names import display
from hostbackup.vault import pool
from hostbackup.vault.layout import (
    KEYWORDS_FILE,
    MAILDIR,
    SUBSCRIPTIONS_FILE,
    Keywords,
    folder_names,
    folder_path,
    internaldate_epoch,
    mail_prefix,
    message_mtime_ns,
    message_name,
    part_path,
    subscriptions_file,
)
from hostbackup.vault.mailbox import MailRoot, RangeRef
from hostbackup.vault.records import Line, canonical
from hostbackup.vault.stores import CHUNK

FLAGS_FILE = b"flags.jsonl"
_AT_ONCE = 256 * 1024  # bytes; smaller messages for an mbox are read ahead


class _MailRestore:
    """What the formats share. Use: `run()`."""

    def __init__(self, run: Run, choice: Choice) -> None:
        self._run = run
        self._choice = choice
        self._part = choice.state.part
        self._base: Where = part_path(self._part)
        root = open_root(run.source.manifests, choice.state)
        assert isinstance(root, MailRoot)
        self._root = root
        self._prefix = mail_prefix(root.meta)

    def run(self) -> None:
        raise NotImplementedError

    def _folders(self) -> list[Folder]:
        """Those to be restored. One that the server no longer had comes only with its vanished messages."""
        return [folder for folder in self._root.folders() if self._choice.wants_mail(folder.name) and (self._run.vanished or not self._gone(folder))]

    def _gone(self, folder: Folder) -> bool:
        return "\\NonExistent" in folder.attributes and not any(ref.live for ref in self._root.refs(folder.name))

    def _messages(self, folder: Folder) -> Iterator[Stored[Message]]:
        """The wanted messages of a folder that have contents; tells those that have none."""
        mine = (segment for segment in segments(self._root) if segment.container == folder.name)
        for segment in warmed(self._run.source.manifests, mine):
            assert isinstance(segment.ref, RangeRef)
            try:
                found = list(self._root.segment(folder.name, segment.ref))
            except Damaged as error:
                self._run.fail(error, self._part.id, folder.name)
                continue
            for record in found:
                item = record.item
                if (record.vanished and not self._run.vanished) or not self._choice.wants_message(folder.name, item.uidvalidity, item.uid):
                    continue
                if record.digest:
                    yield record
                else:
                    self._run.lacking(self._part.id, item.label, record.failed or "its contents never came")

    def _content(self, record: Stored[Message]) -> Content:
        return Content(record.digest, record.size, partial(self._run.source.objects.read, record.digest))

    def _make(self, where: Where, label: bytes) -> bool:
        """Makes a folder; whether it is there now."""
        try:
            self._run.target.folder(where)
        except (Exists, OSError) as error:
            self._run.fail(error, self._part.id, label)
            return False
        self._run.done.folders += 1
        return True


class MaildirRestore(_MailRestore):
    """Maildir++, as in `latest/`."""

    def run(self) -> None:
        target = self._run.target
        every = self._root.folders()
        names = folder_names(every, self._prefix)
        folders = self._folders()
        taken = target.taken()
        places: dict[bytes, Where] = {}
        for folder in every:
            name = names[folder.name]
            fitting = taken.claim(name) if name else b""
            places[folder.name] = (*self._base, fitting) if name else self._base
            if name and folder in folders:
                target.note(self._base, fitting, name)
        if not self._make(self._base, b""):
            return
        for where in {self._base, *(places[folder.name] for folder in folders)}:
            for name in MAILDIR:
                self._make((*where, name), where[-1])
        for folder in folders:
            self._folder(folder, places[folder.name])
        subscribed = subscriptions_file(folders, names).splitlines(keepends=True)
        if subscribed:
            try:
                target.merge(self._base, SUBSCRIPTIONS_FILE, subscribed)
            except (Exists, OSError) as error:
                self._run.fail(error, self._part.id, SUBSCRIPTIONS_FILE)

    def _folder(self, folder: Folder, where: Where) -> None:
        keywords = Keywords()
        separator = ":" if self._run.target.colon else ";"

        def jobs() -> Iterator[FileJob]:
            for record in self._messages(folder):
                name = message_name(record, keywords, separator)
                meta = Meta(message_mtime_ns(record))
                yield FileJob(self._part.id, record.item.label, (*where, b"cur"), name, name, self._content(record), meta)

        self._run.files(jobs())
        if table := keywords.file():
            try:
                self._run.target.data(where, KEYWORDS_FILE, table, Meta(None))
            except (Exists, OSError) as error:
                self._run.fail(error, self._part.id, folder.name + b" " + KEYWORDS_FILE)


class _Exported(_MailRestore):
    """Formats without flags: those stand in `flags.jsonl` beside them, one JSON object a message."""

    def run(self) -> None:
        target = self._run.target
        if not self._make(self._base, b""):
            return
        part, self._notes = target.arrive()
        try:
            try:
                self._export()
            finally:
                os.close(self._notes)
            with os.fdopen(target.reopen(part), "rb") as lines:
                target.merge(self._base, FLAGS_FILE, lines)
        except (Exists, OSError) as error:
            self._run.fail(error, self._part.id, FLAGS_FILE)
        finally:
            target.forget(part)

    def _export(self) -> None:
        raise NotImplementedError

    def _note(self, record: Stored[Message], where: Where, name: bytes, **more: object) -> None:
        item = record.item
        file = b"/".join((*where[len(self._base) :], name))
        line: Line = {
            **name_json(file, "file"),
            **name_json(item.folder, "folder"),
            "uidvalidity": item.uidvalidity,
            "uid": item.uid,
            "internaldate": item.internaldate,
            "flags": list(item.flags),
            "sha256": record.digest,
            "size": record.size,
            **more,
        }
        write_all(self._notes, canonical(line))

    def _places(self, ending: bytes) -> dict[bytes, tuple[Where, bytes]]:
        """Where each folder of the mailbox stands: the folder above, and its own name with `-ending`; below it stands what is below it."""
        target = self._run.target
        taken: dict[Where, Taken] = {}
        known: dict[tuple[bytes, ...], tuple[Where, bytes]] = {}
        places: dict[bytes, tuple[Where, bytes]] = {}
        for folder in sorted(self._root.folders(), key=lambda folder: folder_path(folder, self._prefix)):
            path = tuple(folder_path(folder, self._prefix)) or (b"INBOX",)
            where = self._base
            for depth in range(1, len(path) + 1):
                if path[:depth] not in known:
                    original = _component(path[depth - 1])
                    name = taken.setdefault(where, target.taken()).claim(original)
                    known[path[:depth]] = where, name
                    if self._choice.wants_mail(folder.name):
                        target.note(where, name + ending, original + ending)
                above, name = known[path[:depth]]
                where = (*above, self._inner(name))
            places[folder.name] = known[path]
        return places

    def _inner(self, name: bytes) -> bytes:
        """The name of the folder that holds what is below a mail folder."""
        raise NotImplementedError


class EmlRestore(_Exported):
    """`FOLDER/UID.eml`; messages of an earlier UIDVALIDITY as `FOLDER/UIDVALIDITY-UID.eml`."""

    def _inner(self, name: bytes) -> bytes:
        return name

    def _export(self) -> None:
        places = self._places(b"")
        for folder in self._folders():
            above, name = places[folder.name]
            where = (*above, name)
            if self._make(where, folder.name):
                self._run.files(self._jobs(folder, where))

    def _jobs(self, folder: Folder, where: Where) -> Iterator[FileJob]:
        for record in self._messages(folder):
            item = record.item
            lead = b"" if item.uidvalidity == folder.uidvalidity else b"%d-" % item.uidvalidity
            name = lead + b"%d.eml" % item.uid
            self._note(record, where, name)
            yield FileJob(self._part.id, item.label, where, name, name, self._content(record), Meta(message_mtime_ns(record)))


class MboxRestore(_Exported):
    """`FOLDER.mbox`, and below it `FOLDER.mbox.sbd/SUBFOLDER.mbox`: what Thunderbird takes as local folders."""

    def _inner(self, name: bytes) -> bytes:
        return name + b".mbox.sbd"

    def _export(self) -> None:
        places = self._places(b".mbox")
        for folder in self._folders():
            above, name = places[folder.name]
            if self._make(above, folder.name):
                self._folder(folder, above, name + b".mbox")
        files = {(*above, name + b".mbox") for above, name in places.values()}
        for where in {places[folder.name][0] for folder in self._folders()}:
            self._parents(where, files)

    def _parents(self, where: Where, files: set[Where]) -> None:
        """Thunderbird looks into a `.sbd` folder only where the mbox file beside it is: levels that are no mail folders get an empty one."""
        while len(where) > len(self._base):
            *above, name = where
            mbox = (*above, name.removesuffix(b".sbd"))
            if mbox not in files:
                self._run.target.data(tuple(above), mbox[-1], b"", Meta(None))
            where = tuple(above)

    def _folder(self, folder: Folder, where: Where, name: bytes) -> None:
        target = self._run.target
        part, fd = target.arrive()
        try:
            try:
                digest, size = self._fill(folder, fd, where, name)
            finally:
                os.close(fd)
            _, made = target.put_arrived(part, where, name, Content(digest, size))
            self._run.count(made)
        except (Exists, OSError) as error:
            self._run.fail(error, self._part.id, folder.name)
        finally:
            target.forget(part)

    def _fill(self, folder: Folder, fd: int, where: Where, name: bytes) -> tuple[str, int]:
        """Writes all messages into an mbox; its SHA-256 and size. One that is damaged is left out, and told."""
        whole = hashlib.sha256()
        size = 0
        for record, data in pool.in_order(self._ahead, self._messages(folder), workers=self._run.workers):
            before = whole.copy()
            try:
                if isinstance(data, Damaged):
                    raise data
                written, added = self._message(record, data, fd, whole)
            except Damaged as error:
                os.ftruncate(fd, size)
                os.lseek(fd, size, os.SEEK_SET)
                whole = before
                self._run.fail(error, self._part.id, record.item.label)
                continue
            size += written
            self._note(record, where, name, **({"added_newline": True} if added else {}))
            self._run.done.files += 1
            self._run.done.bytes += record.size
            self._run.result.observer.advance(1, record.size)
        return whole.hexdigest(), size

    def _ahead(self, record: Stored[Message]) -> tuple[Stored[Message], bytes | Damaged | None]:
        """The bytes of a small message, read while others are written; None for a large one."""
        if record.size > _AT_ONCE:
            return record, None
        try:
            with self._run.source.objects.read(record.digest) as stream:
                return record, stream.read()
        except Damaged as error:
            return record, error

    def _message(self, record: Stored[Message], data: bytes | None, fd: int, whole: hashlib._Hash) -> tuple[int, bool]:
        """Writes one message: bytes in the mbox, and whether an LF was added to it. Raises Damaged, when some of it may be written."""
        quoter = Quoter()
        digest = hashlib.sha256()
        written = 0

        def write(piece: bytes) -> None:
            nonlocal written
            write_all(fd, piece)
            whole.update(piece)
            written += len(piece)

        write(from_line(internaldate_epoch(record.item.internaldate)))
        for piece in [data] if data is not None else self._pieces(record):
            digest.update(piece)
            write(quoter.feed(piece))
        if digest.hexdigest() != record.digest:
            raise Damaged("its bytes are not those that were stored", where=record.digest, hint="run verify, then `copy --repair`")
        rest, added = quoter.finish()
        write(rest)
        return written, added

    def _pieces(self, record: Stored[Message]) -> Iterator[bytes]:
        with self._run.source.objects.read(record.digest) as stream:
            while data := stream.read(CHUNK):
                yield data


def _component(name: bytes) -> bytes:
    """One level of a mail folder's name for people: decoded, and harmless as the name of a file."""
    text = display(name).encode("utf-8", "backslashreplace") or b"%"
    safe = b"".join(b"%%%02X" % byte if byte < 32 or byte in b"/\x7f" else bytes((byte,)) for byte in text)
    return b"%2E" + safe[1:] if safe.startswith(b".") else safe
