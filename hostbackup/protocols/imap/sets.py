"""UID sets (RFC 3501 §9, sequence-set): runs of numbers as short text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def compress(uids: Iterable[int]) -> bytes:
    """The set of these UIDs in any order, doubles ignored: `1:3,7`. Raises ValueError for none at all, or for a number below 1."""
    ordered = sorted(set(uids))
    if not ordered or ordered[0] < 1:
        raise ValueError("a UID set needs numbers from 1")
    return b",".join(b"%d" % low if low == high else b"%d:%d" % (low, high) for low, high in _runs(ordered))


def expand(text: bytes, limit: int = 100_000) -> list[int]:
    """The numbers of a set without `*`, in the order written. Raises ValueError where it is none, or holds more than `limit` numbers."""
    numbers: list[int] = []
    for part in text.split(b","):
        low, colon, high = part.partition(b":")
        if not low.isdigit() or (colon and not high.isdigit()):
            raise ValueError("not a UID set")
        first, last = sorted((int(low), int(high if colon else low)))
        if last - first + len(numbers) >= limit:
            raise ValueError("a UID set too large")
        numbers.extend(range(first, last + 1))
    return numbers


def runs(text: bytes) -> list[tuple[int, int]]:
    """The runs of a set without `*`, ascending, those that touch joined. Raises ValueError where it is none."""
    found = []
    for part in text.split(b","):
        low, colon, high = part.partition(b":")
        if not low.isdigit() or (colon and not high.isdigit()):
            raise ValueError("not a UID set")
        found.append(tuple(sorted((int(low), int(high if colon else low)))))
    return joined((low, high) for low, high in found)


def joined(found: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs in ascending order, those that touch or overlap made one."""
    made: list[tuple[int, int]] = []
    for low, high in sorted(found):
        if made and low <= made[-1][1] + 1:
            made[-1] = made[-1][0], max(made[-1][1], high)
        else:
            made.append((low, high))
    return made


def within(found: Iterable[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """The part of ascending runs that lies between `first` and `last`, both included."""
    return [(max(low, first), min(high, last)) for low, high in found if low <= last and high >= first]


def missing(found: Iterable[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """The runs between ascending ones, from `first` to `last`, both included."""
    made = []
    for low, high in within(found, first, last):
        if first < low:
            made.append((first, low - 1))
        first = high + 1
    return [*made, (first, last)] if first <= last else made


def size(found: Iterable[tuple[int, int]]) -> int:
    """How many numbers the runs hold."""
    return sum(high - low + 1 for low, high in found)


def _runs(ordered: list[int]) -> Iterator[tuple[int, int]]:
    low = high = ordered[0]
    for uid in ordered[1:]:
        if uid == high + 1:
            high = uid
        else:
            yield low, high
            low = high = uid
    yield low, high
