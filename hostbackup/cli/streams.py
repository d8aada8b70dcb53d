"""Standard output and error that never decide how a run ends: closed, full or of another encoding, the work's own exit code stands."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO


def prepare() -> None:
    """Makes both streams usable whatever they were: escapes for what their encoding lacks, nowhere where they are closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _nowhere())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, *, error: bool = False) -> None:
    """One line. What cannot be written, since nobody reads any more or the disk is full, is not said."""
    try:
        print(text, file=sys.stderr if error else sys.stdout)
    except (OSError, ValueError):
        _give_up(error=error)


def finish() -> None:
    """Writes out what is buffered, so that nothing can fail any more when the interpreter ends."""
    for error in (False, True):
        try:
            (sys.stderr if error else sys.stdout).flush()
        except (OSError, ValueError):
            _give_up(error=error)


def _give_up(*, error: bool) -> None:
    broken = sys.stderr if error else sys.stdout
    setattr(sys, "stderr" if error else "stdout", _nowhere())
    with contextlib.suppress(OSError, ValueError):
        broken.close()


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: PTH123 (it lives as long as the process)
