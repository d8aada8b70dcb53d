"""The narrow waist: what every place offers to the engine.

Each verb takes or gives many items, so that a protocol can keep hundreds of requests in flight. Inputs are consumed lazily and only as far
ahead as the place's bounds (bytes, requests) allow. What goes wrong with one item is told in its outcome; only what ends the whole place
(login refused, line cut beyond the reconnect budget) is raised as a `hostbackup.errors.ConnectionFailed` or `PlaceMissing`. Outcomes come
in any order, exactly one an item. Closing a generator early stops the work and frees what it held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, Protocol

from hostbackup.model import Claim, Entry, Item, Listing, Proof, Read, Sink, Write, Written


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


class TreePlace(Place[Entry], Protocol):
    """A place that is a tree."""

    @property
    def root_entry(self) -> Entry | None:
        """The root itself as the last scan saw it, from its first listing on. Mode and time are 0 where the place does not tell them."""
        ...
