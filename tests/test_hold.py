"""The writer's lock as an object: how it lapses, is renewed, is lost and is given back where nothing may be deleted."""

from __future__ import annotations

import threading

import pytest

from hostbackup.errors import HostbackupError, LineCut, Locked, LoginRefused, ProtocolBroken
from hostbackup.vault.hold import LAPSE, ObjectHold, locked
from hostbackup.vault.stores import LOCKS, Listed
from tests.contract_stores import put, upload
from tests.support.memory_store import MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def locks(store: MemoryStore) -> list[str]:
    return [key for key, data in store.objects.items() if key.startswith(LOCKS) and data]


def test_a_lock_lapses_by_the_clock_of_the_store() -> None:
    store = MemoryStore()
    left = ObjectHold(store)
    left.__enter__()
    store.now += LAPSE - 1
    with pytest.raises(Locked, match="another run is writing") as caught, ObjectHold(store):
        pass
    assert "lapses within 1 minutes" in caught.value.hint
    assert locks(store) == [left.key]
    store.now += 2
    with ObjectHold(store) as ours:
        assert locks(store) == [ours.key]


def test_a_lock_that_is_renewed_does_not_lapse() -> None:
    store = MemoryStore()
    with ObjectHold(store) as hold:
        for _ in range(3):
            store.now += LAPSE - 1
            hold.renew()
            with pytest.raises(Locked), ObjectHold(store):
                pass
    assert locks(store) == []


def test_it_is_renewed_by_itself() -> None:
    renewed = threading.Event()

    class Watched(MemoryStore):
        def write_lock(self, key: str, data: bytes) -> None:
            if key in self.objects:
                renewed.set()
            super().write_lock(key, data)

    with ObjectHold(Watched(), renew_every=0.001):
        assert renewed.wait(60)


def test_who_lost_the_lock_in_a_long_sleep_writes_nothing_more() -> None:
    store, clock = MemoryStore(), Clock()
    with ObjectHold(store, clock=clock) as sleeper:
        store._held = sleeper
        assert put(store, upload("x", b"1"))["x"].ok
        clock.now += LAPSE + 60
        store.now += LAPSE + 60
        with ObjectHold(store.again()) as other:
            for _ in range(2):
                with pytest.raises(Locked, match="took it over"):
                    put(store, upload("y", b"2"))
            with pytest.raises(Locked, match="took it over"):
                list(store.delete(["x"]))
            assert locks(store) == [other.key]
    assert sorted(store.objects) == ["x"]


def test_it_is_lost_too_where_the_other_has_come_and_gone() -> None:
    store, clock = MemoryStore(), Clock()
    with ObjectHold(store, clock=clock) as sleeper:
        clock.now += LAPSE + 60
        store.now += LAPSE + 60
        with ObjectHold(store):
            pass
        with pytest.raises(Locked, match="took it over"):
            sleeper.check()


def test_who_slept_while_nobody_came_goes_on() -> None:
    store, clock = MemoryStore(), Clock()
    with ObjectHold(store, clock=clock) as sleeper:
        clock.now += 10 * LAPSE
        store.now += 10 * LAPSE
        sleeper.check()
        with pytest.raises(Locked), ObjectHold(store):
            pass


def test_a_store_that_cannot_be_asked_after_a_long_sleep_is_not_written_to() -> None:
    store, clock = MemoryStore(), Clock()
    with ObjectHold(store, clock=clock) as sleeper:
        clock.now += LAPSE
        store.gone = True
        with pytest.raises(HostbackupError, match="is gone"):
            sleeper.check()
        store.gone = False
        sleeper.check()


def test_where_nothing_may_be_deleted_an_empty_lock_is_a_released_one() -> None:
    class NoDeleting(MemoryStore):
        def remove_lock(self, key: str) -> None:
            raise LoginRefused("the store refuses to delete")

    store = NoDeleting()
    keys = []
    for _ in range(2):
        with ObjectHold(store) as hold:
            keys.append(hold.key)
            assert locks(store) == [hold.key]
            with pytest.raises(Locked), ObjectHold(store):
                pass
    assert locks(store) == []
    assert set(keys) <= set(store.objects)


def test_of_two_who_come_at_once_both_go() -> None:
    store = MemoryStore()

    class Slow(MemoryStore):
        def write_lock(self, key: str, data: bytes) -> None:
            super().write_lock(key, data)
            if data:
                with pytest.raises(Locked), ObjectHold(store):
                    pass
                super().write_lock(f"{LOCKS}{'0' * 32}", b"another came in this moment")

    slow = Slow()
    slow.objects, slow.times = store.objects, store.times
    with pytest.raises(Locked), ObjectHold(slow):
        pass
    assert locks(store) == [f"{LOCKS}{'0' * 32}"]


def test_a_store_that_does_not_list_what_was_just_put_is_refused() -> None:
    class Late(MemoryStore):
        def locks(self) -> list[Listed]:  # type: ignore[override]
            return []

    store = Late()
    with pytest.raises(ProtocolBroken, match="does not list"), ObjectHold(store):
        pass
    assert locks(store) == []


def test_a_lock_that_cannot_be_given_back_is_no_failure_of_the_run() -> None:
    store = MemoryStore()
    with ObjectHold(store):
        store.gone = True
    store.gone = False
    store.now += LAPSE + 1
    with ObjectHold(store):
        pass


def test_what_breaks_while_it_is_taken_is_told() -> None:
    class Broken(MemoryStore):
        def locks(self) -> list[Listed]:  # type: ignore[override]
            raise LineCut("the store is failing")

    store = Broken()
    with pytest.raises(LineCut), ObjectHold(store):
        pass
    assert locks(store) == []


@pytest.mark.parametrize("told", [b"", b"\xff\xfe", b"[]", b"12", b'{"host": "h"}', b'{"host": "h"', b'{"host": "\x1b[31m", "pid": 1, "since": "t"}'])
def test_whatever_a_lock_says_the_error_is_readable(told: bytes) -> None:
    error = locked("s3://b", told)
    assert error.reason.startswith("another run is writing to this copy")
    assert "\x1b" not in str(error)
