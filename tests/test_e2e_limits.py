"""What a person may set of a run's pace, through the real command line: stalls, rates, logins, requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.moves import Move, fill, many_files, same_tree
from tests.support.sshd import Relay, Sshd, sshd

FILES = many_files(400, size=20_000)


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd(shell=False) as running:
        yield running


@pytest.fixture
def move(tmp_path: Path) -> Move:
    made = Move(tmp_path)
    made.site.mkdir(parents=True)
    fill(made.site, FILES)
    return made


def through(move: Move, server: Sshd, relay: Relay, *sections: str) -> None:
    move.profile(move.ssh("old", server, port=relay.port), move.old_web(), *sections)


def test_a_server_that_freezes_is_given_up_after_the_time_that_was_set_and_the_next_run_goes_on(move: Move, server: Sshd) -> None:
    with Relay(server.port, freeze_after=2_000_000) as relay:
        through(move, server, relay)
        ran = move.run("backup", "--stall-timeout", "0.5", exit=3)
    failures = ran.json["failures"]
    assert failures and {failure["code"] for failure in failures} <= {"line-cut", "unreachable"}
    with Relay(server.port) as relay:
        move.known_hosts.unlink()
        through(move, server, relay)
        assert move.run("backup").json["counts"]["read"] <= 400
    same_tree(move.site, move.vault / "latest/web/public_html")


@pytest.mark.parametrize("logins", [1, 3])
def test_no_more_logins_are_made_than_were_set(move: Move, server: Sshd, logins: int) -> None:
    with Relay(server.port) as relay:
        through(move, server, relay, f"[limits]\nconnections = {logins}")
        move.run("backup")
        assert relay.accepted == logins
    same_tree(move.site, move.vault / "latest/web/public_html")


def test_the_command_line_comes_before_the_profile(move: Move, server: Sshd) -> None:
    with Relay(server.port) as relay:
        through(move, server, relay, "[limits]\nconnections = 3")
        move.run("backup", "--connections", "2")
        assert relay.accepted == 2


def test_a_server_that_takes_one_login_only_is_served_by_one(move: Move, server: Sshd) -> None:
    with Relay(server.port, lines=1) as relay:
        through(move, server, relay)
        move.run("backup", "--connections", "4")
    same_tree(move.site, move.vault / "latest/web/public_html")


@pytest.mark.parametrize("options", [("--requests", "1"), ("--requests", "3", "--connections", "2"), ("--bwlimit", "100M")])
def test_slowed_down_the_result_is_the_same(move: Move, server: Sshd, options: tuple[str, ...]) -> None:
    with Relay(server.port) as relay:
        through(move, server, relay)
        move.run("backup", *options)
    same_tree(move.site, move.vault / "latest/web/public_html")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--bwlimit", "fast"), ("--bwlimit", "0"), ("--bwlimit", "12"), ("--connections", "0"), ("--requests", "-1"), ("--stall-timeout", "0")],
)
def test_a_limit_that_is_none_is_wrong_usage(move: Move, option: str, value: str) -> None:
    move.profile(move.old_web())
    ran = move.run("backup", option, value, exit=2)
    assert option in ran.err


@pytest.mark.parametrize("line", ['bwlimit = "0"', "connections = 0", "requests = 0", "stall_timeout = 0", 'speed = "2M"'])
def test_a_limit_that_is_none_is_a_wrong_profile(move: Move, line: str) -> None:
    move.profile(move.old_web(), f"[limits]\n{line}")
    ran = move.run("backup", exit=2)
    assert line.split(maxsplit=1)[0] in ran.err
