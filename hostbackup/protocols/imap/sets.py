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


def _runs(ordered: list[int]) -> Iterator[tuple[int, int]]:
    low = high = ordered[0]
    for uid in ordered[1:]:
        if uid == high + 1:
            high = uid
        else:
            yield low, high
            low = high = uid
    yield low, high
