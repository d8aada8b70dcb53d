"""Digests from a remote shell: the parser, the quoting, and what is asked."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.places.shell import Tool, digests, find_tool, parse_digests, quote

names = st.binary(min_size=1, max_size=30).map(lambda raw: raw.replace(b"\0", b"").replace(b"/", b"")).filter(bool)


class Ran(NamedTuple):
    exit: int
    stdout: bytes


class Local:
    """Runs commands on this machine. `without` programs are missing; `commands` are those asked for."""

    alive = True

    def __init__(self, without: Iterable[bytes] = ()) -> None:
        self.without = tuple(without)
        self.commands: list[bytes] = []

    def has_shell(self) -> bool:
        return True

    def run(self, command: bytes, stdin: Iterable[bytes], *, timeout: float) -> Ran:
        self.commands.append(command)
        if any(program in command for program in self.without):
            return Ran(127, b"")
        done = subprocess.run(["/bin/sh", "-c", command], input=b"".join(stdin), capture_output=True, check=False, timeout=timeout)
        return Ran(done.returncode, done.stdout)


def escaped(name: bytes) -> tuple[bytes, bytes]:
    """As GNU coreutils print it: a mark in front, and the name."""
    told = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if told != name else b""), told


@given(st.dictionaries(names, st.binary(max_size=5), max_size=20))
def test_what_gnu_prints_is_read_back_whatever_the_names(contents: dict[bytes, bytes]) -> None:
    output = b""
    for name, data in contents.items():
        mark, told = escaped(name)
        output += mark + hashlib.sha256(data).hexdigest().encode() + b"  ./" + told + b"\n"
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    assert parse_digests(output, 64, frozenset(contents)) == expected


@given(st.binary(max_size=500))
def test_noise_tells_nothing_of_names_that_were_not_asked_for(noise: bytes) -> None:
    assert parse_digests(noise, 64, frozenset()) == {}


def test_a_name_told_twice_with_different_digests_is_not_believed() -> None:
    output = b"".join(bytes([digit]) * 64 + b"  ./a\n" for digit in b"01")
    assert parse_digests(output, 64, frozenset([b"a"])) == {}


def test_noise_around_digests_is_passed_over() -> None:
    output = b"Welcome!\nsha256sum: ./gone: No such file\n" + b"a" * 64 + b" *./f\n" + b"b" * 40 + b"  ./g\n"
    assert parse_digests(output, 64, frozenset([b"f", b"g", b"gone"])) == {b"f": "a" * 64}


@given(names)
def test_a_quoted_root_is_one_word(name: bytes) -> None:
    (word,) = shlex.split(quote(b"/srv/" + name).decode("utf-8", "surrogateescape"))
    assert word.encode("utf-8", "surrogateescape") == b"/srv/" + name


@pytest.mark.parametrize("odd", [b"-n", b"line\nfeed", b"back\\slash", b"\xff", b"quote'\"", b" ", b"$(id)", "日本".encode()])
def test_a_real_sha256sum_is_understood(tmp_path: Path, odd: bytes) -> None:
    path = Path(str(tmp_path)) / odd.decode("utf-8", "surrogateescape")
    path.write_bytes(b"data")
    session = Local()
    tool = find_tool(session)
    assert tool is not None
    assert (tool.algorithm, tool.escapes) == ("sha256", True)
    assert digests(session, tool, str(tmp_path).encode(), {odd: 4}) == {odd: hashlib.sha256(b"data").hexdigest()}


def test_the_next_best_tool_is_found_and_weak_ones_only_if_allowed() -> None:
    strong = [b"sha256sum", b"shasum", b"sha256 -r", b"openssl"]
    assert find_tool(Local(strong)) is None
    found = find_tool(Local(strong), weak=True)
    assert found is not None
    assert found.algorithm == "sha1"
    found = find_tool(Local([*strong, b"sha1sum"]), weak=True)
    assert found is not None
    assert found.algorithm == "md5"


def test_a_name_with_a_line_feed_is_not_asked_of_a_tool_that_does_not_escape(tmp_path: Path) -> None:
    plain = Tool("sha256", b"sha256sum --")
    trap = b"a\n" + b"0" * 64 + b"  ./b"
    (tmp_path / "b").write_bytes(b"data")
    session = Local()
    assert digests(session, plain, str(tmp_path).encode(), {b"b": 4, trap: 4}) == {b"b": hashlib.sha256(b"data").hexdigest()}
    assert digests(session, plain, str(tmp_path).encode(), {trap: 4}) == {}
    assert len(session.commands) == 1
