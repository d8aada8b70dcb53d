"""Wrappers with a place's interface: one that fails on purpose, one that remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from hostbackup.errors import LineCut
from hostbackup.model import Claim, Failure, Item, Listing, Method, Proof, Read, Sink, Status, Write, Written
from hostbackup.places.base import Place

Told = TypeVar("Told")


class Wrapper(Generic[Item]):
    """Hands everything on; what a place offers beside the verbs too."""

    place: Place[Item]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.place, name)

    def scan(self) -> Iterator[Listing[Item]]:
        yield from self.place.scan()

    def read(self, wanted: Iterable[Item], sink: Sink) -> Iterator[Read[Item]]:
        yield from self.place.read(wanted, sink)

    def write(self, items: Iterable[Write[Item]]) -> Iterator[Written[Item]]:
        yield from self.place.write(items)

    def prove(self, claims: Iterable[Claim[Item]]) -> Iterator[Proof[Item]]:
        yield from self.place.prove(claims)

    def close(self) -> None:
        self.place.close()


class Flaky(Wrapper[Item]):
    """A place on a bad day.

    `fail_every` n: each nth item that is read, written or proven fails with `code` and never reaches the place. `cut_after` n: after n outcomes
    (or listings) LineCut is raised, once; the next call works again. `before_read` is called with each item right before it is read: the
    moment between scan and read in which the world moves on. `lie`: what every proof says, whatever is true.
    """

    def __init__(
        self,
        place: Place[Item],
        *,
        fail_every: int = 0,
        code: str = "io",
        cut_after: int | None = None,
        before_read: Callable[[Item], None] | None = None,
        lie: Status | None = None,
    ) -> None:
        self.place: Place[Item] = place
        self.fail_every = fail_every
        self.code = code
        self.cut_after = cut_after
        self.before_read: Callable[[Item], None] | None = before_read
        self.lie = lie
        self._count = 0

    def scan(self) -> Iterator[Listing[Item]]:
        yield from self._cut(self.place.scan())

    def read(self, wanted: Iterable[Item], sink: Sink) -> Iterator[Read[Item]]:
        failed: list[Read[Item]] = []

        def sound() -> Iterator[Item]:
            for item in wanted:
                if self._fails():
                    failed.append(Read(item, item, failure=self._failure(item)))
                    continue
                if self.before_read is not None:
                    self.before_read(item)
                yield item

        yield from self._cut(_between(failed, self.place.read(sound(), sink)))

    def write(self, items: Iterable[Write[Item]]) -> Iterator[Written[Item]]:
        failed: list[Written[Item]] = []

        def sound() -> Iterator[Write[Item]]:
            for item in items:
                if self._fails():
                    failed.append(Written(item, item.item, self._failure(item.item)))
                else:
                    yield item

        yield from self._cut(_between(failed, self.place.write(sound())))

    def prove(self, claims: Iterable[Claim[Item]]) -> Iterator[Proof[Item]]:
        failed: list[Proof[Item]] = []

        def sound() -> Iterator[Claim[Item]]:
            for claim in claims:
                if self._fails():
                    failed.append(Proof(claim, Status.FAILED, Method.NONE, self._failure(claim.item)))
                else:
                    yield claim

        for proof in self._cut(_between(failed, self.place.prove(sound()))):
            if self.lie is None:
                yield proof
            else:
                trouble = None if self.lie is Status.VERIFIED else self._failure(proof.claim.item)
                yield replace(proof, status=self.lie, failure=trouble)

    def _fails(self) -> bool:
        self._count += 1
        return bool(self.fail_every) and self._count % self.fail_every == 0

    def _failure(self, item: Item) -> Failure:
        return Failure("old", "", item.label, self.code, "it fails on purpose")

    def _cut(self, outcomes: Iterator[Told]) -> Iterator[Told]:
        for outcome in outcomes:
            if self.cut_after is not None:
                if self.cut_after == 0:
                    self.cut_after = None
                    raise LineCut("the line was cut on purpose", where="test")
                self.cut_after -= 1
            yield outcome


def _between(failed: list[Told], sound: Iterator[Told]) -> Iterator[Told]:
    for outcome in sound:
        while failed:
            yield failed.pop(0)
        yield outcome
    yield from failed


@dataclass(slots=True)
class Call(Generic[Item]):
    """One use of a verb: the items the place took from its input, in order, and how many outcomes it gave."""

    verb: str
    items: list[Item] = field(default_factory=list)
    outcomes: int = 0
    closed_early: bool = False


class Recorder(Wrapper[Item]):
    """Remembers every call."""

    def __init__(self, place: Place[Item]) -> None:
        self.place: Place[Item] = place
        self.calls: list[Call[Item]] = []

    def verbs(self) -> list[str]:
        return [call.verb for call in self.calls]

    def items(self, verb: str) -> list[Item]:
        return [item for call in self.calls if call.verb == verb for item in call.items]

    def scan(self) -> Iterator[Listing[Item]]:
        call = self._call("scan")
        yield from self._count(call, self.place.scan())

    def read(self, wanted: Iterable[Item], sink: Sink) -> Iterator[Read[Item]]:
        call = self._call("read")
        yield from self._count(call, self.place.read(_noting(call, wanted, lambda item: item), sink))

    def write(self, items: Iterable[Write[Item]]) -> Iterator[Written[Item]]:
        call = self._call("write")
        yield from self._count(call, self.place.write(_noting(call, items, lambda write: write.item)))

    def prove(self, claims: Iterable[Claim[Item]]) -> Iterator[Proof[Item]]:
        call = self._call("prove")
        yield from self._count(call, self.place.prove(_noting(call, claims, lambda claim: claim.item)))

    def close(self) -> None:
        self._call("close")
        self.place.close()

    def _call(self, verb: str) -> Call[Item]:
        call: Call[Item] = Call(verb)
        self.calls.append(call)
        return call

    def _count(self, call: Call[Item], outcomes: Iterator[Told]) -> Iterator[Told]:
        try:
            for outcome in outcomes:
                call.outcomes += 1
                yield outcome
        except GeneratorExit:
            call.closed_early = True
            raise


def _noting(call: Call[Item], given: Iterable[Told], item: Callable[[Told], Item]) -> Iterator[Told]:
    for each in given:
        call.items.append(item(each))
        yield each
