"""Ctrl-C and SIGTERM never fall between taking a lock and giving it back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from hostbackup.interrupts import later, stop


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def hit() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupt_comes_at_once_where_nothing_speaks_against_it() -> None:
    with pytest.raises(KeyboardInterrupt):
        hit()


def test_an_interrupt_waits_for_the_end_of_the_outermost_stretch() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), later:
        with later:
            hit()
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    with later:
        pass


def test_an_interrupt_that_waits_is_not_lost_over_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), later:
        hit()
        raise TimeoutError
    with pytest.raises(TimeoutError), later:
        raise TimeoutError


def test_a_second_interrupt_does_not_wait() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), later:
        hit()
        done.append(1)
        hit()
        done.append(2)
    assert done == [1]
    with later:
        pass


def test_a_stretch_of_another_thread_holds_nothing_up() -> None:
    inside, over = threading.Event(), threading.Event()

    def work() -> None:
        with later:
            inside.set()
            over.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    with pytest.raises(KeyboardInterrupt):
        hit()
    over.set()
    thread.join()
