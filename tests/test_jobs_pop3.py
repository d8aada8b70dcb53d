"""What jobs make of [old.pop3]: which server it may be, what is said of it, and that a refused password is left alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup import profile
from hostbackup.errors import LoginRefused, ProfileError, SecretError, WrongMachine
from hostbackup.interrupts import Stopped
from hostbackup.jobs.connect import Connections
from hostbackup.jobs.identity import Identity
from hostbackup.model import Folder, Message, Part, Stored
from hostbackup.places.pop3 import Pop3Account
from tests.support.cli import write_profile
from tests.support.pop3_script import FakePop3, Talk
from tests.support.sink import HashSink


def connections(folder: Path, text: str, *, accept: bool = False, identity: Identity | None = None) -> Connections:
    return Connections(profile.load(write_profile(folder, f'vault = "v"\n{text}')), identity or Identity(accept=accept))


def both(old: str, new: str) -> str:
    return f"""
[old.pop3]
host = "mail.example.test"
address = "{old}"
[[old.pop3.account]]
user = "taro"
password = "secret"
[new.imap]
host = "imap.example.test"
address = ["203.0.113.9", "{new}"]
"""


@pytest.mark.parametrize("address", ["203.0.113.5", "2001:db8::5"])
def test_the_address_of_the_new_mail_server_is_not_the_old_one(tmp_path: Path, address: str) -> None:
    made = connections(tmp_path, both(address, address))
    with pytest.raises(WrongMachine, match=r"old\.pop3 mail\.example\.test: this looks like the new server"):
        made.check_old_endpoints()
    with pytest.raises(WrongMachine, match=r"new\.imap imap\.example\.test: this looks like the old server"):
        made.check_new_endpoints()
    made.check_old_endpoints(mail=False)
    made.check_new_endpoints(mail=False)
    accepting = connections(tmp_path, both(address, address), accept=True)
    accepting.check_old_endpoints()
    assert [line["section"] for line in accepting.identity.accepted] == ["old.pop3"]
    accepting.check_new_endpoints()


@pytest.mark.parametrize(("old", "new"), [("203.0.113.5", "203.0.113.6"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1")])
def test_other_addresses_and_the_ends_of_tunnels_are_fine(tmp_path: Path, old: str, new: str) -> None:
    made = connections(tmp_path, both(old, new))
    made.check_old_endpoints()
    made.check_new_endpoints()


@pytest.fixture
def server() -> Iterator[FakePop3]:
    with FakePop3().running() as running:
        yield running


def section(server: FakePop3, password: str = 'password = "secret"') -> str:
    return f'[old.pop3]\nhost = "127.0.0.1"\nport = {server.port}\nsecurity = "plain"\n[[old.pop3.account]]\nuser = "taro"\n{password}\n'


def inbox(made: Connections) -> Pop3Account:
    [account] = made.profile.old_accounts()
    place = made.old_mailbox(account, account.user)
    assert isinstance(place, Pop3Account)
    return place


def test_a_good_contact_is_pinned_and_what_is_weaker_goes_on_record(tmp_path: Path, server: FakePop3) -> None:
    made = connections(tmp_path, section(server))
    place = inbox(made)
    assert made.weaker_settings() == []
    assert place.totals() == (0, 0)
    place.close()
    assert [line["setting"] for line in made.weaker_settings()] == ["POP3", "plain POP3"]
    assert made.identity.known("old.pop3")
    assert (place.side, place.part) == ("old", Part("mail", "taro"))


def test_a_refused_password_is_tried_once_whoever_asks(tmp_path: Path, server: FakePop3) -> None:
    made = connections(tmp_path, section(server, 'password = "wrong"'))
    for _ in range(2):
        with pytest.raises(LoginRefused):
            inbox(made).totals()
    assert server.count(b"PASS") == 1


@pytest.mark.parametrize(
    ("refusal", "limit"),
    [
        (b"-ERR Too many connections from your address\r\n", 1),  # the server bears fewer than were open
        (b"-ERR [IN-USE] another session has it\r\n", 6),  # says nothing of how many it bears
    ],
)
def test_a_server_that_takes_nobody_for_now_is_given_time(tmp_path: Path, server: FakePop3, refusal: bytes, limit: int) -> None:
    waited: list[float] = []
    made = connections(tmp_path, section(server))
    made.logins.pause = lambda seconds, stop: waited.append(seconds)
    told: list[str] = []
    made.logins.waiting = told.append

    def busy(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb != b"PASS" or talk.number > 3:
            return False
        talk.send(refusal)
        return True

    server.hook = busy
    place = inbox(made)
    assert place.totals() == (0, 0)
    assert server.count(b"PASS") == 4
    assert len(waited) == 3
    assert waited == sorted(waited)
    assert [text[:10] for text in told] == ["waiting 1 ", "", "waiting 2 ", "", "waiting 4 ", ""]
    assert "the server takes no login of taro at the moment" in told[0]
    assert made.logins.slots(("127.0.0.1", server.port), 6).limit == limit
    place.close()


def test_whoever_waits_for_an_answer_leaves_when_the_run_ends(tmp_path: Path, server: FakePop3) -> None:
    made = connections(tmp_path, section(server))
    server.put(b"a\r\n")
    asked = threading.Event()

    def silent(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb == b"RETR":
            asked.set()
            talk.file.read()
        return verb == b"RETR"

    server.hook = silent
    place = inbox(made)
    wanted = [item for listing in place.scan() for item in listing.items]

    def end() -> None:
        asked.wait(30)
        made.logins.end()

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(Stopped):
        list(place.read(wanted, HashSink()))
    ending.join()


def test_an_account_without_a_password_is_told_by_its_section(tmp_path: Path, server: FakePop3) -> None:
    with pytest.raises(SecretError, match=r"old\.pop3 taro: no password"):
        inbox(connections(tmp_path, section(server, "")))
    asked: list[str] = []
    made = connections(tmp_path, section(server, ""))

    def ask(question: str) -> str:
        asked.append(question)
        return "secret"

    made.ask = ask
    assert inbox(made).totals() == (0, 0)
    assert asked == ["Password of taro at 127.0.0.1 (nothing: leave this mailbox out)"]


def test_an_account_of_pop3_needs_its_section(tmp_path: Path, server: FakePop3) -> None:
    [account] = connections(tmp_path, section(server)).profile.old_accounts()
    with pytest.raises(ProfileError, match=r"\[old\.pop3\] is missing"):
        connections(tmp_path, "").old_mailbox(account, "taro")


def test_numbers_go_on_from_the_last_manifest(tmp_path: Path, server: FakePop3) -> None:
    from hostbackup.jobs.pop3 import remember
    from hostbackup.vault.mailbox import MailRoot, MailWriter
    from hostbackup.vault.vault import Vault

    server.put(b"a\r\n", b"b\r\n")
    with Vault.open(tmp_path / "v", "write", create=True) as vault:
        writer = MailWriter(vault.manifests, Part("mail", "taro"), {})
        writer.folder(Folder(b"INBOX", uidvalidity=1, uidnext=40))
        writer.add([Stored(Message(b"INBOX", 1, 7, 3, uidl="U0002"), "0" * 64, 3)])
        root = MailRoot.open(vault.manifests, writer.finish().root)
        place = inbox(connections(tmp_path, section(server)))
        remember(place, root)
        assert [(item.uid, item.uidl) for listing in place.scan() for item in listing.items] == [(7, "U0002"), (40, "U0001")]
        place.close()
