"""Runs that are interrupted: killed, stopped, cut off, out of disk. The vault stays whole, and the next run goes on from there."""

from __future__ import annotations

import functools
import json
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli import hostbackup
from tests.support.moves import Move, ended, fill, leftovers, many_files, put, same_tree, small_disk, until, whole_vault
from tests.support.sshd import Relay, Sshd, sshd

FILES = 600
SITE = many_files(FILES)


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd() as one:
        yield one


@pytest.fixture
def move(tmp_path: Path) -> Move:
    made = Move(tmp_path)
    fill(made.site, SITE)
    return made


def through(move: Move, relay: Relay, server: Sshd, *, shell: str = "") -> None:
    move.profile(move.ssh("old", server, port=relay.port, shell=shell), move.old_web())
    move.trust(relay.port, server)


def journaled(move: Move) -> set[str]:
    """Files that the journal of an unfinished run says have come, all of whose bytes must be there."""
    found = {}
    for path in (move.vault / "state").glob("resume-*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            row = json.loads(line)
            found[row["key"]] = row["digest"]
    for digest in found.values():
        assert (move.vault / "objects" / digest[:2] / digest).exists() or (move.vault / "incoming" / digest).exists()
    return set(found)


def complete(move: Move) -> None:
    """The next run ends well, reads nothing again that had come, and shows the site as it is."""
    known = len(journaled(move))
    counts = move.run("backup").json["counts"]
    if move.snapshots[:-1]:
        assert counts.get("read", 0) == 0, "a snapshot had been written: all was there"
    else:
        assert (counts.get("resumed", 0), counts.get("read", 0)) == (known, FILES - known)
    same_tree(move.site, move.vault / "latest/web/public_html")
    assert list((move.vault / "incoming").glob("*.part")) == []
    assert whole_vault(move.vault) == FILES


def has_brought(move: Move, wanted: int) -> bool:
    return move.brought >= wanted


@pytest.mark.parametrize("seed", range(2))
def test_a_backup_killed_again_and_again_loses_nothing_and_reads_nothing_twice(move: Move, server: Sshd, seed: int) -> None:
    chance = random.Random(seed)
    with Relay(server.port, delay=0.02) as relay:
        through(move, relay, server)
        for most in (FILES // 6, FILES // 3):
            wanted = chance.randrange(1, most)
            process = move.start("backup")
            until(functools.partial(has_brought, move, wanted), process)
            ended(process, signal.SIGKILL)
            whole_vault(move.vault)
        assert move.snapshots == []
        complete(move)


def filled(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))


MOMENTS: dict[str, Callable[[Move], bool]] = {
    "the vault is made": lambda move: (move.vault / "objects").exists(),
    "the folder is listed": lambda move: filled(move.vault / "incoming"),
    "objects get their names": lambda move: filled(move.vault / "objects"),
    "manifests are written": lambda move: filled(move.vault / "manifests"),
    "the snapshot is numbered": lambda move: (move.vault / "state/numbers.json").exists(),
    "the snapshot is written": lambda move: filled(move.vault / "snapshots"),
    "latest is laid out": lambda move: filled(move.vault / "latest"),
    "latest has its sums": lambda move: (move.vault / "latest/SHA256SUMS").exists(),
    "evidence is written": lambda move: filled(move.vault / "evidence"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_backup_killed_at_a_turning_point_loses_nothing(move: Move, server: Sshd, moment: str) -> None:
    move.profile(move.ssh("old", server), move.old_web())
    process = move.start("backup")
    until(lambda: MOMENTS[moment](move), process)
    ended(process, signal.SIGKILL)
    whole_vault(move.vault)
    complete(move)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_backup_that_is_asked_to_stop_ends_in_130_and_goes_on_next_time(move: Move, server: Sshd, number: signal.Signals) -> None:
    with Relay(server.port, delay=0.05) as relay:
        through(move, relay, server)
        process = move.start("backup")
        assert until(lambda: move.brought >= 20, process)
        ran = ended(process, number)
        assert ran.exit == 130
        assert (ran.json["exit"], [row["code"] for row in ran.json["failures"]]) == (130, ["interrupted"])
        assert move.snapshots == []
        assert move.brought >= 20, "what had come stands under its name, or waits for it"
        complete(move)


def test_of_two_runs_at_once_one_is_told_that_the_other_has_the_lock(move: Move, server: Sshd) -> None:
    with Relay(server.port, delay=0.05) as relay:
        through(move, relay, server)
        process = move.start("backup")
        assert until(lambda: move.brought >= 1, process)
        process.send_signal(signal.SIGSTOP)
        for word in ("backup", "verify"):
            second = move.run(word, exit=7)
            assert str(process.pid) in second.err
        assert move.run("snapshots").json["snapshots"] == [], "looking is allowed"
        assert ended(process, signal.SIGCONT).exit == 0
    assert whole_vault(move.vault) == FILES


def test_a_full_disk_is_told_in_words_and_costs_nothing_once_there_is_room(tmp_path: Path, server: Sshd) -> None:
    move = Move(tmp_path)
    fill(move.site, {b"d%d/f%d" % (number % 3, number): random.Random(number).randbytes(60_000) for number in range(60)})
    move.profile(move.ssh("old", server), move.old_web())
    with small_disk(move.vault, "40k"):
        exits = [room(move, size) for size in (40, 400, 2000, 3500)]
        assert exits == [1, 1, 1, 1]
        size = 3600
        while room(move, size):  # the last steps of a run get their turn too
            size += 24
            assert size < 6000
        same_tree(move.site, move.vault / "latest/web/public_html")
        assert whole_vault(move.vault) == 60
        move.run("verify")


def room(move: Move, size: int) -> int:
    """Gives the vault a disk of so many KiB and backs up."""
    subprocess.run(["mount", "-o", f"remount,size={size}k", str(move.vault)], check=True)
    ran = hostbackup("backup", "move.toml", "--json", cwd=move.folder)
    if ran.exit:
        assert "the disk is full" in ran.reasons
        assert "the disk is full" in ran.err
    if (move.vault / "snapshots").exists():
        whole_vault(move.vault)
    return ran.exit


@pytest.mark.parametrize("seed", range(3))
def test_a_line_cut_at_any_byte_is_made_again(move: Move, server: Sshd, seed: int) -> None:
    chance = random.Random(seed)
    with Relay(server.port, delay=0.002, cut_after=chance.randrange(4_000, 400_000), cuts=2) as relay:
        through(move, relay, server)
        ran = move.run("backup", patience=30)
        assert relay.accepted == 3
    assert ran.json["counts"]["read"] == FILES
    same_tree(move.site, move.vault / "latest/web/public_html")
    whole_vault(move.vault)


def test_a_line_that_stays_cut_leaves_a_snapshot_with_all_that_came_and_lists_the_rest(move: Move, server: Sshd) -> None:
    with Relay(server.port, delay=0.05) as relay:
        through(move, relay, server, shell='"never"')
        process = move.start("backup", patience=30)
        assert until(lambda: move.brought >= 50, process)
        relay.close()
        ran = ended(process)
    assert ran.exit == 3
    came = ran.json["counts"]["read"]
    assert 50 <= came < FILES
    assert len(ran.json["failures"]) == FILES - came
    assert {row["code"] for row in ran.json["failures"]} <= {"unreachable", "line-cut"}
    assert move.snapshots[-1]["failures"] == ran.json["failures"]
    assert whole_vault(move.vault) == came
    move.profile(move.ssh("old", server), move.old_web())
    assert move.run("backup").json["counts"]["read"] == FILES - came
    same_tree(move.site, move.vault / "latest/web/public_html")


def test_a_server_that_freezes_is_noticed(move: Move, server: Sshd) -> None:
    with Relay(server.port, delay=0.05) as relay:
        through(move, relay, server)
        process = move.start("backup", patience=1.0)
        assert until(lambda: move.brought >= 50, process)
        relay.freeze()
        ran = ended(process)
    assert ran.exit == 3
    assert len(ran.json["failures"]) == FILES - ran.json["counts"]["read"]
    move.profile(move.ssh("old", server), move.old_web())
    assert move.run("backup").json["counts"]["read"] == len(ran.json["failures"])


def test_a_server_that_is_frozen_from_the_start_is_noticed(move: Move, server: Sshd) -> None:
    with Relay(server.port) as relay:
        through(move, relay, server)
        relay.freeze()
        ran = ended(move.start("backup", patience=1.0))
    assert ran.exit == 1
    assert move.snapshots == []


@pytest.mark.parametrize("seed", range(2))
def test_a_push_whose_line_is_cut_brings_everything_once(move: Move, server: Sshd, seed: int) -> None:
    with sshd() as new, Relay(new.port, delay=0.002, cut_after=random.Random(seed).randrange(3_000, 60_000), cuts=2) as relay:
        move.profile(move.ssh("old", server), move.old_web(), move.ssh("new", new, port=relay.port), move.new_web())
        move.run("backup")
        ran = move.run("push", patience=30)
        assert relay.cuts_left == 0
        assert relay.accepted <= 4, "two logins, one of them for the proof, and a new one for each cut"
        assert ran.json["counts"]["written"] >= FILES
        same_tree(move.site, move.target)
        assert leftovers(move.target) == []
        assert move.run("push").json["counts"].get("written", 0) == 0


def damage(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"d", b"D", 1))


@pytest.mark.parametrize("what", ["root", "segment", "snapshot"])
def test_what_the_disk_damaged_of_earlier_runs_does_not_keep_a_backup_from_being_made(move: Move, server: Sshd, what: str) -> None:
    move.profile(move.ssh("old", server), move.old_web())
    move.run("backup")
    put(move.site / "d00/f0000", b"changed")
    move.run("backup")
    root = move.vault / "manifests" / move.snapshots[-1]["parts"]["web/public_html"]["root"]
    segment = json.loads((root.parent / root.name[:2] / root.name).read_bytes().split(b"\n")[2])["digest"]
    digest = {"root": root.name, "segment": segment}.get(what, "")
    damage(move.vault / "manifests" / digest[:2] / digest if digest else move.vault / "snapshots" / f"{move.snapshots[-1]['id']}.json")
    assert move.run("verify", exit=4).json["failures"]
    ran = move.run("backup", exit=4)
    assert {row["code"] for row in ran.json["failures"]} == {"damaged"}
    assert ran.json["counts"].get("read", 0) <= 1, "an older manifest serves as well"
    same_tree(move.site, move.vault / "latest/web/public_html")
    move.run("backup")
