"""Logging in over SSH: strict host keys, one try a credential, clear reasons; remote commands that never hang."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup.errors import (
    HostKeyChanged,
    HostKeyUnknown,
    LineCut,
    LoginRefused,
    NameNotResolved,
    SecretError,
    Unreachable,
)
from hostbackup.protocols import ssh
from hostbackup.protocols.ssh_hostkeys import append_host_key, known_keys, normal_pin
from tests.support.sshd import Relay, Sshd, free_port, make_key, sshd, throwaway_user


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd() as running:
        yield running


@pytest.fixture(scope="module")
def sftp_only() -> Iterator[Sshd]:
    with sshd(shell=False) as running:
        yield running


def test_a_key_logs_in_and_the_session_says_whom_it_reached(server: Sshd) -> None:
    session = ssh.connect(server.target())
    try:
        assert session.host_key_fingerprint == server.host_key_fingerprint
        assert (session.address, session.port) == ("127.0.0.1", server.port)
        assert "OpenSSH" in session.server_version
        assert session.alive
    finally:
        session.close()
    session.close()
    assert not session.alive


def test_an_unknown_host_key_is_refused_with_its_fingerprint_and_the_way_to_trust_it(server: Sshd, tmp_path: Path) -> None:
    with pytest.raises(HostKeyUnknown) as caught:
        ssh.connect(server.target(known_hosts=tmp_path / "none"))
    assert server.host_key_fingerprint in caught.value.reason
    assert "ssh-ed25519" in caught.value.reason
    assert "--trust" in caught.value.hint


def test_no_login_is_tried_before_the_host_key_is_accepted(server: Sshd, tmp_path: Path) -> None:
    before = server.log.count("Accepted publickey")
    with pytest.raises(HostKeyUnknown):
        ssh.connect(server.target(known_hosts=tmp_path / "none"))
    assert server.log.count("Accepted publickey") == before


def test_a_changed_host_key_is_refused(server: Sshd, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text()
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {other}")
    with pytest.raises(HostKeyChanged) as caught:
        ssh.connect(server.target(known_hosts=known))
    assert server.host_key_fingerprint in caught.value.reason
    assert f"{known}:1" in caught.value.reason


def test_a_revoked_host_key_is_refused(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(server.known_hosts.read_text() + f"@revoked * {server.host_key_line}\n")
    with pytest.raises(HostKeyChanged, match="revoked"):
        ssh.connect(server.target(known_hosts=known))


def test_a_hashed_entry_counts(server: Sshd, tmp_path: Path) -> None:
    salt = os.urandom(20)
    digest = hmac.new(salt, f"[127.0.0.1]:{server.port}".encode(), hashlib.sha1).digest()
    known = tmp_path / "known"
    known.write_text(f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()} {server.host_key_line}\n")
    ssh.connect(server.target(known_hosts=known)).close()


def test_the_entry_is_looked_up_under_the_name_even_when_tcp_goes_to_an_address(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"[www.example.jp]:{server.port} {server.host_key_line}\n")
    session = ssh.connect(server.target(host="www.example.jp", addresses=("127.0.0.1",), known_hosts=known))
    assert session.address == "127.0.0.1"
    session.close()
    with pytest.raises(HostKeyUnknown):
        ssh.connect(server.target(known_hosts=known))


def test_an_entry_for_another_port_does_not_count(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"127.0.0.1 {server.host_key_line}\n")
    with pytest.raises(HostKeyUnknown):
        ssh.connect(server.target(known_hosts=known))


def test_the_right_pin_needs_no_known_hosts_and_a_wrong_one_stops(server: Sshd, tmp_path: Path) -> None:
    nothing = tmp_path / "none"
    ssh.connect(server.target(known_hosts=nothing, host_key=server.host_key_fingerprint)).close()
    with pytest.raises(HostKeyChanged, match="pinned"):
        ssh.connect(server.target(known_hosts=server.known_hosts, host_key="SHA256:" + "A" * 43))


def test_a_pin_of_any_of_the_servers_keys_is_found(tmp_path: Path) -> None:
    rsa = make_key(tmp_path / "rsa", "rsa")
    blob = base64.b64decode(rsa.with_suffix(".pub").read_text().split()[1])
    pin = "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    with sshd(options=(f"HostKey {rsa}",)) as both:
        session = ssh.connect(both.target(known_hosts=tmp_path / "none", host_key=pin))
        assert session.host_key_fingerprint == pin
        session.close()


def test_the_key_type_on_record_is_the_one_asked_for(tmp_path: Path) -> None:
    rsa = make_key(tmp_path / "rsa", "rsa")
    with sshd(options=(f"HostKey {rsa}",)) as both:
        known = tmp_path / "known"
        known.write_text(f"[127.0.0.1]:{both.port} {rsa.with_suffix('.pub').read_text()}")
        session = ssh.connect(both.target(known_hosts=known))
        assert session.host_key_type == "ssh-rsa"
        session.close()


def test_a_first_key_is_shown_recorded_and_then_accepted(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "deep" / "known_hosts"
    target = server.target(known_hosts=known)
    kind, shown, key = ssh.scan_host_key(target)
    assert (kind, shown) == ("ssh-ed25519", server.host_key_fingerprint)
    assert not known.exists()
    assert ssh.record_host_key(target, known, key) == known
    ssh.connect(target).close()
    assert known.stat().st_mode & 0o777 == 0o600


def test_recording_a_key_keeps_what_a_file_without_final_newline_holds(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("old.example.jp ssh-ed25519 AAAA")
    append_host_key(known, "new.example.jp", ssh.scan_host_key(server.target())[2])
    assert known.read_text().splitlines() == ["old.example.jp ssh-ed25519 AAAA", f"new.example.jp {server.host_key_line}"]


def test_wildcards_and_negations_of_known_hosts(tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text("# comment\n*.example.jp,!bad.example.jp ssh-ed25519 QUJD\nbroken line\n@cert-authority * ssh-ed25519 QUJD\n")
    assert [key.blob for key in known_keys([known], "www.example.jp")] == [b"ABC"]
    assert known_keys([known], "bad.example.jp") == []
    assert known_keys([known], "www.example.com") == []


@pytest.mark.parametrize("told", ["SHA256:abc", "abc", "sha256:abc=", " SHA256:abc= "])
def test_a_pin_may_be_written_in_the_usual_ways(told: str) -> None:
    assert normal_pin(told) == "SHA256:abc"


def test_a_wrong_password_is_refused_after_one_try() -> None:
    with throwaway_user() as user, sshd(user=user.name) as server:
        with pytest.raises(LoginRefused) as caught:
            ssh.connect(server.target(key_file=None, password="not it"))
        assert server.log.count("Failed password") == 1
        assert "Accepted" not in server.log
        assert "not it" not in str(caught.value)


def test_a_password_logs_in_and_is_asked_for_only_where_there_is_none() -> None:
    with throwaway_user() as user, sshd(user=user.name) as server:
        ssh.connect(server.target(key_file=None, password=user.password)).close()
        asked: list[str] = []

        def ask(question: str) -> str:
            asked.append(question)
            return user.password

        ssh.connect(server.target(key_file=None, ask=ask)).close()
        assert len(asked) == 1
        assert user.name in asked[0]
        with pytest.raises(LoginRefused):
            ssh.connect(server.target(key_file=None, password="wrong", ask=ask))
        assert len(asked) == 1


def test_a_key_the_server_does_not_know_is_refused_after_one_try(server: Sshd, tmp_path: Path) -> None:
    before = server.log.count("Failed publickey")
    with pytest.raises(LoginRefused):
        ssh.connect(server.target(key_file=make_key(tmp_path / "other")))
    assert server.log.count("Failed publickey") <= before + 1


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_an_encrypted_key_opens_with_its_passphrase_only(kind: str, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", kind, "open sesame")
    assert ssh.load_key(key, "open sesame", None).can_sign()
    assert ssh.load_key(key, None, lambda _: "open sesame").can_sign()
    for wrong in (None, "wrong"):
        with pytest.raises(SecretError) as caught:
            ssh.load_key(key, wrong, None)
        assert "passphrase" in caught.value.hint


def test_a_missing_key_file_is_a_secret_error(server: Sshd, tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="does not exist"):
        ssh.connect(server.target(key_file=tmp_path / "none"))


def test_a_closed_port_is_told_by_name_address_and_port() -> None:
    port = free_port()
    with pytest.raises(Unreachable) as caught:
        ssh.connect(ssh.SshTarget("www.example.jp", port, "me", ("127.0.0.1",), password="x", use_ssh_config=False))
    assert f"port {port} of www.example.jp (127.0.0.1) refused" in caught.value.reason


def test_a_name_that_leads_nowhere_is_told() -> None:
    with pytest.raises(NameNotResolved, match=r"host\.invalid"):
        ssh.connect(ssh.SshTarget("host.invalid", 22, "me", password="x", use_ssh_config=False))


def test_a_port_that_speaks_no_ssh_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            near, _ = listener.accept()
            near.sendall(b"220 welcome\r\n")
            near.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(Unreachable, match="did not speak SSH"):
            ssh.connect(ssh.SshTarget("127.0.0.1", port, "me", password="x", use_ssh_config=False, timeout=5))
    assert capfd.readouterr() == ("", "")


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = ssh.SshTarget("127.0.0.1", listener.getsockname()[1], "me", password="x", use_ssh_config=False, timeout=1)
        with pytest.raises((Unreachable, LineCut)):
            ssh.connect(target)


def test_the_password_is_in_no_repr() -> None:
    assert "geheim" not in repr(ssh.SshTarget("h", password="geheim", passphrase="geheim"))


def test_a_shell_is_found_and_its_absence_too(server: Sshd, sftp_only: Sshd) -> None:
    for running, expected in ((server, True), (sftp_only, False)):
        session = ssh.connect(running.target())
        try:
            assert session.has_shell() is expected
            assert session.has_shell() is expected
            session.open_sftp_channel().close()
        finally:
            session.close()
    session = ssh.connect(server.target(shell="never"))
    assert not session.has_shell()
    session.close()


def test_a_command_is_fed_and_heard_at_the_same_time(server: Sshd) -> None:
    session = ssh.connect(server.target())
    try:
        data = os.urandom(1 << 16) * 128
        ran = session.run("cat; echo done >&2; exit 3", data)
        assert ran.stdout == data
        assert ran.stderr.strip() == b"done"
        assert ran.exit == 3
        assert session.run("wc -c", (b"x" * 1000 for _ in range(5000))).stdout.strip() == b"5000000"
    finally:
        session.close()


def test_a_command_that_wants_no_input_may_end_early(server: Sshd) -> None:
    session = ssh.connect(server.target())
    try:
        assert session.run("exec true", b"x" * (8 << 20)).exit == 0
    finally:
        session.close()


def test_a_command_that_hangs_is_given_up_and_the_line_stays(server: Sshd) -> None:
    session = ssh.connect(server.target())
    try:
        with pytest.raises(LineCut, match="silent"):
            session.run("sleep 60", timeout=0.5)
        assert session.run("echo alive").stdout == b"alive\n"
    finally:
        session.close()


def test_a_frozen_server_ends_in_line_cut_not_in_a_hang(server: Sshd) -> None:
    with Relay(server.port) as relay:
        session = ssh.connect(server.target(port=relay.port, host_key=server.host_key_fingerprint, timeout=2))
        relay.freeze()
        started = time.monotonic()
        with pytest.raises(LineCut):
            session.open_sftp_channel()
        with pytest.raises(LineCut):
            session.run("true")
        assert time.monotonic() - started < 20
        session.close()


def test_a_server_process_that_is_stopped_ends_in_line_cut(server: Sshd) -> None:
    session = ssh.connect(server.target(timeout=2))
    stopped = server.connections()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(LineCut):
            session.open_sftp_channel()
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        session.close()


def test_ssh_config_names_host_port_user_and_key(server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    (home / ".ssh" / "config").write_text(
        f"Host old\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n  IdentityFile {server.client_key}\n"
    )
    (home / ".ssh" / "known_hosts").write_text(server.known_hosts.read_text())
    session = ssh.connect(ssh.SshTarget("old"))
    assert session.run("echo in").stdout == b"in\n"
    session.close()


def test_a_proxy_jump_is_gone_through_and_its_key_is_checked_too(server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    with sshd() as jump:
        (home / ".ssh" / "config").write_text(
            f"Host inner\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n  IdentityFile {server.client_key}\n"
            f"  ProxyJump {jump.user}@localhost:{jump.port}\n"
            f"Host localhost\n  IdentityFile {jump.client_key}\n"
        )
        (home / ".ssh" / "known_hosts").write_text(server.known_hosts.read_text() + jump.known_hosts.read_text())
        session = ssh.connect(ssh.SshTarget("inner"))
        assert session.run("echo through").stdout == b"through\n"
        assert session.host_key_fingerprint == server.host_key_fingerprint
        session.close()
        (home / ".ssh" / "known_hosts").write_text(server.known_hosts.read_text())
        with pytest.raises(HostKeyUnknown, match=jump.host_key_fingerprint.replace("+", r"\+")):
            ssh.connect(ssh.SshTarget("inner"))
