"""Which folder of the new server an old folder's messages go to. Pure: names in, names out.

In order: what the profile says, what was decided before, INBOX, special use (told by both servers, or recognised by name), and else the same
path with the new server's prefix and separator.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hostbackup.model import Folder, name_json
from hostbackup.protocols.imap import names

_NAMES = {
    "\\Sent": (
        *("sent", "sent items", "sent messages", "sent mail", "sent-mail"),
        *("送信済み", "送信済", "送信済みアイテム", "送信済みメール", "送信済みメッセージ", "送信済みトレイ"),
    ),
    "\\Drafts": ("drafts", "draft", "下書き", "下書きメール", "草稿"),
    "\\Trash": (
        *("trash", "deleted items", "deleted messages", "bin", "wastebasket"),
        *("ごみ箱", "ゴミ箱", "削除済み", "削除済みアイテム", "削除済みメール", "削除済みメッセージ"),
    ),
    "\\Junk": (
        *("junk", "junk e-mail", "junk email", "junk mail", "spam", "bulk mail"),
        *("迷惑メール", "迷惑メールフォルダ", "迷惑メールフォルダー", "スパム", "スパムメール"),
    ),
    "\\Archive": ("archive", "archives", "アーカイブ", "保管"),
}
_BY_NAME = {name: use for use, spellings in _NAMES.items() for name in spellings}
_STAND_INS = {"/": "／", ".": "．", "\\": "＼"}  # what a separator inside a component becomes: it reads alike and maps back


def special_use_by_name(text: str) -> str:
    """The special use (RFC 6154) that a folder of this name has with common mail programs, "" where none."""
    return _BY_NAME.get(_folded(text), "")


@dataclass(frozen=True, slots=True)
class Mapped:
    """One row of the map. `replaced` holds the components that had to change, as (old, new) bytes."""

    old: bytes
    new: bytes
    rule: str  # "profile", "earlier", "inbox", "special-use", "name" or "path"
    special_use: str = ""
    replaced: tuple[tuple[bytes, bytes], ...] = ()

    def as_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {**name_json(self.old, "old"), **name_json(self.new, "new"), "rule": self.rule, "special_use": self.special_use}
        if self.replaced:
            row["replaced"] = [{**name_json(old, "old"), **name_json(new, "new")} for old, new in self.replaced]
        return row


class FolderMap:
    """Old folders to new names.

    `named` is the profile's `[mail] folders`: readable names, levels divided by `/` or by the server's own separator. `earlier` are decisions
    of earlier runs by old name, which hold so that a mailbox is not spread over two folders when the new server gets a new one. `new_folders`
    are those that the new server lists.
    """

    def __init__(
        self,
        *,
        old_prefix: bytes = b"",
        new_prefix: bytes = b"",
        new_separator: bytes = b"/",
        new_folders: Iterable[Folder] = (),
        named: Mapping[str, str] | None = None,
        earlier: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self._old_prefix = old_prefix
        self._new_prefix = new_prefix
        self._new_separator = new_separator
        self._named = {unicodedata.normalize("NFC", old): new for old, new in (named or {}).items()}
        self._earlier = dict(earlier or {})
        self._uses = self._new_uses(list(new_folders))
        self.rows: list[Mapped] = []  # of the old folders that `between` was given

    @classmethod
    def between(
        cls,
        old_folders: Iterable[Folder],
        new_folders: Iterable[Folder],
        *,
        old_prefix: bytes,
        new_prefix: bytes,
        new_separator: bytes,
        named: Mapping[str, str] | None = None,
        earlier: Mapping[bytes, bytes] | None = None,
    ) -> FolderMap:
        """The map from one server's folders to another's, with the old folders' rows worked out."""
        made = cls(old_prefix=old_prefix, new_prefix=new_prefix, new_separator=new_separator, new_folders=new_folders, named=named, earlier=earlier)
        made.rows = made.table(old_folders)
        return made

    def target(self, folder: Folder) -> bytes:
        """The new server's wire name for an old folder."""
        return self.row(folder).new

    def row(self, folder: Folder) -> Mapped:
        """The same, with the reason."""
        parts = self._components(folder)
        use = folder.special_use or (special_use_by_name(names.display(parts[0])) if len(parts) == 1 else "")
        by_profile = next((self._named[spelling] for spelling in _spellings(folder, parts) if spelling in self._named), None)
        if by_profile is not None:
            return Mapped(folder.name, self._from_text(by_profile), "profile", use)
        if folder.name in self._earlier:
            return Mapped(folder.name, self._earlier[folder.name], "earlier", use)
        if names.is_inbox(folder.name):
            return Mapped(folder.name, b"INBOX", "inbox")
        if use and use in self._uses:
            return Mapped(folder.name, self._uses[use], "special-use" if folder.special_use else "name", use)
        fitted = [self._fit(part) for part in parts]
        replaced = tuple((old, new) for old, new in zip(parts, fitted, strict=True) if old != new)
        return Mapped(folder.name, self._join(fitted), "path", use, replaced)

    def table(self, folders: Iterable[Folder]) -> list[Mapped]:
        """All rows, for the journal and the report. Read from right to left it leads back, also where two old folders became one."""
        return [self.row(folder) for folder in folders]

    # -- old names ----------------------------------------------------------------------------------------------------------------------

    def _components(self, folder: Folder) -> list[bytes]:
        name = folder.name.removeprefix(self._old_prefix) if folder.name != self._old_prefix else folder.name
        parts = name.split(folder.separator) if folder.separator else [name]
        # Below INBOX is the top on a server whose folders all stand there, and the other way round.
        return parts[1:] if len(parts) > 1 and names.is_inbox(parts[0]) and self._new_prefix.upper().startswith(b"INBOX") else parts

    # -- new names ----------------------------------------------------------------------------------------------------------------------

    def _new_uses(self, folders: Sequence[Folder]) -> dict[str, bytes]:
        """Special use to folder at the new server: as it tells, else the only one that is called so."""
        uses: dict[str, bytes] = {}
        by_name: dict[str, list[bytes]] = {}
        for folder in folders:
            if folder.special_use:
                uses.setdefault(folder.special_use, folder.name)
            name = folder.name.removeprefix(self._new_prefix)
            if not (folder.separator and folder.separator in name):
                by_name.setdefault(special_use_by_name(names.display(name)), []).append(folder.name)
        for use, found in by_name.items():
            if use and len(found) == 1:
                uses.setdefault(use, found[0])
        return uses

    def _fit(self, component: bytes) -> bytes:
        """A component as the new server can hold it: no separator inside, valid modified UTF-7, never empty."""
        try:
            text = names.decode(component)
        except ValueError:
            text = names.display(component)
        separator = self._new_separator.decode("latin-1")
        if separator and separator in text:
            text = text.replace(separator, _STAND_INS.get(separator, "_"))
        text = "".join(c if c >= " " and c != "\x7f" else "_" for c in text)
        return names.encode(text.encode("utf-8", "replace").decode("utf-8") or "_")

    def _join(self, parts: Sequence[bytes]) -> bytes:
        return self._new_prefix + (self._new_separator or b"_").join(parts)

    def _from_text(self, text: str) -> bytes:
        """A name that a person wrote: with or without the new server's prefix, levels by `/` or by the new separator."""
        if text.upper() == "INBOX":
            return b"INBOX"
        prefix = names.display(self._new_prefix)
        text = text.removeprefix(prefix) if prefix and text != prefix else text
        separator = self._new_separator.decode("latin-1")
        levels = [level for level in text.replace(separator or "/", "/").split("/") if level]
        return self._join([self._fit(names.encode(level)) for level in levels])


def _spellings(folder: Folder, parts: Sequence[bytes]) -> list[str]:
    """How a person may have written an old folder's name."""
    shown = [names.display(part) for part in parts]
    separator = folder.separator.decode("latin-1")
    spelled = [names.display(folder.name), separator.join(shown), "/".join(shown)]
    return [unicodedata.normalize("NFC", text) for text in spelled]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()
