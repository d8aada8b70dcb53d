"""Mail folders of latest/ that nobody touched cost a look; whatever somebody did to one is put right all the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hostbackup.model import Message, Stored
from hostbackup.vault.fill import Content, Filler
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.safe import SafeFolder
from hostbackup.vault.vault import Vault
from hostbackup.vault.view_prints import Prints
from tests.support.sample_vault import INBOX, MAIL, MAILBOX, Mail, snapshot, write_mail
from tests.test_vault_view import build, check_sums, contents, latest, sample, vault

__all__ = ["vault"]  # the fixture


def made(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The names of message files that builds look at one by one from now on."""
    looked: list[bytes] = []
    real = Filler.file

    def file(self: Filler, folder: SafeFolder, name: bytes, content: Content, *, absent: bool = False) -> bool:
        if b".V7U" in name:
            looked.append(name)
        return real(self, folder, name, content, absent=absent)

    monkeypatch.setattr(Filler, "file", file)
    return looked


def box(vault: Vault) -> Path:
    return latest(vault) / "mail" / "taro@example.jp"


def test_folders_that_nobody_touched_are_not_looked_at_file_by_file(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(vault)
    assert build(vault) == []
    before = contents(latest(vault))
    sums = (latest(vault) / "SHA256SUMS").stat()
    looked = made(vault, monkeypatch)
    sample(vault, minute=1)
    assert build(vault) == []
    assert looked == []
    assert contents(latest(vault)) == before
    assert (latest(vault) / "SHA256SUMS").stat() == sums


def test_one_changed_folder_is_laid_out_and_the_sums_stay_whole(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(vault)
    build(vault)
    looked = made(vault, monkeypatch)
    inbox = MAILBOX[0]
    more = Mail(4300, b"one more\r\n")
    snapshot(vault, (MAIL, write_mail(vault, MAIL, [(inbox[0], [*inbox[1], more]), *MAILBOX[1:]])), minute=1)
    assert build(vault) == []
    assert len(looked) == 4, "the inbox, and nothing else"
    assert len(list((box(vault) / "cur").glob("*U4300.*"))) == 1
    check_sums(vault)


def _unlink(file: Path) -> None:
    file.unlink()


def _rename(file: Path) -> None:
    file.rename(file.with_name("other"))


def _rewrite(file: Path) -> None:
    data, before = file.read_bytes(), file.stat()
    file.unlink()
    file.write_bytes(data)
    os.utime(file, ns=(before.st_mtime_ns, before.st_mtime_ns))
    file.chmod(0o400)


def _touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def _add(file: Path) -> None:
    (file.parent / "stranger").touch()


def _add_to_new(file: Path) -> None:
    (file.parent.parent / "new" / "stranger").touch()


def _open_to_all(file: Path) -> None:
    file.parent.chmod(0o777)


def _rewrite_table(file: Path) -> None:
    table = file.parent.parent / "dovecot-keywords"
    table.unlink(missing_ok=True)
    table.write_text("0 Wrong\n")


def _damage_sums(file: Path) -> None:
    sums = file.parent.parent.parent.parent / "SHA256SUMS"
    sums.chmod(0o600)
    sums.write_text("nonsense\n")


@pytest.mark.parametrize("meddle", [_unlink, _rename, _rewrite, _touch, _add, _add_to_new, _open_to_all, _rewrite_table, _damage_sums])
def test_what_somebody_did_is_put_right(vault: Vault, meddle: Callable[[Path], None]) -> None:
    sample(vault)
    build(vault)
    before = contents(latest(vault))
    meddle(next((box(vault) / "cur").glob("*U1.*")))
    assert contents(latest(vault)) != before or meddle is _rewrite
    build(vault)
    assert contents(latest(vault)) == before
    check_sums(vault)


def _objects_stand(vault: Vault) -> list[bool]:
    newest = vault.snapshots.latest()
    assert newest is not None
    mail = MailRoot.open(vault.manifests, newest.parts[MAIL.id].root)
    prints = Prints(vault.root, vault.state)
    return [prints.of_objects and prints.is_intact(MAIL, mail, folder, name) for folder, name in ((INBOX, b""), (MAILBOX[1][0], b".Sent"))]


def test_an_object_that_is_gone_is_not_taken_to_stand(vault: Vault) -> None:
    sample(vault)
    assert _objects_stand(vault) == [False, False], "nothing is on record yet"
    build(vault)
    assert _objects_stand(vault) == [True, True]
    newest = vault.snapshots.latest()
    assert newest is not None
    first: Stored[Message] = next(MailRoot.open(vault.manifests, newest.parts[MAIL.id].root).records(INBOX.name))
    vault.objects.path(first.digest).unlink()
    assert _objects_stand(vault) == [False, True]


def test_an_object_that_was_set_aside_is_missed_whatever_the_file_system_does_to_its_inode(vault: Vault) -> None:
    sample(vault)
    build(vault)
    newest = vault.snapshots.latest()
    assert newest is not None
    first: Stored[Message] = next(MailRoot.open(vault.manifests, newest.parts[MAIL.id].root).records(INBOX.name))
    vault.objects.set_aside(first.digest, "a test")
    assert _objects_stand(vault) == [False, False]


@pytest.mark.parametrize("threads", [True, False])
def test_folders_can_be_looked_at_ahead_by_a_thread(vault: Vault, monkeypatch: pytest.MonkeyPatch, threads: bool) -> None:
    sample(vault)
    build(vault)
    newest = vault.snapshots.latest()
    assert newest is not None
    mail = MailRoot.open(vault.manifests, newest.parts[MAIL.id].root)
    first: Stored[Message] = next(mail.records(INBOX.name))
    vault.objects.path(first.digest).unlink()
    if not threads:

        def none_left(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", none_left)
    looked: list[threading.Thread] = []
    really = os.scandir

    def scandir(path: int | str) -> object:
        looked.append(threading.current_thread())
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    prints = Prints(vault.root, vault.state)
    prints.look_ahead(MAIL, [b"", b".Sent", b".Unknown"])
    assert not prints.is_intact(MAIL, mail, INBOX, b"")
    assert prints.is_intact(MAIL, mail, MAILBOX[1][0], b".Sent")
    assert (threading.main_thread() in looked) is not threads
    assert len(looked) == 6  # cur, new and tmp of two folders: each once


def test_what_is_copied_is_not_looked_at_ahead(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(vault)
    build(vault, "copy")
    monkeypatch.setattr(threading.Thread, "start", None)
    Prints(vault.root, vault.state).look_ahead(MAIL, [b"", b".Sent"])


def test_copies_say_nothing_of_objects(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(vault)
    build(vault, "copy")
    assert _objects_stand(vault) == [False, False]
    looked = made(vault, monkeypatch)
    build(vault, "copy")
    assert looked == [], "but they are seen to be as they were left"
    build(vault, "link")
    assert looked, "and what is to be made otherwise is made anew"
