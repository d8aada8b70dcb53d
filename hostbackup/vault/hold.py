"""The writer's lock at a store, as an object there: for stores that know no locks of their own.

`locks/<random>` is put, then `locks/` is listed: another one that lives means that somebody else writes, and ours is taken away again. Of two who
come at once both may go; never do both stay. No conditional request is needed, which many a store ignores. What time it is the store says: the
age of a lock is the time our own, put just now, is listed with, less the time the other is listed with. While it is held it is put again every
few minutes; one that was not for half an hour has lapsed. Where the keys may not delete, a released lock stays, emptied: 0 bytes are no lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol

from hostbackup import osal
from hostbackup.errors import Damaged, HostbackupError, Locked, ProtocolBroken
from hostbackup.vault.snapshots import timestamp
from hostbackup.vault.stores import LOCKS, Listed

LAPSE = 30 * 60.0  # seconds without renewal after which a lock holds nobody off
_RENEW = 4 * 60.0
_TRUST = 20 * 60.0  # after so long without a renewal that worked, nothing is written before one does; the rest is for what is on its way
_LONGEST = 4096  # bytes of a lock that are looked at


class LockPlace(Protocol):
    """The few requests that a lock needs of a store. They raise what ends the store."""

    @property
    def label(self) -> str: ...

    def locks(self) -> Iterable[Listed]:
        """What is listed below `locks/`, with the times."""
        ...

    def write_lock(self, key: str, data: bytes) -> None: ...

    def read_lock(self, key: str) -> bytes: ...

    def remove_lock(self, key: str) -> None:
        """Raises HostbackupError where it may not."""
        ...


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at `locks/`. `mine`: our own, if it is listed; `others`: those of others that live, with their ages in seconds."""

    mine: Listed | None
    others: list[tuple[Listed, float]]


def about_us() -> bytes:
    """What a lock says of its holder, for people."""
    text = {"host": socket.gethostname(), "pid": os.getpid(), "since": timestamp(datetime.now(UTC))}
    return json.dumps(text, ensure_ascii=False).encode() + b"\n"


def locked(label: str, told: bytes, age: float | None = None) -> Locked:
    """The error for a store that somebody else writes to, from what their lock tells. `age`: seconds since it was renewed, of one that lapses."""
    told_of: Any = None
    with contextlib.suppress(ValueError):
        told_of = json.loads(told[:_LONGEST])
    said = {name: _plain(told_of.get(name, "")) for name in ("host", "pid", "since")} if isinstance(told_of, dict) else {}
    who = f": {said['host']} (process {said['pid']}), since {said['since']}" if all(said.values()) and said else ""
    hint = "wait until it has ended"
    if age is not None:
        minutes = max(1, round((LAPSE - age) / 60))
        hint += f"; if it is not running any more, its lock lapses within {minutes} minutes"
    return Locked(f"another run is writing to this copy{who}", where=label, hint=hint)


def _plain(value: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(value))[:100]


class ObjectHold:
    """A `Hold` by way of an object. `stale`: keys of locks that runs of the same vault left when they were killed; they are taken over."""

    def __init__(
        self, place: LockPlace, stale: Collection[str] = (), *, clock: Callable[[], float] = osal.uptime, renew_every: float = _RENEW
    ) -> None:
        self.key = f"{LOCKS}{secrets.token_hex(16)}"
        self._place = place
        self._stale = frozenset(stale)
        self._clock = clock
        self._renew_every = renew_every
        self._text = about_us()
        self._held = False
        self._lost: Locked | None = None
        self._renewed = 0.0
        self._one_at_a_time = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------ taking and giving back

    def __enter__(self) -> ObjectHold:
        begun = self._clock()
        self._place.write_lock(self.key, self._text)
        try:
            look = self._look()
            if look.mine is None:
                reason = "the store does not list what was stored there just now, so nobody can be kept from writing at the same time"
                raise ProtocolBroken(reason, where=self._place.label)
            self._refuse(look)
        except BaseException:
            self._clear(self.key)
            raise
        self._renewed = begun
        self._held = True
        self._thread = threading.Thread(target=self._keep, name="copy-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held = False
        self._ended.set()
        with self._one_at_a_time:  # a renewal that is on its way would put it again
            self._clear(self.key)
        if self._thread is not None:
            self._thread.join()

    def _clear(self, key: str) -> None:
        """Takes a lock away, or empties it. One that cannot be reached lapses."""
        try:
            self._place.remove_lock(key)
        except HostbackupError:
            with contextlib.suppress(HostbackupError):
                self._place.write_lock(key, b"")

    # ------------------------------------------------------------ looking

    def _look(self) -> _Look:
        listed = [one for one in self._place.locks() if one.size]
        mine = next((one for one in listed if one.key == self.key), None)
        now = mine.modified if mine else 0.0
        others: list[tuple[Listed, float]] = []
        for one in listed:
            age = now - one.modified
            if one.key == self.key:
                continue
            if one.key in self._stale or (mine and age > LAPSE):
                self._clear(one.key)
            else:
                others.append((one, max(age, 0.0)))
        return _Look(mine, others)

    def _refuse(self, look: _Look) -> None:
        for other, age in look.others:
            told = b""
            with contextlib.suppress(Damaged):  # released in this moment
                told = self._place.read_lock(other.key)
            raise locked(self._place.label, told, age)

    # ------------------------------------------------------------ keeping

    def _keep(self) -> None:
        while not self._ended.wait(self._renew_every):
            with contextlib.suppress(HostbackupError):  # tried again next time; whoever writes is told by `check`
                self.renew()

    def renew(self) -> None:
        """Puts the lock again. Raises Locked where it is no longer ours, and what ends the store."""
        with self._one_at_a_time:
            if not self._held:
                return
            if self._lost:
                raise self._lost
            begun = self._clock()
            if self._look().mine is None:
                self._lose()
            self._place.write_lock(self.key, self._text)
            look = self._look()
            if look.mine is None or look.others:
                self._lose()
            self._renewed = begun

    def _lose(self) -> None:
        self._lost = Locked(
            "the lock of this copy could not be renewed in time, and another run took it over",
            where=self._place.label,
            hint="run it again when that one has ended: what is stored stays",
        )
        self._clear(self.key)
        raise self._lost

    def check(self) -> None:
        """Before anything is written: raises Locked where the lock was lost. After a long silence (a machine that slept) the store is asked first."""
        if not self._held:
            return
        if self._lost:
            raise self._lost
        if self._clock() - self._renewed > _TRUST:
            self.renew()
