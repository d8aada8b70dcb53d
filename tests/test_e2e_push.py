"""Pushing web trees to a real server: nothing there is deleted, and nothing that somebody else changed is overwritten."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostbackup.model import Entry, Kind, Part, Write
from hostbackup.places.base import Place
from hostbackup.places.local import LocalTree
from hostbackup.places.sftp import SftpTree
from hostbackup.protocols.ssh import connect
from tests.support.cli import Ran
from tests.support.faulty_sftp import command
from tests.support.moves import PAST, Move, State, date, ended, fill, leftovers, many_files, odd_site, put, same_tree, state, until, whole_vault
from tests.support.sshd import Relay, Sshd, sshd, throwaway_user

PART = "web/public_html"


@pytest.fixture(scope="module", params=[True, False], ids=["shell", "sftp-only"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[Sshd, Sshd]]:
    with sshd() as old, sshd(shell=request.param) as new:
        yield old, new


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Sshd, Sshd]]:
    with sshd() as old, sshd() as new:
        yield old, new


@pytest.fixture
def move(tmp_path: Path, two: tuple[Sshd, Sshd]) -> Move:
    """A move between two servers with shells, with nothing in it yet."""
    made = Move(tmp_path)
    profile(made, two)
    return made


def profile(move: Move, servers: tuple[Sshd, Sshd], *, more: str = "", port: int | None = None) -> None:
    move.profile(move.ssh("old", servers[0]), move.old_web(), move.ssh("new", servers[1], port=port), move.new_web(more=more))


def told(ran: Ran, key: str = "failures", **wanted: str) -> set[str]:
    """Names in a list of the JSON document, of rows that have these values."""
    return {row.get("name", row.get("name_b64")) for row in ran.json.get(key, []) if all(row.get(name) == value for name, value in wanted.items())}


def read(path: Path) -> bytes | str | None:
    if path.is_symlink():
        return str(path.readlink())
    return path.read_bytes() if path.is_file() else None


def kept(move: Move) -> State:
    """The vault without its lock, whose text tells who had it last."""
    return {name: value for name, value in state(move.vault, times=False).items() if name != b"lock"}


# -- the three-way comparison -------------------------------------------------------------------------------------------------------------

OLD_1 = {
    b"absent.html": b"absent",
    b"deep/er/absent.html": b"absent too",
    b"equal.html": b"equal",
    b"ours.html": b"ours 1",
    b"ours-same-size.html": b"1",
    b"theirs.html": b"theirs 1",
    b"both.html": b"both 1",
    b"before.html": b"old server's",
    b"wp-config.php": b"old database",
    b"conf/wp-config.php": b"another",
    b"removed-there.html": b"removed",
    b"item": b"a file here",
    b"thing/inside": b"in a folder here",
    b"real/inside": b"must not go through a link",
}
NEW_1 = {
    b"equal.html": b"equal",
    b"before.html": b"new server's",
    b"wp-config.php": b"new database",
    b"extra.html": b"only on the new server",
    b"item/inside": b"a folder there",
    b"thing": b"a file there",
}


@dataclass
class Scene:
    move: Move
    first: Ran
    second: Ran
    elsewhere: Path


@pytest.fixture(scope="module")
def scene(servers: tuple[Sshd, Sshd], tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Two pushes, with changes on both sides in between."""
    move = Move(tmp_path_factory.mktemp("scene"))
    fill(move.site, OLD_1)
    fill(move.target, NEW_1)
    elsewhere = move.folder / "new" / "elsewhere"
    elsewhere.mkdir()
    (move.target / "real").symlink_to(elsewhere)
    for name, old, new in (("l-equal", "x", "x"), ("l-before", "x", "y"), ("l-ours", "1", ""), ("l-theirs", "1", ""), ("l-both", "1", "")):
        (move.site / name).symlink_to(old)
        if new:
            (move.target / name).symlink_to(new)
    date(move.target, PAST - 5_000_000)
    profile(move, servers, more='adapted = ["wp-config.php"]')
    move.run("backup")
    first = move.run("push", exit=3)
    after_first = {name: read(move.target / name) for name in ("theirs.html", "both.html", "ours.html", "wp-config.php", "conf/wp-config.php")}
    assert after_first == {
        "theirs.html": b"theirs 1",
        "both.html": b"both 1",
        "ours.html": b"ours 1",
        "wp-config.php": b"new database",
        "conf/wp-config.php": b"another",
    }
    for name, data in (("ours.html", b"ours 2, longer"), ("ours-same-size.html", b"2"), ("both.html", b"both 2"), ("added.html", b"added")):
        put(move.site / name, data)
    for name, data in (("theirs.html", b"edited there"), ("both.html", b"edited there too"), ("conf/wp-config.php", b"adapted there")):
        put(move.target / name, data, PAST + 60_000)
    put(move.site / "conf/wp-config.php", b"changed at the old server")
    for root, name, target in ((move.site, "l-ours", "2"), (move.target, "l-theirs", "2"), (move.site, "l-both", "2"), (move.target, "l-both", "3")):
        (root / name).unlink()
        (root / name).symlink_to(target)
    (move.target / "removed-there.html").unlink()
    move.run("backup")
    return Scene(move, first, move.run("push", exit=3), elsewhere)


def test_what_is_damaged_in_the_vault_is_damage_and_everything_else_is_pushed(servers: tuple[Sshd, Sshd], tmp_path: Path) -> None:
    it = Move(tmp_path)
    fill(it.site, {b"good.html": b"good", b"spoilt.html": b"spoilt"})
    profile(it, servers)
    it.run("backup")
    digest = hashlib.sha256(b"spoilt").hexdigest()
    path = it.vault / "objects" / digest[:2] / digest
    path.chmod(0o600)
    path.write_bytes(b"SPOILT")
    ran = it.run("push", exit=4)
    assert told(ran, code="damaged") == {"spoilt.html"}
    assert sorted(path.name for path in it.target.iterdir()) == ["good.html"]


def test_what_is_absent_is_written(scene: Scene) -> None:
    assert [read(scene.move.target / name) for name in ("absent.html", "deep/er/absent.html", "added.html")] == [b"absent", b"absent too", b"added"]
    assert read(scene.move.target / "removed-there.html") == b"removed"


def test_what_is_equal_already_is_left_as_it_is(scene: Scene) -> None:
    assert (scene.move.target / "equal.html").stat().st_mtime < PAST - 4_000_000
    assert scene.first.json["planned"][PART]["adopt"] >= 2
    assert not {"equal.html", "l-equal"} & told(scene.first)


def test_what_we_wrote_ourselves_is_updated(scene: Scene) -> None:
    assert [read(scene.move.target / name) for name in ("ours.html", "ours-same-size.html", "l-ours")] == [b"ours 2, longer", b"2", "2"]


def test_an_edit_of_the_new_side_is_left_alone_and_listed(scene: Scene) -> None:
    assert [read(scene.move.target / name) for name in ("theirs.html", "l-theirs")] == [b"edited there", "2"]
    assert {"theirs.html", "l-theirs"} <= told(scene.second, "left_alone", action="changed-at-new-side")
    assert not {"theirs.html", "l-theirs"} & told(scene.second)


def test_what_changed_on_both_sides_is_a_conflict(scene: Scene) -> None:
    assert [read(scene.move.target / name) for name in ("both.html", "l-both")] == [b"edited there too", "3"]
    assert {"both.html", "l-both"} <= told(scene.second, code="conflict")
    assert "both.html" in scene.second.err


def test_what_was_there_before_and_differs_is_a_conflict(scene: Scene) -> None:
    assert [read(scene.move.target / name) for name in ("before.html", "l-before")] == [b"new server's", "y"]
    for ran in (scene.first, scene.second):
        assert {"before.html", "l-before"} <= told(ran, code="conflict")


def test_a_folder_never_takes_the_place_of_a_file_or_a_link_nor_the_other_way_round(scene: Scene) -> None:
    assert {"item", "thing", "real"} <= told(scene.second, code="conflict")
    assert (read(scene.move.target / "thing"), read(scene.move.target / "item/inside")) == (b"a file there", b"a folder there")
    assert list(scene.elsewhere.iterdir()) == [], "nothing goes through a link"


def test_what_is_adapted_is_written_once_and_then_left_and_listed(scene: Scene) -> None:
    assert [read(scene.move.target / name) for name in ("wp-config.php", "conf/wp-config.php")] == [b"new database", b"adapted there"]
    assert told(scene.second, "left_alone", action="adapted") == {"wp-config.php", "conf/wp-config.php"}


def test_nothing_that_only_the_new_server_has_is_deleted(scene: Scene) -> None:
    assert read(scene.move.target / "extra.html") == b"only on the new server"
    assert leftovers(scene.move.target) == []


def test_only_conflicts_make_it_incomplete(scene: Scene) -> None:
    assert told(scene.first) == {"before.html", "l-before", "item", "thing", "real"}
    assert told(scene.second) == told(scene.first) | {"both.html", "l-both"}
    assert {row["code"] for row in scene.second.json["failures"]} == {"conflict"}


def test_verify_against_the_new_server_tells_what_is_not_as_pushed(scene: Scene) -> None:
    ran = scene.move.run("verify", "--against", "new", exit=3)
    assert {"theirs.html", "both.html", "before.html"} <= told(ran, side="new")
    assert not {"ours.html", "absent.html", "wp-config.php", "conf/wp-config.php"} & told(ran)


# -- pushing again ------------------------------------------------------------------------------------------------------------------------


def test_pushing_twice_writes_nothing_more(move: Move) -> None:
    odd_site(move.site)
    move.run("backup")
    move.run("push")
    before = {path: path.lstat().st_ino for path in move.target.rglob("*")}
    again = move.run("push")
    assert again.json["counts"].get("written", 0) == 0
    assert {path: path.lstat().st_ino for path in move.target.rglob("*")} == before
    assert state(move.target) == state(move.site)


def test_without_its_journal_a_push_finds_what_is_equal(move: Move) -> None:
    odd_site(move.site)
    move.run("backup")
    move.run("push")
    for journal in (move.vault / "state").glob("push*"):
        journal.unlink()
    again = move.run("push")
    assert again.json["counts"].get("written", 0) == 0
    put(move.site / "README", b"a newer one")
    move.run("backup")
    assert move.run("push").json["counts"]["written"] == 1, "what was found equal counts as our own from then on"
    assert read(move.target / "README") == b"a newer one"


def test_an_edit_under_the_old_size_and_time_is_not_overwritten(move: Move) -> None:
    fill(move.site, {b"a": b"one", b"b": b"one"})
    move.run("backup")
    move.run("push")
    known = (move.target / "a").stat().st_mtime
    put(move.target / "a", b"two", int(known))
    put(move.site / "a", b"three")
    put(move.site / "b", b"three")
    move.run("backup")
    assert told(move.run("push", exit=3), code="conflict") == {"a"}
    assert [read(move.target / name) for name in ("a", "b")] == [b"two", b"three"]


def test_the_target_folder_is_made_with_all_that_leads_to_it(move: Move) -> None:
    fill(move.site, {b"index.html": b"page", b"img/x.png": b"x"})
    assert not move.target.parent.exists()
    move.run("backup")
    move.run("push")
    assert state(move.target) == state(move.site)


def test_modes_and_times_go_along(move: Move) -> None:
    fill(move.site, {b"f": b"x", b"cgi/run.pl": b"#!", b"shut/in": b"y"})
    for name, mode in (("f", 0o640), ("cgi/run.pl", 0o755), ("cgi", 0o711), ("shut/in", 0o444), ("shut", 0o555)):
        (move.site / name).chmod(mode)
    move.run("backup")
    move.run("push")
    assert state(move.target) == state(move.site)


def test_a_dry_run_changes_nothing_anywhere(move: Move) -> None:
    odd_site(move.site)
    put(move.target / "README", b"theirs", PAST)
    move.run("backup")
    before, known = state(move.target), kept(move)
    planned = move.run("push", "--dry-run", "--overwrite", "README")
    assert (state(move.target), kept(move)) == (before, known)
    assert "README" in told(planned, "plan", action="overwrite")
    assert "会社案内.html" in told(planned, "plan", action="create")
    assert planned.json["planned"][PART]["write"] > 20


def test_a_snapshot_can_be_pushed_by_its_number(move: Move) -> None:
    fill(move.site, {b"index.html": b"first", b"gone.html": b"gone"})
    move.run("backup")
    put(move.site / "index.html", b"second")
    (move.site / "gone.html").unlink()
    move.run("backup")
    assert move.run("push", "--snapshot", "1").json["snapshot"] == move.snapshots[0]["id"]
    assert [read(move.target / name) for name in ("index.html", "gone.html")] == [b"first", b"gone"]
    move.run("push")
    assert [read(move.target / name) for name in ("index.html", "gone.html")] == [b"second", b"gone"]
    assert "no snapshot" in move.run("push", "--snapshot", "7", exit=2).reasons


def test_what_is_overwritten_on_demand_is_kept_in_the_vault_first(move: Move) -> None:
    fill(move.site, {b"a.html": b"old a", b"b.html": b"old b", b"sub/c.html": b"old c", b"sub/d.html": b"old d"})
    fill(move.target, {b"a.html": b"new a", b"b.html": b"new b", b"sub/c.html": b"new c", b"sub/d.html": b"new d"})
    (move.site / "link").symlink_to("a.html")
    (move.target / "link").symlink_to("b.html")
    move.run("backup")
    ran = move.run("push", "--overwrite", "a.html", "--overwrite", "sub/", "--overwrite", "link", exit=3)
    assert told(ran, code="conflict") == {"b.html"}
    contents = [read(move.target / name) for name in ("a.html", "b.html", "sub/c.html", "sub/d.html", "link")]
    assert contents == [b"old a", b"new b", b"old c", b"old d", "a.html"]
    saved = {row["name"]: row for row in ran.json["saved"]}
    assert set(saved) == {"a.html", "sub/c.html", "sub/d.html", "link"}
    for name, data in (("a.html", b"new a"), ("sub/c.html", b"new c"), ("sub/d.html", b"new d")):
        digest = saved[name]["digest"]
        assert (move.vault / "objects" / digest[:2] / digest).read_bytes() == data
        assert digest in ran.out
    assert saved["link"]["target"] == "b.html"
    journal = [json.loads(line) for line in (move.vault / "state/saved.jsonl").read_text().splitlines()]
    assert {row["key"] for row in journal} == set(saved)
    move.run("prune", "--apply", "--keep-last", "1")
    for row in saved.values():
        assert not row["digest"] or (move.vault / "objects" / row["digest"][:2] / row["digest"]).exists()


def test_what_cannot_be_kept_is_not_overwritten(tmp_path: Path, two: tuple[Sshd, Sshd]) -> None:
    move = Move(tmp_path)
    fill(move.site, {b"a": b"old a", b"b": b"old b"})
    with throwaway_user() as user, sshd(user=user.name) as new:
        root = user.home / "html"
        fill(root, {b"a": b"new a", b"b": b"new b"})
        for path in (root, root / "b"):
            os.chown(path, user.uid, -1)
        (root / "a").chmod(0o600)  # root's: in a folder of the user's it could be replaced, but not be read
        move.profile(move.ssh("old", two[0]), move.old_web(), move.ssh("new", new), '[[new.web]]\nfrom = "public_html"\npath = "html"')
        move.run("backup")
        ran = move.run("push", "--overwrite", "*", exit=3)
        assert told(ran, code="permission") == {"a"}
        assert [read(root / name) for name in "ab"] == [b"new a", b"old b"]


def test_a_tree_that_shrank_suspiciously_updates_nothing_until_somebody_looked(move: Move) -> None:
    fill(move.site, {b"index.html": b"page"} | {b"page%d" % number: b"%d" % number for number in range(20)})
    move.run("backup")
    move.run("push")
    for number in range(20):
        (move.site / f"page{number}").unlink()
    put(move.site / "index.html", b"account suspended")
    put(move.site / "new.html", b"new")
    move.run("backup", exit=3)
    ran = move.run("push", exit=3)
    assert told(ran, code="shrunk") == {"index.html"}
    assert [read(move.target / name) for name in ("index.html", "page7", "new.html")] == [b"page", b"7", b"new"]
    move.run("backup", "--accept-shrink", "public_html")
    move.run("push")
    assert read(move.target / "index.html") == b"account suspended"


def test_what_the_vault_never_got_whole_is_told_and_not_pushed(tmp_path: Path, two: tuple[Sshd, Sshd]) -> None:
    move = Move(tmp_path)
    with throwaway_user() as user, sshd(user=user.name) as old:
        fill(user.home / "public_html", {b"index.html": b"page", b"secret": b"x"})
        (user.home / "public_html/secret").chmod(0o600)
        move.profile(move.ssh("old", old), '[[old.web]]\npath = "public_html"', move.ssh("new", two[1]), move.new_web())
        move.run("backup", exit=3)
        ran = move.run("push", exit=3)
    assert told(ran) == {"secret"}
    assert [read(move.target / name) for name in ("index.html", "secret")] == [b"page", None]


def test_a_push_without_anything_to_push_to_or_from_says_so(move: Move, two: tuple[Sshd, Sshd]) -> None:
    fill(move.site, {b"index.html": b"page"})
    move.run("push", exit=1)
    move.run("backup")
    move.profile(move.ssh("old", two[0]), move.old_web())
    assert "nothing to push" in move.run("push", exit=2).reasons


# -- mode and time alone ------------------------------------------------------------------------------------------------------------------


def dress(path: Path, mode: int, when: int) -> None:
    path.chmod(mode)
    os.utime(path, (when, when))


def dressed(path: Path) -> tuple[int, float]:
    known = path.stat()
    return known.st_mode & 0o7777, known.st_mtime


def test_a_change_of_mode_or_time_alone_is_pushed_without_the_contents(move: Move, two: tuple[Sshd, Sshd]) -> None:
    fill(move.site, {b"mode": b"m", b"time": b"t", b"both/in": b"b", b"still": b"s"})
    move.run("backup")
    move.run("push")
    inodes = {path: path.stat().st_ino for path in move.target.rglob("*")}
    dress(move.site / "mode", 0o600, int((move.site / "mode").stat().st_mtime))
    dress(move.site / "time", 0o644, PAST + 70_000)
    dress(move.site / "both/in", 0o640, PAST + 70_000)
    dress(move.site / "both", 0o711, PAST + 70_000)
    move.run("backup")
    told_before = move.run("push", "--dry-run")
    assert told(told_before, "plan", action="attributes") == {"mode", "time", "both/in", "both"}
    ran = move.run("push")
    assert (ran.json["counts"].get("written", 0), ran.json["counts"]["attributes_written"]) == (0, 4)
    assert state(move.target) == state(move.site)
    assert {path: path.stat().st_ino for path in move.target.rglob("*")} == inodes
    assert move.run("push").json["counts"].get("attributes_written", 0) == 0
    move.run("verify", "--against", "new")


def test_a_mode_that_the_new_side_changed_is_left_alone_and_listed_if_the_old_side_changed_it_too(move: Move) -> None:
    fill(move.site, {b"theirs": b"1", b"both": b"2", b"alike": b"3", b"updated": b"4"})
    move.run("backup")
    move.run("push")
    for name in ("theirs", "both", "alike"):
        (move.target / name).chmod(0o600)
    for name, mode in (("both", 0o640), ("alike", 0o600)):
        (move.site / name).chmod(mode)
    move.run("backup")
    for _ in range(2):
        ran = move.run("push")
        assert told(ran, "left_alone", action="changed-at-new-side") == {"both"}
    assert [dressed(move.target / name)[0] for name in ("theirs", "both", "alike")] == [0o600, 0o600, 0o600]


def test_a_part_that_shrank_has_no_modes_pushed_either(move: Move) -> None:
    fill(move.site, {b"index.html": b"page"} | {b"page%d" % number: b"%d" % number for number in range(20)})
    move.run("backup")
    move.run("push")
    for number in range(20):
        (move.site / f"page{number}").unlink()
    (move.site / "index.html").chmod(0o600)
    move.run("backup", exit=3)
    assert told(move.run("push", exit=3), code="shrunk") == {"index.html"}
    assert dressed(move.target / "index.html")[0] == 0o644


def test_times_before_1970_are_pushed_once_and_not_as_times_to_come(move: Move) -> None:
    fill(move.site, {b"old": b"x"})
    dress(move.site / "old", 0o644, -32400)
    move.run("backup")
    assert (move.vault / "latest/web/public_html/old").stat().st_mtime == -32400
    move.run("push")
    assert dressed(move.target / "old") == (0o644, 0)
    counts = move.run("push").json["counts"]
    assert (counts.get("written", 0), counts.get("attributes_written", 0)) == (0, 0)


# -- folders that are known to hold all ---------------------------------------------------------------------------------------------------


def settled(move: Move) -> Path:
    return next((move.vault / "state").glob("settled-*"), move.vault / "none")


def test_what_is_known_of_folders_changes_speed_only(move: Move) -> None:
    """A push that looks at each entry, and one that knows most folders again, end alike: after a change on either side, and without the note."""
    odd_site(move.site)
    fill(move.site, many_files(60))
    move.run("backup")
    move.run("push")
    put(move.target / "d01/f0001", b"theirs", PAST + 80_000)
    put(move.site / "d02/f0002", b"ours, changed", PAST + 80_000)
    put(move.site / "d03/f0003", b"conflict", PAST + 80_000)
    put(move.target / "d03/f0003", b"conflict!", PAST + 90_000)
    (move.target / "d04/f0004").unlink()
    move.run("backup")
    plans = []
    for _ in range(2):
        ran = move.run("push", "--dry-run", exit=3)
        plans.append((ran.json["planned"], ran.json["plan"], ran.json["left_alone"], ran.json["failures"]))
        settled(move).unlink(missing_ok=True)
    assert plans[0] == plans[1]
    assert told(ran, "plan") == {"d02/f0002", "d04/f0004"}
    move.run("push", exit=3)
    assert [read(move.target / name) for name in ("d01/f0001", "d02/f0002", "d03/f0003")] == [b"theirs", b"ours, changed", b"conflict!"]
    again = move.run("push", exit=3)
    assert told(again, "left_alone") == {"d01/f0001"}
    assert told(again, code="conflict") == {"d03/f0003"}


def test_a_push_with_nothing_to_do_looks_at_no_entry_twice(move: Move) -> None:
    odd_site(move.site)
    move.run("backup")
    first = move.run("push")
    noted = settled(move).stat().st_mtime_ns
    again = move.run("push")
    assert again.json["planned"][PART]["equal"] == first.json["planned"][PART]["create"]
    assert again.json["counts"].get("written", 0) == 0
    assert settled(move).stat().st_mtime_ns == noted


def test_a_journal_that_was_replaced_makes_what_is_known_of_folders_void(move: Move) -> None:
    fill(move.site, {b"a": b"one", b"d/b": b"one"})
    move.run("backup")
    move.run("push")
    (journal,) = (move.vault / "state").glob("push-web*")
    journal.unlink()
    assert move.run("push").json["planned"][PART]["adopt"] == 3
    put(move.site / "a", b"newer")
    move.run("backup")
    move.run("push")
    assert read(move.target / "a") == b"newer"


# -- killed in the middle -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", [False, True], ids=["first", "update"])
def test_a_push_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path, two: tuple[Sshd, Sshd], update: bool) -> None:
    move, chance = Move(tmp_path), random.Random(update)
    odd_site(move.site)
    fill(move.site, many_files(400))
    (move.site / "d01/link").symlink_to("f0001")
    with Relay(two[1].port, delay=0.01) as relay:
        profile(move, two, port=relay.port)
        move.run("backup")
        if update:
            move.run("push")
            for number in range(0, 400, 2):
                put(move.site / f"d{number % 11:02}/f{number:04}", b"second %d" % number, PAST + 200_000)
            relink(move.site / "d01/link", "f0012")
            move.run("backup")
        for _ in range(2):
            kill_after(move, chance.randrange(1, 70))
        put(move.site / "README", b"changed in between", PAST + 300_000)
        put(move.site / "d00/f0000", b"third", PAST + 300_000)
        relink(move.site / "d01/link", "f0023")
        move.run("backup")
        assert move.run("push").json["failures"] == []
        assert leftovers(move.target) == []
        same_tree(move.site, move.target)
        assert state(move.target) == state(move.site)
        assert move.run("push").json["counts"].get("written", 0) == 0
        move.run("verify", "--against", "new")
    whole_vault(move.vault)


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def kill_after(move: Move, wanted: int) -> None:
    """Pushes, and kills that once it wrote about so many entries."""
    began = count_written(move)
    process = move.start("push")
    assert until(lambda: count_written(move) - began >= wanted, process), "it ended before it could be killed"
    ended(process, signal.SIGKILL)


def count_written(move: Move) -> int:
    """What the journals of pushes tell as done."""
    return sum(path.read_bytes().count(b'"state":"done"') for path in (move.vault / "state").glob("push-web*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_push_that_is_asked_to_stop_tidies_up_and_goes_on_next_time(tmp_path: Path, two: tuple[Sshd, Sshd], number: signal.Signals) -> None:
    move = Move(tmp_path)
    fill(move.site, many_files(400))
    with Relay(two[1].port, delay=0.02) as relay:
        profile(move, two, port=relay.port)
        move.run("backup")
        process = move.start("push")
        assert until(lambda: count_written(move) >= 30, process)
        ran = ended(process, number)
        assert (ran.exit, ran.json["exit"]) == (130, 130)
        move.run("push")
    assert leftovers(move.target) == []
    assert state(move.target) == state(move.site)


def test_a_line_that_stays_cut_leaves_what_was_pushed_and_lists_the_rest(tmp_path: Path, two: tuple[Sshd, Sshd]) -> None:
    move = Move(tmp_path)
    files = many_files(400)
    fill(move.site, files)
    with Relay(two[1].port, delay=0.02) as relay:
        profile(move, two, port=relay.port)
        move.run("backup")
        process = move.start("push", patience=30)
        assert until(lambda: count_written(move) >= 30, process)
        relay.close()
        ran = ended(process)
        assert ran.exit == 3
        assert 30 <= ran.json["counts"]["written"] < 400
        listed = {name.encode() for name in told(ran)}
        assert {row["code"] for row in ran.json["failures"]} <= {"unreachable", "line-cut"}
        assert len(files.keys() - listed) == ran.json["counts"]["written"], "folders have their times last"
    with Relay(two[1].port, at=relay.port):
        assert move.run("push").json["failures"] == []
    assert leftovers(move.target) == []
    same_tree(move.site, move.target)


def test_what_a_server_would_not_remove_is_removed_by_the_next_push(tmp_path: Path, two: tuple[Sshd, Sshd]) -> None:
    move = Move(tmp_path)
    fill(move.site, many_files(5))
    move.target.mkdir(parents=True)
    with sshd(sftp="internal-sftp -P write,remove", shell=False) as strict:
        profile(move, (two[0], strict))
        move.run("backup")
        move.run("push", exit=3)
    assert len(leftovers(move.target)) == 5
    with sshd(port=strict.port, sftp="internal-sftp -P remove", shell=False) as strict:
        profile(move, (two[0], strict))
        move.run("push")
    assert len(leftovers(move.target)) == 5
    with sshd(port=strict.port, shell=False) as able:
        profile(move, (two[0], able))
        move.run("push")
    assert leftovers(move.target) == []
    same_tree(move.site, move.target)


def test_a_push_that_was_proven_wrong_is_never_taken_for_good_without_a_new_proof(tmp_path: Path, two: tuple[Sshd, Sshd]) -> None:
    move = Move(tmp_path)
    fill(move.site, {b"a/%d" % number: b"contents %d" % number for number in range(4)})
    move.target.mkdir(parents=True)
    with sshd(sftp=command("garble-writes"), shell=False) as bad:
        profile(move, (two[0], bad))
        move.run("backup")
        assert len(told(move.run("push", exit=4), code="different")) == 4
        again = move.run("push", exit=3)
        assert len(told(again, code="conflict")) == 4
        assert again.json["counts"].get("written", 0) == 0
    with sshd(port=bad.port, shell=False) as good:
        profile(move, (two[0], good))
        for name in ("0", "1"):
            put(move.target / "a" / name, b"contents %s" % name.encode())
        (move.target / "a/2").unlink()
        last = move.run("push", exit=3)
        assert told(last, code="conflict") == {"a/3"}
        assert read(move.target / "a/2") == b"contents 2"


# -- between the plan and the write -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over_sftp", [True, False], ids=["sftp", "local"])
def test_what_was_changed_since_it_was_looked_at_is_not_replaced(tmp_path: Path, two: tuple[Sshd, Sshd], over_sftp: bool) -> None:
    fill(tmp_path / "t", {b"still": b"seen", b"edited": b"seen"})
    part = Part("web", "t")
    place: Place[Entry]
    if over_sftp:
        place = SftpTree(lambda: connect(two[1].target()), str(tmp_path / "t"), side="new", part=part)
    else:
        place = LocalTree(tmp_path / "t", side="new", part=part)
    (listing,) = place.scan()
    put(tmp_path / "t/edited", b"edit")
    writes = [
        Write(Entry(seen.path, Kind.FILE, 4, PAST, 0o644), hashlib.sha256(b"ours").hexdigest(), 4, lambda: io.BytesIO(b"ours"), True, seen)
        for seen in listing.items
    ]
    outcomes = {written.asked.item.path: written.failure for written in place.write(writes)}
    place.close()
    assert outcomes[b"still"] is None
    assert outcomes[b"edited"] is not None
    assert [read(tmp_path / "t" / name) for name in ("still", "edited")] == [b"ours", b"edit"]
