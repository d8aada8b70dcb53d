"""The part's own folder: kept by a backup, shown, restored and pushed, though no manifest lists it as an entry."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup.vault.tree import TreeRoot
from hostbackup.vault.vault import Vault
from tests.support.cli import hostbackup
from tests.support.moves import PAST, Move, fill
from tests.support.sshd import Sshd, sshd

MODE = 0o751
FILES = {b"index.html": b"<p>x</p>", b"img/logo.png": b"png"} | {b"many/%04d" % number: b"x" for number in range(300)}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Sshd, Sshd]]:
    with sshd() as old, sshd() as new:
        yield old, new


@pytest.fixture
def local(tmp_path: Path) -> Move:
    made = Move(tmp_path)
    fill(made.site, FILES)
    dress(made.site)
    made.profile(f'[[local]]\nname = "site"\npath = "{made.site}"\n')
    return made


@pytest.fixture
def web(tmp_path: Path, servers: tuple[Sshd, Sshd]) -> Move:
    made = Move(tmp_path)
    fill(made.site, FILES)
    dress(made.site)
    made.profile(made.ssh("old", servers[0]), made.old_web(), made.ssh("new", servers[1]), made.new_web())
    return made


def dress(folder: Path, mode: int = MODE, when: int = PAST) -> None:
    folder.chmod(mode)
    os.utime(folder, (when, when))


def looks(folder: Path) -> tuple[int, float]:
    found = folder.stat()
    return stat.S_IMODE(found.st_mode), found.st_mtime


def weight(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def manifests(move: Move) -> set[str]:
    return {path.name for path in (move.vault / "manifests").rglob("*") if path.is_file()}


def test_a_local_folder_comes_back_as_it_was(local: Move) -> None:
    local.run("backup")
    assert (local.vault / "latest/local/site").stat().st_mtime == PAST
    local.run("restore", "--to", str(local.folder / "out"))
    assert looks(local.folder / "out/local/site") == (MODE, PAST)


def test_a_tree_on_a_server_comes_back_as_it_was(web: Move) -> None:
    web.run("backup")
    assert (web.vault / "latest/web/public_html").stat().st_mtime == PAST
    web.run("restore", "--to", str(web.folder / "out"))
    assert looks(web.folder / "out/web/public_html") == (MODE, PAST)


def test_an_unchanged_run_writes_no_manifest_and_a_few_kilobytes(local: Move) -> None:
    local.run("backup")
    before, size = manifests(local), weight(local.vault)
    local.run("backup")
    assert manifests(local) == before
    assert weight(local.vault) - size < 8_000


def test_a_new_mode_of_the_top_folder_costs_one_manifest(local: Move) -> None:
    local.run("backup")
    before = manifests(local)
    dress(local.site, 0o700, PAST + 1)
    local.run("backup")
    [added] = manifests(local) - before
    assert added == local.snapshots[-1]["parts"]["local/site"]["root"]
    local.run("restore", "--to", str(local.folder / "out"))
    assert looks(local.folder / "out/local/site") == (0o700, PAST + 1)
    assert (local.vault / "latest/local/site").stat().st_mtime == PAST + 1


def test_a_target_folder_that_is_made_is_as_the_sources(web: Move) -> None:
    web.run("backup")
    web.run("push")
    assert looks(web.target) == (MODE, PAST)


def test_a_target_folder_that_is_there_keeps_its_mode(web: Move) -> None:
    web.target.mkdir(parents=True)
    web.target.chmod(0o2710)
    web.run("backup")
    web.run("push")
    assert stat.S_IMODE(web.target.stat().st_mode) == 0o2710
    assert (web.target / "index.html").read_bytes() == FILES[b"index.html"]


def test_a_setgid_of_the_source_is_not_given_to_a_target_folder_that_is_made(web: Move) -> None:
    dress(web.site, 0o2775)
    web.run("backup")
    web.run("push")
    assert looks(web.target) == (0o775, PAST)


@pytest.mark.parametrize("json_output", [True, False], ids=["json", "text"])
def test_a_file_in_the_place_of_a_part_leaves_the_restore_incomplete(local: Move, json_output: bool) -> None:
    local.run("backup")
    (local.folder / "out/local").mkdir(parents=True)
    (local.folder / "out/local/site").write_text("mine")
    options = ("--json",) if json_output else ()
    ran = hostbackup("restore", "move.toml", "--to", "out", *options, cwd=local.folder)
    assert ran.exit == 3
    if json_output:
        [failure] = json.loads(ran.out)["failures"]
        assert (failure["part"], failure["code"]) == ("local/site", "exists")
    assert (local.folder / "out/local/site").read_text() == "mine"


def test_a_folder_that_is_new_and_empty_is_listed_as_one(local: Move) -> None:
    local.run("backup")
    (local.site / "empty").mkdir()
    local.run("backup")
    with Vault.open(local.vault, "read") as vault:
        root = TreeRoot.open(vault.manifests, local.snapshots[-1]["parts"]["local/site"]["root"])
        assert list(root.folders()) == [b"", b"empty", b"img", b"many"]
