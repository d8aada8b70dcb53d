"""Where a person finds a message of the vault: its subject, and the file that has it."""

from __future__ import annotations

import contextlib
import os

from hostbackup.errors import HostbackupError
from hostbackup.model import Message, Part, Stored
from hostbackup.places.mail_subject import HEAD_BYTES, subject_of
from hostbackup.vault.layout import Keywords, flag_letters, folder_names, mail_prefix, message_name, part_path
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.vault import Vault


class Archive:
    """One mailbox of one snapshot. Folders are walked only once something in them is asked for."""

    def __init__(self, vault: Vault, root: MailRoot, part: Part) -> None:
        self._vault = vault
        self._root = root
        self._base = b"/".join((b"latest", *part_path(part)))
        self._keywords: dict[bytes, Keywords] = {}
        self._names: dict[bytes, bytes] | None = None

    def subject(self, record: Stored[Message]) -> str:
        """ "" where there is none, or where the stored bytes cannot be read."""
        if record.digest:
            with contextlib.suppress(HostbackupError, OSError), self._vault.objects.read(record.digest) as stream:
                return subject_of(stream.read(HEAD_BYTES))
        return ""

    def path(self, record: Stored[Message]) -> bytes:
        """Below the vault's folder: in `latest/` where it stands there, else the object; b"" where the vault has no bytes of it."""
        if not record.digest:
            return b""
        folder = self._folder(record.item.folder)
        for separator in (":", ";"):
            path = b"/".join(part for part in (self._base, folder, b"cur", message_name(record, self._letters(record), separator)) if part)
            if os.path.lexists(os.path.join(os.fsencode(self._vault.root), path)):  # noqa: PTH118 - names are bytes
                return path
        return f"objects/{record.digest[:2]}/{record.digest}".encode("ascii")

    def _folder(self, name: bytes) -> bytes:
        if self._names is None:
            self._names = folder_names(self._root.folders(), mail_prefix(self._root.meta))
        return self._names.get(name, b"")

    def _letters(self, record: Stored[Message]) -> Keywords:
        """The letters of keywords in that folder, which go by the order in which they are first met there."""
        name = record.item.folder
        if name not in self._keywords:
            self._keywords[name] = keywords = Keywords()
            with contextlib.suppress(HostbackupError):
                for records in self._root.range_segments(name):
                    for one in records:
                        if one.digest and not one.vanished and one.item.flags:
                            flag_letters(one.item.flags, keywords)
        return self._keywords[name]
