"""Mail is proven over a connection of its own while more of it is being appended: the proof then costs hardly any time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hostbackup.errors import ConnectionFailed
from hostbackup.jobs.proofs import Proving
from hostbackup.model import Claim, Message, Proof
from hostbackup.places.mail import MailAccount


class Witnessed(MailAccount):
    """A mail account whose `prove` takes claims as they are made and proves them beside. What else it offers is the account's own.

    `lost` is set once the witness has failed: what was not proven by then gets no proof here, and has to be proven afterwards.
    """

    def __init__(self, place: MailAccount, witness: MailAccount) -> None:
        vars(self).update(vars(place))  # one account, one line: this is but another face of it
        self._witness = witness
        self.lost = False

    def prove(self, claims: Iterable[Claim[Message]]) -> Iterator[Proof[Message]]:
        """Proofs come in the thread that makes the claims, one a claim unless the witness is `lost`. Raises what making the claims raises."""
        with Proving[Message](self._witness) as proving:
            for claim in claims:
                proving.claim(claim)
                self.lost = self.lost or proving.failed
                yield from proving.proofs()
            try:
                yield from proving.rest()
            except ConnectionFailed:
                self.lost = True

    def close(self) -> None:
        """Ends the witness's connection alone."""
        self._witness.close()
