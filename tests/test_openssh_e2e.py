"""A whole move over the system's ssh, and servers that are too old for the built-in client."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.moves import Move, fill, same_tree
from tests.support.sshd import Sshd, make_key, sshd, throwaway_user

OPENSSH = '"openssh"'


@pytest.fixture(scope="module")
def old() -> Iterator[Sshd]:
    with sshd() as one:
        yield one


@pytest.fixture(scope="module")
def ancient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    key = make_key(tmp_path_factory.mktemp("ancient") / "rsa", "rsa")
    only = ("HostKeyAlgorithms ssh-rsa", "KexAlgorithms diffie-hellman-group14-sha1,diffie-hellman-group1-sha1", "Ciphers 3des-cbc,aes128-cbc")
    with sshd(host_key=key, options=only) as one:
        yield one


@pytest.fixture
def move(tmp_path: Path) -> Move:
    made = Move(tmp_path)
    fill(made.site, {b"index.html": b"page", b"sub/a": b"A" * 100_000, "日本語".encode("cp932"): b"odd"})
    return made


def weaker(move: Move) -> list[str]:
    lines = [json.loads(line) for path in sorted((move.vault / "evidence").iterdir()) for line in path.read_text().splitlines()]
    return [f"{line['section']} {line['setting']}" for line in lines if line["type"] == "weaker-setting"]


def test_a_move_is_the_same_with_either_client(move: Move, old: Sshd) -> None:
    with sshd() as new:
        move.profile(move.ssh("old", old, client=OPENSSH), move.old_web(), move.ssh("new", new, client=OPENSSH), move.new_web())
        move.target.parent.mkdir()
        move.target.mkdir()
        for word in ("check", "backup", "push"):
            ran = move.run(word)
            assert "legacy" not in ran.err
        move.run("verify", "--against", "old", "--against", "new")
        same_tree(move.site, move.vault / "latest/web/public_html")
        same_tree(move.site, move.target)
        assert weaker(move) == []


def test_an_unknown_key_is_shown_and_trusted_with_the_systems_ssh_too(move: Move, old: Sshd) -> None:
    move.profile(move.ssh("old", old, trust=False, client=OPENSSH), move.old_web())
    ran = move.run("check", exit=1)
    assert old.host_key_fingerprint in ran.reasons
    trusted = move.run("check", "--trust")
    assert trusted.json["servers"][0]["recorded_in"] == str(move.known_hosts)
    assert trusted.json["servers"][0]["client"] == "openssh"
    move.run("backup")


def test_another_host_key_stops_before_any_login_with_the_systems_ssh_too(move: Move, old: Sshd) -> None:
    move.profile(move.ssh("old", old, client=OPENSSH), move.old_web())
    move.run("backup")
    with throwaway_user() as user, sshd(user=user.name) as other:
        section = move.ssh("old", other, password='{ env = "HB_TEST_PASSWORD" }', key="", client=OPENSSH)
        move.profile(section, move.old_web())
        os.environ["HB_TEST_PASSWORD"] = user.password
        try:
            ran = move.run("backup", exit=1)
        finally:
            del os.environ["HB_TEST_PASSWORD"]
        assert "this looks like the new server" in ran.reasons
        assert "password" not in other.log


def test_a_server_with_sha1_only_is_entered_where_somebody_chose_so_and_that_is_told(move: Move, ancient: Sshd) -> None:
    move.profile(move.ssh("old", ancient), move.old_web())
    for word in ("check", "backup"):
        assert 'client = "openssh" with legacy = true' in move.run(word, exit=1).reasons
    assert not list((move.vault / "snapshots").glob("*")) or move.snapshots[-1]["parts"] == {}
    move.profile(move.ssh("old", ancient, client=OPENSSH), move.old_web())
    assert "legacy = true" in move.run("check", exit=1).reasons
    move.profile(move.ssh("old", ancient, client=OPENSSH, legacy="true"), move.old_web())
    for word in ("check", "backup", "verify"):
        ran = move.run(word)
        assert ran.err.count("legacy = true") == (word != "verify")
    assert weaker(move) == ["old.ssh 127.0.0.1 legacy = true"]
    same_tree(move.site, move.vault / "latest/web/public_html")
    checked = move.run("check")
    assert checked.json["servers"][0]["legacy"] is True


def test_check_recommends_the_systems_ssh_for_large_files_only(move: Move, old: Sshd) -> None:
    move.profile(move.ssh("old", old), move.old_web())
    assert "advice" not in move.run("check").json["servers"][0]
    with (move.site / "film.mp4").open("wb") as file:
        file.truncate(300 << 20)
    assert 'client = "openssh"' in move.run("check").json["servers"][0]["advice"]
    move.profile(move.ssh("old", old, client=OPENSSH), move.old_web())
    assert "advice" not in move.run("check").json["servers"][0]
