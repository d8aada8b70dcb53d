"""A real ProFTPD with mod_sftp on loopback: an SFTP server without a shell that hashes files (check-file). Nothing of the system's is touched."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.sshd import Sshd, free_port, make_key

PROFTPD = "/usr/sbin/proftpd"
_DEADLINE = 20.0


@contextlib.contextmanager
def proftpd(*, options: tuple[str, ...] = ()) -> Iterator[Sshd]:
    """Starts a server for this user on 127.0.0.1 and ends it with all it started. `options` are further lines for mod_sftp."""
    folder = Path(tempfile.mkdtemp(prefix="hostbackup-proftpd-"))
    folder.chmod(0o755)
    user = pwd.getpwuid(os.getuid())
    try:
        host_key, client = make_key(folder / "host_key"), make_key(folder / "client_key")
        public = subprocess.run(["ssh-keygen", "-e", "-f", f"{client}.pub"], check=True, capture_output=True).stdout
        (folder / "authorized_keys").write_bytes(public)
        passwd = folder / "passwd"
        passwd.write_text(f"{user.pw_name}:*:{user.pw_uid}:{user.pw_gid}::{user.pw_dir}:/bin/sh\n")
        passwd.chmod(0o600)
        port = free_port()
        process = _start(folder, _config(folder, host_key, port, user, options), port)
        known = folder / "known_hosts"
        server = Sshd(folder, port, user.pw_name, Path(user.pw_dir), client, known, host_key, process)
        known.write_text(f"[127.0.0.1]:{port} {server.host_key_line}\n")
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _config(folder: Path, host_key: Path, port: int, user: pwd.struct_passwd, options: tuple[str, ...]) -> Path:
    lines = [
        "LoadModule mod_sftp.c",
        "ServerName hostbackup-test",
        "ServerType standalone",
        "DefaultAddress 127.0.0.1",
        "SocketBindTight on",
        "UseIPv6 off",
        f"Port {port}",
        f"PidFile {folder / 'pid'}",
        "ScoreboardFile none",
        "DelayEngine off",
        "UseReverseDNS off",
        f"User {user.pw_name}",
        "Group root",
        "RootLogin on",
        "RequireValidShell off",
        "UseFtpUsers off",
        "WtmpLog off",
        "TransferLog none",
        f"SystemLog {folder / 'log'}",
        "AuthOrder mod_auth_file.c",
        f"AuthUserFile {folder / 'passwd'}",
        "AllowOverwrite on",
        "MaxInstances 60",
        "SFTPEngine on",
        f"SFTPLog {folder / 'sftp-log'}",
        f"SFTPHostKey {host_key}",
        "SFTPAuthMethods publickey",
        f"SFTPAuthorizedUserKeys file:{folder / 'authorized_keys'}",
        *options,
    ]
    config = folder / "proftpd.conf"
    config.write_text("\n".join(lines) + "\n")
    return config


def _start(folder: Path, config: Path, port: int) -> subprocess.Popen[bytes]:
    # Tests that are killed cannot tidy up: the server ends with them.
    command = ["setpriv", "--pdeathsig", "KILL", PROFTPD, "--nodaemon", "--quiet", "--config", str(config)]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    deadline = time.monotonic() + _DEADLINE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"proftpd ended: {(folder / 'output').read_text(errors='replace')}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as probe:
            probe.settimeout(5)
            if probe.recv(4) == b"SSH-":
                return process
        time.sleep(0.02)
    process.kill()
    raise RuntimeError("proftpd did not come up")
