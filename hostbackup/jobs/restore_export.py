"""Mailboxes for people and their mail programs: one .eml file a message, or one mboxrd file a folder as Thunderbird keeps its local folders."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from functools import partial

from hostbackup.errors import Damaged
from hostbackup.jobs.copy_source import foreseen
from hostbackup.jobs.mboxrd import Quoter, from_line
from hostbackup.jobs.restore_mail import MailRestore
from hostbackup.jobs.restore_names import Taken
from hostbackup.jobs.restore_run import WORKERS, FileJob, Run
from hostbackup.jobs.restore_select import Choice
from hostbackup.jobs.restore_titles import HEADER, FolderNames, component, message_file
from hostbackup.jobs.restore_write import Content, Exists, Meta, Where, write_all
from hostbackup.model import Folder, Message, Stored, name_json
from hostbackup.vault import pool
from hostbackup.vault.layout import folder_path, internaldate_epoch, message_mtime_ns
from hostbackup.vault.records import Line, canonical
from hostbackup.vault.stores import CHUNK

FLAGS_FILE = b"flags.jsonl"
_AT_ONCE = 256 * 1024  # bytes; smaller messages are read ahead, while others are written


class Exported(MailRestore):
    """Formats without flags: those stand in a file beside them, one JSON object a message."""

    def __init__(self, run: Run, choice: Choice) -> None:
        super().__init__(run, choice)
        self._flags: tuple[Where, bytes] = self._base, FLAGS_FILE

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
                target.merge(*self._flags, lines)
        except (Exists, OSError) as error:
            self._run.fail(error, self._part.id, FLAGS_FILE)
        finally:
            target.forget(part)

    def _export(self) -> None:
        raise NotImplementedError

    def _note(self, record: Stored[Message], where: Where, name: bytes, **more: object) -> None:
        item = record.item
        file = b"/".join((*where[len(self._flags[0]) :], name))
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

    def _places(self, inbox: bytes = b"INBOX") -> dict[bytes, tuple[Where, bytes]]:
        """Where each folder of the mailbox stands: the folder above, and its own name. What is below it stands in `_inner` of that name."""
        target = self._run.target
        names = FolderNames.on(target.names)
        taken: dict[Where, Taken] = {}
        known: dict[tuple[bytes, ...], tuple[Where, bytes]] = {}
        places: dict[bytes, tuple[Where, bytes]] = {}
        for folder in sorted(self._root.folders(), key=lambda folder: folder_path(folder, self._prefix)):
            path = tuple(folder_path(folder, self._prefix)) or (b"INBOX",)
            where = self._base
            for depth in range(1, len(path) + 1):
                if path[:depth] not in known:
                    original = inbox if path[:depth] == (b"INBOX",) else component(path[depth - 1])
                    name = taken.setdefault(where, Taken(names)).claim(original)
                    known[path[:depth]] = where, name
                    if self._choice.wants_mail(folder.name):
                        target.note(where, name, original)
                above, name = known[path[:depth]]
                where = (*above, self._inner(name))
            places[folder.name] = known[path]
        return places

    def _inner(self, name: bytes) -> bytes:
        """The name of the folder that holds what is below a mail folder."""
        raise NotImplementedError

    def _read_ahead(self, folder: Folder) -> Iterator[tuple[Stored[Message], bytes | Damaged | None]]:
        """The wanted messages of a folder in order, the small ones with their bytes, which are read while others are written."""
        messages = foreseen(self._run.source.objects, self._messages(folder), lambda record: record.digest, ordered=True)
        return pool.in_order(self._ahead, messages, workers=WORKERS)

    def _ahead(self, record: Stored[Message]) -> tuple[Stored[Message], bytes | Damaged | None]:
        if record.size > _AT_ONCE:
            return record, None
        try:
            with self._run.source.objects.read(record.digest) as stream:
                return record, stream.read()
        except Damaged as error:
            return record, error


class EmlRestore(Exported):
    """`FOLDER/2026-07-01 0244 Subject (UID).eml`, the bytes of the message itself."""

    def _inner(self, name: bytes) -> bytes:
        return name

    def _export(self) -> None:
        places = self._places()
        for folder in self._folders():
            above, name = places[folder.name]
            where = (*above, name)
            if self._make(where, folder.name):
                self._run.files(self._jobs(folder, where))

    def _jobs(self, folder: Folder, where: Where) -> Iterator[FileJob]:
        for record, data in self._read_ahead(folder):
            content = self._content(record)
            head = b""
            if isinstance(data, bytes):
                head = data[:HEADER]
                content = Content(record.digest, record.size, partial(io.BytesIO, data))
            elif data is None:
                head = self._head(record)
            name = message_file(record.item, head, uidvalidity=folder.uidvalidity)
            self._note(record, where, name)
            yield FileJob(self._part.id, record.item.label, where, name, name, content, Meta(message_mtime_ns(record)))

    def _head(self, record: Stored[Message]) -> bytes:
        try:
            with self._run.source.objects.read(record.digest) as stream:
                return stream.read(HEADER)
        except Damaged:  # which is told when the message is written
            return b""


class MboxRestore(Exported):
    """`USER.sbd/FOLDER`, and below it `USER.sbd/FOLDER.sbd/SUBFOLDER`, each beside a file `NAME`: as Thunderbird keeps local folders.

    So a mailbox can be put among the local folders of any profile as one folder, and meets nothing that is there.
    """

    def __init__(self, run: Run, choice: Choice) -> None:
        super().__init__(run, choice)
        kind, user = self._base
        self._base = kind, self._inner(user)
        self._flags = (kind,), user + b"." + FLAGS_FILE  # not in there: Thunderbird would show it as a folder

    def _inner(self, name: bytes) -> bytes:
        return name + b".sbd"

    def _export(self) -> None:
        places = self._places(b"Inbox")
        for folder in self._folders():
            above, name = places[folder.name]
            if self._make(above, folder.name):
                self._folder(folder, above, name)
        files = {(*above, name) for above, name in places.values()}
        for where in {self._base, *(places[folder.name][0] for folder in self._folders())}:
            self._parents(where, files)

    def _parents(self, where: Where, files: set[Where]) -> None:
        """Thunderbird looks into a `.sbd` folder only where a file of its name is beside it: levels that are no mail folders get an empty one."""
        while len(where) >= len(self._base):
            *above, name = where
            mbox = (*above, name.removesuffix(b".sbd"))
            if mbox not in files:
                files.add(mbox)
                try:
                    self._run.target.data(tuple(above), mbox[-1], b"", Meta(None))
                except (Exists, OSError) as error:
                    self._run.fail(error, self._part.id, mbox[-1] if len(mbox) > len(self._base) else b"")
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
        for record, data in self._read_ahead(folder):
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
