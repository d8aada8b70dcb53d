"""Subjects, and proven mailboxes as people read them: safe to show, short however many there are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.jobs.account_rows import Figures, tell_accounts
from hostbackup.jobs.mail_tally import ALIKE, MailTally, described
from hostbackup.jobs.result import Result
from hostbackup.model import Claim, Failure, Message, Method, Proof, Status, Stored
from hostbackup.places.mail_subject import subject_of
from hostbackup.report import failures, mail_table, terminal


@pytest.mark.parametrize(
    ("head", "subject"),
    [
        (b"From: a\r\nSubject: plain words\r\n\r\n", "plain words"),
        (b"SUBJECT : folded\r\n\tover   lines\r\nX: 1\r\n\r\n", "folded over lines"),
        (b"Subject: =?utf-8?B?6KaL56mN5pu4?= =?utf-8?Q?_1?=\n\n", "見積書 1"),
        (b"Subject: =?iso-2022-jp?B?GyRCOCtAUT1xGyhC?=\n\n", "見積書"),
        (b"Subject: Re: =?utf-8?B?6KaL?=\n =?utf-8?B?56mN?=\n\n", "Re: 見積"),
        ("Subject: 見積書".encode(), "見積書"),
        ("Subject: 見積書".encode("cp932"), "見積書"),
        ("Subject: 見積書".encode("iso-2022-jp"), "見積書"),
        (b"Subject: =?no-such-charset?B?6KaL?=\n\n", "見"),
        (b"Subject: \x81\n\n", "\\x81"),
        (b"Subject: " + b"x" * 200 + b"\n\n", "x" * 119 + "…"),
        (b"Subject:\r\n\r\n", ""),
        (b"X-Subject: no\r\n\r\nSubject: in the body\r\n", ""),
        (b"\r\nSubject: in the body\r\n", ""),
        (b"", ""),
    ],
)
def test_a_subject_is_read_as_a_person_would(head: bytes, subject: str) -> None:
    assert subject_of(head) == subject


@given(st.binary(max_size=60), st.sampled_from([b"", b"=?utf-8?B?", b"=?iso-2022-jp?B?", b"=?utf-8?Q?"]), st.sampled_from([b"", b"?="]))
def test_no_subject_is_too_odd(raw: bytes, before: bytes, after: bytes) -> None:
    assert len(subject_of(b"Subject: " + before + raw + after)) <= 120


def account(number: int, folders: int, **figures: Any) -> dict[str, Any]:
    rows = [{"old": f"INBOX.{at}", "new": f"Box{at}", "messages": 3, "there": 3, "pushed": 3, "proven": {"raw": 3}} for at in range(folders)]
    rows[0] |= figures
    return {"side": "new", "part": f"mail/user{number}", "folders": rows, "altered": [], "changed": [], "exceptions": []}


def test_a_few_folders_are_all_shown_without_columns_that_tell_nothing() -> None:
    lines = mail_table.folders([account(1, 2)])
    assert lines[2:] == [
        "mailbox  folder   new folder  snapshot  there now  pushed  proven",
        "user1    INBOX.0  Box0        3         3          3       3",
        "user1    INBOX.1  Box1        3         3          3       3",
    ]


def test_of_hundreds_of_mailboxes_only_folders_with_exceptions_are_shown() -> None:
    lines = mail_table.folders([account(1, 5, missing=2, changed={"moved": 1}), *(account(number, 5) for number in range(2, 400))])
    assert len(lines) == 5
    assert lines[3].split() == ["user1", "INBOX.0", "Box0", "3", "3", "3", "3", "2", "1", "moved"]
    assert lines[4] == "1,994 folders of 399 mailboxes have no exception; every one of 1,995 is in --json and in evidence/"
    quiet = mail_table.folders([account(number, 5) for number in range(400)])
    assert quiet[2:] == ["2,000 folders of 400 mailboxes have no exception; every one of 2,000 is in --json and in evidence/"]
    many = mail_table.folders([account(number, 2, different=1) for number in range(400)])
    assert len(many) < 40


def test_what_earlier_pushes_brought_does_not_read_as_unproven() -> None:
    again = account(1, 3)
    for row in again["folders"][1:]:
        del row["pushed"], row["proven"]
    assert mail_table.folders([again])[2:] == [
        "mailbox  folder   new folder  snapshot  there now  pushed  proven",
        "user1    INBOX.0  Box0        3         3          3       3",
        "2 folders had nothing new to push",
    ]
    del again["folders"][0]
    assert mail_table.folders([again])[2:] == ["2 folders had nothing new to push"]
    again["folders"][0]["missing"] = 1
    assert len(mail_table.folders([again])[2:]) == 3


def test_names_from_servers_cannot_move_the_cursor() -> None:
    odd = account(1, 1, new="\x1b[2J&MEI-")
    odd["altered"] = [{"tier": "added-headers", "reason": "the server added headers: \x1b[31mX", "messages": 3}]
    text = "\n".join(mail_table.folders([odd]))
    assert "\x1b" not in text
    assert "\\x1b[2Jあ"[:8] in text
    assert "3 messages: the server added headers" in text


class Nowhere:
    """An archive without a message."""

    def subject(self, record: Stored[Message]) -> str:
        return ""

    def path(self, record: Stored[Message]) -> bytes:
        return b""


def test_an_exception_is_called_by_its_old_name_and_tells_where_it_is_at_the_new_server() -> None:
    tally, result = MailTally("new", "mail/taro"), Result()
    record = Stored(Message(b"v1.2", 1, 7))
    for new in (Message(b"INBOX.v1&,w4-2", 3, 4), None):
        failure = Failure("new", "mail/taro", record.item.label, "missing", "is gone", "")
        tally.tell(result, Nowhere(), record, failure, Status.MISSING, new=new)  # type: ignore[arg-type]
    assert [failure.name for failure in result.failures] == [b"v1.2 UID 7"] * 2
    assert [failure.reason for failure in result.failures] == ["is gone; on the new server it is INBOX.v1．2 UID 4", "is gone"]


def test_folders_that_are_called_otherwise_are_told_once_and_merged_ones_always() -> None:
    rows: list[dict[str, Any]] = [
        {"old": "v1.2", "new": "v1&,w4-2", "rule": "path", "why": "refused", "stood": True},
        {"old": "a.b", "new": "a&,w4-b", "rule": "earlier", "why": "refused", "stood": True},
        {"old": "lost", "new": "folder-1", "rule": "path", "why": "refused"},
        *({"old": old, "new": "Sent", "rule": "earlier", "stood": True} for old in ("Sent", "Gesendet")),
        *({"old": old, "new": "All", "rule": "profile", "stood": True} for old in ("x", "y")),
    ]
    told = ["  ~ mail/taro: folder v1.2 is called v1．2 there: refused"]
    together = [f"  ~ mail/taro: folder {old} goes to Sent there, together with others" for old in ("Sent", "Gesendet")]
    assert mail_table.renamed({"mail/taro": rows}) == told + together
    planned = [{**row, "stood": False} for row in rows[:1]]
    assert mail_table.renamed({"mail/taro": planned}) == ["  ~ mail/taro: folder v1.2 will be called v1．2 there: refused"]


def test_many_exceptions_for_one_reason_end_in_one_line() -> None:
    tally, result = MailTally("new", "mail/taro"), Result()
    for uid in range(1, ALIKE + 501):
        record = Stored(Message(b"INBOX", 1, uid))
        failure = Failure("new", "mail/taro", record.item.label, "unverified", "was not pushed", "run `push`")
        tally.tell_alike(result, Nowhere(), record, failure, Status.UNVERIFIED)  # type: ignore[arg-type]
    tally.close_alike(result, "unverified", Status.UNVERIFIED)
    assert tally.counts["unverified"] == ALIKE + 500
    assert len(tally.exceptions) == len(result.failures) == ALIKE + 1
    assert result.failures[-1].reason == "and 500 more messages of this folder: was not pushed"


def test_the_ways_in_which_a_server_alters_mail_are_kept_few() -> None:
    tally = MailTally("new", "mail/taro")
    for uid in range(300):
        claim = Claim(Message(b"INBOX", 1, uid), "d", 1)
        proof = Proof(claim, Status.VERIFIED, Method.IMAP_FETCH, None, None, "added-headers", f"the server added headers: X-{uid}")
        tally.verified(proof, tally.row(b"INBOX", b"INBOX"))
    told = tally.as_json()
    assert len(told["altered"]) == 101
    assert sum(row["messages"] for row in told["altered"]) == 300
    assert told["tiers"] == {"added-headers": 300}


def test_a_folder_with_a_failure_is_shown_among_hundreds() -> None:
    """A message that the new server did not take is no figure of the proof; its folder is not "without exception" for all that."""
    refused = Failure("new", "mail/user7", b"INBOX.3 UID 2", "refused", "too large")
    lines = mail_table.folders([account(number, 5) for number in range(400)], failures=[refused])
    assert lines[3].split()[:2] == ["user7", "INBOX.3"]
    assert lines[4].startswith("1,999 folders of 400 mailboxes")


def test_names_of_mail_folders_are_shown_as_people_read_them() -> None:
    wire = Failure("old", "mail/taro", b"INBOX.&U9dP4Q- UID 2", "refused", "why")
    assert failures.failure_line(wire) == "old: mail/taro/INBOX.受信 UID 2: why"
    assert wire.as_json()["name"] == "INBOX.&U9dP4Q- UID 2"
    web = Failure("old", "web/site", b"&U9dP4Q-", "refused", "why")
    assert failures.failure_line(web) == "old: web/site/&U9dP4Q-: why"


def many_backed_up(result: Result) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for number in range(300):
        part = {"state": "complete", "entries": 4, "bytes": 1000, "failed": 0, "stale": 0, "vanished": 0, "reason": ""}
        parts |= {f"mail/u{number}": part, f"sieve/u{number}": {**part, "entries": 0, "bytes": 0}}
    known = {key: Figures(4, 1000, 1, "complete") for key in parts}
    result.fail(Failure("old", "mail/none", b"", "login-refused", "no"))
    tell_accounts(result, [*(f"mail/u{number}" for number in range(300)), "mail/none"], known)
    return {"parts": parts, **result.details}


def test_a_mailbox_that_was_never_read_stands_in_the_table_of_a_backup() -> None:
    result = Result()
    details = many_backed_up(result)
    assert terminal.backup(details, result) == [
        "part       entries  bytes  state",
        "mail/none  -        -      not backed up",
        "and 300 of 301 mailboxes, all as they should be (--verbose shows each)",
        "and 300 of 300 sets of filters, all as they should be (--verbose shows each)",
        "301 mailboxes (300 complete, 1 failed): 1,200 messages, 300 kB, 300 new",
    ]
    assert len(terminal.backup(details, result, everything=True)) == 603
    assert details["accounts"][-1] == {
        "part": "mail/none",
        "state": "failed",
        "messages": 0,
        "bytes": 0,
        "new": 0,
        "failed": 1,
        "reason": "no",
    }


def test_a_plan_for_hundreds_of_mailboxes_is_a_few_lines() -> None:
    planned = {f"{kind}/u{number}": {"folders": 1, "write": 2, "write_bytes": 500} for kind in ("mail", "sieve") for number in range(300)}
    plan = [{"part": f"mail/u{number}", "action": "append", "folder": "&U9dP4Q-", "messages": 2} for number in range(300)]
    lines = terminal.push({"planned": planned, "plan": plan}, Result())
    assert lines == [
        "300 mailboxes: 300 folders to make, 600 to write; 150 kB to move (--verbose shows each)",
        "300 sets of filters: 300 folders to make, 600 to write; 150 kB to move (--verbose shows each)",
        "dry run: nothing was changed",
    ]
    assert "+ mail/u7/受信: 2 messages" in terminal.push({"planned": planned, "plan": plan}, Result(), everything=True)


def test_a_failure_names_subject_and_file_where_there_are_any() -> None:
    plain = Failure("new", "mail/taro", b"INBOX UID 2", "too-big", "too large", "split it")
    told = described(plain, "見積書", b"latest/mail/taro/cur/1")
    assert (told.reason, told.hint) == ("too large; subject: 見積書", "split it; in the vault: latest/mail/taro/cur/1")
    assert described(plain, "", b"") == plain


def test_a_sync_tells_the_figures_of_each_step() -> None:
    held = {"state": "complete", "entries": 12, "bytes": 5000, "failed": 0, "stale": 0, "vanished": 0, "reason": ""}
    proven = [{"side": side, "part": "mail/taro", "counts": {"verified": 12}, "bytes": 5000, "method": "vault-reread"} for side in ("vault", "old")]
    steps: list[dict[str, Any]] = [
        {"step": "check", "exit": 0, "counts": {}, "servers": [], "vault": {"path": "v", "free_bytes": 1, "exists": True}, "estimate": {}},
        {"step": "backup", "exit": 0, "counts": {"new": 2, "entries": 12, "bytes": 5000}, "snapshot": "000007-X", "parts": {"mail/taro": held}},
        {"step": "push", "exit": 3, "counts": {"written": 2, "verified": 2, "settled": 10, "conflict": 1, "moved": 3}, "planned": {}},
        {"step": "verify", "exit": 0, "counts": {"objects": 12}, "proven": proven, "snapshot": "000007-X"},
        {"step": "copy", "skipped": "its section is not in the profile"},
    ]
    assert terminal.sync({"steps": steps}, Result()) == [
        "check: all as asked",
        "backup: all as asked: 2 new, 0 changed, 0 vanished; snapshot 000007-X holds 12 entries, 5.0 kB",
        "push: exit 3: 2 written, 2 proven, 10 there already, 3 left alone, 1 conflict",
        "verify: all as asked: vault 12 verified; old 12 verified",
        "copy: skipped: its section is not in the profile",
    ]
    told = terminal.sync({"steps": steps}, Result(), everything=True)
    assert "  mail/taro  12       5.0 kB  complete" in told
    assert terminal.sync({"steps": [{"step": "push", "exit": 1}]}, Result()) == ["push: exit 1"]


def test_of_many_mailboxes_that_are_not_as_they_should_be_a_screenful_is_shown() -> None:
    proven = [{"side": "new", "part": f"mail/u{number}", "counts": {"unverified": 3}, "bytes": 0, "method": "none"} for number in range(60)]
    lines = terminal.verify({"proven": proven, "snapshot": "000007-X"}, Result())
    assert len(lines) == 23
    assert lines[21] == "new: and 40 mailboxes more that are not as they should be (--verbose shows each)"
    assert len(terminal.verify({"proven": proven, "snapshot": "000007-X"}, Result(), everything=True)) == 62


def test_one_folder_is_one_folder() -> None:
    lines = terminal.push({"planned": {"mail/taro": {"folders": 1, "write": 1, "write_bytes": 5}}, "plan": []}, Result())
    assert lines[0] == "mail/taro: 1 folder to make, 1 to write; 5 B to move"
