"""SFTP servers and lines that misbehave: every path gives what an undisturbed one gives, byte by byte, or says what it could not do."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from hostbackup.errors import LineCut
from hostbackup.model import Claim, Entry, Kind, Status, Write
from hostbackup.places.sftp import SftpTree
from hostbackup.protocols import openssh, ssh
from hostbackup.protocols.remote import Login
from tests.support.faulty_login import PART, faulty_tree
from tests.support.faulty_sftp import command
from tests.support.moves import Move, date, ended, fill, leftovers, many_files, odd_site, same_tree, state, whole_vault
from tests.support.sink import HashSink
from tests.support.sshd import Relay, Sshd, sshd
from tests.support.worlds import close, listings, prove, read, scanned, write

HANDSHAKE = 800  # bytes until the first request of a run


@dataclass(frozen=True)
class Told:
    """What a tree says of itself over a line: entries, contents by path, verdicts by path."""

    entries: dict[bytes, Entry]
    contents: dict[bytes, tuple[Entry, str, int]]
    verdicts: dict[bytes, Status]


def told(tree: SftpTree) -> Told:
    entries = scanned(tree)
    reads = read(tree, [entry for entry in entries.values() if entry.kind is Kind.FILE], HashSink())
    assert [outcome.failure for outcome in reads.values() if outcome.failure] == []
    claims = [Claim(outcome.item, outcome.digest, outcome.size) for outcome in reads.values()]
    claims += [Claim(entry, "", 0) for entry in entries.values() if entry.kind is not Kind.FILE]
    proofs = prove(tree, *claims)
    return Told(
        entries,
        {path: (outcome.item, outcome.digest, outcome.size) for path, outcome in reads.items()},
        {path: proof.status for path, proof in proofs.items()},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Awkward names, links, many small files, some above 1 MiB, one sparse."""
    root = tmp_path_factory.mktemp("old") / "site"
    root.mkdir()
    odd_site(root)
    rng = random.Random(3)
    fill(root, {b"many/%03d" % n: rng.randbytes(rng.randrange(3000)) for n in range(150)})
    fill(root, {b"large/\xff%d" % n: rng.randbytes(1_100_000 + n) for n in range(3)})
    with (root / "large/sparse").open("wb") as file:
        file.truncate(2_500_000)
    date(root)
    return root


@pytest.fixture(scope="module")
def undisturbed(site: Path) -> Told:
    with faulty_tree(site) as tree:
        found = told(tree)
    assert set(found.verdicts.values()) == {Status.VERIFIED}
    return found


@pytest.fixture(scope="module")
def old(site: Path, undisturbed: Told) -> tuple[Path, Told]:
    return site, undisturbed


def opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def uploads(site: Path, told: Told, *, replace: bool = False) -> list[Write[Entry]]:
    """All of the site, folders before what is in them."""
    items = []
    for path, entry in sorted(told.entries.items()):
        if entry.kind is Kind.FILE:
            _, digest, size = told.contents[path]
            items.append(Write(entry, digest, size, opener(site / os.fsdecode(path)), replace))
        else:
            items.append(Write(entry, replace=replace))
    return items


def somewhere(seed: int, least: int, most: int) -> int:
    """A place to cut: near the beginning as often as far from it."""
    return int(least * (most / least) ** random.Random(seed).random())


# -- lines that are cut


@pytest.mark.parametrize("seed", range(6))
def test_a_channel_cut_within_any_packet_changes_nothing(site: Path, undisturbed: Told, tmp_path: Path, seed: int) -> None:
    place = somewhere(seed, HANDSHAKE, 3_000_000)
    with faulty_tree(site, f"cut-after={place}", "cuts=3", f"state={tmp_path}") as tree:
        assert told(tree) == undisturbed
    assert list(tmp_path.iterdir()), "it was cut"


@pytest.mark.parametrize("extensions", ["", "no-extensions"])
@pytest.mark.parametrize("seed", range(3))
def test_a_channel_cut_within_any_packet_leaves_nothing_torn_behind(
    site: Path, undisturbed: Told, tmp_path: Path, seed: int, extensions: str
) -> None:
    (tmp_path / "state").mkdir()
    place = somewhere(seed, HANDSHAKE, 3_000_000)
    with faulty_tree(tmp_path / "new", f"cut-after={place}", "cuts=3", f"state={tmp_path / 'state'}", extensions) as tree:
        outcomes = write(tree, Write(Entry(b"", Kind.DIR, 0, 0, 0o755)), *uploads(site, undisturbed))
    assert [outcome.failure for outcome in outcomes.values() if outcome.failure] == []
    assert list((tmp_path / "state").iterdir()), "it was cut"
    same_tree(site, tmp_path / "new")
    assert state(tmp_path / "new") == state(site)
    assert leftovers(tmp_path / "new") == []


@pytest.mark.parametrize("extensions", ["", "no-extensions"])
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_while_files_are_replaced_never_takes_one_away(site: Path, undisturbed: Told, tmp_path: Path, seed: int, extensions: str) -> None:
    # A name so long that nothing can be put before it cannot step aside.
    items = [item for item in uploads(site, undisturbed, replace=True) if len(item.item.name) < 200]
    old = {item.item.path: b"the target's own, older" for item in items if item.item.kind is Kind.FILE}
    new = tmp_path / "new"
    fill(new, old)
    (tmp_path / "state").mkdir()
    place = somewhere(seed, HANDSHAKE, 1_000_000)
    with faulty_tree(new, f"cut-after={place}", "cuts=3", f"state={tmp_path / 'state'}", extensions) as tree:
        outcomes = write(tree, *items)
        assert [outcome.failure for outcome in outcomes.values() if outcome.failure] == []
        tree.remove_temporaries([tree.temporary_prefix])
    wanted = state(site)
    assert state(new) == {path: facts for path, facts in wanted.items() if len(path.rpartition(b"/")[2]) < 200}
    assert leftovers(new) == []


def test_a_line_cut_in_the_greeting_is_told_and_the_next_call_is_whole(site: Path, undisturbed: Told, tmp_path: Path) -> None:
    with faulty_tree(site, "cut-after=7", "cuts=1", f"state={tmp_path}", channels=1) as tree:
        with pytest.raises(LineCut):
            scanned(tree)
        assert told(tree) == undisturbed


@pytest.fixture(scope="module")
def with_shell() -> Iterator[Sshd]:
    with sshd() as server:
        yield server


CLIENTS: dict[str, Callable[[ssh.SshTarget], Login]] = {"built-in": ssh.connect, "openssh": openssh.connect}


@contextmanager
def over_ssh(server: Sshd, relay: Relay, root: Path, client: str, shell: str) -> Iterator[SftpTree]:
    target = server.target(port=relay.port, known_hosts=None, host_key=server.host_key_fingerprint, shell=shell)
    tree = SftpTree(lambda: CLIENTS[client](target), str(root), side="old", part=PART, pause=lambda _: None)
    try:
        yield tree
    finally:
        tree.close()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("way", [(client, shell) for client in CLIENTS for shell in ("never", "auto")], ids="-".join)
def test_a_connection_cut_anywhere_changes_nothing_whatever_runs_over_it(
    old: tuple[Path, Told], with_shell: Sshd, tmp_path: Path, way: tuple[str, str], seed: int
) -> None:
    site, undisturbed = old
    with Relay(with_shell.port, cut_after=somewhere(seed, 30_000, 1_500_000), cuts=2) as relay:
        with over_ssh(with_shell, relay, site, *way) as tree:
            assert told(tree) == undisturbed
        assert relay.cuts_left < 2
    with Relay(with_shell.port, cut_after=somewhere(seed, 8_000, 30_000), cuts=2) as relay:
        with over_ssh(with_shell, relay, tmp_path / "new", *way) as tree:
            outcomes = write(tree, Write(Entry(b"", Kind.DIR, 0, 0, 0o755)), *uploads(site, undisturbed))
        assert relay.cuts_left < 2
    assert [outcome.failure for outcome in outcomes.values() if outcome.failure] == []
    assert state(tmp_path / "new") == state(site)
    assert leftovers(tmp_path / "new") == []


# -- servers that refuse in mid-stream


@pytest.mark.parametrize("seed", range(2))
def test_listings_refused_in_the_middle_are_told_and_whole_when_asked_again(site: Path, undisturbed: Told, tmp_path: Path, seed: int) -> None:
    children = {path: [entry for entry in undisturbed.entries.values() if entry.parent == path] for path in (b"", *undisturbed.entries)}
    with faulty_tree(site, "errors=0.3", f"seed={seed}", f"state={tmp_path}") as tree:
        for _ in range(20):
            found = listings(tree)
            for path, listing in found.items():
                assert listing.failure is not None or list(listing.items) == children[path]
                assert set(listing.items) <= set(children[path])
            if not any(listing.failure for listing in found.values()):
                break
        assert told(tree) == undisturbed
    assert len(list(tmp_path.iterdir())) > 20, "it refused"


@pytest.mark.parametrize("seed", range(2))
def test_nothing_torn_stands_where_writes_are_refused_once(site: Path, undisturbed: Told, tmp_path: Path, seed: int) -> None:
    (tmp_path / "state").mkdir()
    new = tmp_path / "new"
    new.mkdir()
    wanted, failed, runs = state(site), {b""}, 0
    with faulty_tree(new, "errors=0.1", f"seed={seed}", f"state={tmp_path / 'state'}") as tree:
        while failed:
            runs += 1
            assert runs < 6, "each refusal comes only once"
            outcomes = write(tree, *uploads(site, undisturbed))
            failed = {path for path, outcome in outcomes.items() if outcome.failure}
            stands = state(new)
            assert {path: facts for path, facts in wanted.items() if path not in failed} == {
                path: facts for path, facts in stands.items() if path not in failed
            }
            assert {path: facts for path, facts in stands.items() if path in failed} == {}, "what failed does not stand at all"
            assert leftovers(new) == []
    assert runs > 1
    assert stands == wanted


@pytest.mark.parametrize("seed", range(2))
def test_what_is_refused_for_good_is_told_and_all_else_is_whole(site: Path, undisturbed: Told, tmp_path: Path, seed: int) -> None:
    with faulty_tree(site, "broken=0.03", f"seed={seed}") as tree:
        wanted = [entry for entry in undisturbed.entries.values() if entry.kind is Kind.FILE]
        reads = read(tree, wanted, HashSink())
        failed = {path for path, outcome in reads.items() if outcome.failure}
        for path, outcome in reads.items():
            if path in failed:
                assert outcome.digest == ""
            else:
                assert (outcome.item, outcome.digest, outcome.size) == undisturbed.contents[path]
        assert 0 < len(failed) < len(wanted)
        proofs = prove(tree, *(Claim(*undisturbed.contents[entry.path]) for entry in wanted))
        unproven = {path for path, proof in proofs.items() if proof.status is not Status.VERIFIED}
        assert {proofs[path].status for path in unproven} == {Status.FAILED}
        # A large file is asked for in other pieces once longer READs are proven: other requests, which may be refused or not.
        small = {entry.path for entry in wanted if entry.size < 32768}
        assert unproven & small
        assert unproven & small <= failed & small, "what was read can be proven: a proof asks no more than a reading"


def test_closing_early_ends_the_work_on_a_line_that_is_cut_again_and_again(site: Path, undisturbed: Told, tmp_path: Path) -> None:
    sink = HashSink()
    with faulty_tree(site, "cut-after=300000", "cuts=1000", f"state={tmp_path}") as tree:
        reads = tree.read([entry for entry in undisturbed.entries.values() if entry.kind is Kind.FILE], sink)
        for _ in range(100):
            assert next(reads).failure is None
        close(reads)
    assert sink.open_now == 0


# -- servers that have their own ideas of large reads and open files


@pytest.mark.parametrize(
    "words",
    [
        ("drop-reads=32768",),
        ("short-reads", "overtake", "reorder", "no-extensions"),
        ("handles=1", "cut-after=200000", "cuts=2"),
        ("handles=2", "trickle"),
    ],
    ids=" ".join,
)
def test_odd_servers_give_the_same_bytes(site: Path, undisturbed: Told, tmp_path: Path, words: tuple[str, ...]) -> None:
    with faulty_tree(site, *words, f"state={tmp_path}") as tree:
        assert told(tree) == undisturbed


# -- whole moves


def moved(tmp_path: Path, *words: str) -> list[tuple[str, int]]:
    """Backup, push and verify between two such servers, each until it ends in 0. The exits on the way."""
    (tmp_path / "state").mkdir()
    move = Move(tmp_path / "move")
    move.site.mkdir(parents=True)
    odd_site(move.site)
    fill(move.site, many_files(40))
    exits = []
    sftp = command(*words, f"state={tmp_path / 'state'}")
    with sshd(shell=False, sftp=sftp) as old, sshd(shell=False, sftp=sftp) as new:
        move.profile(move.ssh("old", old), move.old_web(), move.ssh("new", new), move.new_web())
        for word, *options in (["backup"], ["push"], ["verify", "--against", "new", "--against", "old"]):
            for _ in range(8):
                ran = ended(move.start(word, *options, patience=20.0))
                exits.append((word, ran.exit))
                assert ran.exit in (0, 3), ran.err
                assert bool(ran.json["failures"]) == (ran.exit == 3), "what is missing is listed"
                if ran.exit == 0:
                    break
    same_tree(move.site, move.vault / "latest/web/public_html")
    same_tree(move.site, move.target)
    assert state(move.target) == state(move.site)
    assert leftovers(move.target) == []
    whole_vault(move.vault)
    return exits


def test_a_move_over_a_line_that_is_cut_within_packets_is_whole_at_once(tmp_path: Path) -> None:
    assert moved(tmp_path, "cut-after=40000", "cuts=3", "reorder") == [("backup", 0), ("push", 0), ("verify", 0)]
    assert len(list((tmp_path / "state").iterdir())) == 3, "it was cut"


def test_a_move_between_servers_that_refuse_now_and_then_is_whole_in_the_end(tmp_path: Path) -> None:
    exits = moved(tmp_path, "errors=0.04", "handles=6", "no-extensions")
    assert [word for word, code in exits if code == 0] == ["backup", "push", "verify"]
    assert len(exits) > 3
