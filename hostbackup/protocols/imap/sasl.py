"""How a login is put to a server: SASL mechanisms, their messages, and keeping what they hold out of sight.

PLAIN (RFC 4616), OAUTHBEARER (RFC 7628) and XOAUTH2, which Google and Microsoft spoke before that RFC.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_CODED = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")
_HIDDEN = "********"
_SHORT = 4  # characters: a shorter secret may stand in any word by chance, and the gaps would spell it out
_TORN = 8  # characters of a secret's beginning that count as the secret, where a server cut its answer off


@dataclass(frozen=True, slots=True)
class Attempt:
    """One mechanism with all it says: `response` first, `after_error` where the server explains itself before it refuses."""

    mechanism: str
    response: bytes = field(repr=False)
    after_error: bytes = b""


def plain(login: str, password: str, authorize: str = "") -> Attempt:
    """RFC 4616. `authorize` names the mailbox where `login` is somebody who may open it for others. Raises ValueError for NUL in any."""
    if "\0" in login + password + authorize:
        raise ValueError("NUL in a name or password")
    return Attempt("PLAIN", "\0".join((authorize, login, password)).encode("utf-8"))


def xoauth2(login: str, token: str) -> Attempt:
    return Attempt("XOAUTH2", f"user={login}\x01auth=Bearer {token}\x01\x01".encode())


def oauthbearer(login: str, token: str, host: str, port: int) -> Attempt:
    """RFC 7628 §3.1; a refusal comes as a challenge that is answered with one %x01 (§3.2.3)."""
    name = login.replace("=", "=3D").replace(",", "=2C")
    return Attempt("OAUTHBEARER", f"n,a={name},\x01host={host}\x01port={port}\x01auth=Bearer {token}\x01\x01".encode(), b"\x01")


def explained(challenge: bytes) -> str:
    """What a server says of a token that it refuses (RFC 7628 §3.2.2): base64 of JSON. "" where it says nothing that can be read."""
    try:
        told = json.loads(base64.b64decode(challenge, validate=True))
    except (ValueError, RecursionError):  # binascii.Error and UnicodeDecodeError among them
        return ""
    if not isinstance(told, dict):
        return ""
    parts = [f"{key} {told[key]}" for key in ("status", "error", "error_description", "scope") if isinstance(told.get(key), str | int)]
    return ", ".join(parts)


def masked(text: str, secrets: Iterable[str]) -> str:
    """What a server said, without the secrets that it may repeat: as they are, escaped, in base64 at any offset, or torn at the end of its answer."""
    for secret in secrets:
        if len(secret) < _SHORT:
            continue
        for form in {secret, repr(secret.encode())[2:-1], secret.replace("\\", "\\\\").replace('"', '\\"')}:
            text = _untorn(text.replace(form, _HIDDEN), form)
        text = _CODED.sub(functools.partial(_uncoded, secret.encode()), text)
    return text


def _untorn(text: str, secret: str) -> str:
    """`text` without the beginning of a secret that it ends with."""
    bare = text.rstrip("…'\") \r\n")
    for length in range(min(len(secret), len(bare)) - 1, _TORN - 1, -1):
        if bare.endswith(secret[:length]):
            return bare[:-length] + _HIDDEN
    return text


def _uncoded(secret: bytes, match: re.Match[str]) -> str:
    return _HIDDEN if _holds(match[0], secret) else match[0]


def _holds(coded: str, wanted: bytes) -> bool:
    """Whether base64 text tells a secret or the beginning of one."""
    bare = coded.rstrip("=").replace("-", "+").replace("_", "/")
    for skipped in range(4):  # it may stand anywhere in longer base64, which keeps its own count of four
        piece = bare[skipped:]
        piece = piece[: len(piece) - (len(piece) % 4 == 1)]
        data = binascii.a2b_base64(piece + "=" * (-len(piece) % 4))
        if wanted in data or any(data.endswith(wanted[:length]) for length in range(_TORN, len(wanted))):
            return True
    return False
