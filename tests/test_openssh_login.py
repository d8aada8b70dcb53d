"""Logging in with the system's ssh: strict host keys, each secret given once and to nobody else, clear reasons."""

from __future__ import annotations

import base64
import hashlib
import os
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
    ProtocolBroken,
    SecretError,
    Unreachable,
    UsageError,
    WrongMachine,
)
from hostbackup.protocols import openssh, ssh
from hostbackup.protocols.openssh_login import Login, Settings
from hostbackup.protocols.openssh_process import Question
from tests.support.processes import ssh_of
from tests.support.sshd import Relay, Sshd, User, free_port, make_key, sshd, throwaway_user

SHA1_ONLY = ("HostKeyAlgorithms ssh-rsa", "KexAlgorithms diffie-hellman-group14-sha1")


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd() as running:
        yield running


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with throwaway_user() as made:
        yield made


@pytest.fixture(scope="module")
def for_passwords(user: User) -> Iterator[Sshd]:
    with sshd(user=user.name) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with an empty ~/.ssh."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    return home


def enter(target: ssh.SshTarget) -> str:
    """Logs in, has a look, and leaves; tells the host key's fingerprint."""
    session = openssh.connect(target)
    try:
        assert session.run("echo in").stdout == b"in\n"
        return session.host_key_fingerprint
    finally:
        session.close()


def authorize(server: Sshd, key: Path) -> None:
    with (server.folder / "authorized_keys").open("a") as file:
        file.write(key.with_suffix(".pub").read_text())


# -- host keys ------------------------------------------------------------------------------------------------------------------------------


def test_a_key_logs_in_and_the_session_says_whom_it_reached(server: Sshd) -> None:
    session = openssh.connect(server.target())
    try:
        assert session.host_key_fingerprint == server.host_key_fingerprint
        assert session.host_key_type == "ssh-ed25519"
        assert (session.address, session.port) == ("127.0.0.1", server.port)
        assert session.server_version.startswith("SSH-2.0-OpenSSH")
        assert session.alive
    finally:
        session.close()
    session.close()
    assert not session.alive


def test_an_unknown_host_key_is_refused_with_its_fingerprint_and_before_any_login(server: Sshd, tmp_path: Path) -> None:
    before = server.log.count("Accepted publickey")
    with pytest.raises(HostKeyUnknown) as caught:
        openssh.connect(server.target(known_hosts=tmp_path / "none"))
    assert f"ssh-ed25519 {server.host_key_fingerprint}" in caught.value.reason
    assert "--trust" in caught.value.hint
    assert server.log.count("Accepted publickey") == before


def test_a_changed_and_a_revoked_host_key_are_refused(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {make_key(tmp_path / 'other').with_suffix('.pub').read_text()}")
    with pytest.raises(HostKeyChanged) as caught:
        openssh.connect(server.target(known_hosts=known))
    assert server.host_key_fingerprint in caught.value.reason
    assert f"{known}:1" in caught.value.reason
    known.write_text(server.known_hosts.read_text() + f"@revoked * {server.host_key_line}\n")
    with pytest.raises(HostKeyChanged, match="revoked"):
        openssh.connect(server.target(known_hosts=known))


def test_the_entry_is_looked_up_under_the_name_even_when_tcp_goes_to_an_address(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"[www.example.jp]:{server.port} {server.host_key_line}\n")
    session = openssh.connect(server.target(host="www.example.jp", addresses=("127.0.0.1",), known_hosts=known))
    assert session.address == "127.0.0.1"
    session.close()
    with pytest.raises(HostKeyUnknown):
        openssh.connect(server.target(known_hosts=known))


def test_addresses_are_tried_in_turn(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"[www.example.jp]:{server.port} {server.host_key_line}\n")
    session = openssh.connect(server.target(host="www.example.jp", addresses=("127.0.0.77", "127.0.0.1"), known_hosts=known))
    assert session.address == "127.0.0.1"
    session.close()


def test_the_right_pin_needs_no_known_hosts_and_a_wrong_one_stops(server: Sshd, tmp_path: Path) -> None:
    before = server.log.count("Accepted publickey")
    with pytest.raises(HostKeyChanged, match="pinned"):
        openssh.connect(server.target(host_key="SHA256:" + "A" * 43))
    assert server.log.count("Accepted publickey") == before
    assert enter(server.target(known_hosts=tmp_path / "none", host_key=server.host_key_fingerprint)) == server.host_key_fingerprint


def test_a_pin_of_any_of_the_servers_keys_is_found_and_the_type_on_record_is_asked_for(tmp_path: Path) -> None:
    rsa = make_key(tmp_path / "rsa", "rsa")
    pin = fingerprint_of(rsa)
    with sshd(options=(f"HostKey {rsa}",)) as both:
        assert enter(both.target(known_hosts=tmp_path / "none", host_key=pin)) == pin
        known = tmp_path / "known"
        known.write_text(f"[127.0.0.1]:{both.port} {rsa.with_suffix('.pub').read_text()}")
        assert enter(both.target(known_hosts=known)) == pin


def fingerprint_of(key: Path) -> str:
    blob = base64.b64decode(key.with_suffix(".pub").read_text().split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def test_who_listens_hears_the_fingerprint_before_any_login_and_may_object(for_passwords: Sshd, user: User) -> None:
    heard: list[str] = []

    def object_to(fingerprint: str) -> None:
        heard.append(fingerprint)
        raise WrongMachine("this looks like the new server")

    before = for_passwords.log
    with pytest.raises(WrongMachine):
        openssh.connect(for_passwords.target(key_file=None, password=user.password, on_host_key=object_to))
    assert heard == [for_passwords.host_key_fingerprint]
    assert "password" not in for_passwords.log[len(before) :]


def test_a_first_key_is_shown_recorded_and_then_accepted(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "deep" / "known_hosts"
    target = server.target(known_hosts=known)
    kind, shown, key = openssh.scan_host_key(target)
    assert (kind, shown) == ("ssh-ed25519", server.host_key_fingerprint)
    assert not known.exists()
    assert openssh.record_host_key(target, known, key) == known
    enter(target)
    ssh.connect(target).close()


# -- secrets --------------------------------------------------------------------------------------------------------------------------------


def test_a_password_logs_in(for_passwords: Sshd, user: User) -> None:
    enter(for_passwords.target(key_file=None, password=user.password))


def test_a_wrong_password_is_refused_after_one_try(user: User) -> None:
    with sshd(user=user.name) as server:
        with pytest.raises(LoginRefused) as caught:
            openssh.connect(server.target(key_file=None, password="not it"))
        assert server.log.count("Failed") == 1
        assert "Accepted" not in server.log
        assert "not it" not in str(caught.value)


def test_a_wrong_password_is_not_tried_again_by_another_method(user: User) -> None:
    with sshd(user=user.name, options=("UsePAM yes", "KbdInteractiveAuthentication yes")) as server:
        with pytest.raises(LoginRefused, match="refused the login"):
            openssh.connect(server.target(key_file=None, password="not it"))
        assert server.log.count("Failed") == 1
        assert "Failed password" in server.log


def test_a_password_is_given_where_the_server_asks_for_it_in_its_own_words(user: User) -> None:
    with sshd(user=user.name, options=("UsePAM yes", "KbdInteractiveAuthentication yes", "PasswordAuthentication no")) as server:
        enter(server.target(key_file=None, password=user.password))
        assert "Accepted keyboard-interactive" in server.log
        with pytest.raises(LoginRefused):
            openssh.connect(server.target(key_file=None, password="not it"))
        assert server.log.count("Failed") == 1


def test_ssh_is_ended_before_a_question_is_refused(for_passwords: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that fails would be an empty password to it, and a second try."""
    at_work: list[set[int]] = []
    refuse = Question.refuse

    def watched(question: Question) -> None:
        at_work.append(ssh_of())
        refuse(question)

    monkeypatch.setattr(Question, "refuse", watched)
    with pytest.raises(LoginRefused):
        openssh.connect(for_passwords.target(key_file=None, ask=broken))
    assert at_work == [set()]


def broken(question: str) -> str:
    raise LoginRefused("nobody answers")


def test_a_person_is_asked_only_where_the_profile_has_no_password(for_passwords: Sshd, user: User) -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return user.password

    enter(for_passwords.target(key_file=None, ask=ask))
    assert asked == [f"Password for {user.name}@127.0.0.1:{for_passwords.port}: "]
    with pytest.raises(LoginRefused):
        openssh.connect(for_passwords.target(key_file=None, password="wrong", ask=ask))
    assert len(asked) == 1


def test_a_persons_wrong_answer_is_refused_after_one_try(user: User) -> None:
    with sshd(user=user.name) as server:
        with pytest.raises(LoginRefused):
            openssh.connect(server.target(key_file=None, ask=lambda _: "mistyped"))
        assert server.log.count("Failed password") == 1


def test_with_nothing_to_log_in_with_nothing_is_tried(for_passwords: Sshd, home: Path) -> None:
    before = for_passwords.log.count("Failed")
    with pytest.raises(LoginRefused, match="nothing to log in with"):
        openssh.connect(for_passwords.target(key_file=None))
    assert for_passwords.log.count("Failed") == before


def test_a_password_is_not_given_where_only_keys_are_taken() -> None:
    with sshd(options=("PasswordAuthentication no",)) as server:
        with pytest.raises(LoginRefused, match="it accepts: publickey"):
            openssh.connect(server.target(key_file=None, password="geheim"))
        assert "Failed" not in server.log


def test_the_secret_is_in_no_command_line_no_environment_and_no_file(for_passwords: Sshd, user: User) -> None:
    seen: list[bytes] = []

    def look(_: str) -> None:
        """While ssh is at work: everything of it that others might see."""
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    command = (process / "cmdline").read_bytes()
                    if b"hostbackup-" in command or b"hb-" in command:
                        seen.append(command + (process / "environ").read_bytes())
                        folder = next(part for part in command.split(b"\0") if part.endswith(b"/config"))
                        files = [file for file in Path(os.fsdecode(folder)).parent.iterdir() if file.is_file()]
                        assert Path(os.fsdecode(folder)).parent.stat().st_mode & 0o777 == 0o700
                        seen.extend(file.read_bytes() for file in files)
                except (OSError, StopIteration):
                    continue

    session = openssh.connect(for_passwords.target(key_file=None, password=user.password, on_host_key=look))
    look("")
    session.close()
    assert len(seen) > 4
    assert not [data for data in seen if user.password.encode() in data]


def test_an_encrypted_key_opens_with_its_passphrase_only(server: Sshd, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", "ed25519", "open sesame")
    authorize(server, key)
    enter(server.target(key_file=key, passphrase="open sesame"))
    questions: list[str] = []

    def ask(question: str) -> str:
        questions.append(question)
        return "open sesame"

    enter(server.target(key_file=key, ask=ask))
    assert questions == ["Passphrase for key: "]
    with pytest.raises(SecretError) as caught:
        openssh.connect(server.target(key_file=key))
    assert "set `passphrase`" in caught.value.hint
    with pytest.raises(SecretError) as caught:
        openssh.connect(server.target(key_file=key, passphrase="wrong"))
    assert "check `passphrase`" in caught.value.hint


def test_what_is_wrong_with_a_key_file_is_told(server: Sshd, tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="does not exist"):
        openssh.connect(server.target(key_file=tmp_path / "none"))
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("no key\n")
    nonsense.chmod(0o600)
    with pytest.raises(SecretError, match="cannot be opened"):
        openssh.connect(server.target(key_file=nonsense))
    shared = make_key(tmp_path / "shared")
    shared.chmod(0o644)
    authorize(server, shared)
    with pytest.raises(SecretError, match="read by others"):
        openssh.connect(server.target(key_file=shared))


def test_a_key_the_server_does_not_know_is_refused_and_no_other_is_tried(server: Sshd, tmp_path: Path, home: Path) -> None:
    (home / ".ssh" / "config").write_text("Host *\n  ControlMaster auto\n  StrictHostKeyChecking no\n")
    before = server.log.count("Accepted")
    with pytest.raises(LoginRefused, match="refused the login"):
        openssh.connect(server.target(key_file=make_key(tmp_path / "other"), use_ssh_config=True))
    assert server.log.count("Accepted") == before


# -- what is in the way ---------------------------------------------------------------------------------------------------------------------


def test_a_closed_port_is_told_by_name_address_and_port() -> None:
    port = free_port()
    with pytest.raises(Unreachable) as caught:
        openssh.connect(ssh.SshTarget("www.example.jp", port, "me", ("127.0.0.1",), password="x", use_ssh_config=False))
    assert f"port {port} of www.example.jp (127.0.0.1) refused" in caught.value.reason
    assert caught.value.where == f"me@www.example.jp:{port}"


def test_a_name_that_leads_nowhere_is_told() -> None:
    with pytest.raises(NameNotResolved, match=r"host\.invalid"):
        openssh.connect(ssh.SshTarget("host.invalid", 22, "me", password="x", use_ssh_config=False))


def test_a_port_that_speaks_no_ssh_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            near, _ = listener.accept()
            near.sendall(b"220 welcome\r\n")
            near.close()

        threading.Thread(target=answer, daemon=True).start()
        target = ssh.SshTarget("127.0.0.1", listener.getsockname()[1], "me", password="x", use_ssh_config=False, timeout=5)
        with pytest.raises(Unreachable, match="did not speak SSH"):
            openssh.connect(target)


def test_a_server_that_says_nothing_or_freezes_during_the_login_is_given_up(server: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = ssh.SshTarget("127.0.0.1", listener.getsockname()[1], "me", password="x", use_ssh_config=False, timeout=1)
        with pytest.raises((Unreachable, LineCut)):
            openssh.connect(target)
    with Relay(server.port) as relay:
        target = server.target(port=relay.port, host_key=server.host_key_fingerprint, timeout=1.5, on_host_key=lambda _: relay.freeze())
        started = time.monotonic()
        with pytest.raises(LineCut):
            openssh.connect(target)
        assert time.monotonic() - started < 30


def test_a_line_cut_during_the_login_is_told(server: Sshd) -> None:
    with Relay(server.port) as relay:
        target = server.target(port=relay.port, host_key=server.host_key_fingerprint, on_host_key=lambda _: relay.drop())
        with pytest.raises(LineCut):
            openssh.connect(target)


@pytest.mark.parametrize(
    ("there", "reason"), [("", "needs the ssh program"), ("OpenSSH_8.4p1", "8.5 or newer; here is 8.4"), ("Other_1", "something else")]
)
def test_an_ssh_program_that_will_not_do_is_told(there: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if there:
        (tmp_path / "ssh").write_text(f"#!/bin/sh\necho {there} >&2\n")
        (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=reason):
        openssh.connect(ssh.SshTarget("127.0.0.1"))


def test_a_configuration_that_ssh_does_not_take_is_told(home: Path) -> None:
    (home / ".ssh" / "config").write_text("Nonsense yes\n")
    with pytest.raises(UsageError, match="Bad configuration option: nonsense"):
        openssh.connect(ssh.SshTarget("127.0.0.1"))


# -- SHA-1 ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    key = make_key(tmp_path_factory.mktemp("old") / "rsa", "rsa")
    with sshd(host_key=key, options=(*SHA1_ONLY, "Ciphers aes128-cbc,3des-cbc", "MACs hmac-sha1")) as running:
        yield running


def test_a_server_that_has_only_sha1_is_refused_with_the_way_in(old_server: Sshd) -> None:
    for client in (ssh, openssh):
        with pytest.raises(ProtocolBroken) as caught:
            client.connect(old_server.target())
        assert 'client = "openssh" with legacy = true' in caught.value.hint, client


def test_legacy_enters_a_server_that_has_only_sha1(old_server: Sshd, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", "rsa")
    authorize(old_server, key)
    with pytest.raises(LoginRefused):
        openssh.connect(old_server.target(legacy=True, key_file=make_key(tmp_path / "unknown", "rsa")))
    fingerprint = old_server.host_key_fingerprint
    for changes in ({}, {"known_hosts": tmp_path / "none", "host_key": fingerprint}):
        target = old_server.target(legacy=True, key_file=key, **changes)
        assert enter(target) == fingerprint
    with pytest.raises(HostKeyChanged):
        openssh.connect(old_server.target(legacy=True, key_file=key, host_key="SHA256:" + "A" * 43))


def test_a_key_that_is_taken_only_with_sha1_is_told(server: Sshd) -> None:
    said = ["debug1: send_pubkey_test: no mutual signature algorithm", "root@127.0.0.1: Permission denied (publickey)."]
    for legacy, hint in ((False, "legacy"), (True, "check `user`")):
        target = server.target(legacy=legacy)
        rules = target.host_key_rules("127.0.0.1")
        login = Login(target, Settings("127.0.0.1", server.port, "root", False), rules, "alias", None, lambda _: None)
        told = login.explain(said)
        assert isinstance(told, LoginRefused)
        assert hint in told.hint


# -- ~/.ssh/config and gateways -------------------------------------------------------------------------------------------------------------


def test_ssh_config_names_host_port_user_and_key(server: Sshd, home: Path) -> None:
    (home / ".ssh" / "config").write_text(
        f"Host old\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n  IdentityFile {server.client_key}\n"
        "  ControlMaster auto\n  ControlPath /nowhere/%C\n  RemoteCommand false\n  RequestTTY force\n  LocalForward 1 127.0.0.1:1\n"
        "  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking no\n"
    )
    with pytest.raises(HostKeyUnknown):
        openssh.connect(ssh.SshTarget("old"))
    (home / ".ssh" / "known_hosts").write_text(server.known_hosts.read_text())
    enter(ssh.SshTarget("old"))
    with pytest.raises(NameNotResolved):
        openssh.connect(ssh.SshTarget("old.invalid", use_ssh_config=False))


def behind(home: Path, server: Sshd, jump: Sshd, *, user: str = "", extra: str = "") -> None:
    """A configuration in which the server `inner` is reached through another. The client key opens both, where they have it on record."""
    (home / ".ssh" / "config").write_text(
        f"Host inner\n  HostName 127.0.0.1\n  Port {server.port}\n  User {user or server.user}\n  IdentityFile {server.client_key}\n"
        f"  ProxyJump {jump.user}@localhost:{jump.port}\nHost localhost\n  IdentityFile {jump.client_key}\n{extra}"
    )
    (home / ".ssh" / "known_hosts").write_text(server.known_hosts.read_text() + jump.known_hosts.read_text())


def test_a_gateway_is_gone_through_and_its_key_is_checked_too(server: Sshd, home: Path) -> None:
    with sshd() as jump:
        behind(home, server, jump)
        assert enter(ssh.SshTarget("inner", addresses=("127.0.0.1",))) == server.host_key_fingerprint
        assert "Accepted publickey" in jump.log
        (home / ".ssh" / "known_hosts").write_text(server.known_hosts.read_text())
        with pytest.raises(HostKeyUnknown) as caught:
            openssh.connect(ssh.SshTarget("inner"))
        assert jump.host_key_fingerprint in caught.value.reason
        (home / ".ssh" / "known_hosts").write_text(jump.known_hosts.read_text())
        with pytest.raises(HostKeyUnknown) as caught:
            openssh.connect(ssh.SshTarget("inner"))
        assert server.host_key_fingerprint in caught.value.reason


def test_the_profiles_password_is_never_given_to_a_gateway(for_passwords: Sshd, user: User, home: Path) -> None:
    with sshd(user=user.name) as jump:
        behind(home, for_passwords, jump)
        config = home / ".ssh" / "config"
        config.write_text(config.read_text().replace(f"IdentityFile {jump.client_key}", "IdentityFile none"))
        with pytest.raises(LoginRefused, match="nobody is there to answer"):
            openssh.connect(ssh.SshTarget("inner", password=user.password))
        assert "Failed password" not in jump.log
        assert "Accepted" not in jump.log
        asked: list[str] = []

        def ask(question: str) -> str:
            asked.append(question)
            return user.password

        enter(ssh.SshTarget("inner", password=user.password, ask=ask))
        assert asked == [f"{user.name}@localhost's password:"]


def test_a_gateway_that_leads_nowhere_or_refuses_is_told(server: Sshd, home: Path, tmp_path: Path) -> None:
    with sshd(options=("PasswordAuthentication no",)) as jump:
        behind(home, server, jump)
        config = home / ".ssh" / "config"
        whole = config.read_text()
        config.write_text(whole.replace(str(jump.client_key), str(make_key(tmp_path / "unknown"))))
        with pytest.raises(LoginRefused, match=r"gateway root@localhost"):
            openssh.connect(ssh.SshTarget("inner", host_key=server.host_key_fingerprint))
        config.write_text(whole.replace(f"Port {server.port}", f"Port {free_port()}"))
        with pytest.raises(Unreachable, match="on the way"):
            openssh.connect(ssh.SshTarget("inner", host_key=server.host_key_fingerprint))
        config.write_text(whole.replace(f"localhost:{jump.port}", f"gateway.invalid:{jump.port}"))
        with pytest.raises(NameNotResolved, match=r"gateway\.invalid"):
            openssh.connect(ssh.SshTarget("inner", host_key=server.host_key_fingerprint))


def test_a_command_as_gateway_is_gone_through(server: Sshd, home: Path) -> None:
    behind(home, server, server)
    config = home / ".ssh" / "config"
    config.write_text(
        f"Host inner\n  HostName 127.0.0.1\n  Port {server.port}\n  User root\n  IdentityFile {server.client_key}\n"
        f"  ProxyCommand bash -c 'exec 3<>/dev/tcp/%h/%p; cat <&3 & exec cat >&3'\n"
    )
    enter(ssh.SshTarget("inner"))


def test_a_login_that_fails_leaves_nothing_behind(server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    threads = set(threading.enumerate())
    monkeypatch.setattr("hostbackup.protocols.openssh_process._ROOM", 90)
    for target in (server.target(known_hosts=tmp_path / "none"), server.target(key_file=make_key(tmp_path / "other"))):
        with pytest.raises((HostKeyUnknown, LoginRefused)):
            openssh.connect(target)
    assert list(folder.iterdir()) == []
    assert set(threading.enumerate()) <= threads
