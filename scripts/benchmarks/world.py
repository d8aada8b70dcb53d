"""Where the SFTP cases happen: two SSH servers on loopback and a relay in front of each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.ground import Ground, working_folder
from scripts.benchmarks.relay import HOST, relay
from tests.support.sshd import Sshd, own_login, sshd


@dataclass(frozen=True)
class Server:
    """An SSH server behind a relay. `port` is the relay's."""

    port: int
    user: str
    key: Path
    shell: bool


@dataclass(frozen=True)
class World(Ground):
    """`old` allows commands, `closed` allows SFTP and nothing else."""

    old: Server
    closed: Server

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def ssh(self, server: Server, *, program: str = "ssh", port: str = "-p") -> list[str]:
        """The system's ssh or scp, ready for the rest of its arguments."""
        options = ("BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={self.known_hosts}")
        found = [program, "-F", "none", port, str(server.port), "-i", str(server.key)]
        return [*found, *(word for option in options for word in ("-o", option))]

    def section(self, side: str, server: Server, web: str, client: str = "") -> str:
        """The lines of a profile for one server and one tree on it."""
        ssh = (
            f'[{side}.ssh]\nhost = "{HOST}"\nport = {server.port}\nuser = "{server.user}"\nkey = "{server.key}"\nknown_hosts = "{self.known_hosts}"\n'
        )
        return ssh + (f'client = "{client}"\n' if client else "") + f"[[{side}.web]]\n{web}\n"

    def rclone_config(self) -> Path:
        """The remote `closed` for rclone. Without a shell there are no hashes to ask for; large requests, as OpenSSH allows them."""
        path = self.folder / "rclone.conf"
        server = self.closed
        path.write_text(
            f"[closed]\ntype = sftp\nhost = {HOST}\nport = {server.port}\nuser = {server.user}\nkey_file = {server.key}\n"
            f"known_hosts_file = {self.known_hosts}\nshell_type = none\ndisable_hashcheck = true\nchunk_size = 255Ki\n"
        )
        return path


@contextlib.contextmanager
def world(keep: Path | None, delay_ms: float) -> Iterator[World]:
    """Servers and relays, up until the end. What is in `keep` stays, for the next run; without it everything is made in a folder that goes."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(working_folder(keep))
        user, options = own_login()
        running = [stack.enter_context(sshd(user=user, shell=shell, options=options)) for shell in (True, False)]
        ports = [stack.enter_context(relay(server.port, delay_ms)) for server in running]
        old, closed = (Server(port, user, server.client_key, shell) for port, server, shell in zip(ports, running, (True, False), strict=True))
        made = World(folder, delay_ms, old, closed)
        made.known_hosts.write_text("".join(_known(port, server) for port, server in zip(ports, running, strict=True)))
        yield made


def _known(port: int, server: Sshd) -> str:
    return f"[{HOST}]:{port} {server.host_key_line}\n"
