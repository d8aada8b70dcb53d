"""Digests from a remote shell: the lines understood, what is asked, and servers that hang, lie or refuse."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.errors import LineCut, ProtocolBroken
from hostbackup.places.digests import Cksum
from hostbackup.places.shell import TOOLS, Commands, Shell, Tool, digests, find_tools, quote
from tests.support.programs import only

names = st.binary(min_size=1, max_size=30).map(lambda raw: raw.replace(b"\0", b"").replace(b"/", b"")).filter(bool)
GNU = Tool("sha256", b"sha256sum", True)


class Printing:
    """A command that has printed `parts`; an exception among them is raised."""

    def __init__(self, parts: Iterable[bytes | Exception]) -> None:
        self._parts = parts
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            yield part

    def close(self) -> None:
        self.closed = True


class Local:
    """Runs commands on this machine with only the programs of one folder. `commands` are those asked for."""

    alive = True

    def __init__(self, path: Path | str = os.environ["PATH"]) -> None:
        self.path = str(path)
        self.commands: list[bytes] = []

    def has_shell(self) -> bool:
        return True

    def start(self, command: bytes, stdin: Iterable[bytes] = (), *, timeout: float | None = None) -> Printing:
        self.commands.append(command)
        settings = {"PATH": self.path}
        done = subprocess.run(["/bin/sh", "-c", command], input=b"".join(stdin), capture_output=True, check=False, timeout=timeout, env=settings)
        return Printing([done.stdout[:7], done.stdout[7:]])


class Told(Local):
    """Prints what it is told to, whatever it is asked; one answer a command, the last one again and again."""

    def __init__(self, *answers: list[bytes | Exception] | Exception, alive: bool = True) -> None:
        super().__init__()
        self.answers = list(answers)
        self.alive = alive
        self.printing: list[Printing] = []

    def start(self, command: bytes, stdin: Iterable[bytes] = (), *, timeout: float | None = None) -> Printing:
        self.commands.append(command)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        self.printing.append(Printing(answer))
        return self.printing[-1]


def line(digest: str, name: bytes) -> bytes:
    return digest.encode() + b"  " + name + b"\n"


def escaped(name: bytes) -> tuple[bytes, bytes]:
    """As GNU coreutils print it: a mark in front, and the name."""
    told = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if told != name else b""), told


@given(st.dictionaries(names, st.binary(max_size=5), max_size=20))
def test_what_gnu_prints_is_read_back_whatever_the_names(contents: dict[bytes, bytes]) -> None:
    output = b""
    for name, data in contents.items():
        mark, told = escaped(b"/srv/" + name)
        output += mark + hashlib.sha256(data).hexdigest().encode() + b"  " + told + b"\n"
    expected = {b"/srv/" + name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    assert digests(Told([output]), GNU, dict.fromkeys(expected, 5)) == expected


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_noise_tells_nothing(noise: list[bytes]) -> None:
    assert digests(Told(list(noise)), GNU, {b"/a": 1, b"b": 1}) == {}


def test_names_that_were_not_asked_for_are_passed_over() -> None:
    output = line("a" * 64, b"/asked") + line("b" * 64, b"/other") + line("c" * 64, b"asked")
    assert digests(Told([output]), GNU, {b"/asked": 1}) == {b"/asked": "a" * 64}


def test_a_name_told_twice_with_different_digests_is_not_believed() -> None:
    output = line("0" * 64, b"/a") + line("1" * 64, b"/a") + line("2" * 64, b"/b") * 2
    assert digests(Told([output]), GNU, {b"/a": 1, b"/b": 1}) == {b"/b": "2" * 64}


def test_noise_around_digests_is_passed_over_and_short_digests_too() -> None:
    output = b"Welcome!\nsha256sum: /gone: No such file\n" + b"A" * 64 + b" */f\n" + line("b" * 40, b"/g") + line("c" * 63, b"/g")
    assert digests(Told([output]), GNU, dict.fromkeys([b"/f", b"/g", b"/gone"], 1)) == {b"/f": "a" * 64}


def test_lines_cut_into_any_pieces_are_the_same_lines() -> None:
    output = b"".join(line(f"{n:064x}", b"/f%d" % n) for n in range(20))
    sizes = {b"/f%d" % n: 1 for n in range(20)}
    whole = digests(Told([output]), GNU, sizes)
    assert len(whole) == 20
    assert digests(Told([output[at : at + 1] for at in range(len(output))]), GNU, sizes) == whole


def test_a_server_that_talks_without_end_is_hung_up_on() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"blah blah\n" * 1000

    for noise in (endless(), (b"x" * 10_000 for _ in endless())):
        server = Told(noise)  # type: ignore[arg-type]
        assert digests(server, GNU, {b"/a": 1}) == {}
        assert server.printing[0].closed
    assert taken < 300


def test_a_command_that_hangs_keeps_what_it_told_and_a_line_that_is_cut_is_raised() -> None:
    answer: list[bytes | Exception] = [line("a" * 64, b"/a") + b"b" * 64, LineCut("silent")]
    assert digests(Told(answer), GNU, {b"/a": 1, b"/b": 1}) == {b"/a": "a" * 64}
    with pytest.raises(LineCut):
        digests(Told(answer, alive=False), GNU, {b"/a": 1, b"/b": 1})


@given(names)
def test_a_quoted_root_is_one_word(name: bytes) -> None:
    (word,) = shlex.split(quote(b"/srv/" + name).decode("utf-8", "surrogateescape"))
    assert word.encode("utf-8", "surrogateescape") == b"/srv/" + name


@pytest.mark.parametrize("odd", [b"-n", b"line\nfeed", b"back\\slash", b"\xff", b"quote'\"", b" ", b"$(id)", "日本".encode()])
@pytest.mark.parametrize("tool", ["sha256sum", "shasum -a 256", "openssl dgst -sha256 -r", "sha1sum", "md5sum", "cksum"])
def test_real_programs_are_understood(tmp_path: Path, odd: bytes, tool: str) -> None:
    (tmp_path / os.fsdecode(odd)).write_bytes(b"data")
    (found,) = [one for one in find_tools(Local()) if one.command == tool.encode()]
    assert found.escapes == (tool in ("sha256sum", "sha1sum", "md5sum"))
    path = os.fsencode(tmp_path) + b"/" + odd
    seen: Any = Cksum() if found.algorithm == "cksum" else hashlib.new(found.algorithm)
    seen.update(b"data")
    asked = b"\n" not in odd or found.escapes
    assert digests(Local(), found, {path: 4}) == ({path: seen.hexdigest()} if asked else {})


def test_a_path_from_the_login_folder_is_never_taken_for_an_option() -> None:
    assert digests(Told([line("a" * 64, b"./-c")]), GNU, {b"-c": 1}) == {b"-c": "a" * 64}


@pytest.mark.parametrize(
    ("there", "best"),
    [
        (("sha256sum", "md5sum"), "sha256sum"),
        (("openssl", "sha1sum"), "openssl dgst -sha256 -r"),
        (("shasum", "perl", "sha1sum"), "shasum -a 256"),
        (("sha1sum", "md5sum", "cksum"), "sha1sum"),
        (("md5sum", "cksum"), "md5sum"),
        (("cksum",), "cksum"),
        ((), None),
    ],
)
def test_the_strongest_program_there_is_found_by_one_command_and_a_weak_one_only_if_allowed(
    tmp_path: Path, there: tuple[str, ...], best: str | None
) -> None:
    session = Local(only(tmp_path / "bin", *there))
    shell = Shell(lambda: session)
    found = shell.tool(weak=True)
    assert (found.command.decode() if found else None) == best
    strong = shell.tool(weak=False)
    assert strong == (found if found and found.algorithm == "sha256" else None)
    assert len(session.commands) == 1, "asked once"


def test_a_program_that_hashes_nothing_to_something_is_not_used() -> None:
    output = b"".join(b"=" + tool.command + b"\n" + line("f" * 64, b"/dev/null") + b"GNU coreutils\n" for tool in TOOLS)
    assert find_tools(Told([output])) == ()


def test_a_server_that_runs_no_commands_has_no_program() -> None:
    assert Shell(lambda: Told(ProtocolBroken("no"))).tool(weak=True) is None


def test_a_name_with_a_line_feed_is_not_asked_of_a_tool_that_does_not_escape(tmp_path: Path) -> None:
    plain = Tool("sha256", b"sha256sum")
    trap = b"/a\n" + b"0" * 64 + b"  /b"
    session = Told([line("1" * 64, b"/b")])
    assert digests(session, plain, {b"/b": 4, trap: 4}) == {b"/b": "1" * 64}
    assert digests(session, plain, {trap: 4}) == {}
    assert len(session.commands) == 1


def test_a_cut_line_is_made_anew_once() -> None:
    cut: list[bytes | Exception] = [LineCut("cut")]
    for answers, expected in (([cut, [line("a" * 64, b"/a")]], {b"/a": "a" * 64}), ([cut, cut], {})):
        session = Told(*answers, alive=False)
        assert Shell(lambda session=session: session).digests(GNU, {b"/a": 1}, lambda _: None) == expected  # type: ignore[misc]
        assert len(session.commands) == 2


def test_a_server_that_refuses_a_second_command_gets_it_again_and_then_none() -> None:
    session = Told(ProtocolBroken("one at a time"), [line("a" * 64, b"/a")])
    assert Shell(lambda: session).digests(GNU, {b"/a": 1}, lambda _: None) == {b"/a": "a" * 64}
    session = Told(ProtocolBroken("none at all"))
    assert Shell(lambda: session).digests(GNU, {b"/a": 1}, lambda _: None) == {}


def test_commands_under_way_are_ended_with_the_work() -> None:
    begun, end = threading.Event(), threading.Event()

    class Stuck(Printing):
        def __iter__(self) -> Iterator[bytes]:
            begun.set()
            end.wait(30)
            yield from ()

        def close(self) -> None:
            end.set()

    class Session(Local):
        def start(self, command: bytes, stdin: Iterable[bytes] = (), *, timeout: float | None = None) -> Printing:
            return Stuck([])

    commands = Commands(Shell(Session))
    for _ in range(4):
        commands.begin(GNU, {b"/a": 1})
    assert begun.wait(30)
    commands.close()
    assert end.is_set()
