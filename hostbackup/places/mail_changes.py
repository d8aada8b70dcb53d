"""What changed in a mail folder since it was listed whole (RFC 7162): decided from counters, read as a difference, and proven to add up.

A difference is believed only where the counts agree: the messages that were there, less those that went, plus those that came, are as many as the
server says it holds. Everything else is listed in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hostbackup.model import Changes, Folder
from hostbackup.protocols.imap import sets
from hostbackup.protocols.imap.framer import Data, Fetch, Number, Response, Untagged
from hostbackup.protocols.imap.session import ImapSession, Selected, vanished

Runs = list[tuple[int, int]]


def is_unchanged(old: Folder, now: Selected) -> bool:
    """Whether nothing happened in a folder since `old` was told of it: no mail, no flag, no deletion goes without raising HIGHESTMODSEQ."""
    before = (old.uidvalidity, old.uidnext, old.exists, old.highestmodseq)
    return bool(old.highestmodseq) and before == (now.uidvalidity, now.uidnext, now.exists, now.highestmodseq)


def has_fewer(old: Folder, now: Selected) -> bool:
    """Whether some of the messages that were there, or came meanwhile, are there no more."""
    return now.exists < old.exists + now.uidnext - old.uidnext


def can_differ(old: Folder, now: Selected, most: int) -> bool:
    """Whether the difference can be asked for: the same numbering, counters that only grew, no more than `most` UIDs given meanwhile."""
    same = 0 < old.uidvalidity == now.uidvalidity and 0 < old.highestmodseq <= now.highestmodseq
    return same and old.exists < old.uidnext and 0 <= now.uidnext - old.uidnext <= most


@dataclass(slots=True, eq=False)
class Difference:
    """One folder's difference to what `old` told, as it comes in.

    `fewer`: its counters say that something vanished. `listing`: all UIDs are listed, to find out what.
    """

    old: Folder
    fewer: bool = False
    listing: bool = False
    commands: list[bytes] = field(default_factory=list)  # tags
    refused: bool = False
    flags: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _gone: Runs = field(default_factory=list)
    _there: Runs = field(default_factory=list)

    def start(self, session: ImapSession) -> None:
        """Asks for flags that changed, for what vanished where the server keeps that in mind, and for all UIDs where it has to be."""
        self.commands, self.flags, self._gone, self._there, self.refused = [], {}, [], [], False
        if self.old.uidnext <= 1:
            return
        self.listing = self.listing or (self.fewer and not session.qresync)
        known = b"1:%d" % (self.old.uidnext - 1)
        since = b"(CHANGEDSINCE %d%s)" % (self.old.highestmodseq, b" VANISHED" if session.qresync and not self.listing else b"")
        self.commands.append(session.channel.start(b"UID FETCH", known, b"(UID FLAGS)", since))
        if self.listing:
            self.commands.append(session.channel.start(b"UID FETCH", known, b"(UID)"))

    def finish(
        self,
        session: ImapSession,
        selected: Selected,
        after: Selected,
        tidy: Callable[[tuple[str, ...]], tuple[str, ...]],
        arrived: Callable[[Fetch], None],
    ) -> None:
        """Reads what answers the commands; `tidy` brings flags into the order that they are kept in.

        `arrived` gets what answers the listing of new messages: servers may run several FETCHes at once (Dovecot does), and then tell of all
        before the first of them is done.
        """
        for tag in self.commands:
            for response in session.channel.responses(tag):
                if isinstance(response, Fetch):
                    if response.uid is not None and response.uid >= self.old.uidnext:
                        arrived(response)
                    else:
                        self._take(response, tidy)
                else:
                    self._heard(response, selected, after)
            self.refused = not session.channel.result(tag).ok or self.refused

    def _take(self, fetch: Fetch, tidy: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        uid = fetch.uid
        if uid is None or not 0 < uid < self.old.uidnext:
            return
        if fetch.flags is not None:
            self.flags[uid] = tidy(fetch.flags)
        elif self.listing:
            if self._there and self._there[-1][1] == uid - 1:
                self._there[-1] = (self._there[-1][0], uid)
            else:
                self._there.append((uid, uid))

    def _heard(self, response: Response, selected: Selected, after: Selected) -> None:
        if isinstance(response, (Number, Untagged)):
            selected.take(response)
        elif isinstance(response, Data):
            if response.kind == "STATUS":
                after.take(response)
                return
            if response.kind == "VANISHED":
                self._gone += vanished(response.values)[0]
            selected.take(response)

    def changes(self, arrived: int, now: Selected) -> Changes | None:
        """The difference, given how many messages came; None where the counts do not agree, or the server has other numbers now."""
        old = self.old
        if self.refused or now.uidvalidity != old.uidvalidity or now.highestmodseq < old.highestmodseq or 0 < now.uidnext < old.uidnext:
            return None
        went = old.exists + arrived - now.exists
        last = old.uidnext - 1
        if self.listing:
            there = sets.joined(self._there)
            return self._made(sets.missing(there, 1, last)) if sets.size(there) + arrived == now.exists else None
        if went == 0:
            return self._made([])
        gone = sets.within(sets.joined(self._gone), 1, last)
        return self._made(gone) if went > 0 and sets.size(gone) == went else None

    def _made(self, gone: Runs) -> Changes:
        return Changes(self.flags, tuple(gone))
