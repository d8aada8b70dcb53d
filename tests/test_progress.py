"""The progress line: what it shows while nothing goes on."""

from __future__ import annotations

import io

import pytest

from hostbackup.cli.progress import Progress


def test_a_line_that_stands_still_says_why_and_stays_below_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    progress = Progress()
    progress.phase("mail/taro: looking")
    progress.waiting("waiting 2 s: the mailbox is in use")
    assert "mail/taro: looking: waiting 2 s: the mailbox is in use" in screen.getvalue()
    progress.waiting("")
    progress.warn("the line is in the clear")
    above, below = screen.getvalue().rsplit("warning: the line is in the clear\n", 1)
    assert above.count("waiting") == 1
    assert "mail/taro: looking [" in below
    progress.close()
