"""Mail accounts: one row of an accounts CSV, or one [[old.imap.account]] of a profile.

The CSV is what a spreadsheet saves: UTF-8 with or without a byte order mark, else cp932 (Windows-31J), RFC 4180 quoting, LF, CRLF or CR.
"""

from __future__ import annotations

import io
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostbackup import osal
from hostbackup.errors import AccountsError
from hostbackup.secrets import SecretSource

COLUMNS = ("user", "password", "address", "new_user", "new_password", "host")
REQUIRED = COLUMNS[:2]
_EXPECTED = "expected columns: user,password[,address,new_user,new_password,host]"
_FIELD_LIMIT = 4096  # characters; longer than any password, shorter than a file with an unclosed quote


@dataclass(frozen=True, slots=True)
class Account:
    """One mailbox: how to log in at the old server, and what it is called at the new one.

    `password` None: none is known, so the account is not covered until a person types it. `address` and `host` override the section's.
    """

    user: str
    password: SecretSource | None = None
    address: tuple[str, ...] = ()
    new_user: str = ""  # "" = the same name
    new_password: SecretSource | None = None  # None = the same password
    host: str = ""
    token: SecretSource | None = None  # an access token of OAuth 2, asked for at each login
    protocol: str = "imap"  # or "pop3": how it is read at the old server
    where: str = ""  # where the account is written down, for errors: "accounts.csv:3" or "old.imap.account[0]"


def read_accounts(path: Path) -> list[Account]:
    """The accounts of a CSV file, in its order. Raises AccountsError, with the line, for the first thing that is wrong.

    No message ever quotes a row: it may hold a password.
    """
    try:
        data = path.read_bytes()
        private = osal.private_to_owner(path)
    except OSError as error:
        raise AccountsError(f"cannot be read: {error.strerror}", where=str(path)) from None
    accounts = parse_accounts(data, str(path))
    if not private and any(account.password or account.new_password for account in accounts):
        raise AccountsError("holds passwords and can be read by others", where=str(path), hint=f"chmod 600 {path}")
    return accounts


def parse_accounts(data: bytes, name: str = "accounts.csv") -> list[Account]:
    """As `read_accounts`, from the file's bytes."""
    rows = _rows(_decode(data, name), name)
    line, header = next(rows, (1, []))
    columns = _header(header, f"{name}:{line}")
    accounts: list[Account] = []
    lines: dict[str, int] = {}
    for line, row in rows:
        where = f"{name}:{line}"
        while len(row) > len(columns) and not row[-1]:  # spreadsheets save empty columns at the end
            row.pop()
        if len(row) != len(columns):
            raise AccountsError(f"{len(row)} fields where the header names {len(columns)}", where=where, hint='a field with a comma needs "quotes"')
        account = _account(dict(zip(columns, row, strict=True)), where)
        if account.user in lines:
            raise AccountsError(f"user {account.user!r} is also in line {lines[account.user]}", where=where, hint="keep one of the two rows")
        lines[account.user] = line
        accounts.append(account)
    return accounts


def read_mailboxes(path: Path) -> list[str]:
    """A provider's list of mailboxes: one a line, each once, in the file's order; encodings as in a CSV. What follows a # at the start is a comment.

    Raises AccountsError, with the line, for what is no mailbox's name.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AccountsError(f"cannot be read: {error.strerror}", where=str(path)) from None
    found: dict[str, str] = {}
    for number, line in enumerate(_decode(data, str(path)).splitlines(), 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if not name.isprintable() or any(mark in name for mark in ' ,;"<>'):
            raise AccountsError("expected one mailbox, such as taro@example.jp, and nothing else", where=f"{path}:{number}")
        found.setdefault(mailbox_key(name), name)
    return list(found.values())


def mailbox_key(name: str) -> str:
    """What two spellings of one mailbox have in common: the domain counts in any case (RFC 5321 §2.3.11)."""
    local, at, domain = name.rpartition("@")
    return f"{local}@{domain.casefold()}" if at else name


def addresses(values: list[str]) -> tuple[str, ...]:
    """IPv4 or IPv6 literals. Raises ValueError with a sentence for the first that is none."""
    for value in values:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise ValueError(f"{value!r} is no IPv4 or IPv6 address; names belong in host") from None
    return tuple(values)


def _decode(data: bytes, name: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise AccountsError("is UTF-16", where=name, hint="save it again as CSV UTF-8")
    if b"\0" in data:
        raise AccountsError("holds a NUL byte", where=f"{name}:{data[: data.index(0)].count(10) + 1}", hint="save it again as CSV UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp932")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise AccountsError("is neither UTF-8 nor cp932 (Shift_JIS)", where=f"{name}:{line}", hint="save it again as CSV UTF-8") from None


def _rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """(line where the row begins, fields), lines with nothing in them left out."""
    import csv

    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    begins = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise AccountsError(f"not CSV: {error}", where=f"{name}:{begins}", hint='a " inside a quoted field is written twice') from None
        if row is None:
            return
        if any(len(value) > _FIELD_LIMIT for value in row):
            raise AccountsError(f"a field of more than {_FIELD_LIMIT} characters", where=f"{name}:{begins}", hint='look for a " that is not closed')
        if row and not (len(row) == 1 and not row[0].strip()):
            yield begins, row
        begins = reader.line_num + 1


def _header(row: list[str], where: str) -> list[str]:
    columns = [value.strip().lower() for value in row]
    while columns and not columns[-1]:
        columns.pop()
    if "user" not in columns:
        # A file without a header begins with a row of secrets: not a word of it is told.
        raise AccountsError("the first line does not name the column user", where=where, hint=_EXPECTED)
    for column in REQUIRED:
        if column not in columns:
            raise AccountsError(f"there is no column {column}", where=where, hint=_EXPECTED)
    for column in columns:
        if column not in COLUMNS:
            raise AccountsError(f"unknown column {column!r}", where=where, hint=_EXPECTED)
        if columns.count(column) > 1:
            raise AccountsError(f"column {column} is there twice", where=where, hint=_EXPECTED)
    return columns


def _account(row: dict[str, str], where: str) -> Account:
    user = row["user"].strip()
    if not user:
        raise AccountsError("the user is empty", where=where)
    for column in ("user", "new_user", "host"):
        if not row.get(column, "").strip().isprintable():
            raise AccountsError(f"{column} holds control characters", where=where)
    try:
        address = addresses(row.get("address", "").replace(";", " ").split())
    except ValueError as error:
        raise AccountsError(f"address: {error}", where=where) from None
    return Account(
        user=user,
        password=_literal(row["password"]),
        address=address,
        new_user=row.get("new_user", "").strip(),
        new_password=_literal(row.get("new_password", "")),
        host=row.get("host", "").strip(),
        where=where,
    )


def _literal(text: str) -> SecretSource | None:
    return SecretSource.of(text) if text else None
