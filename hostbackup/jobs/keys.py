"""Names as JSON keys: text where the bytes are UTF-8, else a pair that says so."""

from __future__ import annotations

import base64
import datetime

Key = str | list[str]


def name_key(name: bytes) -> Key:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return ["b64", base64.b64encode(name).decode("ascii")]


def key_name(key: Key) -> bytes:
    """The inverse of `name_key`."""
    return key.encode("utf-8") if isinstance(key, str) else base64.b64decode(key[1], validate=True)


def stamp(moment: datetime.datetime | None = None) -> str:
    """UTC as snapshots write it: `20261125T031500Z`."""
    moment = moment or datetime.datetime.now(datetime.UTC)
    return moment.astimezone(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")


def spoken(stamped: str) -> str:
    """A `stamp` within a sentence: `on 2026-11-25 at 03:15 UTC`."""
    return f"on {stamped[:4]}-{stamped[4:6]}-{stamped[6:8]} at {stamped[9:11]}:{stamped[11:13]} UTC"
