"""A whole move on loopback: a folder with a profile, a site with odd names, real servers, and witnesses that know nothing of the program."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.cli import Ran, command, hostbackup, write_profile
from tests.support.sshd import Sshd

PAST = 1_700_000_000  # a time long ago: nothing dated so is fresh
DEADLINE = 60.0
State = dict[bytes, tuple[object, ...]]
_IMPATIENT = """
from hostbackup.cli.main import main
from hostbackup.places import sftp_tree
sftp_tree.BACK_OFF = (0.1, 0.2, 0.4)
main()
"""


@dataclass
class Move:
    """A project in `folder`. `site` is what the old server shows, `vault` where the profile puts the backup."""

    folder: Path

    @property
    def site(self) -> Path:
        return self.folder / "old" / "public_html"

    @property
    def target(self) -> Path:
        return self.folder / "new" / "html"

    @property
    def vault(self) -> Path:
        return self.folder / "vault"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def snapshots(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text("utf-8")) for path in sorted((self.vault / "snapshots").iterdir())]

    # -- profile ------------------------------------------------------------------------------------------------------------------------

    def trust(self, port: int, *servers: Sshd) -> None:
        """Puts the servers' keys on record for a port of 127.0.0.1."""
        with self.known_hosts.open("a") as file:
            file.writelines(f"[127.0.0.1]:{port} {server.host_key_line}\n" for server in servers)

    def ssh(self, side: str, server: Sshd, *, port: int | None = None, trust: bool = True, **more: str) -> str:
        """A section of the profile. `more` replaces or adds keys, as TOML."""
        port = port or server.port
        if trust:
            self.trust(port, server)
        keys = {"host": '"127.0.0.1"', "port": str(port), "user": f'"{server.user}"', "key": f'"{server.client_key}"'}
        keys |= {"known_hosts": f'"{self.known_hosts}"'} | more
        return f"[{side}.ssh]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items() if value)

    def old_web(self, *, more: str = "") -> str:
        return f'[[old.web]]\npath = "{self.site}"\n{more}\n'

    def new_web(self, *, more: str = "") -> str:
        return f'[[new.web]]\nfrom = "public_html"\npath = "{self.target}"\n{more}\n'

    def profile(self, *sections: str, view: str = "link") -> None:
        write_profile(self.folder, "\n".join([f'name = "move"\nvault = "vault"\nview = "{view}"', *sections]))

    # -- runs ---------------------------------------------------------------------------------------------------------------------------

    def run(self, word: str, *options: str, exit: int = 0, patience: float | None = None) -> Ran:
        """Runs a command on the profile with --json, and holds it to its exit code. `patience` as for `start`."""
        if patience is None:
            ran = hostbackup(word, "move.toml", "--json", *options, cwd=self.folder)
        else:
            ran = ended(self.start(word, *options, patience=patience))
        assert ran.exit == exit, f"{word} ended in {ran.exit}: {ran.err}\n{ran.out}"
        return ran

    def start(self, word: str, *options: str, patience: float | None = None) -> subprocess.Popen[bytes]:
        """The same, under way. Give it to `ended` sooner or later. Servers get `patience` seconds to answer, where given, instead of a minute, and
        new logins follow a cut line sooner."""
        line = command(word, "move.toml", "--json", *options)
        if patience is not None:
            line = [sys.executable, "-c", _IMPATIENT.format(patience=patience), *line[3:], "--stall-timeout", str(patience)]
        return subprocess.Popen(
            line, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    @property
    def brought(self) -> int:
        """Contents in the vault or on their way into it: grows while a backup reads."""
        count = 0
        for folder in ("objects", "incoming"):
            for _, _, names in os.walk(self.vault / folder):
                count += sum(len(name) == 64 for name in names)
        return count


def ended(process: subprocess.Popen[bytes], number: signal.Signals | None = None) -> Ran:
    """Waits for a run, after sending it a signal."""
    if number is not None:
        process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE)
    ran = Ran(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in ran.err, ran.err
    return ran


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> bool:
    """Waits for something to become true. False where the process ended first."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)
    return True


# -- sites --------------------------------------------------------------------------------------------------------------------------------

ODD_FILES = {
    "会社案内.html".encode(): b"<p>UTF-8</p>",
    "料金表.html".encode("cp932"): b"Shift_JIS",
    b"caf\xe9": b"Latin-1",
    b"\xff\xfe\x80": b"no encoding at all",
    b"two\nlines.txt": b"line feed",
    b"return\r.txt": b"carriage return",
    b" blanks around ": b"blanks",
    b"-rf": b"dash",
    b"--help": b"two dashes",
    b'it\'s "quoted" $(id) `id`;&|<>.txt': b"quotes",
    b"*?[x]": b"wildcards",
    b"back\\slash": b"backslash",
    b"con.txt": b"a device elsewhere",
    b"%41": b"percent",
    b"\x1b[31mred": b"escape",
    b"README": b"upper",
    b"readme": b"lower",
    b"long" * 60: b"long",
    b".htaccess": b"hidden",
    b"empty": b"",
    b"large.bin": bytes(range(256)) * 2048,
    "資料/下/見積書.xlsx".encode("cp932"): b"a folder in Shift_JIS",
    b"-d/--x/index.html": b"dashes all the way",
    b"sub/twin": b"Latin-1",
}
LINKS = {
    b"to-file": b"empty",
    b"to-dir": b"sub",
    b"dangling": b"no/such/file",
    b"loop": b".",
    b"self": b"self",
    b"sub/up": b"../..",
    b"absolute": b"/etc/hostname",
    "リンク".encode("cp932"): "会社案内.html".encode(),
}
MODES = {b"empty": 0o600, b"-rf": 0o755, b"con.txt": 0o444, b"sub": 0o750, b"hollow": 0o700}


def fill(root: Path, files: dict[bytes, bytes]) -> None:
    """Writes files, dated in the past."""
    base = os.fsencode(root)
    for name, data in files.items():
        path = Path(os.fsdecode(base + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    date(root)


def odd_site(root: Path) -> None:
    """A small tree with every kind of name, link and mode that makes trouble."""
    fill(root, ODD_FILES)
    base = os.fsencode(root)
    for name, target in LINKS.items():
        Path(os.fsdecode(base + b"/" + name)).symlink_to(os.fsdecode(target))
    (root / "hollow" / "空").mkdir(parents=True)
    for name, mode in MODES.items():
        Path(os.fsdecode(base + b"/" + name)).chmod(mode)
    date(root)


def date(root: Path, when: int = PAST) -> None:
    """Gives all of a tree a time of its own, long ago."""
    for number, (folder, _, names) in enumerate(os.walk(os.fsencode(root), topdown=False)):
        for place, name in enumerate([*names, b"."]):
            path = folder + b"/" + name
            if not stat.S_ISLNK(os.lstat(path).st_mode):
                os.utime(path, (when + number * 1000 + place, when + number * 1000 + place))


def many_files(count: int, size: int = 2000) -> dict[bytes, bytes]:
    """So many different files in a few folders."""
    return {b"d%02d/f%04d" % (number % 11, number): (b"%d " % number) * (size // len(b"%d " % number)) for number in range(count)}


def put(path: Path, data: bytes, when: int = PAST + 50_000) -> None:
    """A change of a file that shows in its time, and is not fresh."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (when, when))


# -- witnesses ----------------------------------------------------------------------------------------------------------------------------


def same_tree(one: Path, other: Path) -> None:
    """`diff -r` finds no difference."""
    told = subprocess.run(["diff", "-r", "--no-dereference", str(one), str(other)], capture_output=True, check=False)
    assert (told.returncode, told.stdout) == (0, b""), told.stdout.decode("utf-8", "backslashreplace")


def state(root: Path, *, modes: bool = True, times: bool = True) -> State:
    """All that can be seen of a tree, to be compared: kind, mode, time in seconds, contents or target."""
    found: State = {}
    base = os.fsencode(root)
    for folder, folders, names in os.walk(base):
        for name in [*folders, *names]:
            path = folder + b"/" + name
            known = os.lstat(path)
            kind = stat.S_IFMT(known.st_mode)
            contents: object = None
            if kind == stat.S_IFLNK:
                contents = os.fsencode(Path(os.fsdecode(path)).readlink())
            elif kind == stat.S_IFREG:
                contents = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
            mode = stat.S_IMODE(known.st_mode) if modes and kind != stat.S_IFLNK else None
            found[path[len(base) + 1 :]] = (kind, mode, int(known.st_mtime) if times and kind != stat.S_IFLNK else None, contents)
    return found


def leftovers(root: Path) -> list[str]:
    """Half-written files that a push left on a target."""
    return [str(path) for path in root.rglob(".hostbackup-*")]


def size_of(root: Path) -> int:
    return sum(path.lstat().st_size for path in root.rglob("*"))


def whole_vault(root: Path) -> int:
    """Reads the vault by docs/vault-format.md: all is what its name says, and all that a snapshot names is there. Gives the number of objects."""
    there: dict[str, set[str]] = {}
    for kind in ("objects", "manifests"):
        there[kind] = set()
        for path in (root / kind).rglob("*"):
            if path.is_file():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, f"{path} is not what it is called"
                assert path.parent.name == path.name[:2]
                there[kind].add(path.name)
    for path in (root / "snapshots").glob("*"):  # a vault that was killed while it was made has none
        document = json.loads(path.read_text("utf-8"))
        bare = {key: value for key, value in document.items() if key != "sha256"}
        line = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
        assert hashlib.sha256(line.encode()).hexdigest() == document["sha256"], f"{path} is torn"
        for part in document["parts"].values():
            for digest in _needed(root, part["root"]):
                assert digest in there["objects"], f"{path.name} needs {digest}"
    _chained(root / "evidence")
    return len(there["objects"])


def _needed(root: Path, digest: str) -> Iterator[str]:
    data = (root / "manifests" / digest[:2] / digest).read_bytes()
    for row in map(json.loads, data.split(b"\n")[:-1]):
        if row.get("type") in ("segment", "index"):
            yield from _needed(root, row["digest"])
        elif "digest" in row:
            yield row["digest"]


def _chained(folder: Path) -> None:
    before, digest = "", ""
    for path in sorted(folder.glob("*")):
        data = path.read_bytes()
        first = json.loads(data.split(b"\n")[0])
        assert (first["previous_name"], first["previous"]) == (before, digest), f"{path.name} does not follow {before}"
        before, digest = path.name, hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own, of that size, at `folder`. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
