"""The types of single values in a profile, each with the sentence that tells what was expected."""

from __future__ import annotations

import base64
import re
import urllib.parse
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, ValidationInfo, WithJsonSchema
from pydantic import BaseModel as PydanticModel
from pydantic_core import PydanticCustomError

from hostbackup.accounts import addresses
from hostbackup.model import component

_NAME_BYTES = 200  # a part's name is one file name in the vault, with room for a suffix
_PIN = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")
_FINGERPRINT = re.compile(r"(?:sha-?256(?: fingerprint)?\s*[:=])?\s*(?P<value>\S.*)", re.IGNORECASE)
_HEX = re.compile(r"[0-9A-Fa-f]{64}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{43}=?")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_RECIPIENT = re.compile(r"age1[02-9ac-hj-np-z]{20,}|age1[a-z0-9]+1[02-9ac-hj-np-z]{20,}")
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMG]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SLOWEST = 1024  # bytes a second: less would look like a line that stands still
_YEARLY = re.compile(r"(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])")


class Section(PydanticModel):
    """What all sections have in common: no unknown keys, no conversions, no changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True, hide_input_in_errors=True)


def wrong(message: str) -> PydanticCustomError:
    """An error whose text is for people as it stands; `message` must not hold a secret."""
    return PydanticCustomError("profile", "{message}", {"message": message})


def _line(value: str) -> str:
    if not value or value != value.strip() or not value.isprintable():
        raise wrong("expected one line of text, not empty, without blanks around it or control characters")
    return value


def _host(value: str) -> str:
    if not value or not value.isprintable() or any(mark in value for mark in " /@"):
        raise wrong("expected a bare host name, such as www.example.jp (no user, no scheme, no path)")
    return value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _addresses(value: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return addresses(list(value))
    except ValueError as error:
        raise wrong(str(error)) from None


def _pin(value: str) -> str:
    if not _PIN.fullmatch(value):
        raise wrong("expected a fingerprint as `ssh-keygen -lf` prints it: SHA256: and 43 characters of base64")
    return value.rstrip("=")


def _certificate(value: str) -> str:
    """As `hostbackup.protocols.certificates.fingerprint` writes it, however a person has it: openssl, browsers and ssh each show it in their way."""
    told = _FINGERPRINT.fullmatch(value.strip())
    text = told["value"] if told else ""
    digits = text.replace(":", "").replace(" ", "")
    if _HEX.fullmatch(digits):
        return "SHA256:" + digits.lower()
    if _BASE64.fullmatch(text):
        return "SHA256:" + base64.b64decode(text.rstrip("=") + "=").hex()
    raise wrong("expected SHA256: and the certificate's fingerprint, 64 hexadecimal digits or 43 characters of base64")


def _words(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not all(word and "\0" not in word for word in value):
        raise wrong('expected a program and its arguments, such as ["ssh", "root@mail.example.jp", "/usr/lib/dovecot/imap", "-u", "{user}"]')
    if any(mark in word for word in value for mark in ("{password}", "{token}")):
        raise wrong("a password here could be read in the list of processes by everybody on this machine")
    return value


def _name(value: str) -> str:
    if len(component(_line(value)).encode()) > _NAME_BYTES:
        raise wrong(f"is too long: more than {_NAME_BYTES} bytes when percent-encoded")
    return value


def _remote(value: str) -> str:
    if not value or "\0" in value:
        raise wrong("expected a path on the server, absolute or relative to the login folder")
    return value


def _local(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    if not value or "\0" in value:
        raise wrong("expected a path, absolute or relative to the profile")
    try:
        return Path((info.context or {}).get("base", Path.cwd())) / Path(value).expanduser()
    except RuntimeError:
        raise wrong("begins with ~ of a user whose home is not known") from None


def _patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    if value:
        import pathspec

        for pattern in value:
            try:
                pathspec.GitIgnoreSpec.from_lines([pattern])
            except ValueError:
                raise wrong(f"{pattern!r} is no gitignore pattern") from None
    return value


def _endpoint(value: str) -> str:
    url = urllib.parse.urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query or url.fragment:
        raise wrong("expected the address of the store, such as https://s3.example-store.jp (keys belong in access_key and secret_key)")
    return value


def _bucket(value: str) -> str:
    if not _BUCKET.fullmatch(value):
        raise wrong("expected the bucket's bare name: letters, digits, dots, hyphens")
    return value


def _prefix(value: str) -> str:
    if not value.isprintable() or value.startswith("/") or "//" in value or {".", ".."} & set(value.split("/")):
        raise wrong("expected a key prefix such as customers/example.jp, without a slash in front, `//`, `.` or `..`")
    return value.rstrip("/")


def _recipient(value: str) -> str:
    if not _RECIPIENT.fullmatch(value):
        raise wrong("expected an age recipient (public key), which begins with age1")
    return value


def _timezone(value: str) -> str:
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(value)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        if not value or zoneinfo.available_timezones():
            raise wrong("expected a time zone's name, such as Asia/Tokyo") from None
    return value


def parse_rate(text: str) -> int:
    """Bytes a second: a number, with K, M or G for 1024, 1024² or 1024³ of them. Raises ValueError."""
    match = _RATE.fullmatch(text.strip())
    rate = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if rate < _SLOWEST:
        raise ValueError(f"expected bytes a second, {_SLOWEST} at least, such as 500K or 2M")
    return rate


def _rate(value: str) -> str:
    try:
        parse_rate(value)
    except ValueError as error:
        raise wrong(str(error)) from None
    return value


def _yearly(value: str) -> str:
    if not _YEARLY.fullmatch(value):
        raise wrong('expected a date (2026-12-29) or, for every year, month and day in quotes ("12-29")')
    return value


Value = TypeVar("Value")
Line = Annotated[str, AfterValidator(_line)]
Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=1, le=65535)]
Moment = Annotated[date | datetime, WithJsonSchema({"type": "string", "pattern": r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?$"})]
Rate = Annotated[str, AfterValidator(_rate)]
Connections = Annotated[int, Field(ge=1, le=16)]
Requests = Annotated[int, Field(ge=1, le=4096)]
Stall = Annotated[float, Field(gt=0, le=86400), Strict(False)]
Patience = Annotated[float, Field(ge=1, le=900), Strict(False)]
Days = Annotated[int, Field(ge=0, le=366)]
Many = Annotated[tuple[Value, ...], Strict(False)]  # TOML has lists, never tuples
Patterns = Annotated[Many[str], AfterValidator(_patterns)]
Name = Annotated[str, AfterValidator(_name)]
RemotePath = Annotated[str, AfterValidator(_remote)]
Pin = Annotated[str, AfterValidator(_pin)]
Certificate = Annotated[str, AfterValidator(_certificate)]
Words = Annotated[Many[str], AfterValidator(_words)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
Bucket = Annotated[str, AfterValidator(_bucket)]
Prefix = Annotated[str, AfterValidator(_prefix)]
Recipient = Annotated[str, AfterValidator(_recipient)]
TimeZone = Annotated[str, AfterValidator(_timezone)]
Yearly = Annotated[str, AfterValidator(_yearly)]
LocalPath = Annotated[Path, BeforeValidator(_local), WithJsonSchema({"type": "string", "minLength": 1})]
Addresses = Annotated[
    Many[str],
    BeforeValidator(_as_list),
    AfterValidator(_addresses),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


def last_part(path: str) -> str | None:
    """The default name of something at `path`; None where the path's last part is no name."""
    part = path.rstrip("/").rpartition("/")[2]
    return None if part in ("", ".", "..", "~") else part


def with_default(value: Any, key: str, default: object) -> Any:
    """The table `value` with `key` filled in, where the table lacks it and there is a default."""
    return {**value, key: default} if isinstance(value, dict) and key not in value and default is not None else value
