"""docs/json.md is complete: every key that a command's document has stands there, and every command has a section."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostbackup.cli.main import COMMANDS
from tests.support.cli import hostbackup, write_profile
from tests.support.json_doc import documented, undocumented

PROFILE = 'name = "move"\nvault = "vault"\n[[local]]\npath = "site"\n[[copy]]\nname = "usb"\npath = "usb"\n'
COMMON = {"version", "command", "profile", "exit", "started", "finished", "counts", "failures"}


@pytest.fixture
def move(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    (site / "画像").mkdir(parents=True)
    (site / "index.html").write_text("<p>ようこそ</p>")
    (site / "wp-config.php").write_text("<?php define('DB_HOST', 'mysql5.old.example'); // /home/example/html\n")
    (site / "link").symlink_to("index.html")
    Path(os.fsdecode(os.fsencode(site) + b"/\x83e\x83X\x83g.txt")).write_text("a name in Shift_JIS")
    os.mkfifo(site / "pipe")
    (tmp_path / "usb").mkdir()
    write_profile(tmp_path, PROFILE)
    return tmp_path


def test_every_command_has_a_section_and_there_is_no_other() -> None:
    text = (Path(__file__).parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    sections = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert sections == ["Every command", *(f"`{command}`" for command in COMMANDS)]
    assert all(documented(section) for section in sections)


def test_every_key_of_every_document_is_documented(move: Path) -> None:
    told: set[str] = set()

    def run(*words: str, exit: int | None = 0) -> None:
        ran = hostbackup(*words, "--json", cwd=move)
        assert exit is None or ran.exit == exit, (words, ran.out, ran.err)
        document = ran.json
        assert set(document) >= COMMON
        assert document["command"] == words[0]
        assert undocumented(document) == set(), words
        assert bool(document["failures"]) == bool(document["exit"])
        told.add(words[0])

    run("check", "move.toml")
    run("check", "move.toml", "--probe")
    run("backup", "move.toml", "--dry-run")
    run("backup", "move.toml")
    run("verify", "move.toml", "--against", "old")
    (move / "site/index.html").write_text("<p>newer, and longer than before</p>")
    (move / "site/link").unlink()
    run("verify", "move.toml", "--against", "old", exit=3)
    run("backup", "move.toml", "--dry-run")
    run("sync", "move.toml")
    run("copy", "move.toml")
    run("copy", "move.toml", "--repair")
    run("verify", "move.toml", "--against", "copy")
    run("snapshots", "move.toml")
    run("ls", "move.toml")
    run("ls", "move.toml", "local/site", "--vanished")
    run("diff", "move.toml")
    run("restore", "move.toml", "--to", "out")
    run("prune", "move.toml", "--keep-last", "1", "--keep-daily", "0", "--keep-weekly", "0", "--keep-monthly", "0", "--copies", exit=None)
    run("push", "move.toml", exit=2)
    run("backup", "nowhere.toml", exit=2)
    run("restore", "--from", "nowhere/at/all", "--to", "out2", exit=None)
    run("schema")
    assert told == set(COMMANDS)


def test_a_key_that_is_not_documented_is_found() -> None:
    document = {
        "version": 1,
        "command": "copy",
        "counts": {"uploaded": 1, "odd": 1},
        "copies": {"a.b/c": {"target": "x", "extra": 1}},
        "plan": [{"name": ""}],
    }
    assert undocumented(document) == {"counts.odd", "copies.a.b/c.extra", "plan[].name"}
