"""The wait that a server prints in its text."""

from __future__ import annotations

import pytest

from hostbackup.protocols.imap.throttle import wait_told


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"Request is throttled. Suggested Backoff Time: 299923 milliseconds", 299.923),
        (b"Too many commands, try again in 5 minutes", 300.0),
        (b"Account exceeded limits, retry after 30 seconds.", 30.0),
        (b"Retry-After: 45", 45.0),
        (b"Slow down: wait 2 s", 2.0),
        (b"Try again after 1 hour", 3600.0),
        (b"Backoff 1.5 sec", 1.5),
        (b"wait=10", 10.0),
        ("しばらくお待ちください。30秒後に再度お試しください".encode(), 30.0),
        ("1分後に再試行してください".encode(), 60.0),
    ],
)
def test_a_wait_is_read_in_the_servers_own_words(text: bytes, seconds: float) -> None:
    assert wait_told(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"Too many simultaneous connections. (Failure)",
        b"Message of 30 minutes ago cannot be found",  # a time, and nothing about waiting
        b"try again later",
        b"wait until 12:30:15",
        b"retry after 99999999 hours",  # no wait that anybody means
        b"Retry-After: 99999999",
    ],
)
def test_what_tells_no_wait_gives_none(text: bytes) -> None:
    assert wait_told(text) is None
