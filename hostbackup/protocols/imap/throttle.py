"""How long a server asks to be left alone, read out of what it says.

No RFC gives the wait a place of its own: servers print it in the text of a NO, a BAD or a BYE (`[THROTTLED]`, `[LIMIT]`, `[UNAVAILABLE]` of
RFC 5530), each in its own words: `Suggested Backoff Time: 299923 milliseconds`, `try again in 5 minutes`, `Retry-After: 30`.
"""

from __future__ import annotations

import re

LONGEST = 24 * 3600.0  # seconds; a number above is no wait but something else
_UNITS = {"m": 60.0, "min": 60.0, "ms": 0.001, "h": 3600.0}
_TIME = re.compile(
    rb"(?<![\w.:])(\d{1,9}(?:\.\d{1,3})?)\s*"
    rb"(milliseconds?|millis|msecs?|ms|seconds?|secs?|sec|s|minutes?|mins?|min|m|hours?|hrs?|hr|h|\xe7\xa7\x92|\xe5\x88\x86)(?![a-z0-9])",
    re.IGNORECASE,
)
_BARE = re.compile(rb"(?:retry[ -]?after|back[ -]?off(?: time)?|wait(?: for)?|try again (?:in|after))\s*[:=]?\s*(\d{1,9})(?![\w.:])", re.IGNORECASE)
_ABOUT_WAITING = re.compile(rb"wait|retry|again|back[ -]?off|throttl|slow|later|\xe5\xbe\x8c|\xe5\xbe\x85", re.IGNORECASE)


def wait_told(text: bytes) -> float | None:
    """Seconds that the server's text asks to wait; None where it tells none. A bare number after `Retry-After` or the like is in seconds."""
    if _ABOUT_WAITING.search(text) is None:
        return None
    timed = _TIME.search(text)
    if timed is not None:
        seconds = float(timed[1]) * _seconds(timed[2].decode("utf-8").lower())
    else:
        bare = _BARE.search(text)
        if bare is None:
            return None
        seconds = float(bare[1])
    return seconds if seconds <= LONGEST else None


def _seconds(unit: str) -> float:
    if unit in _UNITS:
        return _UNITS[unit]
    if unit.startswith(("milli", "msec")):
        return 0.001
    return 60.0 if unit.startswith(("min", "分")) else 3600.0 if unit.startswith(("h",)) else 1.0
