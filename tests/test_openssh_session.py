"""What a login by the system's ssh is used for: channels and commands that never hang, and an end that leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup.errors import LineCut, ProtocolBroken
from hostbackup.places.sftp import SftpTree
from hostbackup.protocols import openssh
from hostbackup.protocols.limits import Limits
from hostbackup.protocols.openssh_session import OpenSshSession
from hostbackup.protocols.sftp.client import Connection
from tests.support.processes import children, command, descriptors, gone, ssh_of
from tests.support.sink import MemorySink
from tests.support.sites import PART, entries, files, put
from tests.support.sshd import Relay, Sshd, sshd

DEADLINE = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd() as running:
        yield running


@pytest.fixture
def session(server: Sshd) -> Iterator[OpenSshSession]:
    made = openssh.connect(server.target())
    yield made
    made.close()


# -- commands -------------------------------------------------------------------------------------------------------------------------------


def test_a_command_is_fed_and_heard_at_the_same_time(session: OpenSshSession) -> None:
    data = os.urandom(1 << 16) * 256
    ran = session.run("cat; echo done >&2; exit 3", data)
    assert ran.stdout == data
    assert ran.stderr == b"done\n"
    assert ran.exit == 3
    assert session.run("wc -c", (b"x" * 1000 for _ in range(5000))).stdout.strip() == b"5000000"
    assert session.run(b"cat", [b"", b"one", b"", b"two"]).stdout == b"onetwo"


def test_a_commands_output_is_a_stream_that_waits_for_its_reader(session: OpenSshSession) -> None:
    running = session.start(b"yes | head -c 300000000; echo said >&2; exit 7")
    total, pieces = 0, 0
    for piece in running:
        total += len(piece)
        pieces += 1
    assert (total, running.exit, running.stderr) == (300_000_000, 7, b"said\n")
    assert pieces > 300
    running.close()


def test_a_stream_that_nobody_reads_on_ends_and_the_line_stays(session: OpenSshSession) -> None:
    running = session.start(b"yes")
    stream = iter(running)
    next(stream)
    running.close()
    running.close()
    assert session.run("echo alive").stdout == b"alive\n"


def test_a_command_that_another_thread_closes_is_over_at_once(session: OpenSshSession) -> None:
    running = session.start(b"echo begun; sleep 600", timeout=600)
    begun, ended = threading.Event(), threading.Event()

    def take() -> None:
        for _ in running:
            begun.set()
        ended.set()

    threading.Thread(target=take, daemon=True).start()
    assert begun.wait(DEADLINE)
    running.close()
    assert ended.wait(DEADLINE)
    assert running.exit == -1
    assert session.run("echo alive").stdout == b"alive\n"


def test_much_on_standard_error_stops_nothing_and_the_first_of_it_is_kept(session: OpenSshSession) -> None:
    ran = session.run("printf first >&2; yes | head -c 20000000 >&2; echo out")
    assert ran.stdout == b"out\n"
    assert ran.stderr.startswith(b"firsty\n")
    assert len(ran.stderr) == 1 << 16


def test_a_command_that_wants_no_input_may_end_early(session: OpenSshSession) -> None:
    ran = session.run("exec true", (b"x" * 65536 for _ in range(1000)))
    assert ran.exit == 0


def test_what_feeds_a_command_may_break(session: OpenSshSession) -> None:
    def breaking() -> Iterator[bytes]:
        yield b"x" * 100
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        session.run("cat", breaking())
    assert session.run("echo alive").stdout == b"alive\n"


def test_a_command_ended_by_a_signal_has_no_exit_code(session: OpenSshSession) -> None:
    ran = session.run("echo out; kill -9 $$")
    assert (ran.exit, ran.stdout) == (-1, b"out\n")


def test_a_command_that_hangs_is_given_up_and_the_line_stays(session: OpenSshSession) -> None:
    with pytest.raises(LineCut, match="silent"):
        session.run("sleep 60", timeout=0.5)
    assert session.run("echo alive").stdout == b"alive\n"


def test_a_command_line_may_hold_any_byte(session: OpenSshSession) -> None:
    assert session.run(b"printf %s '\xff\n\x80'").stdout == b"\xff\n\x80"


def test_many_commands_run_at_once(session: OpenSshSession) -> None:
    results: list[bytes] = []

    def work(number: int) -> None:
        results.append(session.run(f"echo {number}").stdout)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(b"%d\n" % number for number in range(8))


def test_a_shell_is_found_and_its_absence_too(session: OpenSshSession, server: Sshd) -> None:
    assert session.has_shell()
    never = openssh.connect(server.target(shell="never"))
    assert not never.has_shell()
    never.close()
    with sshd(shell=False) as sftp_only:
        limited = openssh.connect(sftp_only.target())
        assert not limited.has_shell()
        Connection.start(limited.open_sftp_channel(), 10).close()
        limited.close()


# -- channels -------------------------------------------------------------------------------------------------------------------------------


def test_a_server_without_sftp_is_told_as_such_and_not_as_a_cut_line() -> None:
    for options, sftp in ((("Subsystem other /bin/true",), "internal-sftp"), ((), "/nowhere/sftp-server")):
        with sshd(options=options, sftp=sftp) as server:
            if options:
                config = server.folder / "sshd_config"
                config.write_text("\n".join(line for line in config.read_text().splitlines() if "Subsystem sftp" not in line) + "\n")
                os.kill(server.process.pid, signal.SIGHUP)
                wait_for_restart(server)
            session = openssh.connect(server.target())
            with pytest.raises(ProtocolBroken, match="refuses an SFTP channel") as caught:
                Connection.start(session.open_sftp_channel(), 10)
            assert session.alive
            assert "SFTP" in caught.value.hint
            session.close()


def wait_for_restart(server: Sshd) -> None:
    deadline = time.monotonic() + DEADLINE
    while server.log.count("Server listening") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_allows_one_session_is_enough(tmp_path: Path) -> None:
    contents = {b"f%d" % number: os.urandom(50_000) for number in range(40)}
    for name, data in contents.items():
        put(tmp_path, name, data)
    with sshd(options=("MaxSessions 1",)) as server:
        session = openssh.connect(server.target())
        channel = session.open_sftp_channel()
        with pytest.raises(ProtocolBroken, match="refuse"):
            session.open_sftp_channel()
        with pytest.raises(ProtocolBroken, match="refuse"):
            session.start(b"true")
        channel.close()
        session.close()
        tree = SftpTree(lambda: openssh.connect(server.target()), str(tmp_path), side="old", part=PART)
        sink = MemorySink()
        reads = list(tree.read(files(tree), sink))
        tree.close()
        assert {read.asked.path: sink.contents[read.digest] for read in reads} == contents
        assert server.log.count("Accepted publickey") == 2


def test_a_line_cut_in_mid_work_is_made_anew_and_nothing_comes_twice(server: Sshd, tmp_path: Path) -> None:
    contents = {b"d%d/f%d" % (n % 20, n): os.urandom(20_000) for n in range(300)}
    for name, data in contents.items():
        put(tmp_path, name, data)
    with Relay(server.port, cut_after=1_000_000, cuts=2) as relay:
        target = server.target(port=relay.port, host_key=server.host_key_fingerprint, shell="never")
        tree = SftpTree(lambda: openssh.connect(target), str(tmp_path), side="old", part=PART, pause=lambda _: None)
        sink = MemorySink()
        reads = list(tree.read(files(tree), sink))
        assert relay.cuts_left == 0
        tree.close()
    assert len(reads) == 300
    assert {read.asked.path: sink.contents[read.digest] for read in reads} == contents
    assert sink.open_now == 0


def test_a_frozen_server_ends_in_line_cut_not_in_a_hang(server: Sshd, tmp_path: Path) -> None:
    put(tmp_path, b"file", b"x")
    with Relay(server.port) as relay:
        target = server.target(port=relay.port, host_key=server.host_key_fingerprint, timeout=2)
        session = openssh.connect(target)
        tree = SftpTree(lambda: session, str(tmp_path), side="old", part=PART, limits=Limits(stall=2), pause=lambda _: None)
        assert len(entries(tree)) == 1
        running = session.start(b"cat", timeout=2)
        relay.freeze()
        started = time.monotonic()
        with pytest.raises(LineCut):
            list(running)
        with pytest.raises(LineCut):
            session.open_sftp_channel()
        with pytest.raises(LineCut):
            session.run("true")
        assert not session.alive
        assert time.monotonic() - started < 20
        with pytest.raises(LineCut):
            entries(tree)
        tree.close()
        session.close()


def test_a_line_cut_during_a_command_is_no_end_of_it(server: Sshd) -> None:
    with Relay(server.port) as relay:
        session = openssh.connect(server.target(port=relay.port, host_key=server.host_key_fingerprint))
        stream = iter(session.start(b"echo begun; sleep 60"))
        assert next(stream) == b"begun\n"
        relay.drop()
        with pytest.raises(LineCut):
            list(stream)
        with pytest.raises(LineCut):
            session.open_sftp_channel()
        session.close()


def test_a_server_process_that_is_stopped_ends_in_line_cut(server: Sshd) -> None:
    before = set(server.connections())
    session = openssh.connect(server.target(timeout=2))
    stopped = set(server.connections()) - before
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(LineCut):
            session.open_sftp_channel()
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        session.close()


# -- the end --------------------------------------------------------------------------------------------------------------------------------


def test_a_closed_login_leaves_no_process_no_thread_and_no_descriptor(server: Sshd) -> None:
    openssh.connect(server.target()).close()
    running, threads, opened = children(without=server.process.pid), set(threading.enumerate()), descriptors()
    for _ in range(3):
        session = openssh.connect(server.target())
        Connection.start(session.open_sftp_channel(), 10).close()
        session.run("echo in")
        with pytest.raises(LineCut):
            session.run("sleep 60", timeout=0.1)
        session.open_sftp_channel()
        session.start(b"cat")
        folder = session._shop.path
        assert Path(folder).is_dir()
        session.close()
        assert not Path(folder).exists()
    assert children(without=server.process.pid) <= running
    assert set(threading.enumerate()) <= threads
    assert descriptors() <= opened  # what others left behind may be closed at any time


@pytest.mark.parametrize("when", ["during the login", "at work"])
def test_killed_outright_it_leaves_no_process_and_no_folder(when: str, server: Sshd, tmp_path: Path) -> None:
    program = f"""
import os, sys, time
from pathlib import Path
from hostbackup.protocols import openssh
from hostbackup.protocols.sftp.client import Connection
from hostbackup.protocols.ssh import SshTarget
def wait(_=""):
    print("ready", flush=True)
    time.sleep(600)
hook = wait if {when!r} == "during the login" else None
session = openssh.connect(SshTarget("127.0.0.1", {server.port}, "root", key_file=Path({str(server.client_key)!r}),
    known_hosts=Path({str(server.known_hosts)!r}), use_ssh_config=False, on_host_key=hook))
connection = Connection.start(session.open_sftp_channel(), 10)
running = session.start(b"sleep 600")
wait()
"""
    environment = {**os.environ, "XDG_RUNTIME_DIR": "", "TMPDIR": "/tmp"}
    before = set(server.connections())
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        started = children(process.pid)
        commands = [command(pid) for pid in started]
        (folder,) = {os.fsdecode(word) for words in commands for word in words if word.startswith(b"/tmp/hb-") and word.count(b"/") == 2}
        assert ssh_of(process.pid)
        assert Path(folder).exists()
        process.kill()
        process.wait()
        assert gone(started)
    deadline = time.monotonic() + DEADLINE
    while Path(folder).exists() or set(server.connections()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_terminal_sends_to_us_does_not_reach_ssh(session: OpenSshSession) -> None:
    assert session.alive
    groups = {os.getpgid(pid) for pid in ssh_of()}
    assert groups
    assert os.getpgid(0) not in groups


def test_a_close_while_others_are_at_work_ends_their_work_too(server: Sshd) -> None:
    session = openssh.connect(server.target())
    ended = threading.Event()
    begun = threading.Event()

    def work() -> None:
        with contextlib.suppress(LineCut):
            for _ in session.start(b"yes"):
                begun.set()
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    assert begun.wait(DEADLINE)
    session.close()
    assert ended.wait(DEADLINE)
