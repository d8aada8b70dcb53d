"""The date that a message is appended with, and what stands in for one that a server refuses.

In order: the date as the old server told it; the same instant in UTC, brought into the years that every server knows; the one in the message's
own header; none, which leaves the server to take the time of the append.
"""

from __future__ import annotations

import datetime
import email.utils
import enum
import re

from hostbackup.model import Message
from hostbackup.protocols.imap.dates import instant, is_well_formed

HEADER_BYTES = 64 * 1024  # of a message are looked through for a date
_FIRST = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LAST = datetime.datetime(2038, 1, 19, 3, 14, 7, tzinfo=datetime.UTC)  # what 32 bits hold
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ZONE = re.compile(r"[+-](0\d|1[0-4])[0-5]\d$")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(rb"^(date|received|delivery-date)[ \t]*:((?:[^\r\n]|\r?\n[ \t])*)", re.IGNORECASE | re.MULTILINE)


class Dated(enum.IntEnum):
    """Where the date of an append comes from. Each is tried only after the one before it was refused or could not be had."""

    ORIGINAL = 0
    NORMALISED = 1
    HEADER = 2
    NONE = 3


def is_ordinary(text: str) -> bool:
    """Whether no server has a reason to refuse this date: it exists, and its year and zone are such as mail has today."""
    moment = instant(text)
    return moment is not None and _FIRST <= moment <= _LAST and _ZONE.search(text) is not None


def date_text(moment: datetime.datetime) -> str:
    """An INTERNALDATE (RFC 3501 §9, date-time) in UTC."""
    utc = moment.astimezone(datetime.UTC)
    return f"{utc.day:2d}-{_MONTHS[utc.month - 1]}-{utc.year:04d} {utc:%H:%M:%S} +0000"


def normalised(text: str) -> str:
    """The same instant in UTC, or the first or last one that 32 bits hold; "" where the text tells no instant."""
    moment = instant(text)
    return "" if moment is None else date_text(min(max(moment, _FIRST), _LAST))


def from_header(start: bytes) -> str:
    """The date that a message's own header tells: of its Date field, else of the topmost Received; "" where neither tells one."""
    end = _HEADER_END.search(start)
    found: dict[bytes, bytes] = {}
    for field in _FIELD.finditer(start[: end.start() + 2] if end else start):
        found.setdefault(field[1].lower(), field[2])
    for text in (found.get(b"date"), found.get(b"delivery-date"), found.get(b"received", b"").rpartition(b";")[2]):
        try:
            moment = email.utils.parsedate_to_datetime(" ".join((text or b"").decode("ascii").split()))
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
            if _FIRST <= moment <= _LAST:
                return date_text(moment)
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return ""


def first_choice(item: Message) -> tuple[str, Dated]:
    """What to send a message with at first. One whose date has not even the shape of one needs its header looked at: ("", HEADER)."""
    if not item.internaldate:
        return "", Dated.ORIGINAL
    return (item.internaldate, Dated.ORIGINAL) if is_well_formed(item.internaldate) else ("", Dated.HEADER)


def next_choice(item: Message, dated: Dated, start: bytes) -> tuple[str, Dated] | None:
    """What to try after a refusal; `start` is the beginning of the message. None where nothing is left.

    A date without fault was not what the server refused: it is only tried whether it takes the message with none at all.
    """
    if dated is Dated.NONE or not item.internaldate:
        return None
    if is_ordinary(item.internaldate):
        return "", Dated.NONE
    if dated < Dated.NORMALISED and (text := normalised(item.internaldate)):
        return text, Dated.NORMALISED
    if dated < Dated.HEADER and (text := from_header(start)):
        return text, Dated.HEADER
    return "", Dated.NONE


def loss(item: Message, sent: Message, dated: Dated) -> str:
    """How a list of losses calls what became of the date, "" where it was kept as it was told."""
    if sent.internaldate == item.internaldate:
        return ""
    if not sent.internaldate:
        return "INTERNALDATE"
    if dated is Dated.NORMALISED:
        return "INTERNALDATE/utc" if instant(sent.internaldate) == instant(item.internaldate) else "INTERNALDATE/year"
    return "INTERNALDATE/header"
