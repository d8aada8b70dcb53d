"""The accounts CSV, as spreadsheets and people write it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.accounts import COLUMNS, Account, parse_accounts, read_accounts
from hostbackup.errors import AccountsError, Exit


def passwords(accounts: list[Account]) -> dict[str, str | None]:
    return {account.user: account.password.resolve("x").reveal() if account.password else None for account in accounts}


def reason(text: str | bytes) -> str:
    with pytest.raises(AccountsError) as caught:
        parse_accounts(text.encode() if isinstance(text, str) else text)
    assert caught.value.exit == Exit.USAGE
    return str(caught.value)


def test_users_and_passwords_are_read() -> None:
    accounts = parse_accounts(b"user,password\ntaro@example.jp,one\nhanako@example.jp,two\n")
    assert passwords(accounts) == {"taro@example.jp": "one", "hanako@example.jp": "two"}
    assert [account.where for account in accounts] == ["accounts.csv:2", "accounts.csv:3"]


def test_all_columns_in_any_order() -> None:
    text = "host,new_password,new_user,address,password,user\nmail2.example.jp,new,t@new,203.0.113.9 2001:db8::1,old,taro\n"
    (account,) = parse_accounts(text.encode())
    assert (account.user, account.new_user, account.host) == ("taro", "t@new", "mail2.example.jp")
    assert account.address == ("203.0.113.9", "2001:db8::1")
    assert account.new_password is not None
    assert account.new_password.resolve("x").reveal() == "new"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_of_spreadsheets(encoding: str, newline: str) -> None:
    text = newline.join(["user,password", "営業@example.jp,パスワード①", ""])
    assert passwords(parse_accounts(text.encode(encoding))) == {"営業@example.jp": "パスワード①"}


def test_users_are_trimmed_and_passwords_never() -> None:
    assert passwords(parse_accounts(b'user,password\n taro ,  two blanks  \njiro,"a,""b"\n')) == {"taro": "  two blanks  ", "jiro": 'a,"b'}


def test_an_empty_password_is_no_password() -> None:
    assert passwords(parse_accounts(b"user,password\ntaro,\n")) == {"taro": None}


def test_empty_lines_do_not_count() -> None:
    accounts = parse_accounts(b"\nuser,password\n\ntaro,a\n  \n\njiro,b\n\n")
    assert [(account.user, account.where) for account in accounts] == [("taro", "accounts.csv:4"), ("jiro", "accounts.csv:7")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "accounts.csv:1: the first line does not name the column user"),
        ("user\ntaro\n", "accounts.csv:1: there is no column password"),
        ("user,pasword\ntaro,x\n", "accounts.csv:1: there is no column password"),
        ("user,password,colour\n", "accounts.csv:1: unknown column 'colour'"),
        ("user,password,user\n", "accounts.csv:1: column user is there twice"),
        ("user;password\ntaro;x\n", "does not name the column user"),
        ("user,password\ntaro,a\ntaro,a\n", "accounts.csv:3: user 'taro' is also in line 2"),
        ("user,password\ntaro,a\n taro,b\n", "accounts.csv:3: user 'taro' is also in line 2"),
        ("user,password\n,a\n", "accounts.csv:2: the user is empty"),
        ("user,password\ntaro,topsecret,more\n", "accounts.csv:2: 3 fields where the header names 2"),
        ("user,password\ntaro\n", "accounts.csv:2: 1 fields where"),
        ('user,password\ntaro,"topsecret\n', "accounts.csv:2: not CSV"),
        ('user,password\ntaro,"top"secret\n', "accounts.csv:2: not CSV"),
        ("user,password,address\ntaro,a,mail.example.jp\n", "accounts.csv:2: address: 'mail.example.jp' is no IPv4 or IPv6 address"),
        ("user,password\nta\x1bro,a\n", "accounts.csv:2: user holds control characters"),
        ("user,password\ntaro,to\0p\n", "accounts.csv:2: holds a NUL byte"),
        ("user,password\ntaro,a\n".encode("utf-16"), "is UTF-16"),
        (b"user,password\ntaro,\x81 \n", "accounts.csv:2: is neither UTF-8 nor cp932"),
        ('user,password\ntaro,"' + "x\n" * 5000 + '"\n', "accounts.csv:2: a field of more than"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str | bytes, said: str) -> None:
    told = reason(text)
    assert said in told
    assert "topsecret" not in told


def test_a_line_number_is_that_where_the_row_begins() -> None:
    assert "accounts.csv:4:" in reason('user,password\ntaro,"two\nlines"\n,x\n')


def test_a_file_without_a_header_tells_no_password() -> None:
    assert "topsecret" not in reason("taro@example.jp,topsecret\n")


def test_a_csv_with_passwords_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "accounts.csv"
    path.write_text("user,password\ntaro,secret\n")
    path.chmod(0o644)
    with pytest.raises(AccountsError, match="chmod 600"):
        read_accounts(path)
    path.chmod(0o600)
    assert passwords(read_accounts(path)) == {"taro": "secret"}


def test_a_csv_without_passwords_may_be_read_by_anyone(tmp_path: Path) -> None:
    path = tmp_path / "accounts.csv"
    path.write_text("user,password\ntaro,\n")
    path.chmod(0o644)
    assert passwords(read_accounts(path)) == {"taro": None}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AccountsError, match=r"nothing\.csv: cannot be read: No such file"):
        read_accounts(tmp_path / "nothing.csv")


text_field = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
user_name = text_field.map(str.strip).filter(lambda text: text != "" and text.isprintable())


@given(
    rows=st.dictionaries(user_name, text_field, max_size=8), columns=st.permutations(COLUMNS), bom=st.booleans(), end=st.sampled_from(["\n", "\r\n"])
)
def test_whatever_a_csv_writer_writes_comes_back(rows: dict[str, str], columns: list[str], bom: bool, end: str) -> None:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, restval="", lineterminator=end, quoting=csv.QUOTE_ALL if end == "\n" else csv.QUOTE_MINIMAL)
    writer.writeheader()
    writer.writerows({"user": user, "password": password} for user, password in rows.items())
    accounts = parse_accounts(stream.getvalue().encode("utf-8-sig" if bom else "utf-8"))
    assert passwords(accounts) == {user: password or None for user, password in rows.items()}


@given(st.binary(max_size=200))
def test_any_bytes_are_accounts_or_one_clear_error(data: bytes) -> None:
    for prefix in (b"", b"user,password\n", b'user,password,host\n"'):
        try:
            parse_accounts(prefix + data)
        except AccountsError as error:
            assert error.where.startswith("accounts.csv")


def test_empty_columns_at_the_end_as_a_spreadsheet_saves_them_are_nothing() -> None:
    assert [account.user for account in parse_accounts(b"user,password,,\ntaro,x,,\nhana,y\n")] == ["taro", "hana"]
    with pytest.raises(AccountsError):
        parse_accounts(b"user,password,,\ntaro,x,,stray\n")
