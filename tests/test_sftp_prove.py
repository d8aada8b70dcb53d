"""A web tree on a real sshd: proven by the strongest means it has."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hostbackup.model import Listing, Method, Status
from hostbackup.places.sftp import SftpTree
from hostbackup.protocols import ssh
from hostbackup.protocols.sftp.client import Connection, Steps
from hostbackup.protocols.sftp.packets import Request, Type
from hostbackup.protocols.ssh_session import SshSession
from tests.support.sites import PART, Opener, claims, proofs, put
from tests.support.sshd import Sshd, sshd

pytest_plugins = ["tests.support.sites"]


def test_the_method_is_the_strongest_the_server_allows(with_shell: Sshd, sftp_only: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"f", b"1")
    for running, options, method in (
        (with_shell, {}, Method.SERVER_SHA256),
        (with_shell, {"shell": "never"}, Method.SFTP_SECOND_READ),
        (sftp_only, {}, Method.SFTP_SECOND_READ),
    ):
        tree = open_tree(running, tmp_path, target=options)
        assert {(proof.status, proof.method) for proof in proofs(tree, claims(tree)).values()} == {(Status.VERIFIED, method)}


def test_every_way_to_be_wrong_has_its_status(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    names = (b"fine", b"flipped", b"grown", b"touched", b"gone", b"kind")
    for name in names:
        put(tmp_path, name, b"12345")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "relinked").symlink_to("a")
    tree = open_tree(server, tmp_path)
    claimed = claims(tree)
    put(tmp_path, b"flipped", b"12344")
    put(tmp_path, b"grown", b"123456")
    put(tmp_path, b"touched", b"12345", 1_700_000_009)
    (tmp_path / "gone").unlink()
    (tmp_path / "kind").unlink()
    (tmp_path / "kind").mkdir()
    (tmp_path / "relinked").unlink()
    (tmp_path / "relinked").symlink_to("b")
    found = proofs(tree, claimed)
    assert {path: proof.status for path, proof in found.items()} == {
        b"fine": Status.VERIFIED,
        b"dir": Status.VERIFIED,
        b"link": Status.VERIFIED,
        b"flipped": Status.DIFFERENT,
        b"grown": Status.CHANGED,
        b"touched": Status.CHANGED,
        b"gone": Status.MISSING,
        b"kind": Status.CHANGED,
        b"relinked": Status.CHANGED,
    }
    for proof in found.values():
        assert (proof.failure is None) == (proof.status is Status.VERIFIED)


def test_a_second_read_uses_a_login_of_its_own(sftp_only: Sshd, tmp_path: Path) -> None:
    put(tmp_path, b"f", b"1")
    sessions: list[SshSession] = []

    def factory() -> SshSession:
        sessions.append(ssh.connect(sftp_only.target()))
        return sessions[-1]

    tree = SftpTree(factory, str(tmp_path), side="old", part=PART)
    claimed = claims(tree)
    assert len(sessions) == 1
    proofs(tree, claimed)
    assert len(sessions) == 2
    assert not sessions[1].alive
    tree.close()
    assert not sessions[0].alive


def test_a_small_file_is_proven_by_four_requests(sftp_only: Sshd, tmp_path: Path, open_tree: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        put(tmp_path, b"f%d" % number, b"x" * number)
    tree = open_tree(sftp_only, tmp_path)
    claimed = claims(tree)
    asked: Counter[int] = Counter()
    post = Connection.post

    def counted(self: Connection, owner: Steps[Any] | None, request: Request) -> None:
        asked[request.type] += 1
        post(self, owner, request)

    monkeypatch.setattr(Connection, "post", counted)
    assert {proof.status for proof in proofs(tree, claimed).values()} == {Status.VERIFIED}
    assert (asked[Type.OPEN], asked[Type.READ], asked[Type.CLOSE], asked[Type.FSTAT]) == (40, 40, 40, 0)


def test_names_never_reach_the_shell_as_code(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    root = tmp_path / "$(touch planted)'; touch planted; '"
    put(root, b"$(touch planted)", b"1")
    put(root, b"`touch planted`", b"1")
    put(root, b"x\n; touch planted", b"1")
    tree = open_tree(with_shell, root)
    found = proofs(tree, claims(tree))
    assert {(proof.status, proof.method) for proof in found.values()} == {(Status.VERIFIED, Method.SERVER_SHA256)}
    assert not list(Path(with_shell.home).glob("planted"))
    assert not list(tmp_path.rglob("planted"))


def test_free_space_is_told(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    free = open_tree(server, tmp_path).free()
    assert free is not None
    assert 0 < free < 1 << 60


def test_no_server_process_is_left_when_trees_are_closed(tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"f", b"1")
    with sshd() as server:
        tree = open_tree(server, tmp_path)
        proofs(tree, claims(tree))
        tree.close()
        for pid in server.connections():
            subprocess.run(["tail", "--pid", str(pid), "-f", "/dev/null"], timeout=10, check=True)


def test_an_empty_tree_is_one_empty_listing(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    assert list(open_tree(with_shell, tmp_path).scan()) == [Listing(b"", [])]
