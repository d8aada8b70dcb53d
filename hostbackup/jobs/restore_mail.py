"""Restores mailboxes as Maildir++, and what every format does alike."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from hostbackup.errors import Damaged
from hostbackup.jobs.references import open_root, segments, warmed
from hostbackup.jobs.restore_run import FileJob, Run
from hostbackup.jobs.restore_select import Choice
from hostbackup.jobs.restore_write import Content, Exists, Meta, Where
from hostbackup.model import Folder, Message, Stored
from hostbackup.vault.layout import (
    KEYWORDS_FILE,
    MAILDIR,
    SUBSCRIPTIONS_FILE,
    Keywords,
    folder_names,
    mail_prefix,
    message_mtime_ns,
    message_name,
    part_path,
    subscriptions_file,
)
from hostbackup.vault.mailbox import MailRoot, RangeRef


class MailRestore:
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


class MaildirRestore(MailRestore):
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
