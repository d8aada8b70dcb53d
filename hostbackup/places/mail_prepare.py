"""Folders on a target: created where missing, by another name where the server does not take the first one, subscribed where wished. Never renamed or
deleted.

What stands there is what LIST shows after CREATE was answered: a server may know no case, change a spelling, or keep a name for something that
holds no mail.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from hostbackup.model import Failure, Folder
from hostbackup.places.mail_names import alike
from hostbackup.places.mail_outgoing import TargetFolder
from hostbackup.protocols.imap import names
from hostbackup.protocols.imap.channel import mailbox
from hostbackup.protocols.imap.framer import Tagged
from hostbackup.protocols.imap.session import ImapSession, Listed
from hostbackup.protocols.imap.wire import plain

FailureFor = Callable[[bytes, str, str, str], Failure]  # label, code, reason, hint
_AT_ONCE = 100  # commands in flight
_NOT_THE_NAME = ("UNAVAILABLE", "INUSE", "SERVERBUG", "OVERQUOTA", "THROTTLED")  # RFC 5530 and usage: another name would fare no better


class Naming(Protocol):
    """What folders are called at the target, as far as that is decided here; it hears what the server says of it. `FolderMap` is one."""

    made: set[bytes]  # gets the names that were not there before

    def target(self, folder: Folder, /) -> bytes: ...
    def use(self, folder: Folder, /) -> str: ...
    def is_bound(self, folder: Folder, /) -> bool: ...
    def is_free(self, name: bytes, folder: Folder, /) -> bool: ...
    def was_taken_away(self, folder: Folder, /) -> bool: ...
    def stands(self, folder: Folder, name: bytes, /) -> None: ...
    def another(self, folder: Folder, why: str, /, *, taken: bool = False) -> bool: ...


class AsTheyAre:
    """Names of the target's own, which nothing replaces."""

    def __init__(self) -> None:
        self.made: set[bytes] = set()

    def target(self, folder: Folder) -> bytes:
        return folder.name

    def use(self, folder: Folder) -> str:
        return folder.special_use

    def is_bound(self, folder: Folder) -> bool:
        return True

    def is_free(self, name: bytes, folder: Folder) -> bool:
        return True

    def was_taken_away(self, folder: Folder) -> bool:
        return False

    def stands(self, folder: Folder, name: bytes) -> None:
        pass

    def another(self, folder: Folder, why: str, *, taken: bool = False) -> bool:
        return False


class Preparation:
    """Brings folders there. `run` may be called again after a cut: it goes on with what the server had said before."""

    def __init__(self, folders: Iterable[Folder], naming: Naming, failure: FailureFor) -> None:
        self._folders = list(folders)
        self._naming = naming
        self._failure = failure
        self._failed: dict[bytes, Failure] = {}  # by the folder's own name
        self._plainly: set[bytes] = set()  # names that are refused with their special use
        self._there: dict[bytes, Listed] = {}
        self._alike: dict[str | bytes, list[bytes]] = {}
        self._separator = b"/"
        self._uses: set[str] = set()
        self._subscribed: set[bytes] = set()

    def run(self, session: ImapSession) -> list[Failure]:
        """Gives what failed. Raises ConnectionFailed."""
        self._failed.clear()
        self._look(session)
        waiting = [folder for folder in self._folders if not self._is_settled(folder)]
        while waiting:
            answers = self._create(session, waiting)
            self._look(session)
            # From the top down; of two that the server takes for one it is the one's that it was made for.
            waiting.sort(key=lambda folder: (self._depth(folder), not self._was_made(folder, answers)))
            waiting = [folder for folder in waiting if not self._judge(session, folder, answers)]
        return [*self._failed.values(), *self._subscribe(session)]

    # -- looking ------------------------------------------------------------------------------------------------------------------------

    def _look(self, session: ImapSession) -> None:
        listed, subscribed = session.list_folders()
        self._there = {one.name: one for one in listed}
        self._separator = next((one.separator for one in listed if one.separator), b"/")
        self._alike = {}
        for one in listed:
            if one.is_mailbox(one.name):
                for key in self._spellings(one.name):
                    self._alike.setdefault(key, []).append(one.name)
        self._uses = {attribute for one in listed for attribute in one.attributes}
        self._subscribed = {one.name for one in subscribed} | {one.name for one in listed if one.has("\\Subscribed")}

    def _spellings(self, name: bytes) -> tuple[str, bytes]:
        """What it has in common with a name that may be the same: as text, or as the name of a file on a disk that knows no case."""
        return alike(name, self._separator), name.lower()

    def _stands(self, name: bytes) -> bool:
        return names.is_inbox(name) or (name in self._there and self._there[name].is_mailbox(name))

    def _is_settled(self, folder: Folder) -> bool:
        """Whether nothing is to be made: it is there, or was and its owner took it away. Should mail come for it, appending makes it again."""
        name = self._naming.target(folder)
        if self._stands(name):
            self._naming.stands(folder, name)
            return True
        return self._naming.was_taken_away(folder)

    # -- creating -----------------------------------------------------------------------------------------------------------------------

    def _create(self, session: ImapSession, waiting: Sequence[Folder]) -> dict[bytes, Tagged]:
        """The answers, by name: from the top down, to where a level was not made as asked. What is below waits for what becomes of that."""
        wanted: dict[bytes, str] = {}
        for folder in waiting:
            name = self._naming.target(folder)
            wanted[name] = wanted.get(name, "") or self._naming.use(folder)
        answers: dict[bytes, Tagged] = {}
        for _, level in itertools.groupby(sorted(wanted, key=self._levels), key=self._levels):
            commands = [(name, self._creation(session, name, wanted[name])) for name in level]
            told = dict(zip((name for name, _ in commands), run_all(session, [command for _, command in commands]), strict=True))
            self._naming.made |= {name for name, answer in told.items() if answer.ok}
            answers |= told
            if not all(answer.ok for answer in told.values()):
                break
        return answers

    def _levels(self, name: bytes) -> int:
        return name.count(self._separator)

    def _depth(self, folder: Folder) -> int:
        return self._levels(self._naming.target(folder))

    def _was_made(self, folder: Folder, answers: dict[bytes, Tagged]) -> bool:
        answer = answers.get(self._naming.target(folder))
        return answer is not None and answer.ok

    def _creation(self, session: ImapSession, name: bytes, use: str) -> tuple[bytes, ...]:
        """CREATE, with the special use where the server can record it and has no folder for it yet (RFC 6154 §3)."""
        if use and use not in self._uses and name not in self._plainly and session.offers("CREATE-SPECIAL-USE"):
            return b"CREATE", name, b"(USE (%s))" % use.encode("ascii")
        return b"CREATE", name

    def _judge(self, session: ImapSession, folder: Folder, answers: dict[bytes, Tagged]) -> bool:
        """What came of it. False where there is more to be tried."""
        name = self._naming.target(folder)
        if self._is_settled(folder):
            return True
        answer = answers.get(name)
        if answer is None:
            return False
        told, code = plain(answer.answer.text), answer.answer.code
        listed = name in self._there  # as something that holds no mail
        exists = answer.ok or code == "ALREADYEXISTS"
        twins = [one for key in self._spellings(name) for one in self._alike.get(key, [])]
        # Whatever a name is refused for: where the server takes it for another folder's, mail that is sent to it all the same would go there.
        others = exists or not all(self._naming.is_free(one, folder) for one in twins)
        if exists and not listed:
            spelled = next((one for one in twins if self._naming.is_free(one, folder)), None)
            if not twins and (answer.ok or self._naming.is_bound(folder)) and session.status(name) is not None:
                spelled = name  # a folder that LIST keeps to itself
            if spelled is not None:
                self._naming.stands(folder, spelled)
                self._naming.made |= {spelled} if answer.ok else set()
                return True
        elif not others and code in _NOT_THE_NAME:
            return self._fail(folder, told)
        elif not exists and self._naming.use(folder) and name not in self._plainly:
            self._plainly.add(name)
            return False
        if listed:
            why = f"{_shown(name)} can hold no mail there"
        elif others:
            why = f"{_shown(name)} is another folder's there"
        else:
            why = f"the new server refused {_shown(name)}: {told}"
        return not self._naming.another(folder, why, taken=listed or others) and self._fail(folder, told)

    def _fail(self, folder: Folder, told: str) -> bool:
        self._failed.setdefault(folder.name, self._failure(self._naming.target(folder), "folder", f"the server does not make the folder: {told}", ""))
        return True

    def _subscribe(self, session: ImapSession) -> Iterator[Failure]:
        wished = {self._naming.target(folder): None for folder in self._folders if folder.subscribed and folder.name not in self._failed}
        missing = [name for name in wished if name not in self._subscribed and self._stands(name)]
        for name, answer in zip(missing, run_all(session, [(b"SUBSCRIBE", name) for name in missing]), strict=True):
            if not answer.ok:
                yield self._failure(name, "subscribe", f"the server does not subscribe the folder: {plain(answer.answer.text)}", "")


def run_all(session: ImapSession, commands: Sequence[tuple[bytes, ...]]) -> list[Tagged]:
    """Runs commands (verb, mailbox, more), many in flight, and gives their answers in the same order."""
    channel = session.channel
    answers: list[Tagged] = []
    flight: list[bytes] = []
    for verb, name, *more in commands:
        if len(flight) >= _AT_ONCE or not channel.at_once(mailbox(name)):
            answers += [channel.finish(tag) for tag in flight]
            flight.clear()
        flight.append(channel.start(verb, mailbox(name), *more))
    return answers + [channel.finish(tag) for tag in flight]


def open_for_writing(session: ImapSession, name: bytes) -> TargetFolder:
    """Makes the folder where it is missing and asks which flags it keeps.

    Only SELECT tells PERMANENTFLAGS. The mailbox is left by UNSELECT or EXAMINE, never by CLOSE, which would expunge.
    """
    selected, answer = session.open_mailbox(name, writable=True)
    if not answer.ok:
        made = session.channel.run(b"CREATE", mailbox(name))
        if not made.ok and made.answer.code != "ALREADYEXISTS":
            return TargetFolder(trouble=("folder", f"the server does not make the folder: {plain(made.answer.text)}"))
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


def _shown(name: bytes) -> str:
    return repr(names.display(name))
