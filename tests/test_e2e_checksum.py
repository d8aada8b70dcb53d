"""Contents compared and proven without a transfer, on every kind of server, through the real command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.moves import Move, fill, leftovers, odd_site, put, same_tree, state
from tests.support.proftpd import proftpd
from tests.support.programs import only
from tests.support.sshd import Sshd, sshd

_FILES = {b"index.html": b"first", b"same.html": b"same", b"folder/page.html": b"page", b"folder/image": bytes(range(256)) * 1000}
_KINDS = {
    # how files are compared by `backup --checksum`, and proven by `verify`
    "shell": ("server-sha256", "server-sha256"),
    "weak shell": ("server-weak", "sftp-second-read"),
    "check-file": ("server-sha256", "server-sha256"),
    "neither": ("sftp-second-read", "sftp-second-read"),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sshd]]:
    few = only(tmp_path_factory.mktemp("programs") / "bin", "md5sum", "cksum")
    with ExitStack() as stack:
        yield {
            "shell": stack.enter_context(sshd()),
            "weak shell": stack.enter_context(sshd(options=(f"SetEnv PATH={few}",))),
            "check-file": stack.enter_context(proftpd()),
            "neither": stack.enter_context(proftpd(options=("SFTPExtensions -checkFile",))),
        }


@pytest.fixture
def move(tmp_path: Path) -> Move:
    return Move(tmp_path)


def change(path: Path, data: bytes) -> None:
    """Other bytes of the same size under the same time."""
    known = path.stat()
    assert len(data) == known.st_size
    path.write_bytes(data)
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))


@pytest.mark.parametrize("kind", _KINDS)
def test_a_silent_change_is_found_and_only_what_changed_is_fetched(move: Move, servers: dict[str, Sshd], kind: str) -> None:
    compared, proven = _KINDS[kind]
    fill(move.site, _FILES)
    move.profile(move.ssh("old", servers[kind]), move.old_web())
    move.run("backup")
    quiet = move.run("backup", "--checksum").json
    assert quiet["compared"] == {"web/public_html": {compared: len(_FILES)}}
    assert quiet["counts"].get("read", 0) == 0
    change(move.site / "index.html", b"FIRST")
    assert move.run("backup").json["counts"].get("read", 0) == 0
    found = move.run("verify", "--against", "old", exit=4).json
    assert [(failure["name"], failure["code"]) for failure in found["failures"]] == [("index.html", "different")]
    loud = move.run("backup", "--checksum").json
    assert (loud["counts"]["changed"], loud["counts"]["read"], loud["counts"]["read_bytes"]) == (1, 1, 5)
    assert (move.vault / "latest/web/public_html/index.html").read_bytes() == b"FIRST"
    (line,) = [line for line in move.run("verify", "--against", "old").json["proven"] if line["side"] == "old"]
    assert line["method"] == proven, "what is proven never rests on weak digests"


def test_a_silent_change_is_told_by_a_dry_run(move: Move, servers: dict[str, Sshd]) -> None:
    fill(move.site, _FILES)
    move.profile(move.ssh("old", servers["check-file"]), move.old_web())
    move.run("backup")
    change(move.site / "same.html", b"SAME")
    told = move.run("backup", "--checksum", "--dry-run").json
    assert told["planned"]["web/public_html"]["changed"] == 1
    assert (move.vault / "latest/web/public_html/same.html").read_bytes() == b"same"


def test_a_site_goes_from_proftpd_to_proftpd_and_every_byte_is_proven(move: Move, servers: dict[str, Sshd]) -> None:
    odd_site(move.site)
    with proftpd() as new:
        move.profile(move.ssh("old", servers["check-file"]), move.old_web(), move.ssh("new", new), move.new_web())
        before = state(move.site)
        move.run("backup")
        move.run("verify", "--against", "old")
        move.run("push")
        proven = move.run("verify", "--against", "new").json["proven"]
        same_tree(move.site, move.vault / "latest/web/public_html")
        same_tree(move.site, move.target)
        assert state(move.site) == before
        assert leftovers(move.target) == []
        (line,) = [line for line in proven if line["side"] == "new"]
        assert line["counts"] == {"verified": len(before)}
        put(move.site / "README", b"changed since")
        move.run("backup")
        assert move.run("push").json["planned"]["web/public_html"]["update"] == 1
        same_tree(move.site, move.target)
