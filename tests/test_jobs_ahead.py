"""Modules that are loaded while a server is awaited: they are there afterwards, and nothing depends on it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from hostbackup.jobs.ahead import loading


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three that nobody has loaded; the second cannot be."""
    texts = {"ahead_one": "import threading\nby = threading.current_thread()", "ahead_bad": "1 / 0", "ahead_two": ""}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return list(texts)


def test_they_are_loaded_by_another_thread_and_one_that_cannot_be_is_no_matter(modules: list[str]) -> None:
    with loading(*modules, "ahead_none"):
        pass
    assert sys.modules["ahead_one"].by is not threading.current_thread()
    assert "ahead_two" in sys.modules
    assert "ahead_bad" not in sys.modules


def test_what_goes_wrong_meanwhile_comes_through_and_the_thread_has_ended(modules: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt), loading(*modules):
        raise KeyboardInterrupt
    assert not sys.modules["ahead_one"].by.is_alive()


def test_without_a_thread_to_be_had_the_work_is_done_all_the_same(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    done = False
    with loading(*modules):
        done = True
    assert done
    assert "ahead_one" not in sys.modules
