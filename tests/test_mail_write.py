"""Many messages in one APPEND: what is sent, what a refusal of the whole costs, and which UID belongs to which message."""

from __future__ import annotations

import functools
import hashlib
import io
from typing import Any

import pytest

from hostbackup.model import Message, Part, Write, Written
from hostbackup.places import mail_command, mail_refusals, mail_room
from hostbackup.places.mail import MailAccount
from hostbackup.places.mail_room import Quota
from hostbackup.protocols.imap.framer import Answer
from hostbackup.protocols.imap.lexer import Atom
from tests.support.imap_script import FakeBox, FakeImap, Hangup, Talk

MULTI = b"IMAP4rev1 LITERAL+ UIDPLUS MULTIAPPEND UNSELECT"
DATE = " 1-Jul-2026 02:44:25 +0900"


def bodies(count: int, size: int = 60) -> list[bytes]:
    return [(b"Subject: message %d\r\n\r\n" % number).ljust(size, b".") for number in range(count)]


def write_of(data: bytes, folder: bytes = b"INBOX", date: str = DATE) -> Write[Message]:
    return Write(Message(folder, 0, 0, len(data), date), hashlib.sha256(data).hexdigest(), len(data), functools.partial(io.BytesIO, data))


def written(fake: FakeImap, writes: list[Write[Message]]) -> list[Written[Message]]:
    """Outcomes in the order of what was asked; the pauses that were made are in `fake.pauses`."""
    with fake.running():
        place = MailAccount(fake.factory, side="new", part=Part("mail", "user"), pause=PAUSES.append)
        PAUSES.clear()
        outcomes = {id(outcome.asked): outcome for outcome in place.write(writes)}
        place.close()
    assert outcomes.keys() == {id(write) for write in writes}, "one outcome an item"
    return [outcomes[id(write)] for write in writes]


PAUSES: list[float] = []


def codes(outcomes: list[Written[Message]]) -> list[str]:
    return [outcome.failure.code if outcome.failure else "" for outcome in outcomes]


def appends(fake: FakeImap) -> list[bytes]:
    return [command for command in fake.commands if command.startswith(b"APPEND ")]


def standing(fake: FakeImap, folder: bytes = b"INBOX") -> list[bytes]:
    return list(fake.boxes[folder].messages.values())


def right_uids(fake: FakeImap, outcomes: list[Written[Message]], asked: list[bytes]) -> None:
    """Each message that was taken stands under the UID that is told for it."""
    for outcome, data in zip(outcomes, asked, strict=True):
        if outcome.failure is None:
            assert fake.boxes[outcome.item.folder].messages[outcome.item.uid] == data


def test_many_go_in_one_command_and_each_gets_its_uid() -> None:
    fake, asked = FakeImap(capabilities=MULTI), bodies(1000)
    outcomes = written(fake, [write_of(data) for data in asked])
    assert codes(outcomes) == [""] * 1000
    assert standing(fake) == asked
    right_uids(fake, outcomes, asked)
    assert len(appends(fake)) == 6, "25, 50, 100, 200, 400 and the rest"


def test_a_command_ends_with_its_folder_and_before_a_large_message() -> None:
    fake, large = FakeImap(capabilities=MULTI), b"x" * 1_200_000
    asked = [*bodies(3), large, *bodies(2)]
    writes = [write_of(data) for data in asked] + [write_of(b"there", b"Other"), write_of(b"and there", b"Other")]
    outcomes = written(fake, writes)
    assert codes(outcomes) == [""] * 8
    assert standing(fake) == asked
    assert standing(fake, b"Other") == [b"there", b"and there"]
    assert len(appends(fake)) == 4


@pytest.mark.parametrize("capabilities", [b"IMAP4rev1 MULTIAPPEND", b"IMAP4rev1 MULTIAPPEND LITERAL-", b"IMAP4rev1 LITERAL+"])
def test_where_the_server_has_to_be_asked_or_knows_no_multiappend_each_goes_alone(capabilities: bytes) -> None:
    fake, asked = FakeImap(capabilities=capabilities), bodies(20, 5000)
    assert codes(written(fake, [write_of(data) for data in asked])) == [""] * 20
    assert standing(fake) == asked
    assert len(appends(fake)) == 20


@pytest.mark.parametrize("bad", [0, 33, 299])
def test_one_that_is_refused_keeps_no_other_out(bad: int) -> None:
    asked = bodies(300)
    fake = FakeImap(capabilities=MULTI, refuse=lambda options, body: b"NO invalid message" if body == asked[bad] else None)
    outcomes = written(fake, [write_of(data) for data in asked])
    assert codes(outcomes) == ["refused" if number == bad else "" for number in range(300)]
    assert sorted(standing(fake)) == sorted(data for data in asked if data != asked[bad])
    right_uids(fake, outcomes, asked)


def test_a_server_that_takes_none_costs_each_message_a_few_sendings() -> None:
    asked, seen = bodies(200), []

    def refuse(options: bytes, body: bytes) -> bytes:
        seen.append(body)
        return b"NO not today"

    outcomes = written(FakeImap(capabilities=MULTI, refuse=refuse), [write_of(data, date="") for data in asked])
    assert codes(outcomes) == ["refused"] * 200
    assert len(seen) < 3 * 200


def test_a_server_that_offers_multiappend_and_does_not_know_it_gets_them_one_by_one() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND" and rest.count(b"Subject:") > 1:
            talk.send(tag + b" BAD too many arguments\r\n")
            return True
        return False

    fake, asked = FakeImap(capabilities=MULTI, hook=hook), bodies(300)
    outcomes = written(fake, [write_of(data) for data in asked])
    assert codes(outcomes) == [""] * 300
    assert sorted(standing(fake)) == sorted(asked)
    assert sum(command.count(b"Subject:") > 1 for command in appends(fake)) <= 6


def test_a_message_too_big_for_the_server_is_found_among_the_others() -> None:
    asked = [*bodies(40), b"y" * 9000, *bodies(3)]
    fake = FakeImap(capabilities=MULTI, refuse=lambda options, body: b"NO [TOOBIG] no more than 8000" if len(body) > 8000 else None)
    assert codes(written(fake, [write_of(data) for data in asked])) == [""] * 40 + ["too-big"] + [""] * 3


def test_a_full_mailbox_takes_what_fits_and_ends_soon() -> None:
    asked = bodies(900)
    fake = FakeImap(capabilities=MULTI)

    def refuse(options: bytes, body: bytes) -> bytes | None:
        return b"NO [OVERQUOTA] Quota exceeded" if len(fake.boxes[b"INBOX"].messages) >= 500 else None

    fake.refuse = refuse
    outcomes = written(fake, [write_of(data) for data in asked])
    assert set(codes(outcomes)) == {"", "over-quota"}
    assert len(standing(fake)) == codes(outcomes).count("") == 775, "a fake that counts only what stands takes a command that began below its bound"
    assert len(appends(fake)) < 30
    assert all("Quota exceeded" in outcome.failure.reason for outcome in outcomes if outcome.failure)


def test_a_folder_that_one_may_not_write_to_fails_its_own_messages_once() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND" and rest.startswith(b'"Shared"'):
            talk.send(tag + b" NO [NOPERM] read only\r\n")
            return True
        return False

    fake = FakeImap({b"INBOX": FakeBox(), b"Shared": FakeBox()}, MULTI, hook)
    asked = bodies(400)
    outcomes = written(fake, [write_of(data, b"Shared") for data in asked] + [write_of(b"mine")])
    assert codes(outcomes) == ["permission"] * 400 + [""]
    assert len(appends(fake)) < 8


@pytest.mark.parametrize(
    ("said", "pause"),
    [
        (b"NO [THROTTLED] Suggested Backoff Time: 4000 milliseconds", 4.0),
        (b"NO [LIMIT] slow down, try again in 2 minutes", 120.0),
        (b"NO [UNAVAILABLE] busy", 1.0),
        (b"NO too fast, retry after 7 seconds", 7.0),
    ],
)
def test_a_server_that_asks_to_wait_is_waited_for(said: bytes, pause: float) -> None:
    said_once: list[bytes] = []

    def refuse(options: bytes, body: bytes) -> bytes | None:
        if said_once:
            return None
        said_once.append(body)
        return said

    fake, asked = FakeImap(capabilities=MULTI, refuse=refuse), bodies(100)
    assert codes(written(fake, [write_of(data) for data in asked])) == [""] * 100
    assert [pause] == PAUSES
    assert sorted(standing(fake)) == sorted(asked)


def test_a_server_that_never_stops_asking_to_wait_is_told() -> None:
    fake = FakeImap(capabilities=MULTI, refuse=lambda options, body: b"NO [LIMIT] try again in 10 hours")
    assert codes(written(fake, [write_of(data) for data in bodies(10)])) == ["for-now"] * 10
    assert PAUSES == [mail_refusals.SECONDS_AT_MOST] * 5


def test_a_cut_tells_what_is_in_doubt_from_what_was_never_sent_whole() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND" and b"message 30\r" in rest and talk.number == 1:
            raise Hangup
        return False

    fake, asked = FakeImap(capabilities=MULTI, hook=hook), bodies(2000, 4000)
    outcomes = written(fake, [write_of(data) for data in asked])
    found = codes(outcomes)
    assert found[:25] == [""] * 25
    assert found[30] == "in-doubt"
    assert set(found) <= {"", "in-doubt", "cut-short"}
    assert found.count("in-doubt") + found.count("cut-short") <= 900
    assert len(standing(fake)) == len(set(standing(fake))) == found.count("")


def test_damaged_bytes_within_a_command_leave_no_gap_and_stop_nobody() -> None:
    asked = bodies(30)
    writes = [write_of(data) for data in asked]
    writes[0] = Write(writes[0].item, "0" * 64, writes[0].size, writes[0].open)
    writes[12] = Write(writes[12].item, writes[12].digest, writes[12].size + 1, writes[12].open)
    fake = FakeImap(capabilities=MULTI)
    outcomes = written(fake, writes)
    assert [number for number, code in enumerate(codes(outcomes)) if code] == [0, 12]
    assert standing(fake) == [data for number, data in enumerate(asked) if number not in (0, 12)]
    right_uids(fake, outcomes, asked)


def test_a_message_with_nul_goes_alone_as_binary() -> None:
    asked = [*bodies(4), b"Subject: nul\r\n\r\na\0b\r\n", *bodies(4)]
    fake = FakeImap(capabilities=MULTI + b" BINARY")
    assert codes(written(fake, [write_of(data) for data in asked])) == [""] * 9
    assert sorted(standing(fake)) == sorted(asked)
    assert [b"~{" in command for command in appends(fake)].count(True) == 1


def test_a_message_with_nul_is_not_sent_where_nobody_takes_it() -> None:
    asked = [*bodies(4), b"Subject: nul\r\n\r\na\0b\r\n", *bodies(4)]
    fake = FakeImap(capabilities=MULTI)
    outcomes = written(fake, [write_of(data) for data in asked])
    assert codes(outcomes) == ["", "", "", "", "nul", "", "", "", ""]
    assert sorted(standing(fake)) == sorted([*bodies(4), *bodies(4)])


@pytest.mark.parametrize(
    ("date", "refused", "sent"),
    [
        ("01-Jan-1904 00:00:00 +0000", rb"1904", b'" 1-Jan-1970 00:00:00 +0000"'),
        ("05-May-2020 10:00:00 +9900", rb"+9900", b'" 1-May-2020 07:00:00 +0000"'),
        ("31-Feb-2026 10:00:00 +0900", rb"Feb", b'" 2-Jun-2021 12:30:00 +0000"'),
        ("yesterday", b"yesterday", b'" 2-Jun-2021 12:30:00 +0000"'),
    ],
)
def test_a_date_that_is_refused_is_replaced_by_the_next_best(date: str, refused: bytes, sent: bytes) -> None:
    dated = b"Date: Wed, 2 Jun 2021 21:30:00 +0900\r\nSubject: x\r\n\r\ntext"
    asked = [*bodies(5), dated, *bodies(5)]
    fake = FakeImap(capabilities=MULTI, refuse=lambda options, body: b"BAD invalid date" if refused in options else None)
    outcomes = written(fake, [write_of(data, date=date if data == dated else DATE) for data in asked])
    assert codes(outcomes) == [""] * 11
    box = fake.boxes[b"INBOX"]
    assert box.options[outcomes[5].item.uid] == b"() " + sent
    assert len(appends(fake)) <= 4, "a date that may be refused does not hold up the others"


def test_a_date_without_fault_is_left_out_only_where_nothing_else_helps() -> None:
    fake = FakeImap(capabilities=MULTI, refuse=lambda options, body: b"NO no dates here" if b'"' in options else None)
    outcomes = written(fake, [write_of(b"Date: Wed, 2 Jun 2021 21:30:00 +0900\r\n\r\n")])
    assert codes(outcomes) == [""]
    assert fake.boxes[b"INBOX"].options == {1: b"()"}
    assert outcomes[0].item.internaldate == ""


@pytest.mark.parametrize(
    "told", [b"", b"[APPENDUID 7 1:2] ", b"[APPENDUID 7 1,1,1] ", b"[APPENDUID 0 1:3] ", b"[APPENDUID 7 nonsense] ", b"[APPENDUID 7] "]
)
def test_uids_that_are_odd_are_unknown(told: bytes) -> None:
    fake = FakeImap(capabilities=MULTI, told_uids=lambda box, uids: told)
    outcomes = written(fake, [write_of(data) for data in bodies(3)])
    assert [(outcome.item.uidvalidity, outcome.item.uid) for outcome in outcomes] == [(0, 0)] * 3


@pytest.mark.parametrize(
    ("told", "uids"), [(b"4:6", [4, 5, 6]), (b"4,9,12", [4, 9, 12]), (b"7:8,3", [7, 8, 3]), (b"4:7", [0, 0, 0]), (b"1:4000000000", [0, 0, 0])]
)
def test_a_uid_set_is_taken_in_its_order(told: bytes, uids: list[int]) -> None:
    answer: Any = Answer("OK", "APPENDUID", (Atom(b"7"), Atom(told)))
    assert mail_command.appended_uids(answer, 3)[1] == uids


# -- what is asked for beforehand -----------------------------------------------------------------------------------------------------------


def limits(fake: FakeImap, *folders: bytes) -> mail_room.Limits:
    with fake.running():
        place = MailAccount(fake.factory, side="new", part=Part("mail", "user"))
        found = place.room(folders)
        place.close()
    return found


def test_one_size_for_all_folders_comes_with_the_capabilities() -> None:
    assert limits(FakeImap(capabilities=MULTI + b" APPENDLIMIT=35651584"), b"INBOX", b"Sent").largest == {b"INBOX": 35651584, b"Sent": 35651584}


def test_a_size_for_each_folder_is_asked_for() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "STATUS" or b"APPENDLIMIT" not in rest:
            return False
        name = rest.split(b" (")[0]
        if name == b'"Locked"':
            talk.send(tag + b" NO not for you\r\n")
        else:
            talk.send(
                b"* STATUS " + name + (b" (APPENDLIMIT NIL)" if name == b'"Free"' else b" (APPENDLIMIT 4000)") + b"\r\n" + tag + b" OK done\r\n"
            )
        return True

    found = limits(FakeImap(capabilities=MULTI + b" APPENDLIMIT", hook=hook), b"INBOX", b"Free", b"Locked", b"Sent")
    assert found.largest == {b"INBOX": 4000, b"Sent": 4000}


def test_quotas_are_those_of_each_folders_roots() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "GETQUOTAROOT":
            return False
        root = b'"User quota"' if b"INBOX" in rest else b"shared"
        used = b" (STORAGE 10 512 MESSAGE 20 100)" if b"INBOX" in rest else b" (STORAGE 2 1)"
        talk.send(b"* QUOTAROOT " + rest + b" " + root + b"\r\n")
        talk.send(b"* QUOTA " + root + used + b"\r\n" + tag + b" OK done\r\n")
        return True

    found = limits(FakeImap(capabilities=MULTI + b" QUOTA", hook=hook), b"INBOX", b"Other")
    assert found.quotas[b"INBOX"] == [Quota(b"User quota", "bytes", 10240, 524288), Quota(b"User quota", "messages", 20, 100)]
    assert [(quota.limit, quota.free) for quota in found.quotas[b"Other"]] == [(1024, 0)]


def test_a_server_that_tells_nothing_or_nonsense_has_told_nothing() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "GETQUOTAROOT":
            talk.send(b"* QUOTAROOT\r\n* QUOTAROOT INBOX root\r\n* QUOTA root (STORAGE many 1)\r\n* QUOTA root\r\n" + tag + b" OK done\r\n")
        return verb == "GETQUOTAROOT"

    fake = FakeImap(capabilities=MULTI + b" QUOTA", hook=hook)
    assert limits(fake, b"INBOX").quotas == {b"INBOX": []}
    plain = FakeImap(capabilities=MULTI)
    assert limits(plain, b"INBOX") == mail_room.Limits()
    assert not any(command.startswith((b"STATUS", b"GETQUOTAROOT")) for command in plain.commands)


# -- put off, full, and half done -------------------------------------------------------------------------------------------------------------


def test_all_that_was_put_off_together_costs_one_wait() -> None:
    said: list[bytes] = []

    def refuse(options: bytes, body: bytes) -> bytes | None:
        said.append(body)
        return b"NO [THROTTLED] try again in 1 second" if len(said) <= 64 else None

    fake, asked = FakeImap(capabilities=b"IMAP4rev1 LITERAL+ UIDPLUS UNSELECT", refuse=refuse), bodies(200)
    assert codes(written(fake, [write_of(data) for data in asked])) == [""] * 200
    assert PAUSES == [1.0]
    assert sorted(standing(fake)) == sorted(asked)


def test_one_that_is_always_put_off_keeps_no_other_out() -> None:
    asked = bodies(100)
    fake = FakeImap(capabilities=MULTI, refuse=lambda options, body: b"NO [UNAVAILABLE] internal error" if body == asked[30] else None)
    assert codes(written(fake, [write_of(data) for data in asked])) == ["for-now" if number == 30 else "" for number in range(100)]
    assert len(PAUSES) <= 6


def test_a_server_that_takes_nothing_for_now_is_soon_left_alone() -> None:
    fake = FakeImap(capabilities=MULTI, refuse=lambda options, body: b"NO [UNAVAILABLE] internal error")
    assert codes(written(fake, [write_of(data) for data in bodies(2000)])) == ["for-now"] * 2000
    assert len(PAUSES) == 5
    assert len(appends(fake)) < 60


def test_what_is_small_enough_for_the_room_that_is_left_is_taken() -> None:
    asked: list[bytes] = []
    for number in range(5):
        asked += [b"Subject: large\r\n\r\n%d" % number + b"x" * 5000, *bodies(20)]
    fake = FakeImap(capabilities=MULTI, refuse=lambda options, body: b"NO [OVERQUOTA] full" if len(body) > 4000 else None)
    assert codes(written(fake, [write_of(data) for data in asked])) == ["over-quota" if len(data) > 4000 else "" for data in asked]


@pytest.mark.parametrize("said", [b"NO cannot", b"NO [UNAVAILABLE] internal error"])
def test_what_a_server_refused_and_took_in_part_is_in_doubt_and_not_sent_again(said: bytes) -> None:
    fake, asked = FakeImap(capabilities=MULTI), bodies(60)

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "APPEND" or b"message 30\r" not in rest:
            return False
        box = fake.boxes[b"INBOX"]
        box.messages[box.uidnext] = asked[25]
        talk.send(tag + b" " + said + b"\r\n")
        return True

    fake.hook = hook
    assert codes(written(fake, [write_of(data) for data in asked])) == [""] * 25 + ["in-part"] * 35
    assert len(standing(fake)) == len(set(standing(fake))) == 26
