"""Ctrl-C and SIGTERM never fall between taking a lock and giving it back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup.interrupts import Stopped, beside, later, stop


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


def test_work_beside_gives_and_raises_as_if_it_were_done_here() -> None:
    told: list[object] = []

    def fail() -> None:
        raise ZeroDivisionError

    def other() -> None:
        told.append(beside(lambda: 7, threading.Event()))
        try:
            beside(fail, threading.Event())
        except ZeroDivisionError:
            told.append("raised")

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(20)
    assert told == [7, "raised"]


def test_work_beside_is_left_where_the_run_ends_and_what_it_gives_is_dropped() -> None:
    begun, end, dropped, stop = threading.Event(), threading.Event(), threading.Event(), threading.Event()
    left: list[bool] = []

    def work() -> str:
        begun.set()
        end.wait(20)
        return "a connection"

    def other() -> None:
        try:
            beside(work, stop, lambda _: dropped.set())
        except Stopped:
            left.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(20)
    stop.set()
    thread.join(20)
    assert left == [True]
    assert not dropped.is_set()
    end.set()
    assert dropped.wait(20)


def test_an_interrupt_in_the_midst_of_an_import_ends_with_our_exit_code(tmp_path: Path) -> None:
    """A class that is being made runs exec(): CPython notes an interrupt there, and ends `python -m` by a signal long after it was handled."""
    (tmp_path / "interrupted.py").write_text(
        "from hostbackup.cli import main\n"
        "def run(arguments):\n"
        "    try:\n"
        "        exec('raise KeyboardInterrupt')\n"
        "    except KeyboardInterrupt:\n"
        "        return 130\n"
        "main._run = run\n"
        "main.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, env=environment, check=False).returncode == 130
