"""What went wrong as people read it: no more than a screen, the worst first, nothing alike twenty times."""

from __future__ import annotations

from hostbackup.model import Failure
from hostbackup.report.failures import failure_line, failure_lines


def letter(user: str, uid: int, code: str = "unverified", reason: str = "was not pushed") -> Failure:
    told = f"{reason}; subject: letter {uid}"
    return Failure("new", f"mail/{user}", b"INBOX UID %d" % uid, code, told, f"run `push`; in the vault: latest/mail/{user}/cur/{uid}")


def test_what_is_alike_is_told_a_few_times() -> None:
    lines = failure_lines([letter("taro", uid) for uid in range(1, 101)], everything=False)
    assert lines == [
        "  ! new: mail/taro/INBOX UID 1: was not pushed; subject: letter 1 (run `push`; in the vault: latest/mail/taro/cur/1)",
        "  ! new: mail/taro/INBOX UID 2: was not pushed; subject: letter 2 (run `push`; in the vault: latest/mail/taro/cur/2)",
        "  ! new: mail/taro/INBOX UID 3: was not pushed; subject: letter 3 (run `push`; in the vault: latest/mail/taro/cur/3)",
        "  ! new: mail/taro: and 97 more alike: was not pushed",
    ]
    assert len(failure_lines([letter("taro", uid) for uid in range(1, 101)], everything=True)) == 100


def test_mailboxes_that_failed_alike_are_told_together() -> None:
    gone = [Failure("old", f"mail/u{number}", b"", "unreachable", "port 993 did not answer") for number in range(60)]
    assert failure_lines(gone, everything=False)[3:] == ["  ! old: and 57 more alike: port 993 did not answer"]
    one_by_one = [Failure("old", f"mail/u{number}", b"", "login-refused", f"the server refused u{number}") for number in range(60)]
    lines = failure_lines(one_by_one, everything=False)
    assert (len(lines), lines[-1]) == (21, "  ! … and 40 more: see --verbose, --json or the snapshot")


def test_damage_is_never_behind_what_is_harmless() -> None:
    failures = [letter(f"u{number}", 1, reason=f"changed {number}") for number in range(50)]
    failures.insert(40, letter("taro", 7, "different", "the server gives other bytes"))
    assert "other bytes" in failure_lines(failures, everything=False)[0]


def test_few_are_all_told_and_none_is_counted_twice() -> None:
    four = [letter("taro", uid) for uid in range(4)]
    assert len(failure_lines(four, everything=False)) == 4
    for count in range(60):
        failures = [letter(f"u{number % 7}", number) for number in range(count)]
        lines = failure_lines(failures, everything=False)
        told = sum("subject" in line for line in lines) + sum(int(line.split(" more")[0].split()[-1]) for line in lines if " more" in line)
        assert (told, len(lines) <= 21) == (count, True)


def test_a_part_is_called_as_in_the_profile_and_a_sentence_has_one_end() -> None:
    told = Failure("old", "mail/%E5%A4%AA%E9%83%8E+a@example.jp%2Aadmin", b"", "login-refused", "Authentication failed.", "check the password")
    assert failure_line(told) == "old: mail/太郎+a@example.jp*admin: Authentication failed (check the password)"
    assert failure_line(Failure("old", "web/%1B%5B2J", b"", "x", "why")) == "old: web/\\x1b[2J: why"
