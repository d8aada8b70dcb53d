"""The narrow waist: what every place offers to the engine.

Each verb takes or gives many items, so that a protocol can keep hundreds of requests in flight. Inputs are consumed lazily and only as far
ahead as the place's bounds (bytes, requests) allow. What goes wrong with one item is told in its outcome; only what ends the whole place
(login refused, line cut beyond the reconnect budget) is raised as a `hostbackup.errors.ConnectionFailed` or `PlaceMissing`. Outcomes come
in any order, exactly one an item. Closing a generator early stops the work and frees what it held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, Protocol

from hostbackup.model import Claim, Entry, Folder, Item, Listing, Message, Proof, Read, Sink, Write, Written

if TYPE_CHECKING:
    from hostbackup.protocols.imap.session import Selected


class Place(Protocol, Generic[Item]):
    """A web tree, a mail account or a local folder."""

    def scan(self) -> Iterator[Listing[Item]]:
        """Metadata of all that is there, container by container. Raises PlaceMissing where the root is not there."""
        ...

    def read(self, wanted: Iterable[Item], sink: Sink) -> Iterator[Read[Item]]:
        """Contents of the wanted items into the sink, interleaved."""
        ...

    def write(self, items: Iterable[Write[Item]]) -> Iterator[Written[Item]]:
        """Brings the items there, each whole or not at all. Trees: a folder comes before what is in it. Writing a tree's entry twice leaves one."""
        ...

    def prove(self, claims: Iterable[Claim[Item]]) -> Iterator[Proof[Item]]:
        """The strongest evidence this place can give, freshly taken, that the items there have the claimed contents."""
        ...

    def close(self) -> None:
        """Ends connections. May be called twice."""
        ...


class MailSource(Place[Message], Protocol):
    """A mailbox to be read."""

    protocol: str  # "imap" or "pop3"
    namespace_prefix: bytes  # of the personal namespace; known once folders() or scan() has run
    separator: bytes  # of the hierarchy, likewise; b"" where there is none

    def folders(self) -> list[Folder]:
        """The folders that can be opened, INBOX first. Raises ConnectionFailed."""
        ...

    def status(self, folder: bytes, /) -> Selected | None:
        """Its uidvalidity (0 where there is nothing of the kind), uidnext and exists, None where there is no such folder. Raises ConnectionFailed."""
        ...

    def counters(self, folders: Sequence[bytes], /) -> dict[bytes, Selected | None]:
        """As `status`, of many folders in few round trips. Raises ConnectionFailed."""
        ...

    def capabilities(self) -> list[str]:
        """What the server offers after login, sorted. Raises ConnectionFailed."""
        ...

    def scan(self, since: Mapping[bytes, Folder] | None = None) -> Iterator[Listing[Message]]:
        """As `Place.scan`. `since`: folders all of whose messages are known, of which the changes will do."""
        ...


class TreePlace(Place[Entry], Protocol):
    """A place that is a tree."""

    @property
    def root_entry(self) -> Entry | None:
        """The root itself as the last scan saw it, from its first listing on. Mode and time are 0 where the place does not tell them."""
        ...
