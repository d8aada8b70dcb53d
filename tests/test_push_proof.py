"""What a push and a verification say of mail that is not, or not as it was, where the new server said that it put it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from hostbackup.errors import Exit
from hostbackup.model import Observer
from hostbackup.vault.vault import Vault
from tests.support.imap_script import FakeBox, FakeImap, Talk
from tests.support.push_rig import INBOX, SENT, WHOLE, Rig, write_mailbox
from tests.support.sample_vault import Mail

CAPABILITIES = b"IMAP4rev1 LITERAL+ UIDPLUS MULTIAPPEND UNSELECT"


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vault, str]]:
    with Vault.open(tmp_path_factory.mktemp("push") / "vault", "write", create=True) as made:
        yield made, write_mailbox(made, (b"INBOX", INBOX), (b"Sent", SENT))


@pytest.fixture
def rig(vault: tuple[Vault, str]) -> Rig:
    made, root = vault
    (made.state.folder / "push-test.jsonl").unlink(missing_ok=True)
    return Rig(made, root, FakeImap({b"INBOX": FakeBox()}, CAPABILITIES))


@pytest.mark.parametrize("way", ["list", "fetch"])
def test_mail_that_may_be_in_a_folder_that_cannot_be_looked_through_is_unverified_and_not_gone(rig: Rig, way: str) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "UID FETCH" or talk.box is not rig.fake.boxes[b"Other"] or (b"BODY" in rest) != (way == "fetch"):
            return False
        talk.send(tag + b" NO not now\r\n")
        return True

    with rig.fake.running():
        assert rig.push() is not None
        moved = rig.fake.boxes[b"INBOX"].messages.pop(1)
        rig.fake.boxes[b"INBOX"].next = 8
        rig.fake.boxes[b"Other"] = FakeBox({1: moved})
        rig.fake.hook = hook
        result, counts = rig.verify()
        assert counts == {"verified": len(INBOX) + len(SENT) - 1, "unverified": 1}
        assert result.exit == Exit.INCOMPLETE
        rig.fake.hook = lambda talk, tag, verb, rest: False
        result, counts = rig.verify()
    assert (result.exit, counts) == (Exit.OK, {"verified": len(INBOX) + len(SENT) - 1, "changed-since-proof": 1})


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_the_server_lost_itself_is_appended_again_unless_it_has_the_bytes_elsewhere(rig: Rig, elsewhere: bool) -> None:
    with rig.fake.running():
        assert rig.push() is not None
        box = rig.fake.boxes[b"INBOX"]
        lost = [box.messages.pop(uid) for uid in (6, 7)]  # its UIDNEXT is 6 then: no user can do that
        if elsewhere:
            rig.fake.boxes[b"Other"] = FakeBox(dict(enumerate(lost, 1)))
        else:
            result, counts = rig.verify()
            assert (result.exit, counts["missing"]) == (Exit.DAMAGE, 2)
        again = rig.push()
        assert again is not None
        assert again.failures == []
        assert again.counts["written"] == (0 if elsewhere else 2)
        result, _ = rig.verify()
    assert result.exit == Exit.OK
    assert sum(rig.standing().values(), Counter()) == sum(WHOLE.values(), Counter())


def test_what_its_owner_deleted_is_not_taken_for_lost(rig: Rig) -> None:
    with rig.fake.running():
        assert rig.push() is not None
        for uid in (6, 7):
            rig.fake.boxes[b"INBOX"].expunge(uid)
        again = rig.push()
    assert again is not None
    assert (again.counts["written"], len(rig.fake.boxes[b"INBOX"].messages)) == (0, 5)


def test_numbers_that_are_told_in_another_order_are_put_right(rig: Rig) -> None:
    def backwards(box: FakeBox, uids: bytes) -> bytes:
        first, _, last = uids.partition(b":")
        told = b",".join(b"%d" % uid for uid in range(int(last or first), int(first) - 1, -1))
        return b"[APPENDUID %d %s] " % (box.uidvalidity, told)

    rig.fake.told_uids = backwards
    with rig.fake.running():
        result = rig.push()
        assert result is not None
        assert result.failures == []
        assert set(rig.journal().values()) == {"proven"}
        assert rig.standing() == WHOLE
        result, counts = rig.verify()
    assert (result.exit, counts) == (Exit.OK, {"verified": len(INBOX) + len(SENT)})


def test_other_bytes_are_called_by_the_old_name_and_the_new_place(rig: Rig) -> None:
    rig.root = write_mailbox(rig.vault, (b"INBOX", [Mail(70, b"Subject: seventy\r\n\r\nx")]))
    rig.fake.kept = lambda body: b"something else"
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    [failure] = result.failures
    assert (failure.name, failure.code, result.exit) == (b"INBOX UID 70", "different", Exit.DAMAGE)
    assert "on the new server it is INBOX UID 1" in failure.reason


def test_an_empty_message_in_place_of_one_that_was_appended_is_a_difference(rig: Rig) -> None:
    with rig.fake.running():
        assert rig.push() is not None
        rig.fake.boxes[b"INBOX"].messages[5] = b""
        result, counts = rig.verify()
    assert (result.exit, counts) == (Exit.DAMAGE, {"verified": len(INBOX) + len(SENT) - 1, "different": 1})
    assert "an empty message instead of" in result.failures[0].reason


def test_a_message_larger_than_the_server_takes_that_stands_there_is_known(rig: Rig) -> None:
    large, other = b"Subject: large\r\n\r\n" + b"x" * 300, b"Subject: other\r\n\r\n" + b"y" * 300
    rig.root = write_mailbox(rig.vault, (b"INBOX", [Mail(1, large), Mail(2, other), Mail(3, b"Subject: small\r\n\r\nx")]))
    rig.fake.capabilities += b" APPENDLIMIT=200"
    rig.fake.boxes[b"INBOX"].add(large)
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert [(failure.name, failure.code) for failure in result.failures] == [(b"INBOX UID 2", "too-big")]
    assert rig.journal() == {'["INBOX", 7, 1]': "proven", '["INBOX", 7, 3]': "proven"}


class Warned(Observer):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("full", [False, True])
def test_a_quota_that_is_wrong_by_its_own_figures_fails_nothing_that_is_taken(rig: Rig, full: bool) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "GETQUOTAROOT":
            talk.send(b'* QUOTAROOT "INBOX" ""\r\n* QUOTA "" (MESSAGE 5 5)\r\n' + tag + b" OK done\r\n")
        elif verb == "APPEND" and full:
            talk.send(tag + b" NO [OVERQUOTA] full\r\n")
        else:
            return False
        return True

    rig.fake.capabilities += b" QUOTA"
    rig.fake.hook = hook
    rig.observer = warned = Warned()
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert [text for text in warned.warnings if "has room for 0" in text]
    assert {failure.code for failure in result.failures} == ({"over-quota"} if full else set())
    assert result.exit == (Exit.INCOMPLETE if full else Exit.OK)


def test_other_bytes_that_the_old_server_gave_later_are_pushed_too_and_once(rig: Rig) -> None:
    better = b"Subject: message 1\r\n\r\nas it was meant"
    with rig.fake.running():
        assert rig.push() is not None
        rig.root = write_mailbox(rig.vault, (b"INBOX", [INBOX[0], Mail(2, better), *INBOX[2:]]), (b"Sent", SENT))
        result, counts = rig.verify()
        assert (result.exit, counts["unverified"]) == (Exit.INCOMPLETE, 1)
        for _ in range(2):
            again = rig.push()
            assert again is not None and again.exit == Exit.OK
            assert rig.standing() == {**WHOLE, b"INBOX": WHOLE[b"INBOX"] + Counter([better])}
        result, counts = rig.verify()
        assert (result.exit, counts) == (Exit.OK, {"verified": len(INBOX) + len(SENT)})
        rig.fake.boxes[b"INBOX"].expunge(8)
        assert rig.push() is not None
        assert rig.standing() == WHOLE
