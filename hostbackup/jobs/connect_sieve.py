"""Logins to the filters of mail accounts: as to the mailbox, at its host, and where it is known at the very address that the mailbox was met at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hostbackup.errors import LoginRefused, NotOffered

if TYPE_CHECKING:
    from hostbackup.protocols.imap.session import ImapTarget
    from hostbackup.protocols.sieve import SieveSession


@dataclass(slots=True)
class FilterLogins:
    """What a run has learnt of them: a host that offers none is asked once, and a refused password is never tried twice."""

    _absent: dict[tuple[str, int, tuple[str, ...]], NotOffered] = field(default_factory=dict)
    _refused: dict[tuple[str, str], LoginRefused] = field(default_factory=dict)

    def refused(self, host: str, user: str, error: LoginRefused) -> None:
        """A login was refused there, be it to the filters or to the mailbox."""
        self._refused[host, user] = error

    def factory(self, mailbox: ImapTarget, port: int, met: str) -> Callable[[], SieveSession]:
        """Logs in each time it is called. `met`: the address at which the mailbox was reached, "" where it was not.

        Raises what `hostbackup.protocols.sieve.connect` raises.
        """
        target = replace(mailbox, port=port, addresses=(met,) if met else mailbox.addresses)
        there = (target.host, port, target.addresses)

        def connect() -> SieveSession:
            from hostbackup.protocols import sieve

            known = self._absent.get(there) or self._refused.get((target.host, target.user))
            if known is not None:
                raise known
            try:
                return sieve.connect(target)
            except NotOffered as error:
                self._absent[there] = error
                raise
            except LoginRefused as error:
                self.refused(target.host, target.user, error)
                raise

        return connect
