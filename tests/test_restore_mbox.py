"""mboxrd: reversible byte for byte, counted alike by other readers, and laid out for Thunderbird."""

from __future__ import annotations

import json
import mailbox
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hostbackup.errors import Exit
from hostbackup.jobs import restore_export
from hostbackup.jobs.mboxrd import Quoter, from_line
from hostbackup.jobs.restore import restore
from hostbackup.jobs.result import Result
from hostbackup.model import Folder
from hostbackup.vault.vault import Vault
from tests.support.sample_vault import MAIL, MAILBOX, Mail, keep, make_vault, snapshot, write_mail


def decode(data: bytes, added: list[bool]) -> list[bytes]:
    """The messages of an mboxrd file, by its description alone. `added`: whether the side file tells of an added newline."""
    messages: list[list[bytes]] = []
    for line in re.findall(rb"[^\n]*\n", data):
        if line.startswith(b"From "):
            messages.append([])
        else:
            messages[-1].append(re.sub(rb"^>(>*From )", rb"\1", line))
    assert len(messages) == len(added)
    return [b"".join(lines)[: -2 if extra else -1] for lines, extra in zip(messages, added, strict=True)]


def encode(messages: list[list[bytes]]) -> tuple[bytes, list[bool]]:
    """An mbox of messages that come in pieces."""
    out, added = b"", []
    for pieces in messages:
        quoter = Quoter()
        out += from_line(0) + b"".join(map(quoter.feed, pieces))
        rest, extra = quoter.finish()
        out += rest
        added.append(extra)
    return out, added


_piece = st.lists(st.sampled_from([b"From ", b">", b"\n", b"\r\n", b"F", b"rom ", b"From", b" ", b"x", b"\0", b"\xff", b"\r"]), max_size=8).map(
    b"".join
)


@given(st.lists(st.lists(_piece | st.binary(max_size=20), max_size=6), max_size=5))
@example([[b""], [b"From "], [b">>From x\n", b"From"], [b"a\n", b"Fr", b"om ", b"b"]])
def test_every_message_comes_back_byte_for_byte(messages: list[list[bytes]]) -> None:
    data, added = encode(messages)
    assert decode(data, added) == [b"".join(pieces) for pieces in messages]


@given(st.lists(_piece, max_size=8), st.integers(1, 5))
def test_the_size_of_the_pieces_changes_nothing(pieces: list[bytes], step: int) -> None:
    whole = b"".join(pieces)
    cut = [whole[at : at + step] for at in range(0, len(whole), step)]
    assert encode([pieces]) == encode([cut]) == encode([[whole]])


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, b"From MAILER-DAEMON Thu Jan  1 00:00:00 1970\n"),
        (None, b"From MAILER-DAEMON Thu Jan  1 00:00:00 1970\n"),
        (1782841465, b"From MAILER-DAEMON Tue Jun 30 17:44:25 2026\n"),
        (-86400, b"From MAILER-DAEMON Wed Dec 31 00:00:00 1969\n"),
        (10**15, b"From MAILER-DAEMON Thu Jan  1 00:00:00 1970\n"),
    ],
)
def test_the_line_before_a_message_is_asctime_whatever_the_locale(epoch: int | None, expected: bytes) -> None:
    assert from_line(epoch) == expected


def export(vault: Vault, to: Path, *selection: str) -> Result:
    result = Result()
    restore(vault, result, to=to, selection=selection, format="mbox")
    return result


def test_a_mailbox_becomes_files_that_thunderbird_and_others_read(tmp_path: Path) -> None:
    with make_vault(tmp_path / "vault") as vault:
        assert export(vault, tmp_path / "out", "mail").failures == []
        assert export(vault, tmp_path / "out", "mail").failures == []
    mail = tmp_path / "out" / "mail"
    home = mail / "taro@example.jp.sbd"
    found = sorted(path.relative_to(mail).as_posix() for path in mail.rglob("*") if path.is_file())
    inside = ["Inbox", "Sent", "送信済み", "送信済み.sbd/2026年"]
    assert found == ["taro@example.jp", "taro@example.jp.flags.jsonl", *(f"taro@example.jp.sbd/{name}" for name in inside)]
    assert (mail / "taro@example.jp").read_bytes() == b""
    records = [json.loads(line) for line in (mail / "taro@example.jp.flags.jsonl").read_text().splitlines()]
    live = [mail for mail in MAILBOX[0][1] if not mail.vanished]
    mine = [record for record in records if record["file"] == "taro@example.jp.sbd/Inbox"]
    data = (home / "Inbox").read_bytes()
    assert decode(data, [record.get("added_newline", False) for record in mine]) == [mail.data for mail in live]
    assert [record["uid"] for record in mine] == [1, 2, 4200]
    assert mine[0]["flags"] == ["$Label1", "\\Seen"]
    box = mailbox.mbox(home / "Inbox", create=False)
    assert [message["Subject"] is not None for message in box] == [True, True, True]
    box.close()


def test_a_damaged_message_is_left_out_and_the_rest_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mails = [Mail(uid, b"Subject: %d\r\n\r\n" % uid + b"From body\r\n" * 50) for uid in range(1, 6)]
    for at_once in (1 << 20, 0):  # read ahead, and streamed
        root = tmp_path / str(at_once)
        with Vault.open(root / "vault", "write", create=True) as vault:
            snapshot(vault, (MAIL, write_mail(vault, MAIL, [(Folder(b"INBOX", b".", uidvalidity=7), mails)])))
            digest, size = keep(vault, mails[2].data)
            path = vault.objects.path(digest)
            path.chmod(0o600)
            path.write_bytes(b"z" * size)
            monkeypatch.setattr(restore_export, "_AT_ONCE", at_once)
            result = export(vault, root / "out")
        assert (result.exit, [failure.name for failure in result.failures]) == (Exit.DAMAGE, [b"INBOX UID 3"])
        data = (root / "out" / "mail" / "taro@example.jp.sbd" / "Inbox").read_bytes()
        assert decode(data, [False] * 4) == [mail.data for mail in mails if mail.uid != 3]


def test_an_mbox_that_somebody_changed_is_left_alone(tmp_path: Path) -> None:
    with make_vault(tmp_path / "vault") as vault:
        box = tmp_path / "out" / "mail" / "taro@example.jp.sbd" / "Sent"
        box.parent.mkdir(parents=True)
        box.write_bytes(b"mine")
        result = export(vault, tmp_path / "out", "mail")
    assert [(failure.name, failure.code) for failure in result.failures] == [(b"INBOX.Sent", "exists")]
    assert box.read_bytes() == b"mine"


def test_levels_without_a_mail_folder_get_an_empty_file(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        folders = [(Folder(b"a/b/c", b"/", uidvalidity=1), [Mail(1, b"x", uidvalidity=1)])]
        snapshot(vault, (MAIL, write_mail(vault, MAIL, folders, b"")))
        assert export(vault, tmp_path / "out").failures == []
    home = tmp_path / "out" / "mail" / "taro@example.jp.sbd"
    sizes = {path.relative_to(home).as_posix(): path.stat().st_size > 0 for path in home.rglob("*") if path.is_file()}
    assert sizes == {"a": False, "a.sbd/b": False, "a.sbd/b.sbd/c": True}


def test_another_file_where_thunderbird_needs_an_empty_one_is_left_and_told(tmp_path: Path) -> None:
    with make_vault(tmp_path / "vault") as vault:
        (tmp_path / "out" / "mail" / "taro@example.jp").mkdir(parents=True)
        result = export(vault, tmp_path / "out", "mail")
    assert [(failure.name, failure.code) for failure in result.failures] == [(b"", "exists")]
    assert (tmp_path / "out" / "mail" / "taro@example.jp.sbd" / "Inbox").stat().st_size > 0
