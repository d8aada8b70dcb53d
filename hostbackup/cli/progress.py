"""Progress on a terminal: bytes, entries, rate, time left. Goes to stderr, and only where that is a terminal."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from hostbackup.cli.streams import say
from hostbackup.model import Failure, Observer
from hostbackup.report.words import number, one_line

_WITH_BYTES = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}, {rate_fmt}]"
_ENTRIES = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"
_OPEN_END = "{desc}{postfix} [{elapsed}]"
_AGAIN = 0.1  # seconds between two drawings of a line that only its title changes


class Progress(Observer):
    """One bar at a time. Warnings go above it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bar: Any = None
        self._title = ""
        self._by_bytes = False
        self._entries = 0
        self._entries_total = ""
        self._open_end = False
        self._drawn = 0.0

    def phase(self, title: str, entries: int | None = None, size: int | None = None) -> None:
        from tqdm import tqdm

        with self._lock:
            self._close()
            self._title = title
            self._by_bytes = bool(size)
            self._open_end = not size and not entries
            self._entries, self._entries_total = 0, f"/{number(entries)}" if entries is not None else ""
            total = size if self._by_bytes else entries
            layout = _WITH_BYTES if self._by_bytes else _ENTRIES if total else _OPEN_END
            unit = "B" if self._by_bytes else " entries"
            self._bar = tqdm(
                total=total, desc=one_line(title), unit=unit, unit_scale=True, leave=False, bar_format=layout, file=sys.stderr, dynamic_ncols=True
            )

    def retitle(self, title: str) -> None:
        with self._lock:
            self._title = title
            if self._bar is not None:
                due = time.monotonic() - self._drawn >= _AGAIN
                self._bar.set_description_str(one_line(title), refresh=due)
                self._drawn = time.monotonic() if due else self._drawn

    def waiting(self, reason: str) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.set_description_str(one_line(f"{self._title}: {reason}" if reason else self._title))

    def advance(self, entries: int = 0, size: int = 0) -> None:
        with self._lock:
            self._entries += entries
            if self._bar is None:
                return
            if self._by_bytes or self._open_end:
                self._bar.set_postfix_str(f"{number(self._entries)}{self._entries_total} entries", refresh=False)
            self._bar.update(size if self._by_bytes else entries)

    def warn(self, text: str) -> None:
        with self._lock:
            self._above(f"warning: {one_line(text)}")

    def say(self, text: str) -> None:
        with self._lock:
            self._above(text)

    def _above(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        say(text, error=True)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Plain(Observer):
    """Where stderr is no terminal: warnings, and with `--verbose` each note and phase."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self._quiet = quiet
        self._verbose = verbose

    def phase(self, title: str, entries: int | None = None, size: int | None = None) -> None:
        if self._verbose:
            say(one_line(title), error=True)

    def note(self, text: str) -> None:
        if self._verbose:
            say(one_line(text), error=True)

    def warn(self, text: str) -> None:
        if not self._quiet:
            say(f"warning: {one_line(text)}", error=True)


class Chorus(Observer):
    """Passes everything on to several observers."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def phase(self, title: str, entries: int | None = None, size: int | None = None) -> None:
        for observer in self._observers:
            observer.phase(title, entries, size)

    def retitle(self, title: str) -> None:
        for observer in self._observers:
            observer.retitle(title)

    def waiting(self, reason: str) -> None:
        for observer in self._observers:
            observer.waiting(reason)

    def advance(self, entries: int = 0, size: int = 0) -> None:
        for observer in self._observers:
            observer.advance(entries, size)

    def note(self, text: str) -> None:
        for observer in self._observers:
            observer.note(text)

    def warn(self, text: str) -> None:
        for observer in self._observers:
            observer.warn(text)

    def failure(self, failure: Failure) -> None:
        for observer in self._observers:
            observer.failure(failure)
