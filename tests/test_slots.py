"""Connections to one server are counted, nobody waits for ever, and a server that refuses some is not pressed."""

from __future__ import annotations

import threading

import pytest

from hostbackup.interrupts import Stopped
from hostbackup.protocols.slots import Slots


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_account_waits_until_another_gives_its_slot_back() -> None:
    slots = Slots(1)
    slots.main("taro")
    got = threading.Event()

    def second() -> None:
        slots.main("hanako")
        got.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not slots.spare("taro")
    assert not got.is_set()
    slots.give_back("taro")
    assert got.wait(20)
    thread.join()
    assert slots.most == 1


def test_a_spare_connection_is_given_only_where_one_is_free_and_to_those_at_work() -> None:
    slots = Slots(6)
    assert not slots.spare("taro")
    slots.main("taro")
    assert [slots.spare("taro") for _ in range(4)] == [True, True, True, False]  # four for one account
    slots.main("hanako")
    assert [slots.spare("hanako") for _ in range(2)] == [True, False]  # six for all
    slots.give_back("taro", spare=True)
    assert slots.spare("hanako")
    assert slots.most == 6


def test_an_account_with_a_spare_connection_gets_its_main_one_again_without_waiting() -> None:
    """Else two such accounts, both cut, would wait for each other for ever."""
    slots = Slots(2)
    slots.main("taro")
    assert slots.spare("taro")
    slots.give_back("taro")
    slots.main("taro", lambda: True)  # where it had to wait, it would raise
    assert slots.most == 2
    with pytest.raises(Stopped):
        slots.main("hanako", lambda: True)


def test_no_order_of_many_accounts_ends_in_a_deadlock_and_none_goes_beyond_the_budget() -> None:
    for limit in (1, 2, 3):
        slots = Slots(limit)

        def account(name: str, slots: Slots = slots) -> None:
            for _ in range(20):
                slots.main(name)
                spares = sum(slots.spare(name) for _ in range(2))
                slots.give_back(name)  # cut
                slots.main(name)
                for _ in range(spares):
                    slots.give_back(name, spare=True)
                slots.give_back(name)

        threads = [threading.Thread(target=account, args=(f"user-{number}",), daemon=True) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert slots.most == limit


def test_a_server_that_takes_no_more_is_asked_for_no_more() -> None:
    slots = Slots(6)
    for name in ("taro", "hanako", "info"):
        slots.main(name)
    slots.lower()  # the third was refused
    slots.give_back("info")
    assert slots.limit == 2
    with pytest.raises(Stopped):
        slots.main("info", lambda: True)
    for name in ("taro", "hanako"):
        slots.give_back(name)
    slots.main("info")
    slots.lower()
    assert slots.limit == 1  # never none


def test_a_server_that_refused_is_asked_for_as_many_again_after_a_while() -> None:
    clock = Clock()
    slots = Slots(4, clock=clock)
    for name in ("taro", "hanako", "info"):
        slots.main(name)
    slots.lower()
    slots.lower()  # in the same moment, for another account
    slots.give_back("info")
    assert slots.limit == 2
    clock.now = 59.0
    with pytest.raises(Stopped):
        slots.main("info", lambda: True)
    clock.now = 61.0
    slots.main("info", lambda: True)  # one more, and no second at once
    assert slots.limit == 3
    with pytest.raises(Stopped):
        slots.main("shop", lambda: True)
    clock.now = 122.0
    slots.lower()  # it refuses again: the next try comes after twice as long
    slots.give_back("info")
    clock.now = 241.0
    with pytest.raises(Stopped):
        slots.main("info", lambda: True)
    clock.now = 243.0
    slots.main("info", lambda: True)
    clock.now = 364.0
    slots.main("shop", lambda: True)
    assert slots.limit == 4
    clock.now = 9999.0
    with pytest.raises(Stopped):
        slots.main("post", lambda: True)  # never more than the profile says
