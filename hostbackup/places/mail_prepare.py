"""Folders on a target: created where missing, subscribed where wished, never renamed or deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from hostbackup.model import Failure, Folder
from hostbackup.places.mail_outgoing import TargetFolder
from hostbackup.protocols.imap import names
from hostbackup.protocols.imap.channel import mailbox
from hostbackup.protocols.imap.session import ImapSession
from hostbackup.protocols.imap.wire import plain


def create(session: ImapSession, name: bytes, special_use: str) -> str | None:
    """Creates a mailbox, with its special use where the server can record that (RFC 6154 §3). The reason where it is refused."""
    if special_use and session.offers("CREATE-SPECIAL-USE"):
        answer = session.channel.run(b"CREATE", mailbox(name), b"(USE (%s))" % special_use.encode("ascii"))
        if answer.ok or answer.answer.code == "ALREADYEXISTS":
            return None
    answer = session.channel.run(b"CREATE", mailbox(name))
    if answer.ok or answer.answer.code == "ALREADYEXISTS":
        return None
    return f"the server does not make the folder: {plain(answer.answer.text)}"


def prepare(session: ImapSession, folders: Iterable[Folder], failure: Callable[[bytes, str, str, str], Failure]) -> Iterator[Failure]:
    """Brings the folders (target wire names) there with their subscriptions; gives what failed. Raises ConnectionFailed."""
    listed, subscribed = session.list_folders()
    there = {one.name for one in listed if not one.has("\\NonExistent") and not one.has("\\Noselect")}
    known = {one.name for one in subscribed} | {one.name for one in listed if one.has("\\Subscribed")}
    for folder in folders:
        if folder.name not in there and not names.is_inbox(folder.name):
            trouble = create(session, folder.name, folder.special_use)
            if trouble is not None:
                yield failure(folder.name, "folder", trouble, "")
                continue
        there.add(folder.name)
        if folder.subscribed and folder.name not in known:
            answer = session.channel.run(b"SUBSCRIBE", mailbox(folder.name))
            if not answer.ok:
                yield failure(folder.name, "subscribe", f"the server does not subscribe the folder: {plain(answer.answer.text)}", "")


def open_for_writing(session: ImapSession, name: bytes) -> TargetFolder:
    """Makes the folder where it is missing and asks which flags it keeps.

    Only SELECT tells PERMANENTFLAGS. The mailbox is left by UNSELECT or EXAMINE, never by CLOSE, which would expunge.
    """
    selected, answer = session.open_mailbox(name, writable=True)
    if not answer.ok:
        trouble = create(session, name, "")
        if trouble is not None:
            return TargetFolder(trouble=("folder", trouble))
        selected, answer = session.open_mailbox(name, writable=True)
        if not answer.ok:
            return TargetFolder(trouble=("folder", f"the server does not open the folder: {plain(answer.answer.text)}"))
    if session.offers("UNSELECT"):
        session.channel.run(b"UNSELECT")
    else:
        session.open_mailbox(name)
    flags = selected.permanent_flags
    kept = None if flags is None else frozenset(flag.lower() for flag in flags)
    return TargetFolder(kept, uidvalidity=selected.uidvalidity, uidnext=selected.uidnext)
