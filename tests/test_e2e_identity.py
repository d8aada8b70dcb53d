"""Servers that are not what they should be: unknown, changed, unreachable, or the wrong one of the two."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.moves import Move, ended, fill, many_files, put, same_tree, state, until, whole_vault
from tests.support.sshd import Relay, Sshd, free_port, sshd, throwaway_user


@pytest.fixture(scope="module")
def old() -> Iterator[Sshd]:
    with sshd() as one:
        yield one


@pytest.fixture(scope="module")
def new() -> Iterator[Sshd]:
    with sshd() as one:
        yield one


@pytest.fixture
def move(tmp_path: Path) -> Move:
    made = Move(tmp_path)
    fill(made.site, {b"index.html": b"the old server's page", b"sub/a": b"A"})
    return made


def evidence(move: Move) -> list[dict[str, object]]:
    return [json.loads(line) for path in sorted((move.vault / "evidence").iterdir()) for line in path.read_text().splitlines()]


# -- first contact ------------------------------------------------------------------------------------------------------------------------


def test_an_unknown_host_key_is_refused_until_somebody_trusts_it(move: Move, old: Sshd) -> None:
    move.profile(move.ssh("old", old, trust=False), move.old_web())
    for word in ("backup", "check", "check"):
        ran = move.run(word, exit=1)
        assert "not known yet" in ran.reasons
        assert old.host_key_fingerprint in ran.reasons
        assert "--trust" in ran.reasons
        assert not move.known_hosts.exists()
    trusted = move.run("check", "--trust")
    assert trusted.json["servers"][0]["recorded_in"] == str(move.known_hosts)
    assert old.host_key_fingerprint in trusted.json["servers"][0]["host_key"]
    assert old.host_key_line in move.known_hosts.read_text()
    move.run("backup")
    same_tree(move.site, move.vault / "latest/web/public_html")


def test_a_pin_in_the_profile_is_enough_and_the_wrong_one_is_refused(move: Move, old: Sshd, new: Sshd) -> None:
    move.profile(move.ssh("old", old, trust=False, host_key=f'"{old.host_key_fingerprint}"'), move.old_web())
    move.run("backup")
    move.profile(move.ssh("old", old, trust=False, host_key=f'"{new.host_key_fingerprint}"'), move.old_web())
    assert old.host_key_fingerprint in move.run("backup", exit=1).reasons
    assert len(move.snapshots) == 1


def test_a_refused_password_is_tried_once_however_many_trees_there_are(move: Move) -> None:
    with throwaway_user() as user, sshd(user=user.name) as server:
        fill(user.home / "one", {b"a": b"1"})
        fill(user.home / "two", {b"b": b"2"})
        trees = '[[old.web]]\npath = "one"\n[[old.web]]\npath = "two"'
        move.profile(move.ssh("old", server, key="", password='"not-the-password"'), trees)
        ran = move.run("backup", exit=1)
        assert "refused the login" in ran.reasons
        assert server.log.count("Failed password") == 1
        assert move.snapshots == []
        assert "not-the-password" not in ran.out + ran.err
        move.profile(move.ssh("old", server, key="", password=f'"{user.password}"'), trees)
        ran = move.run("backup")
        assert user.password not in ran.out + ran.err


def test_a_closed_port_and_a_name_without_an_address_are_told_as_such(move: Move, old: Sshd) -> None:
    closed = free_port()
    move.profile(move.ssh("old", old, port=closed), move.old_web())
    for word in ("backup", "check"):
        ran = move.run(word, exit=1)
        assert f"port {closed} of 127.0.0.1 refused the connection" in ran.reasons
    move.profile(move.ssh("old", old, host='"no-such-host.invalid"'), move.old_web())
    for word in ("backup", "check"):
        ran = move.run(word, exit=1)
        assert "no-such-host.invalid" in ran.reasons
        assert "no address" in ran.reasons
    assert move.snapshots == []


def test_an_address_is_used_instead_of_the_name_and_the_name_is_what_the_key_belongs_to(move: Move, old: Sshd) -> None:
    move.known_hosts.write_text(f"[www.example.invalid]:{old.port} {old.host_key_line}\n")
    section = move.ssh("old", old, trust=False, host='"www.example.invalid"', address='["127.0.0.1"]')
    move.profile(section, move.old_web())
    move.run("backup")
    move.run("verify", "--against", "old")


# -- old stays old ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", ["old", "both"])
def test_an_old_name_that_leads_to_the_new_machine_stops_everything_until_accepted(move: Move, old: Sshd, new: Sshd, known: str) -> None:
    with Relay(old.port) as relay:
        section = move.ssh("old", old, port=relay.port, trust=False)
        move.trust(relay.port, *{"old": [old], "both": [old, new]}[known])
        move.profile(section, move.old_web())
        move.run("backup")
        relay.lead_to(new.port)
        put(move.site / "index.html", b"the new server's page")
        before = state(move.vault / "latest")
        for word, options in (("backup", ()), ("check", ()), ("verify", ("--against", "old"))):
            ran = move.run(word, *options, exit=1)
            assert "looks like the new server" in ran.reasons
            assert "--accept-identity" in ran.reasons
        assert "Failed publickey" not in new.log, "no login was tried there"
        assert len(move.snapshots) == 1
        assert state(move.vault / "latest") == before
        assert [line["side"] for line in evidence(move) if line["type"] == "proof"][:1] == ["vault"], "what could be proven is on record all the same"
        if known == "old":
            assert "has another one for it" in move.run("check", "--accept-identity", exit=1).reasons, "known_hosts is for its owner to correct"
            return
        move.profile(move.ssh("old", old, port=relay.port, trust=False, key=f'"{new.client_key}"'), move.old_web())
        accepted = move.run("check", "--accept-identity")
        assert accepted.json["accepted"][0]["after"] == new.host_key_fingerprint
        [line] = [line for line in evidence(move) if line["type"] == "identity-accepted"]
        assert (line["section"], line["what"], line["before"]) == ("old.ssh", "host_key", old.host_key_fingerprint)
        move.run("backup")
        assert (move.vault / "latest/web/public_html/index.html").read_bytes() == b"the new server's page"
    whole_vault(move.vault)


def test_a_name_that_flips_in_the_middle_of_a_run_brings_nothing_of_the_new_machine(tmp_path: Path, old: Sshd, new: Sshd) -> None:
    move = Move(tmp_path)
    fill(move.site, many_files(600))
    with Relay(old.port, delay=0.05) as relay:
        move.profile(move.ssh("old", old, port=relay.port, trust=False), move.old_web())
        move.trust(relay.port, old, new)
        process = move.start("backup")
        assert until(lambda: move.brought >= 20, process)
        process.send_signal(signal.SIGSTOP)
        for path in move.site.rglob("f*"):
            path.write_bytes(b"the new machine's")
        relay.lead_to(new.port)
        relay.drop()
        ran = ended(process, signal.SIGCONT)
    assert ran.exit == 1
    assert "looks like the new server" in ran.reasons
    assert move.snapshots == []
    whole_vault(move.vault)
    assert not [path for path in (move.vault / "objects").rglob("*") if path.is_file() and path.read_bytes() == b"the new machine's"]


def test_one_machine_on_both_sides_is_refused_until_accepted_and_never_written_to_before(move: Move, old: Sshd) -> None:
    move.profile(move.ssh("old", old), move.old_web(), move.ssh("new", old), move.new_web())
    for word, looks in (("backup", "new"), ("check", "new"), ("backup", "new")):
        ran = move.run(word, exit=1)
        assert f"looks like the {looks} server" in ran.reasons
    assert move.snapshots == []
    move.profile(move.ssh("old", old), move.old_web())
    move.run("backup")
    move.profile(move.ssh("old", old), move.old_web(), move.ssh("new", old), move.new_web())
    for word, options in (("push", ()), ("push", ("--dry-run",)), ("verify", ("--against", "new"))):
        assert "looks like the old server" in move.run(word, *options, exit=1).reasons
    assert not move.target.exists()
    move.run("check", "--accept-identity")
    assert {line["what"] for line in evidence(move) if line["type"] == "identity-accepted"} == {"endpoint"}
    move.run("backup")
    move.run("push")
    same_tree(move.site, move.target)


def test_one_machine_on_both_sides_can_be_accepted_before_the_first_backup(move: Move, old: Sshd) -> None:
    move.profile(move.ssh("old", old), move.old_web(), move.ssh("new", old), move.new_web())
    move.run("check", "--accept-identity")
    move.run("backup")
    move.run("push")
    same_tree(move.site, move.target)


def test_a_new_name_that_still_leads_to_the_old_machine_is_never_written_to(move: Move, old: Sshd) -> None:
    with Relay(old.port) as relay:
        move.profile(move.ssh("old", old), move.old_web(), move.ssh("new", old, port=relay.port), move.new_web())
        move.run("backup")
        ran = move.run("push", exit=1)
        assert "looks like the old server" in ran.reasons
        assert not move.target.exists()
        assert "looks like the old server" in move.run("check", exit=1).reasons
        move.run("check", "--accept-identity")
        move.run("push")
    same_tree(move.site, move.target)


def test_check_changes_nothing_and_tells_what_is_there(move: Move, old: Sshd, new: Sshd) -> None:
    put(move.site / "wp-config.php", b"define('DB_HOST', 'mysql.old.example'); define('ABSPATH', '/home/example/www/');")
    os.mkfifo(move.site / "pipe")
    move.profile(move.ssh("old", old), move.old_web(), move.ssh("new", new), move.new_web())
    before = state(move.folder)
    ran = move.run("check")
    assert state(move.folder) == before
    [row] = ran.json["parts"]
    assert (row["files"], row["folders"], row["other"]) == (3, 1, 1)
    assert {told["names"] for told in ran.json["to_adapt"]} == {"database host mysql.old.example", "path /home/example/www/"}
    assert [server["section"] for server in ran.json["servers"]] == ["old.ssh", "new.ssh"]
