"""Pruning: what may never go, what goes, and that an interruption leaves a whole vault."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostbackup.errors import Damaged, VaultError
from hostbackup.model import Folder, Observer, Part
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.prune import PrunePlan, apply_prune, plan_prune
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.tree import TreeRoot
from hostbackup.vault.vault import Vault
from hostbackup.vault.view import build_view, verify_view
from tests.support.sample_vault import INBOX, MAIL, WEB, File, Mail, write_mail, write_tree

NOW = datetime.datetime(2026, 11, 25, 3, 15, tzinfo=datetime.UTC)
OTHER = Part("web", "other")
VANISHED = "20260301T000000Z"


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """A vault open for pruning, which may write too."""
    with Vault.open(tmp_path / "v", "write", create=True):
        pass
    with Vault.open(tmp_path / "v", "prune", command="prune") as opened:
        yield opened


def take(
    vault: Vault, files: dict[bytes, File], day: int = 0, part: Part = WEB, *, state: str = "complete", mail: list[Mail] | None = None
) -> Snapshot:
    """One snapshot of a tree, and of a mailbox where `mail` is given. `day`: days after the first of January 2026."""
    parts = {part.id: PartState.of(part, write_tree(vault, part, files), state=state)}
    if mail is not None:
        parts[MAIL.id] = PartState.of(MAIL, write_mail(vault, MAIL, [(INBOX, mail)], b"INBOX."))
    now = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC) + datetime.timedelta(days=day)
    return vault.snapshots.write(parts, [], command="backup", exit=0, profile="p", now=now)


def plan(vault: Vault, *, last: int = 1, day: int = 0, week: int = 0, month: int = 0, **more: Any) -> PrunePlan:
    return plan_prune(vault, keep_last=last, keep_daily=day, keep_weekly=week, keep_monthly=month, **more)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_whole(vault: Vault) -> None:
    """Every snapshot that stands can be read to the last byte."""
    for snapshot_id in vault.snapshots.list():
        for state in vault.snapshots.get(snapshot_id).parts.values():
            if state.part.kind == "mail":
                needed = {record.digest for record in MailRoot.open(vault.manifests, state.root).walk()}
            else:
                needed = {record.digest for record in TreeRoot.open(vault.manifests, state.root).walk() if record.digest}
            assert [told for told in vault.objects.prove(sorted(needed)) if not told[1]] == []


def test_an_old_version_goes_with_the_snapshots_that_had_it(vault: Vault) -> None:
    old = take(vault, {b"a": File(b"old" * 100), b"same": File(b"same")}, 0)
    new = take(vault, {b"a": File(b"new"), b"same": File(b"same")}, 1)
    made = plan(vault)
    assert (made.remove, list(made.kept)) == ([old.id], [new.id])
    assert made.objects == 1
    assert made.manifests == 2
    assert made.bytes > 300
    assert vault.snapshots.list() == [old.id, new.id], "a plan changes nothing"
    apply_prune(vault, made)
    assert vault.snapshots.list() == [new.id]
    assert not vault.objects.has(digest(b"old" * 100))
    assert vault.objects.has(digest(b"same"))
    check_whole(vault)
    again = plan(vault)
    assert again.empty
    assert (again.objects, again.manifests, again.bytes) == (0, 0, 0)


def test_each_period_keeps_its_last_snapshot_and_says_why(vault: Vault) -> None:
    taken = [take(vault, {b"a": File(b"%d" % day)}, day) for day in range(70)]  # 2026-01-01 … 2026-03-11
    made = plan(vault, last=2, day=3, week=3, month=5)
    kept = [snapshot for snapshot in taken if snapshot.id in made.kept]
    days = [(snapshot.time[4:6], snapshot.time[6:8]) for snapshot in kept]
    assert days == [("01", "31"), ("02", "28"), ("03", "01"), ("03", "08"), ("03", "09"), ("03", "10"), ("03", "11")]
    assert made.kept[taken[30].id] == ["the last of month 2026-01"]
    assert "the last of week 2026-W10" in made.kept[taken[66].id]
    assert "one of the last 2" in made.kept[taken[-2].id]
    assert "the newest" in made.kept[taken[-1].id]
    assert sorted([*made.kept, *made.remove]) == [snapshot.id for snapshot in taken]


def test_the_newest_always_stays(vault: Vault) -> None:
    taken = [take(vault, {b"a": File(b"%d" % day)}, day) for day in range(3)]
    made = plan_prune(vault, keep_last=None, keep_daily=None, keep_weekly=None, keep_monthly=None)
    assert list(made.kept) == [taken[-1].id]


def test_an_empty_vault_has_nothing_to_prune(vault: Vault) -> None:
    assert plan(vault).empty
    assert apply_prune(vault, plan(vault)) is None


def test_the_newest_complete_snapshot_of_every_part_stays(vault: Vault) -> None:
    left = take(vault, {b"x": File(b"left the profile")}, 0, OTHER)
    complete = take(vault, {b"a": File(b"1")}, 1)
    goes = take(vault, {b"a": File(b"2")}, 2, state="incomplete")
    newest = take(vault, {b"a": File(b"3")}, 3, state="incomplete")
    made = plan(vault)
    assert made.remove == [goes.id]
    assert made.kept[complete.id] == ["the newest complete one of web/public_html"]
    assert made.kept[left.id] == ["the newest with web/other", "the newest complete one of web/other"]
    apply_prune(vault, made)
    assert vault.snapshots.list() == [left.id, complete.id, newest.id]
    check_whole(vault)


def test_mail_and_last_versions_stay_when_they_vanish(vault: Vault) -> None:
    take(vault, {b"a": File(b"kept"), b"gone": File(b"last version")}, 0, mail=[Mail(1, b"one"), Mail(2, b"two")])
    files = {b"a": File(b"kept"), b"gone": File(b"last version", vanished=VANISHED)}
    take(vault, files, 60, mail=[Mail(1, b"one", vanished=VANISHED), Mail(2, b"two")])
    apply_prune(vault, plan(vault))
    assert len(vault.snapshots.list()) == 1
    assert vault.objects.has(digest(b"last version"))
    assert vault.objects.has(digest(b"one"))


def test_what_vanished_before_a_day_leaves_the_history_when_asked(vault: Vault) -> None:
    later = "20260601T000000Z"
    files = {
        b"a": File(b"here"),
        b"old": File(b"vanished in March", vanished=VANISHED),
        b"new": File(b"vanished in June", vanished=later),
        b"gone": File(vanished=VANISHED),
        b"gone/in it": File(b"vanished with its folder", vanished=VANISHED),
        b"sub": File(),
        b"sub/was": File(b"vanished below", vanished=VANISHED),
    }
    mails = [
        Mail(1, b"March", vanished=VANISHED),
        Mail(2, b"June", vanished=later),
        Mail(3, b"here"),
        Mail(1, b"reset", vanished=VANISHED, uidvalidity=3),
    ]
    before = take(vault, files, 200, mail=mails)
    made = plan(vault, vanished_before=datetime.date(2026, 6, 1))
    assert (made.vanished, made.objects) == (6, 5)
    written = apply_prune(vault, made, profile="p", now=NOW)
    assert written is not None
    assert (written.command, written.number) == ("prune", before.number + 1)
    assert written.parts[WEB.id].carried_from == before.id
    tree = TreeRoot.open(vault.manifests, written.parts[WEB.id].root)
    assert [record.item.path for record in tree.walk(vanished=True)] == [b"a", b"new", b"sub"]
    assert list(tree.folders()) == [b"", b"sub"]
    mail = MailRoot.open(vault.manifests, written.parts[MAIL.id].root)
    assert [record.item.uid for record in mail.walk(vanished=True)] == [2, 3]
    assert written.parts[WEB.id].entries == before.parts[WEB.id].entries
    for data in (b"vanished in March", b"March", b"reset", b"vanished below", b"vanished with its folder"):
        assert not vault.objects.has(digest(data))
    for data in (b"here", b"vanished in June", b"June"):
        assert vault.objects.has(digest(data))
    check_whole(vault)
    assert build_view(vault, written, before, "link", Observer()) == []
    assert all(good for _, good, _ in verify_view(vault, Observer()))


def test_bytes_that_are_live_anywhere_stay_though_they_vanished_elsewhere(vault: Vault) -> None:
    take(vault, {b"a": File(b"shared"), b"b": File(b"shared", vanished=VANISHED)}, 100)
    made = plan(vault, vanished_before=datetime.date(2026, 12, 1))
    assert (made.vanished, made.objects) == (1, 0)
    apply_prune(vault, made, now=NOW)
    assert vault.objects.has(digest(b"shared"))


def test_what_the_newest_evidence_speaks_of_stays(vault: Vault) -> None:
    first = take(vault, {b"a": File(b"1")}, 0)
    second = take(vault, {b"a": File(b"2")}, 1)
    third = take(vault, {b"a": File(b"3")}, 2)
    take(vault, {b"a": File(b"4")}, 3)
    for proven, side in ((first, "new"), (second, "new"), (third, "old")):
        line = {"type": "proof", "snapshot": proven.id, "part": WEB.id, "manifest": proven.parts[WEB.id].root, "side": side}
        vault.evidence.write("verify", [line], NOW)
    made = plan(vault)
    assert made.remove == [first.id]
    assert made.kept[second.id] == ["evidence of web/public_html (new)"]
    assert made.kept[third.id] == ["evidence of web/public_html (old)"]


def test_a_manifest_that_evidence_speaks_of_stays_without_its_snapshot(vault: Vault) -> None:
    proven = take(vault, {b"a": File(b"proven")}, 0)
    root = proven.parts[WEB.id].root
    vault.evidence.write("verify", [{"type": "proof", "part": WEB.id, "manifest": root, "side": "new"}], NOW)
    take(vault, {b"a": File(b"newer")}, 1)
    apply_prune(vault, plan(vault))
    assert proven.id not in vault.snapshots.list()
    assert [record.digest for record in TreeRoot.open(vault.manifests, root).walk()] == [digest(b"proven")]
    assert vault.objects.has(digest(b"proven"))


def test_what_the_last_push_took_stays(vault: Vault) -> None:
    taken = [take(vault, {b"a": File(b"%d" % day)}, day) for day in range(4)]
    vault.state.write("push", {"snapshot": taken[0].id})
    vault.state.journal("push-web-x").append([{"key": "a", "snapshot": taken[1].id}])
    made = plan(vault, cited=[taken[2].id, "000099-20260101T000000Z"])
    assert made.remove == []
    assert (made.kept[taken[0].id], made.kept[taken[1].id], made.kept[taken[2].id]) == (["the last push"], ["the last push"], ["cited"])


def test_what_a_journal_names_stays(vault: Vault) -> None:
    take(vault, {b"a": File(b"a")}, 0)
    for name, data in (("resume-web", b"fetched"), ("saved", b"overwritten")):
        receiver = vault.objects.open()
        receiver.write(data)
        found, _ = receiver.commit()
        vault.state.journal(name).append([{"key": "x", "digest": found}, {"key": "y", "digest": "nonsense"}, {"key": "z"}])
    receiver = vault.objects.open()
    receiver.write(b"nobody's")
    receiver.commit()
    vault.flush()
    made = plan(vault)
    assert made.objects == 1
    apply_prune(vault, made)
    assert [vault.objects.has(digest(data)) for data in (b"fetched", b"overwritten", b"nobody's")] == [True, True, False]


def test_between_notice_and_the_last_gate_nothing_goes(vault: Vault) -> None:
    old = take(vault, {b"a": File(b"old")}, 0)
    take(vault, {b"a": File(b"new")}, 1)
    made = plan(vault, freeze=True, freeze_reason="notice was given on 2026-11-20 and gate delete has not passed")
    assert made.empty
    assert made.frozen.startswith("notice was given")
    assert made.kept[old.id] == [made.frozen]
    assert apply_prune(vault, made) is None
    assert len(vault.snapshots.list()) == 2


def test_where_something_cannot_be_read_nothing_goes(vault: Vault) -> None:
    take(vault, {b"a": File(b"old")}, 0)
    newest = take(vault, {b"a": File(b"new")}, 1)
    path = vault.manifests.path(newest.parts[WEB.id].root)
    path.chmod(0o600)
    path.write_bytes(b"{}")
    with pytest.raises(Damaged):
        plan(vault)
    path = vault.snapshots.path(vault.snapshots.list()[0])
    path.chmod(0o600)
    path.write_bytes(b"{}")
    with pytest.raises(Damaged):
        plan(vault)


def test_a_vault_that_others_read_is_not_pruned(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "v", "write", create=True) as vault:
        take(vault, {b"a": File(b"1")}, 0)
        with pytest.raises(VaultError, match="open for pruning"):
            apply_prune(vault, plan(vault))


@pytest.mark.parametrize("moment", range(12))
def test_interrupted_anywhere_it_leaves_a_whole_vault_and_is_completed_later(vault: Vault, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    for day in range(4):
        take(vault, {b"a": File(b"%d" % day), b"f/b": File(b"b%d" % day), b"v": File(b"vanished", vanished=VANISHED)}, day)
    made = plan(vault, vanished_before=datetime.date(2026, 12, 1))
    calls = [0]

    class Killed(BaseException):
        pass

    real_object, real_snapshot = ObjectFolder.remove, type(vault.snapshots).remove

    def remove_object(self: ObjectFolder, name: str) -> int:
        calls[0] += 1
        if calls[0] > moment:
            raise Killed
        return real_object(self, name)

    def remove_snapshot(self: object, name: str) -> None:
        calls[0] += 1
        if calls[0] > moment:
            raise Killed
        real_snapshot(vault.snapshots, name)

    monkeypatch.setattr(ObjectFolder, "remove", remove_object)
    monkeypatch.setattr(type(vault.snapshots), "remove", remove_snapshot)
    with pytest.raises(Killed):
        apply_prune(vault, made, now=NOW)
    monkeypatch.undo()
    check_whole(vault)
    apply_prune(vault, plan(vault))
    check_whole(vault)
    assert plan(vault).empty
    assert not vault.objects.has(digest(b"vanished"))
    assert not vault.objects.has(digest(b"1"))


def test_a_folder_gone_from_the_server_keeps_its_other_mail(vault: Vault) -> None:
    gone = Folder(b"INBOX.Old", b".", ("\\NonExistent",), uidvalidity=7)
    totals = write_mail(vault, MAIL, [(INBOX, [Mail(1, b"x")]), (gone, [Mail(1, b"y", vanished=VANISHED)])], b"INBOX.")
    vault.snapshots.write({MAIL.id: PartState.of(MAIL, totals)}, [], command="backup", exit=0, profile="p", now=NOW)
    written = apply_prune(vault, plan(vault, vanished_before=datetime.date(2026, 12, 1)), now=NOW)
    assert written is not None
    assert written.parts[MAIL.id].entries == 1
    assert not vault.objects.has(digest(b"y"))
