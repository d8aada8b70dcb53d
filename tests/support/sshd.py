"""A real OpenSSH server on loopback, with nothing of the system's configuration touched.

`sshd()` starts one, with a shell or with internal-sftp only. `throwaway_user` makes a system user with a password, for what needs one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostbackup.protocols.ssh import SshTarget

SSHD = "/usr/sbin/sshd"
_DEADLINE = 20.0


@dataclass
class Sshd:
    """A running server. `log` tells what it saw; `known_hosts` holds its key under 127.0.0.1 and localhost."""

    folder: Path
    port: int
    user: str
    home: Path
    client_key: Path
    known_hosts: Path
    host_key: Path
    process: subprocess.Popen[bytes]

    @property
    def host_key_line(self) -> str:
        return " ".join(self.host_key.with_suffix(".pub").read_text().split()[:2])

    @property
    def host_key_fingerprint(self) -> str:
        blob = base64.b64decode(self.host_key_line.split()[1])
        return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def target(self, **changes: Any) -> SshTarget:
        """How to get in with the client key. `changes` are fields of SshTarget."""
        facts: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "key_file": self.client_key,
            "known_hosts": self.known_hosts,
            "use_ssh_config": False,
            "timeout": 15.0,
        }
        return SshTarget(**{**facts, **changes})

    def connections(self) -> list[int]:
        """The processes that serve connections now."""
        return _descendants(self.process.pid)[1:]

    def stop(self) -> None:
        for pid in reversed(_descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self.process.wait(10)


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found.extend(int(child) for child in (task / "children").read_text().split())
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path)], check=True)
    return path


def own_login() -> tuple[str, tuple[str, ...]]:
    """Who runs this, and the `options` that let them in at a server they start.

    Without PAM, sshd turns a user away whose password is locked, whatever key they have.
    """
    user = pwd.getpwuid(os.geteuid()).pw_name
    locked = False
    with contextlib.suppress(OSError):
        locked = any(line.startswith(f"{user}:!") for line in Path("/etc/shadow").read_text().splitlines())
    return user, ("UsePAM yes",) if locked else ()


@contextlib.contextmanager
def sshd(
    *,
    shell: bool = True,
    user: str = "root",
    host_key: Path | None = None,
    port: int | None = None,
    options: tuple[str, ...] = (),
    sftp: str = "internal-sftp",
) -> Iterator[Sshd]:
    """Starts a server for `user` on 127.0.0.1 and ends it with all it started.

    `options` are further lines of sshd_config; `sftp` is the SFTP server's command.
    """
    folder = Path(tempfile.mkdtemp(prefix="hostbackup-sshd-"))
    folder.chmod(0o755)
    try:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        key = host_key or make_key(folder / "host_key")
        client = make_key(folder / "client_key")
        shutil.copy(client.with_suffix(".pub"), folder / "authorized_keys")
        (folder / "authorized_keys").chmod(0o644)
        chosen = port or free_port()
        process = _start(folder, _config(folder, key, chosen, user=user, shell=shell, options=options, sftp=sftp), chosen)
        known = folder / "known_hosts"
        server = Sshd(folder, chosen, user, Path(pwd.getpwnam(user).pw_dir), client, known, key, process)
        names = ",".join(f"[{name}]:{chosen}" for name in ("127.0.0.1", "localhost"))
        known.write_text(f"{names} {server.host_key_line}\n")
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _config(folder: Path, key: Path, port: int, *, user: str, shell: bool, options: tuple[str, ...], sftp: str) -> Path:
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {key}",
        f"PidFile {folder / 'pid'}",
        f"AuthorizedKeysFile {folder / 'authorized_keys'}",
        f"AllowUsers {user}",
        "StrictModes no",
        "UsePAM no",
        "PermitRootLogin yes",
        "PasswordAuthentication yes",
        "KbdInteractiveAuthentication no",
        "UseDNS no",
        "MaxStartups 100",
        "LogLevel VERBOSE",
        "PrintMotd no",
        f"Subsystem sftp {sftp}",
        *([] if shell else [f"ForceCommand {sftp}"]),
    ]
    # sshd takes the first value of a keyword.
    config = folder / "sshd_config"
    config.write_text("\n".join([*options, *lines]) + "\n")
    return config


def _start(folder: Path, config: Path, port: int) -> subprocess.Popen[bytes]:
    # Tests that are killed cannot tidy up: the server ends with them.
    command = ["setpriv", "--pdeathsig", "KILL", SSHD, "-D", "-f", str(config), "-E", str(folder / "log")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + _DEADLINE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"sshd ended: {(folder / 'log').read_text(errors='replace')}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as probe:
            probe.settimeout(5)
            if probe.recv(4) == b"SSH-":
                return process
        time.sleep(0.02)
    process.kill()
    raise RuntimeError("sshd did not come up")


@dataclass(frozen=True)
class User:
    name: str
    password: str
    home: Path
    uid: int


@contextlib.contextmanager
def throwaway_user(shell: str = "/bin/bash") -> Iterator[User]:
    """A system user with a password and a home in a temporary folder; gone afterwards. Needs root."""
    name, password = f"hb{secrets.token_hex(4)}", secrets.token_hex(12)
    parent = Path(tempfile.mkdtemp(prefix="hostbackup-home-"))
    parent.chmod(0o755)
    home = parent / name
    subprocess.run(["useradd", "-m", "-d", str(home), "-s", shell, "-K", "UMASK=022", name], check=True, capture_output=True)
    try:
        subprocess.run(["chpasswd"], input=f"{name}:{password}\n".encode(), check=True, capture_output=True)
        yield User(name, password, home, pwd.getpwnam(name).pw_uid)
    finally:
        subprocess.run(["userdel", "-f", name], check=False, capture_output=True)
        shutil.rmtree(parent, ignore_errors=True)


class Relay:
    """Passes TCP on to a port of 127.0.0.1, each direction late by `delay` seconds; can cut or freeze the line after so many bytes from the server.

    It listens on the port `at`, or on a free one. Of the lines open at once it serves `lines` and ends others at once. `rate` is how many bytes
    a second pass each way (0: all that come). `upwards`: it is the bytes to the server that count for a cut, and exactly so many reach it.
    """

    def __init__(
        self,
        port: int,
        *,
        delay: float = 0.0,
        cut_after: int | None = None,
        cuts: int = 1,
        freeze_after: int | None = None,
        lines: int | None = None,
        at: int = 0,
        rate: int = 0,
        upwards: bool = False,
    ) -> None:
        import threading

        self._target = port
        self._delay = delay
        self._rate = rate
        self._cut_after = cut_after
        self._upwards = upwards
        self._freeze_after = freeze_after
        self._lines = lines
        self.cuts_left = cuts if cut_after is not None else 0
        self._listener = socket.create_server(("127.0.0.1", at))
        self.port = int(self._listener.getsockname()[1])
        self.accepted = 0
        self.brought = 0  # bytes from the server so far
        self._open: list[socket.socket] = []
        self._frozen = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        import threading

        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self._lines is not None and len(self._open) >= 2 * self._lines:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [near, far]
            for source, sink, counted in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pass, args=(source, sink, counted), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        import queue
        import threading

        line: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=4096)

        def deliver() -> None:
            while True:
                due, data = line.get()
                wait = due - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                if self._rate:
                    time.sleep(len(data) / self._rate)
                try:
                    sink.sendall(data)
                    if not data:
                        sink.shutdown(socket.SHUT_WR)
                except OSError:
                    return
                if not data:
                    return

        threading.Thread(target=deliver, daemon=True).start()
        passed = 0
        while True:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            if self._frozen.is_set():
                return
            passed += len(data)
            self.brought += len(data) if counted else 0
            if counted and self._freeze_after is not None and passed > self._freeze_after:
                self.freeze()
                return
            if counted is not self._upwards and self.cuts_left and self._cut_after is not None and passed > self._cut_after:
                self.cuts_left -= 1
                if self._upwards:
                    line.put((time.monotonic() + self._delay, data[: len(data) - (passed - self._cut_after)]))
                    line.put((time.monotonic() + self._delay, b""))
                    source.shutdown(socket.SHUT_RDWR)
                    return
                for one in (source, sink):
                    with contextlib.suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
                return
            line.put((time.monotonic() + self._delay, data))
            if not data:
                return

    def refuse(self) -> None:
        """From now on nobody gets in. What is open stays."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept, which close alone would not
        self._listener.close()

    def freeze(self) -> None:
        """From now on nothing passes, and nobody is told."""
        self._frozen.set()

    def lead_to(self, port: int) -> None:
        """New connections go to another port from now on."""
        self._target = port

    def drop(self) -> None:
        """Cuts every line; new ones are taken."""
        lines, self._open = self._open, []
        for one in lines:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
