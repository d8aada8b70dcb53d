"""A push of mail that ends at any step, by a kill, a power cut or a cut line, and is run again: the target is as after one that ran through."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from hostbackup.errors import Exit
from hostbackup.jobs import push_append, push_mail
from hostbackup.jobs.push_search import TargetSearch
from hostbackup.model import Folder, Message, Stored
from hostbackup.places import mail_write
from hostbackup.places.mail_folders import FolderMap
from hostbackup.vault.layout import mail_meta
from hostbackup.vault.mailbox import MailWriter
from hostbackup.vault.vault import Vault
from tests.support.imap_script import FakeBox, FakeImap, Hangup, Talk, appended
from tests.support.push_rig import BODIES, INBOX, SENT, WHOLE, Rig, Steps, write_mailbox
from tests.support.sample_vault import MAIL, Mail

CAPABILITIES = [b"IMAP4rev1 LITERAL+ UIDPLUS MULTIAPPEND UNSELECT", b"IMAP4rev1"]


@pytest.fixture(autouse=True)
def _many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small groups, so that there are many places to end at."""
    monkeypatch.setattr(push_append, "_GROUP", 4)
    monkeypatch.setattr(push_append, "_SETTLED_AT_ONCE", 2)
    monkeypatch.setattr(push_mail, "_WORTH", 1)
    monkeypatch.setattr(mail_write, "FIRST_BATCH", 2)
    monkeypatch.setattr(mail_write, "BATCH_MESSAGES", 3)
    monkeypatch.setattr(TargetSearch, "perhaps_at_work", lambda self, records: True)


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vault, str]]:
    with Vault.open(tmp_path_factory.mktemp("push") / "vault", "write", create=True) as made:
        yield made, write_mailbox(made, (b"INBOX", INBOX), (b"Sent", SENT))


@pytest.fixture
def rig(vault: tuple[Vault, str]) -> Rig:
    made, root = vault
    (made.state.folder / "push-test.jsonl").unlink(missing_ok=True)
    return Rig(made, root, FakeImap({b"INBOX": FakeBox()}, CAPABILITIES[0]))


def fresh(rig: Rig, capabilities: bytes) -> None:
    (rig.vault.state.folder / "push-test.jsonl").unlink(missing_ok=True)
    rig.fake = FakeImap({b"INBOX": FakeBox()}, capabilities)


@pytest.mark.parametrize(("capabilities", "power_cut"), [(CAPABILITIES[0], False), (CAPABILITIES[0], True), (CAPABILITIES[1], False)])
def test_a_push_that_is_killed_at_any_step_of_its_journal_and_run_again_is_one_that_ran_through(
    rig: Rig, capabilities: bytes, power_cut: bool
) -> None:
    fresh(rig, capabilities)
    with rig.fake.running():
        through = Steps()
        assert rig.push(through) is not None
    assert rig.standing() == WHOLE
    assert set(rig.journal().values()) == {"proven"}
    assert through.count > 15
    for last in range(through.count):
        fresh(rig, capabilities)
        with rig.fake.running():
            assert rig.push(Steps(last), power_cut=power_cut) is None, "it was killed"
            again = rig.push()
        assert again is not None
        assert again.failures == [], (last, again.failures)
        assert rig.standing() == WHOLE, f"killed at step {last}"
        assert set(rig.journal().values()) == {"proven"}


def test_a_push_that_is_killed_again_and_again_ends_as_one_that_ran_through(rig: Rig) -> None:
    with rig.fake.running():
        runs = 0
        while rig.push(Steps(6 + runs)) is None:
            runs += 1
    assert runs >= 3
    assert rig.standing() == WHOLE


@pytest.mark.parametrize("spare", [True, False])
@pytest.mark.parametrize("way", ["before", "after", "bye", "half"])
def test_a_line_that_is_cut_at_any_append_leaves_no_double_and_no_gap(rig: Rig, way: str, spare: bool) -> None:
    rig.spare = spare
    with rig.fake.running():
        assert rig.push() is not None
        appends = sum(command.startswith(b"APPEND") for command in rig.fake.commands)
    assert appends >= 4
    for number in range(1, appends + 1):
        fresh(rig, CAPABILITIES[0])
        rig.fake.hook = cutting(rig.fake, number, way)
        with rig.fake.running():
            result = rig.push()
        assert result is not None
        assert result.failures == []
        assert rig.standing() == WHOLE, f"cut at append {number}"
        assert set(rig.journal().values()) == {"proven"}


def cutting(fake: FakeImap, number: int, way: str) -> Callable[[Talk, bytes, str, bytes], bool]:
    """Cuts the line once, at the APPEND of that number: before it is carried out, after it, with a word, or in the middle of the answer."""
    seen: list[int] = []

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "APPEND":
            return False
        seen.append(1)
        if len(seen) != number:
            return False
        if way == "bye":
            talk.send(b"* BYE shutting down\r\n")
        elif way != "before":
            answer = fake.append(tag, rest)
            if way == "half":
                talk.send(answer[:9])
        raise Hangup

    return hook


def by_connection(fake: FakeImap) -> dict[int, list[bytes]]:
    """Keeps, from now on, which folder each APPEND of a connection was for."""
    seen: dict[int, list[bytes]] = {}
    before = fake.hook

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND":
            seen.setdefault(talk.number, []).append(rest.split(b'"')[1])
        return before(talk, tag, verb, rest)

    fake.hook = hook
    return seen


def test_two_folders_are_appended_at_once_each_over_one_connection_and_in_order(rig: Rig) -> None:
    meeting = threading.Barrier(2, timeout=20)
    met: list[int] = []

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND" and talk.number not in met:
            met.append(talk.number)
            meeting.wait()  # passed only where both are under way at once
        return False

    rig.fake.hook = hook
    seen = by_connection(rig.fake)
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert result.failures == []
    assert {frozenset(folders) for folders in seen.values()} == {frozenset((b"INBOX",)), frozenset((b"Sent",))}
    assert [data for _, data in sorted(rig.fake.boxes[b"INBOX"].messages.items())] == [mail.data for mail in INBOX]
    assert [data for _, data in sorted(rig.fake.boxes[b"Sent"].messages.items())] == [mail.data for mail in SENT]


def test_few_messages_beside_the_largest_folder_are_not_worth_another_connection(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_mail, "_WORTH", len(SENT) + 1)
    seen = by_connection(rig.fake)
    with rig.fake.running():
        assert rig.push() is not None
    assert len(seen) == 1
    assert rig.standing() == WHOLE


@pytest.mark.parametrize("way", ["before", "after", "half"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_what_a_further_connection_leaves_when_it_is_cut_goes_over_the_first(rig: Rig, way: str, number: int) -> None:
    """The further one is the third: the second proves."""
    cut = cutting(rig.fake, number, way)
    rig.fake.hook = lambda talk, tag, verb, rest: talk.number == 3 and cut(talk, tag, verb, rest)
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert result.failures == []
    assert rig.standing() == WHOLE
    assert set(rig.journal().values()) == {"proven"}


def test_the_first_connection_lost_for_good_ends_the_push_and_the_next_one_goes_on(rig: Rig) -> None:
    lost: list[int] = []

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if (verb == "APPEND" and talk.number == 1) or (lost and talk.number > 3):
            lost.append(talk.number)
            raise Hangup
        return False

    rig.fake.hook = hook
    with rig.fake.running():
        result = rig.push()
        assert result is not None
        assert result.exit == Exit.FAILED
        rig.fake.hook = lambda talk, tag, verb, rest: False
        again = rig.push()
    assert again is not None
    assert again.failures == []
    assert rig.standing() == WHOLE
    assert set(rig.journal().values()) == {"proven"}


def test_a_server_that_rewrites_headers_gets_nothing_twice_after_a_cut(rig: Rig) -> None:
    rig.fake.kept = lambda body: b"Received: by the new server\r\n" + body
    rig.fake.hook = cutting(rig.fake, 2, "after")
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert result.failures == []
    assert {name: counted.total() for name, counted in rig.standing().items()} == {name: counted.total() for name, counted in WHOLE.items()}


def test_a_server_that_takes_no_second_connection_is_proven_afterwards(rig: Rig) -> None:
    rig.spare = False
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert (result.failures, rig.fake.connections) == ([], 1)
    assert set(rig.journal().values()) == {"proven"}


def test_a_second_connection_that_is_cut_leaves_the_proof_to_the_first(rig: Rig) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "UID FETCH" and talk.number == 2:
            raise Hangup
        return False

    rig.fake.hook = hook
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert result.failures == []
    assert set(rig.journal().values()) == {"proven"}


def test_an_append_in_doubt_of_an_earlier_day_costs_no_waiting(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with rig.fake.running():
        assert rig.push(Steps(5)) is None
        path = rig.vault.state.folder / "push-test.jsonl"
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        path.write_text("".join(json.dumps({**row, "time": row["time"] - 3600}) + "\n" for row in rows if row["state"] == "intent"))
        assert rig.push() is not None
    assert rig.naps == []
    assert rig.standing() == WHOLE


def mailbox_of(vault: tuple[Vault, str], mails: list[Mail], folder: bytes = b"INBOX") -> str:
    return write_mailbox(vault[0], (folder, mails))


def test_a_server_that_is_long_at_work_on_what_was_cut_off_gets_nothing_twice(rig: Rig) -> None:
    late: list[tuple[bytes, bytes]] = []

    class Naps(list[float]):
        def append(self, seconds: float) -> None:
            super().append(seconds)
            if sum(self) >= 8 and late:
                rig.fake.append(*late.pop())

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND" and not rig.naps and not late:
            late.append((tag, rest))
            raise Hangup
        return False

    rig.naps, rig.fake.hook = Naps(), hook
    with rig.fake.running():
        result = rig.push()
        for tag, rest in late:  # nobody had waited for it
            rig.fake.append(tag, rest)
    assert result is not None
    assert result.failures == []
    assert rig.standing() == WHOLE


@pytest.mark.parametrize("patience", [1.0, 14.0, 60.0])
def test_what_was_cut_off_is_waited_for_as_long_as_was_asked_and_once_for_all_folders(rig: Rig, patience: float) -> None:
    rig.patience = patience
    with rig.fake.running():
        assert rig.push() is not None
    path = rig.vault.state.folder / "push-test.jsonl"
    intents = [line for line in path.read_text().splitlines() if json.loads(line)["state"] == "intent"]
    rig.fake = FakeImap({b"INBOX": FakeBox()}, CAPABILITIES[0])
    path.write_text("".join(f"{line}\n" for line in intents))
    with rig.fake.running():
        assert rig.push() is not None
    assert rig.standing() == WHOLE
    assert patience <= sum(rig.naps) <= patience + 2


def test_a_server_that_refuses_a_command_and_takes_some_of_it_gets_nothing_twice(rig: Rig) -> None:
    seen: list[bytes] = []

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "APPEND" or seen or b"INBOX" not in rest.split()[0]:
            return False
        given = list(appended(rest))
        assert len(given) > 1
        seen.append(tag)
        box = rig.fake.boxes[b"INBOX"]
        box.messages[box.uidnext] = given[0][1]
        talk.send(tag + b" NO cannot\r\n")
        return True

    rig.fake.hook = hook
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert result.failures == []
    assert rig.standing() == WHOLE


def test_of_twins_whose_numbers_are_not_told_the_one_that_was_cut_off_is_appended(rig: Rig, vault: tuple[Vault, str]) -> None:
    twin, seen = b"Subject: twin\r\n\r\nx", list[int]()

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND":
            seen.append(1)
            if len(seen) == 2:
                raise Hangup
        return False

    rig.root = mailbox_of(vault, [Mail(1, twin), Mail(2, twin)])
    rig.fake = FakeImap({b"INBOX": FakeBox()}, b"IMAP4rev1 LITERAL+", hook, told_uids=lambda box, uids: b"")
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert result.failures == []
    assert rig.standing() == {b"INBOX": Counter({twin: 2})}


def test_what_was_cut_off_is_looked_for_where_it_was_sent(rig: Rig, vault: tuple[Vault, str], monkeypatch: pytest.MonkeyPatch) -> None:
    between, named = FolderMap.between, {"Old": "A"}
    monkeypatch.setattr(FolderMap, "between", lambda *old_and_new, **facts: between(*old_and_new, **{**facts, "named": dict(named)}))
    rig.root = mailbox_of(vault, [Mail(uid, data) for uid, data in enumerate(BODIES[:3], 1)], b"Old")
    rig.fake.hook = cutting(rig.fake, 1, "after")
    monkeypatch.setattr(push_append, "_ROUNDS", 1)
    with rig.fake.running():
        assert rig.push() is not None
        named["Old"] = "B"
        assert rig.push() is not None
    assert sum(len(box.messages) for box in rig.fake.boxes.values()) == 3


def test_a_message_that_never_came_whole_is_told_by_push_too(rig: Rig) -> None:
    made, date = rig.vault, " 1-Jul-2026 02:44:25 +0900"
    writer = MailWriter(made.manifests, MAIL, mail_meta(MAIL.name, b"", b"/"))
    writer.folder(Folder(b"INBOX", b"/"))
    writer.add([Stored(Message(b"INBOX", 7, 1, 99, date), failed="the server does not hand it out")])
    rig.root = writer.finish().root
    made.manifests.flush()
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert [(failure.name, failure.code) for failure in result.failures] == [(b"INBOX UID 1", "failed")]
    assert result.exit == Exit.INCOMPLETE


def test_a_message_that_is_damaged_in_the_vault_is_damage(rig: Rig, vault: tuple[Vault, str]) -> None:
    data = b"Subject: spoilt\r\n\r\nx"
    rig.root = mailbox_of(vault, [Mail(1, data)])
    digest = hashlib.sha256(data).hexdigest()
    path = rig.vault.root / "objects" / digest[:2] / digest
    path.chmod(0o600)
    path.write_bytes(b"Subject: spoiled\r\n\r\n")
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert ([failure.code for failure in result.failures], result.exit) == (["damaged"], Exit.DAMAGE)


def test_what_the_second_connection_found_before_it_was_cut_is_told_once(rig: Rig, vault: tuple[Vault, str]) -> None:
    """More messages than one question is about, so that the cut comes after some were answered."""
    seen: list[int] = []

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "UID FETCH" and talk.number == 2:
            seen.append(1)
            if len(seen) == 2:
                raise Hangup
        return False

    rig.root = mailbox_of(vault, [Mail(uid, b"Subject: %d\r\n\r\nx" % uid) for uid in range(1, 701)])
    rig.fake.hook, rig.fake.kept = hook, lambda body: b"something else"
    with rig.fake.running():
        result = rig.push()
    assert result is not None
    assert len(seen) >= 2
    assert len(result.failures) == len({failure.name for failure in result.failures}) == 700


def test_a_folder_that_was_numbered_anew_and_cannot_be_read_is_not_taken_for_emptied_by_its_owner(rig: Rig) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "UID FETCH" or b"BODY" not in rest or talk.box is not rig.fake.boxes[b"INBOX"]:
            return False
        talk.send(tag + b" NO not now\r\n")
        return True

    with rig.fake.running():
        assert rig.push() is not None
        rig.fake.boxes[b"INBOX"].uidvalidity += 1
        rig.fake.hook = hook
        result, counts = rig.verify()
    assert counts == {"verified": len(SENT), "unverified": len(INBOX)}
    assert result.exit == Exit.INCOMPLETE


def test_what_was_refused_once_and_is_in_doubt_now_is_told(rig: Rig) -> None:
    def refuses(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "APPEND":
            return False
        talk.send(tag + b" NO [CANNOT] not this one\r\n")
        return True

    def cuts(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND":
            raise Hangup
        return False

    rig.fake.hook = refuses
    with rig.fake.running():
        first = rig.push()
        rig.fake.hook = cuts
        second = rig.push()
    assert first is not None and len(first.failures) == len(INBOX) + len(SENT)
    assert second is not None and second.exit == Exit.INCOMPLETE
    assert {failure.name for failure in second.failures} == {failure.name for failure in first.failures}
