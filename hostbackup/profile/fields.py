"""The types of single values in a profile, each with the sentence that tells what was expected."""

from __future__ import annotations

import base64
import re
import urllib.parse
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from hostbackup.accounts import addresses
from hostbackup.errors import WrongValue
from hostbackup.model import component
from hostbackup.profile.shape import After, Before, Range, Schema

_NAME_BYTES = 200  # a part's name is one file name in the vault, with room for a suffix
_PIN = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")
_FINGERPRINT = re.compile(r"(?:sha-?256(?: fingerprint)?\s*[:=])?\s*(?P<value>\S.*)", re.IGNORECASE)
_HEX = re.compile(r"[0-9A-Fa-f]{64}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{43}=?")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_STORAGE_CLASS = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_RECIPIENT = re.compile(r"age1[02-9ac-hj-np-z]{20,}|age1[a-z0-9]+1[02-9ac-hj-np-z]{20,}|ssh-(?:ed25519|rsa) [A-Za-z0-9+/]{40,}={0,2}(?: [ -~]*)?")
_RATE = re.compile(r"([0-9]{1,15}(?:\.[0-9]+)?)([KMG]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SLOWEST = 1024  # bytes a second: less would look like a line that stands still
_YEARLY = re.compile(r"(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])")


def _line(value: str) -> str:
    if not value or value != value.strip() or not value.isprintable():
        raise WrongValue("expected one line of text, not empty, without blanks around it or control characters")
    return value


def _host(value: str) -> str:
    if not value or not value.isprintable() or any(mark in value for mark in " /@"):
        raise WrongValue("expected a bare host name, such as www.example.jp (no user, no scheme, no path)")
    return value


def _as_list(value: object, base: Path) -> object:
    return [value] if isinstance(value, str) else value


def _addresses(value: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return addresses(list(value))
    except ValueError as error:
        raise WrongValue(str(error)) from None


def _pin(value: str) -> str:
    if not _PIN.fullmatch(value):
        raise WrongValue("expected a fingerprint as `ssh-keygen -lf` prints it: SHA256: and 43 characters of base64")
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
    raise WrongValue("expected SHA256: and the certificate's fingerprint, 64 hexadecimal digits or 43 characters of base64")


def _words(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not all(word and "\0" not in word for word in value):
        raise WrongValue('expected a program and its arguments, such as ["ssh", "root@mail.example.jp", "/usr/lib/dovecot/imap", "-u", "{user}"]')
    if any(mark in word for word in value for mark in ("{password}", "{token}")):
        raise WrongValue("a password here could be read in the list of processes by everybody on this machine")
    return value


def _name(value: str) -> str:
    if len(component(_line(value)).encode()) > _NAME_BYTES:
        raise WrongValue(f"is too long: more than {_NAME_BYTES} bytes when percent-encoded")
    return value


def _remote(value: str) -> str:
    if not value or "\0" in value:
        raise WrongValue("expected a path on the server, absolute or relative to the login folder")
    return value


def _local(value: object, base: Path) -> object:
    if not isinstance(value, str):
        return value
    if not value or "\0" in value:
        raise WrongValue("expected a path, absolute or relative to the profile")
    try:
        return base / Path(value).expanduser()
    except RuntimeError:
        raise WrongValue("begins with ~ of a user whose home is not known") from None


def _patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    if value:
        import pathspec

        for pattern in value:
            try:
                pathspec.GitIgnoreSpec.from_lines([pattern])
            except (ValueError, re.error):
                raise WrongValue(f"{pattern!r} is no gitignore pattern") from None
    return value


def _endpoint(value: str) -> str:
    try:
        url = urllib.parse.urlsplit(value)
        right = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # brackets without an address, a port that is no number
        right = False
    if not right or "@" in url.netloc or url.query or url.fragment:
        raise WrongValue("expected the address of the store, such as https://s3.example-store.jp (keys belong in access_key and secret_key)")
    return value


def _proxy(value: str) -> str:
    try:
        url = urllib.parse.urlsplit(value)
        right = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        password = url.password is not None
    except ValueError:
        right, password = False, False
    if password:
        raise WrongValue("a password of the proxy belongs in proxy_password")
    if not right or url.path not in ("", "/") or url.query or url.fragment:
        raise WrongValue("expected the address of the proxy, such as http://proxy.example.jp:3128, or http://user@… with proxy_password")
    return value.rstrip("/")


def _storage_class(value: str) -> str:
    if not _STORAGE_CLASS.fullmatch(value):
        raise WrongValue("expected a storage class as the store calls it, such as STANDARD_IA")
    return value


def _bucket(value: str) -> str:
    if not _BUCKET.fullmatch(value):
        raise WrongValue("expected the bucket's bare name: letters, digits, dots, hyphens")
    return value


def _prefix(value: str) -> str:
    if not value.isprintable() or value.startswith("/") or "//" in value or {".", ".."} & set(value.split("/")):
        raise WrongValue("expected a key prefix such as customers/example.jp, without a slash in front, `//`, `.` or `..`")
    return value.rstrip("/")


def _recipient(value: str) -> str:
    if not _RECIPIENT.fullmatch(value):
        raise WrongValue("expected an age recipient (public key), which begins with age1, or an SSH public key (ssh-ed25519, ssh-rsa)")
    return value


def _timezone(value: str) -> str:
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(value)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        if not value or zoneinfo.available_timezones():
            raise WrongValue("expected a time zone's name, such as Asia/Tokyo") from None
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
        raise WrongValue(str(error)) from None
    return value


def _yearly(value: str) -> str:
    if not _YEARLY.fullmatch(value):
        raise WrongValue('expected a date (2026-12-29) or, for every year, month and day in quotes ("12-29")')
    return value


Value = TypeVar("Value")
Line = Annotated[str, After(_line)]
Host = Annotated[str, After(_host)]
Port = Annotated[int, Range(least=1, most=65535)]
Moment = Annotated[date | datetime, Schema(type="string", pattern=r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?$")]
Rate = Annotated[str, After(_rate)]
Connections = Annotated[int, Range(least=1, most=16)]
Requests = Annotated[int, Range(least=1, most=4096)]
Stall = Annotated[float, Range(above=0, most=86400)]
Patience = Annotated[float, Range(least=1, most=900)]
Days = Annotated[int, Range(least=0, most=366)]
Many = tuple[Value, ...]
Patterns = Annotated[Many[str], After(_patterns)]
Name = Annotated[str, After(_name)]
RemotePath = Annotated[str, After(_remote)]
Pin = Annotated[str, After(_pin)]
Certificate = Annotated[str, After(_certificate)]
Words = Annotated[Many[str], After(_words)]
Endpoint = Annotated[str, After(_endpoint)]
Proxy = Annotated[str, After(_proxy)]
StorageClass = Annotated[str, After(_storage_class)]
RetainDays = Annotated[int, Range(least=1, most=36_500)]
Bucket = Annotated[str, After(_bucket)]
Prefix = Annotated[str, After(_prefix)]
Recipient = Annotated[str, After(_recipient)]
TimeZone = Annotated[str, After(_timezone)]
Yearly = Annotated[str, After(_yearly)]
LocalPath = Annotated[Path, Before(_local), Schema(type="string", minLength=1)]
Addresses = Annotated[
    Many[str],
    Before(_as_list),
    After(_addresses),
    Schema(anyOf=[{"type": "string"}, {"type": "array", "items": {"type": "string"}}]),
]


def last_part(path: str) -> str | None:
    """The default name of something at `path`; None where the path's last part is no name."""
    part = path.rstrip("/").rpartition("/")[2]
    return None if part in ("", ".", "..", "~") else part


def with_default(value: Any, key: str, default: object) -> Any:
    """The table `value` with `key` filled in, where the table lacks it and there is a default."""
    return {**value, key: default} if isinstance(value, dict) and key not in value and default is not None else value


def named_by_path(value: Any, *, local: bool = False) -> Any:
    """The table `value` with a name by its path's last part, where it has none; `local`: the path is one of this machine."""
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or "\0" in path:
        return with_default(value, "name", "?")  # the path's own error says it all
    default = last_part(Path(path).as_posix() if local else path)
    if default is None and "name" not in value:
        raise WrongValue(f"the path {path!r} ends in no name; add name = …")
    return with_default(value, "name", default)


def no_two(names: list[str], what: str, hint: str) -> None:
    """Raises WrongValue where two names are alike."""
    for name in names:
        if names.count(name) > 1:
            raise WrongValue(f"two {what} {name!r}; {hint}")
