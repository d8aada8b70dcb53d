"""INTERNALDATE (RFC 3501 §9, date-time) as an instant. The verbatim text is what is kept; this is for comparing and for file times."""

from __future__ import annotations

import datetime
import re

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DATE_TIME = re.compile(r" ?(\d{1,2})-([A-Za-z]{3})-(\d{4}) (\d{2}):(\d{2}):(\d{2}) ([+-])(\d{2})(\d{2})")


def is_well_formed(text: str) -> bool:
    """Whether `text` has the shape of a date-time, and so may stand in a command. The date itself may be impossible."""
    return _DATE_TIME.fullmatch(text) is not None


def instant(text: str) -> datetime.datetime | None:
    """The moment in UTC, None where the text tells none: malformed, the 30th of February, before year 1."""
    match = _DATE_TIME.fullmatch(text)
    if match is None or match[2].lower() not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(match[n]) for n in (1, 3, 4, 5, 6))
    offset = datetime.timedelta(hours=int(match[8]), minutes=int(match[9]))
    try:
        local = datetime.datetime(year, _MONTHS.index(match[2].lower()) + 1, day, hour, minute, min(second, 59), tzinfo=datetime.UTC)
        return local - offset if match[7] == "+" else local + offset
    except (ValueError, OverflowError):
        return None
