"""Digests in the forms that requests carry."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def told(digest: bytes) -> str:
    """As a header carries it."""
    return base64.b64encode(digest).decode()


def sha256_headers(digest: bytes) -> dict[str, str]:
    return {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": told(digest)}


def composite(digests: Iterable[bytes]) -> str:
    """The SHA-256 over the SHA-256s of parts, with their number, as a store tells it."""
    parts = list(digests)
    return f"{told(sha256(b''.join(parts)))}-{len(parts)}"


def hex_of(text: str) -> str:
    """The hex form of a SHA-256 that a header carried; "" where it is none."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == 32 else ""
