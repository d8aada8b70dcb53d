"""How a bucket behaves, in words."""

from __future__ import annotations

from typing import Any

_UNKNOWN = "not told"
_SKEWED = 60.0  # seconds from which a clock is worth a word; stores refuse requests from 900 on


def store_lines(facts: dict[str, Any]) -> list[str]:
    """A small table of what `check --probe` found out of a bucket."""
    if not facts:
        return []
    keys = facts.get("keys", {})
    kept = [kind for kind, works in keys.items() if works]
    lost = [kind for kind, works in keys.items() if not works]
    rows = [
        ("checksums", _choice(facts["sha256"], "checks SHA-256, and tells it", "checks MD5 alone: proof is by reading back")),
        ("conditional writes", _choice(facts["conditional"], "obeyed", "ignored (nothing here relies on them)")),
        ("large objects", _parts(facts)),
        ("Object Lock", facts["object_lock"] or _UNKNOWN),
        ("versioning", facts["versioning"] or _UNKNOWN),
        ("characters in keys", f"{_listed(kept)} come back" + (f"; {_listed(lost)} do not" if lost else "")),
        ("clock", _clock(facts["skew_seconds"])),
    ]
    return [f"    {name:<20}{told}" for name, told in rows]


def _choice(value: bool | None, yes: str, no: str) -> str:
    return _UNKNOWN if value is None else yes if value else no


def _parts(facts: dict[str, Any]) -> str:
    if not facts["multipart"]:
        return _choice(facts["multipart"], "", "not taken in parts: objects above 64 MiB cannot be stored")
    return "in parts, whose checksums it tells" if facts["parts_sha256"] else "in parts; proof is by reading back"


def _listed(kinds: list[str]) -> str:
    return ", ".join(kinds) or "none"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return _UNKNOWN
    if abs(seconds) < _SKEWED:
        return "as here"
    return f"this machine is {abs(seconds) / 60:.0f} minutes {'ahead' if seconds > 0 else 'behind'}: set its clock"
