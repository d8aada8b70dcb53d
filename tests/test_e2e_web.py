"""Web trees from one real server to another, through the real command line."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.moves import Move, fill, odd_site, put, same_tree, size_of, state, whole_vault
from tests.support.sshd import Sshd, sshd, throwaway_user


@dataclass(frozen=True)
class Pair:
    """An old and a new server of one kind, and how they let files be proven."""

    old: Sshd
    new: Sshd
    method: str


@pytest.fixture(scope="module", params=[True, False], ids=["shell", "sftp-only"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with sshd(shell=request.param) as old, sshd(shell=request.param) as new:
        yield Pair(old, new, "server-sha256" if request.param else "sftp-second-read")


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd() as one:
        yield one


@pytest.fixture
def move(tmp_path: Path) -> Move:
    return Move(tmp_path)


def test_a_site_goes_from_server_to_server_and_every_byte_is_proven(move: Move, pair: Pair) -> None:
    odd_site(move.site)
    move.profile(move.ssh("old", pair.old), move.old_web(), move.ssh("new", pair.new), move.new_web())
    before = state(move.site)
    first = move.run("backup")
    proven = move.run("verify", "--against", "old")
    pushed = move.run("push")
    again = move.run("verify", "--against", "new")
    same_tree(move.site, move.vault / "latest/web/public_html")
    same_tree(move.site, move.target)
    assert state(move.target) == before == state(move.site)
    files = sum(1 for value in before.values() if value[0] == stat.S_IFREG)
    assert first.json["counts"]["read"] == files
    assert pushed.json["planned"]["web/public_html"]["create"] == len(before)
    lines = [line for line in [*proven.json["proven"], *again.json["proven"]] if line["side"] in ("old", "new")]
    assert [(line["side"], line["method"], line["counts"]) for line in lines] == [
        ("old", pair.method, {"verified": len(before)}),
        ("new", pair.method, {"verified": len(before)}),
    ]
    whole_vault(move.vault)


def test_a_second_run_reads_nothing_and_adds_little(move: Move, server: Sshd) -> None:
    odd_site(move.site)
    move.profile(move.ssh("old", server), move.old_web())
    move.run("backup")
    before = size_of(move.vault)
    second = move.run("backup")
    assert second.json["counts"].get("read", 0) == 0
    assert size_of(move.vault) - before < 20_000
    assert len(move.snapshots) == 2


def test_what_changed_came_and_went_since_the_last_run_is_told_and_kept(move: Move, server: Sshd) -> None:
    odd_site(move.site)
    move.profile(move.ssh("old", server), move.old_web())
    move.run("backup")
    put(move.site / "README", b"UPPER")
    put(move.site / "sub/added", b"new")
    (move.site / "readme").unlink()
    (move.site / "hollow/空").rmdir()
    second = move.run("backup")
    assert {key: second.json["counts"][key] for key in ("read", "vanished")} == {"read": 2, "vanished": 2}
    same_tree(move.site, move.vault / "latest/web/public_html")
    assert b"lower" in [path.read_bytes() for path in (move.vault / "objects").rglob("*") if path.is_file()]
    whole_vault(move.vault)


def test_what_is_excluded_stays_out_and_what_is_volatile_comes_without_being_expected_to_rest(move: Move, server: Sshd) -> None:
    fill(move.site, {b"index.html": b"page", b"cache/a": b"1", b"sub/cache/b": b"2", b"x.log": b"3", b"keep.log": b"4", b"sessions/s1": b"5"})
    more = 'exclude = ["cache/", "*.log", "!keep.log"]\nvolatile = ["sessions/"]'
    move.profile(move.ssh("old", server), move.old_web(more=more))
    assert move.run("backup").json["counts"]["read"] == 3
    there = set(state(move.vault / "latest/web/public_html"))
    assert there == {b"index.html", b"keep.log", b"sessions", b"sessions/s1", b"sub"}
    put(move.site / "sessions/s1", b"another visit")
    put(move.site / "sessions/s2", b"a new visit")
    proven = move.run("verify", "--against", "old")
    assert [line["counts"].get("changed-since", 0) for line in proven.json["proven"]] == [0, 0, 0]
    put(move.site / "index.html", b"changed")
    assert {row["name"] for row in move.run("verify", "--against", "old", exit=3).json["failures"]} == {"index.html"}


def test_two_trees_of_one_server_are_two_parts(move: Move, server: Sshd) -> None:
    fill(move.site, {b"index.html": b"one"})
    other = move.folder / "old" / "サブドメイン"
    fill(other, {b"index.html": b"two"})
    move.profile(move.ssh("old", server), move.old_web(), f'[[old.web]]\npath = "{other}"')
    parts = move.run("backup").json["parts"]
    assert set(parts) == {"web/public_html", "web/%E3%82%B5%E3%83%96%E3%83%89%E3%83%A1%E3%82%A4%E3%83%B3"}
    same_tree(other, move.vault / "latest/web/%E3%82%B5%E3%83%96%E3%83%89%E3%83%A1%E3%82%A4%E3%83%B3")
    same_tree(move.site, move.vault / "latest/web/public_html")


def test_what_may_not_be_read_is_listed_everywhere_and_keeps_its_last_good_bytes(move: Move) -> None:
    with throwaway_user() as user, sshd(user=user.name, shell=False) as server:
        site = user.home / "public_html"
        fill(site, {b"index.html": b"page", b"secret.php": b"first", b"private/a": b"A", b"private/deep/b": b"B", b"\xff": b"odd"})
        for path in [site, *site.rglob("*")]:
            os.chown(path, user.uid, -1)
        move.profile(move.ssh("old", server), '[[old.web]]\npath = "public_html"')
        move.run("backup")
        put(site / "secret.php", b"second, longer")
        for path in (site / "secret.php", site / "private", site / os.fsdecode(b"\xff")):
            path.chmod(0)
        put(site / os.fsdecode(b"\xff"), b"odd too")
        ran = move.run("backup", exit=3)
        listed = {(row.get("name", row.get("name_b64")), row["code"]) for row in ran.json["failures"]}
        assert listed == {("secret.php", "permission"), ("private", "permission"), ("/w==", "permission")}
        for name in ("secret.php", "private", "\\xff"):
            assert name in ran.err
        assert move.snapshots[-1]["failures"] == ran.json["failures"]
        assert move.snapshots[-1]["exit"] == 3
        state_now = ran.json["parts"]["web/public_html"]
        assert (state_now["state"], state_now["failed"]) == ("incomplete", 0)
        assert state_now["stale"] >= 4
        latest = move.vault / "latest/web/public_html"
        found = [(latest / name).read_bytes() for name in ("secret.php", "private/a", "private/deep/b", os.fsdecode(b"\xff"))]
        assert found == [b"first", b"A", b"B", b"odd"]
        stale = {row.get("name") for row in move.run("ls", "web/public_html").json["entries"] if row.get("stale")}
        assert {"secret.php", "private/a", "private/deep/b"} <= stale
        assert move.run("verify", "--against", "old", exit=3)
        for path in (site / "secret.php", site / "private", site / os.fsdecode(b"\xff")):
            path.chmod(0o700)
        healed = move.run("backup")
        assert healed.json["counts"]["read"] == 2, "only what changed meanwhile is read: the rest was here all the time"
        assert healed.json["parts"]["web/public_html"]["stale"] == 0
        assert (latest / "secret.php").read_bytes() == b"second, longer"


def test_a_first_run_lists_what_it_could_not_have(move: Move) -> None:
    with throwaway_user() as user, sshd(user=user.name) as server:
        site = user.home / "public_html"
        fill(site, {b"index.html": b"page", b"root-only": b"x", b"closed/a": b"A"})
        (site / "root-only").chmod(0o600)
        (site / "closed").chmod(0o700)
        move.profile(move.ssh("old", server), '[[old.web]]\npath = "public_html"')
        ran = move.run("backup", exit=3)
        assert {row["name"] for row in ran.json["failures"]} == {"root-only", "closed"}
        assert (ran.json["parts"]["web/public_html"]["entries"], ran.json["parts"]["web/public_html"]["failed"]) == (1, 1)
        assert (move.vault / "latest/web/public_html/index.html").read_bytes() == b"page"
        text = move.run("ls", "web/public_html").out
        assert "permission" in text or "may not" in text


def test_a_path_that_does_not_exist_fails_in_words_and_leaves_the_other_parts_safe(move: Move, server: Sshd) -> None:
    fill(move.site, {b"index.html": b"page"})
    missing = '[[old.web]]\npath = "/srv/no-such-folder"'
    move.profile(move.ssh("old", server), missing)
    ran = move.run("backup", exit=1)
    assert "/srv/no-such-folder" in ran.err
    assert "no such folder" in ran.reasons
    assert move.snapshots == []
    move.profile(move.ssh("old", server), missing, move.old_web())
    assert "no such folder" in move.run("backup", exit=3).reasons
    assert (move.vault / "latest/web/public_html/index.html").read_bytes() == b"page"
    put(move.site / "index.html", b"newer page")
    move.profile(move.ssh("old", server), f'[[old.web]]\npath = "{move.site}"\n[[old.web]]\npath = "{move.site}/gone"')
    assert "no such folder" in move.run("backup", exit=3).reasons


def test_a_part_that_cannot_be_reached_any_more_carries_its_last_state(move: Move, server: Sshd) -> None:
    other = move.folder / "old" / "second"
    fill(move.site, {b"index.html": b"page"})
    fill(other, {b"index.html": b"other"})
    move.profile(move.ssh("old", server), move.old_web(), f'[[old.web]]\npath = "{other}"')
    first = move.run("backup")
    other.rename(move.folder / "old" / "elsewhere")
    move.run("backup", exit=3)
    carried = move.snapshots[-1]["parts"]["web/second"]
    assert (carried["state"], carried["carried_from"]) == ("carried", first.json["snapshot"])
    assert "no such folder" in carried["reason"]
    assert (move.vault / "latest/web/second/index.html").read_bytes() == b"other"


def test_a_file_that_became_a_folder_and_a_folder_that_became_a_link(move: Move, server: Sshd) -> None:
    fill(move.site, {b"news": b"a file", b"blog/post": b"a post", b"about/index.html": b"about", b"index.html": b"page"})
    move.profile(move.ssh("old", server), move.old_web())
    move.run("backup")
    (move.site / "news").unlink()
    fill(move.site / "news", {b"2024.html": b"news in a folder"})
    (move.site / "blog/post").unlink()
    (move.site / "blog").rmdir()
    (move.site / "blog").symlink_to("news")
    (move.site / "about/index.html").unlink()
    (move.site / "about").rmdir()
    put(move.site / "about", b"a file now")
    move.run("backup")
    same_tree(move.site, move.vault / "latest/web/public_html")
    assert b"a post" in [path.read_bytes() for path in (move.vault / "objects").rglob("*") if path.is_file()]
    gone = [(row["name"], row["kind"]) for row in move.run("ls", "web/public_html", "--vanished").json["entries"] if row.get("vanished")]
    assert {("news", "file"), ("blog/post", "file"), ("about/index.html", "file")} <= set(gone)
    assert move.run("backup").json["counts"].get("read", 0) == 0
    move.run("verify", "--against", "old")
    whole_vault(move.vault)


def test_a_file_too_fresh_to_be_trusted_is_read_again(move: Move, server: Sshd) -> None:
    fill(move.site, {b"old.html": b"at rest", b"fresh.html": b"first", b"future.html": b"clock"})
    move.profile(move.ssh("old", server), move.old_web())
    now = int(time.time()) + 3600
    os.utime(move.site / "fresh.html", (now, now))
    move.run("backup")
    (move.site / "fresh.html").write_bytes(b"other")
    os.utime(move.site / "fresh.html", (now, now))
    second = move.run("backup")
    assert second.json["counts"]["read"] == 1
    assert (move.vault / "latest/web/public_html/fresh.html").read_bytes() == b"other"


def test_a_change_under_an_old_time_is_found_by_checksum_alone(move: Move, pair: Pair) -> None:
    fill(move.site, {b"index.html": b"first", b"same": b"same"})
    move.profile(move.ssh("old", pair.old), move.old_web())
    move.run("backup")
    known = (move.site / "index.html").stat().st_mtime
    (move.site / "index.html").write_bytes(b"FIRST")
    os.utime(move.site / "index.html", (known, known))
    assert move.run("backup").json["counts"].get("read", 0) == 0
    assert move.run("verify", "--against", "old", exit=4).json["failures"][0]["code"] == "different"
    assert move.run("backup", "--checksum").json["counts"]["read"] == 1
    assert (move.vault / "latest/web/public_html/index.html").read_bytes() == b"FIRST"
    move.run("verify", "--against", "old")


def test_special_files_are_listed_and_never_read(move: Move, server: Sshd) -> None:
    fill(move.site, {b"index.html": b"page"})
    os.mkfifo(move.site / "pipe")
    move.profile(move.ssh("old", server), move.old_web())
    move.run("backup")
    rows = {row["name"]: row["kind"] for row in move.run("ls", "web/public_html").json["entries"]}
    assert rows == {"index.html": "file", "pipe": "other"}
    move.run("verify", "--against", "old")


def test_restored_from_the_vault_a_site_is_what_it_was(move: Move, server: Sshd) -> None:
    odd_site(move.site)
    move.profile(move.ssh("old", server), move.old_web())
    move.run("backup")
    before = state(move.site)
    put(move.site / "README", b"changed since")
    move.run("restore", "--to", str(move.folder / "back"))
    assert state(move.folder / "back/web/public_html") == before
