"""What is found out about a store once and kept: stores that call themselves compatible differ in all of this."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Facts:
    """How one store behaves for one bucket. None: not known. Kept as JSON (`to_json`); what was found at another place is not taken over."""

    place: str = ""  # `S3Target.place`
    sha256: bool | None = None  # it refuses an object that is not what its SHA-256 says, and tells the SHA-256 of what it keeps
    md5_etag: bool | None = None  # the ETag of an object that went up whole is its MD5
    multipart: bool | None = None  # large objects can go up in parts
    parts_sha256: bool | None = None  # it tells the digest of the parts' SHA-256s
    conditional: bool | None = None  # `If-None-Match: *` is obeyed: the second one is refused with 412
    object_lock: str | None = None  # "enabled", "off"
    versioning: str | None = None  # "enabled", "suspended", "off"
    keys: dict[str, bool] = field(default_factory=dict)  # "unicode", "space", "plus": do such keys come back as they went
    skew: float | None = None  # seconds that this machine's clock is ahead of the store's

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: object, place: str) -> Facts:
        """What was kept, if it is whole and of `place`; else that nothing is known."""
        known = {one.name: one for one in dataclasses.fields(cls)}
        if not isinstance(value, dict) or value.get("place") != place or not set(value) <= set(known):
            return cls(place)
        flags = ("sha256", "md5_etag", "multipart", "parts_sha256", "conditional")
        right = (
            all(value.get(name) in (None, True, False) for name in flags)
            and all(isinstance(value.get(name), str | None) for name in ("object_lock", "versioning"))
            and isinstance(value.get("keys", {}), dict)
            and isinstance(value.get("skew"), int | float | None)
        )
        return cls(**value) if right else cls(place)
