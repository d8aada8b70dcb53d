"""Which part of a snapshot a person means: `web/public_html/img`, `mail/taro@example.jp/送信済み`, `mail/…/.Sent`, `local`.

What is asked for is looked up as it is written, percent-decoded, and in both Unicode normal forms; mail folders also by their names on the wire
and in the Maildir++ of `latest/`. What is not there, or could be two things, is a UsageError that says what there is.
"""

from __future__ import annotations

import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hostbackup.errors import UsageError
from hostbackup.jobs.copy_source import Source
from hostbackup.jobs.references import open_root
from hostbackup.model import Folder, component
from hostbackup.protocols.imap.names import display
from hostbackup.vault.layout import folder_names, folder_path, mail_prefix
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.tree import TreeRoot

_KINDS = ("web", "mail", "sieve", "local")
_FILE = re.compile(r"\d+\.V(\d+)U(\d+)\.")
_SHOWN = 12
_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


@dataclass(slots=True)
class Choice:
    """What is wanted of one part."""

    state: PartState
    whole: bool = False
    paths: list[bytes] = field(default_factory=list)  # of a tree: each with all that is below it
    folders: set[bytes] = field(default_factory=set)  # of a mailbox: wire names
    messages: set[tuple[bytes, int, int]] = field(default_factory=set)  # folder, UIDVALIDITY, UID

    def wants_folder(self, folder: bytes) -> bool:
        """Whether something that a tree's folder lists may be wanted."""
        return self.whole or any(within(folder, path) or within(path, folder) for path in self.paths)

    def wants(self, path: bytes) -> bool:
        return self.whole or any(within(path, chosen) for chosen in self.paths)

    def leads_to(self, path: bytes) -> bool:
        """Whether a wanted path lies below this one."""
        return any(within(chosen, path) for chosen in self.paths)

    def wants_mail(self, folder: bytes) -> bool:
        return self.whole or folder in self.folders or any(found[0] == folder for found in self.messages)

    def wants_message(self, folder: bytes, uidvalidity: int, uid: int) -> bool:
        return self.whole or folder in self.folders or (folder, uidvalidity, uid) in self.messages


def within(path: bytes, folder: bytes) -> bool:
    """Whether `path` is `folder` or lies below it."""
    return not folder or path == folder or path.startswith(folder + b"/")


def select(source: Source, snapshot: Snapshot, selection: Sequence[str], *, vanished: bool = False) -> list[Choice]:
    """The choices, one a part, in the order of the snapshot; everything where nothing is asked for. Raises UsageError, Damaged."""
    choices = {part_id: Choice(state) for part_id, state in snapshot.parts.items() if state.root}
    if not selection:
        for choice in choices.values():
            choice.whole = True
        return list(choices.values())
    for asked in selection:
        _Asked(source, snapshot, choices, asked, vanished=vanished).find()
    return [choice for choice in choices.values() if choice.whole or choice.paths or choice.folders or choice.messages]


class _Asked:
    """One thing that was asked for."""

    def __init__(self, source: Source, snapshot: Snapshot, choices: dict[str, Choice], asked: str, *, vanished: bool) -> None:
        self._source = source
        self._snapshot = snapshot
        self._choices = choices
        self._asked = asked
        self._vanished = vanished

    def _wrong(self, reason: str, there: Iterable[str]) -> UsageError:
        shown = sorted(set(there))
        more = f", … ({len(shown)} in all)" if len(shown) > _SHOWN else ""
        hint = f"there is: {', '.join(shown[:_SHOWN])}{more}" if shown else "there is nothing"
        return UsageError(f"{reason} in snapshot {self._snapshot.id}", where=self._asked, hint=hint)

    def find(self) -> None:
        text = self._asked.strip("/").removeprefix("./").removeprefix("latest/")
        if text in _KINDS:
            found = [choice for choice in self._choices.values() if choice.state.part.kind == text]
            if not found:
                raise self._wrong(f"there is no part of the kind {text}", self._parts())
            for choice in found:
                choice.whole = True
            return
        matches = list(self._matches(text))
        if len(matches) != 1:
            reason = "no part is called so" if not matches else "more than one part may be meant"
            raise self._wrong(reason, self._parts() if not matches else (str(choice.state.part) for choice, _ in matches))
        choice, rest = matches[0]
        if not rest:
            choice.whole = True
            return
        root = open_root(self._source.manifests, choice.state)
        if isinstance(root, TreeRoot):
            self._tree(choice, root, rest)
        else:
            self._mail(choice, root, rest)

    def _parts(self) -> Iterator[str]:
        return (str(choice.state.part) for choice in self._choices.values())

    def _matches(self, text: str) -> Iterator[tuple[Choice, str]]:
        """Each part that the beginning of `text` names, with what follows; the longest name wins.

        The kind may be left out, but not that of filters, which are called as their mailbox is.
        """
        found: list[tuple[int, Choice, str]] = []
        for choice in self._choices.values():
            part = choice.state.part
            best: tuple[int, str] | None = None
            for kind in (f"{part.kind}/",) if part.kind == "sieve" else (f"{part.kind}/", ""):
                for name in {part.name, component(part.name), urllib.parse.quote(part.name, safe="")}:
                    lead = kind + name
                    if (text == lead or text.startswith(lead + "/")) and (best is None or len(lead) > best[0]):
                        best = len(lead), text[len(lead) :].strip("/")
            if best is not None:
                found.append((best[0], choice, best[1]))
        longest = max((length for length, _, _ in found), default=0)
        return ((choice, rest) for length, choice, rest in found if length == longest)

    # -- trees --------------------------------------------------------------------------------------------------------------------------

    def _tree(self, choice: Choice, root: TreeRoot, rest: str) -> None:
        vanished_only = False
        for path in _spellings(rest):
            record = root.find(path)
            if record is not None and (self._vanished or not record.vanished):
                choice.paths.append(path)
                return
            vanished_only |= record is not None
        if vanished_only:
            raise self._wrong(f"{rest} had vanished from the source; only --vanished brings it", ())
        raise self._wrong(f"there is no {rest}", self._near(root, rest))

    def _near(self, root: TreeRoot, rest: str) -> Iterator[str]:
        """What the innermost folder on the way holds."""
        path = _spellings(rest)[0]
        while path:
            path = path.rpartition(b"/")[0]
            if records := root.records(path):
                break
        else:
            records = root.records(b"")
        return (os.fsdecode(record.item.path) for record in records if not record.vanished)

    # -- mail ---------------------------------------------------------------------------------------------------------------------------

    def _mail(self, choice: Choice, root: MailRoot, rest: str) -> None:
        folders = root.folders()
        prefix = mail_prefix(root.meta)
        names = folder_names(folders, prefix)
        message = _FILE.match(rest.rpartition("/")[2]) if re.search(r"(^|/)(cur|new)/[^/]+$", rest) else None
        wanted = re.sub(r"(^|/)(cur|new)/[^/]+$", "", rest) if message else rest
        spelled = {text for text in (wanted, urllib.parse.unquote(wanted)) for text in (text, unicodedata.normalize("NFC", text))}
        found = {folder.name: folder for folder in folders if not spelled.isdisjoint(_callings(folder, prefix, names[folder.name]))}
        if message and not wanted:
            found = {folder.name: folder for folder in folders if not names[folder.name]}
        if len(found) != 1:
            reason = f"there is no mail folder {wanted}" if not found else f"{wanted} may be more than one folder"
            raise self._wrong(reason, (human(folder, prefix) for folder in (found.values() or folders)))
        [chosen] = found.values()
        if message:
            choice.messages.add((chosen.name, int(message[1]), int(message[2])))
            return
        above = folder_path(chosen, prefix)
        below = (folder for folder in folders if above and folder_path(folder, prefix)[: len(above)] == above)
        choice.folders.update(folder.name for folder in (chosen, *below))


def _spellings(text: str) -> list[bytes]:
    """How a path may have been meant, likeliest first."""
    spelled: list[bytes] = [os.fsencode(text)]
    decoded = urllib.parse.unquote_to_bytes(os.fsencode(text))
    for form in _FORMS:
        spelled.append(os.fsencode(unicodedata.normalize(form, text)))
    spelled.append(decoded)
    return list(dict.fromkeys(spelled))


def human(folder: Folder, prefix: bytes = b"") -> str:
    """A mail folder's name for people: decoded, its levels joined by `/`, without the namespace's prefix."""
    return "/".join(display(part) for part in folder_path(folder, prefix)) or "INBOX"


def _callings(folder: Folder, prefix: bytes, maildir: bytes) -> set[str]:
    """Everything that a folder may be called."""
    wire = folder.name.decode("utf-8", "surrogateescape")
    whole = display(folder.name)
    separator = folder.separator.decode("utf-8", "surrogateescape")
    names = {human(folder, prefix), wire, whole, os.fsdecode(maildir), os.fsdecode(maildir).removeprefix(".")}
    if separator:
        names |= {whole.replace(separator, "/"), separator.join(display(part) for part in folder_path(folder, prefix))}
    names |= {unicodedata.normalize("NFC", name) for name in names}
    return (names | ({"inbox", "Inbox"} if folder.name.upper() == b"INBOX" else set())) - {""}
