"""The mailboxes of latest/, as Maildir++."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hostbackup.errors import Damaged
from hostbackup.model import Failure, Folder, Message, Part, Stored
from hostbackup.vault.fill import Content
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
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.safe import SafeFolder
from hostbackup.vault.view_build import Build, refused


class MailView:
    """Makes one mailbox of the view equal its manifest."""

    def __init__(self, part: Part, build: Build) -> None:
        self._part = part
        self._build = build
        self._prefix = b"/".join((*part_path(part), b""))

    def build(self, base: SafeFolder, mail: MailRoot) -> None:
        folders = mail.folders()
        names = folder_names(folders, mail_prefix(mail.meta))
        shown = [folder for folder in folders if not _is_gone(folder, mail)]
        stays = {*MAILDIR, *(names[folder.name] for folder in shown if names[folder.name])}
        if subscribed := subscriptions_file(shown, names):
            self._data(base, SUBSCRIPTIONS_FILE, subscribed, b"")
            stays.add(SUBSCRIPTIONS_FILE)
        inbox = next((folder for folder in shown if not names[folder.name]), None)
        for name in base.names() - stays - {KEYWORDS_FILE}:
            base.remove(name)
        if inbox is None or not self._stands(b"", mail, inbox):
            self._folder(base, b"", mail, inbox)
        for folder in shown:
            if name := names[folder.name]:
                self._below(base, name, mail, folder)
        for folder in shown:
            self._build.mail.append((self._part, mail, folder, names[folder.name]))

    def _below(self, base: SafeFolder, name: bytes, mail: MailRoot, folder: Folder) -> None:
        try:
            base.folder(name)
            with base.below([name]) as inner:
                for other in inner.names() - {*MAILDIR, KEYWORDS_FILE}:
                    inner.remove(other)
                if not self._stands(name, mail, folder):
                    self._folder(inner, name + b"/", mail, folder)
        except OSError as error:
            self._build.failures.append(refused(error, self._part, folder.name))

    def _path(self, name: bytes) -> bytes:
        return (self._prefix + name).rstrip(b"/")

    def _stands(self, name: bytes, mail: MailRoot, folder: Folder) -> bool:
        """Whether the folder is seen at a look to be as it should."""
        prints = self._build.prints
        if prints is None or not prints.is_intact(self._part, mail, folder, name):
            return False
        self._build.untouched.add(self._path(name))
        self._build.observer.advance(sum(ref.entries for ref in mail.refs(folder.name)), sum(ref.bytes for ref in mail.refs(folder.name)))
        return True

    def _folder(self, inner: SafeFolder, path: bytes, mail: MailRoot, folder: Folder | None) -> None:
        keywords = Keywords()
        for name in MAILDIR:
            inner.folder(name)
            with inner.below([name]) as place:
                made: set[bytes] = set()
                standing = None
                if name == b"cur" and folder is not None:
                    standing = place.names()
                    made = self._messages(place, path + b"cur/", mail.range_segments(folder.name), keywords, standing)
                for other in place.names() - made if standing is None else standing - made:
                    place.remove(other)
        if table := keywords.file():
            self._data(inner, KEYWORDS_FILE, table, path)
        else:
            inner.remove(KEYWORDS_FILE)

    def _messages(
        self, cur: SafeFolder, path: bytes, ranges: Iterable[Iterator[Stored[Message]]], keywords: Keywords, standing: set[bytes]
    ) -> set[bytes]:
        """The names of the files that now stand there."""
        made: set[bytes] = set()
        for records in ranges:
            before, size = len(made), 0
            for record in records:
                if record.digest and not record.vanished:
                    name = message_name(record, keywords, self._build.colon)
                    if self._message(cur, name, record, absent=name not in standing and name not in made):
                        made.add(name)
                        self._build.sums.add(record.digest, self._prefix + path + name)
                        size += record.size
            self._build.observer.advance(len(made) - before, size)
        return made

    def _message(self, cur: SafeFolder, name: bytes, record: Stored[Message], *, absent: bool) -> bool:
        try:
            self._build.filler.file(cur, name, Content(record.digest, record.size, message_mtime_ns(record)), absent=absent)
        except Damaged as error:
            self._build.failures.append(Failure("vault", self._part.id, record.item.label, "damaged", error.reason, error.hint))
            return False
        except OSError as error:
            self._build.failures.append(refused(error, self._part, record.item.label))
            return False
        return True

    def _data(self, folder: SafeFolder, name: bytes, data: bytes, path: bytes) -> None:
        self._build.sums.add(self._build.filler.data(folder, name, data), self._prefix + path + name)


def _is_gone(folder: Folder, mail: MailRoot) -> bool:
    """A folder that the server no longer has, kept in the manifest for its vanished messages."""
    return "\\NonExistent" in folder.attributes and not any(ref.live for ref in mail.refs(folder.name))
