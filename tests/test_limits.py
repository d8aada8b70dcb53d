"""Bounds that a person sets: a rate for all bytes, kept over time and among threads."""

from __future__ import annotations

import threading

import pytest

from hostbackup.protocols.limits import RateLimit


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_bytes_take_the_time_that_the_rate_says() -> None:
    clock = Clock()
    rate = RateLimit(1000, clock=clock, sleep=clock.sleep)
    for count in (500, 1, 2499):
        rate.spend(count)
    assert clock.now == pytest.approx(103.0)


def test_silence_saves_nothing_up() -> None:
    clock = Clock()
    rate = RateLimit(1000, clock=clock, sleep=clock.sleep)
    rate.spend(1000)
    clock.now += 60
    rate.spend(1000)
    assert clock.now == pytest.approx(162.0)


def test_threads_share_one_rate() -> None:
    slept: list[float] = []
    rate = RateLimit(1000, clock=lambda: 0.0, sleep=slept.append)
    threads = [threading.Thread(target=rate.spend, args=(100,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(slept) == pytest.approx(2.0)
    assert sorted(slept) == pytest.approx([0.1 * count for count in range(1, 21)])


@pytest.mark.parametrize("rate", [0, -1])
def test_no_rate_is_no_limit_to_ask_for(rate: int) -> None:
    with pytest.raises(ValueError, match="rate"):
        RateLimit(rate)
