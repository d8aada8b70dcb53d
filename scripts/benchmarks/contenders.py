"""The programs that are compared over SFTP, each ready to do one piece of work again and again."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from scripts.benchmarks.corpus import Corpus
from scripts.benchmarks.ground import program
from scripts.benchmarks.trial import Contender, Trial, hostbackup, run_first
from scripts.benchmarks.world import Server, World

LARGE = 16  # transfers and checkers of rclone


# -- hostbackup ---------------------------------------------------------------------------------------------------------------------------------


def _latest(vault: Path) -> Path:
    return vault / "latest" / "web" / "site"


def _old(world: World, server: Server, tree: Corpus, client: str = "") -> str:
    return world.section("old", server, f'path = "{tree.path}"\nname = "site"', client)


def hostbackup_pull(world: World, server: Server, tree: Corpus, *, name: str = "hostbackup", client: str = "") -> Contender:
    def trial(scratch: Path) -> Trial:
        vault = scratch / "vault"
        profile = world.profile(scratch, vault, [_old(world, server, tree, client)])
        return Trial(hostbackup("backup", profile), _latest(vault), tree, through="ssh" if client == "openssh" else "")

    return Contender(name, ["hostbackup", *(["ssh"] if client == "openssh" else [])], trial)


def hostbackup_again(world: World, server: Server, tree: Corpus) -> Contender:
    """A further backup of what is in the vault already."""
    kept = world.folder / "second-run" / "hostbackup"

    def prepare() -> None:
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        run_first(world, hostbackup("backup", world.profile(kept, kept / "vault", [_old(world, server, tree)])))

    def trial(_: Path) -> Trial:
        return Trial(hostbackup("backup", kept / "move.toml"), _latest(kept / "vault"), tree)

    return Contender("hostbackup", ["hostbackup"], trial, prepare)


def hostbackup_push(world: World, server: Server, tree: Corpus) -> Contender:
    """Each trial has a copy of one vault, so that none knows of an earlier push."""
    kept = world.folder / "push" / "vault"

    def prepare() -> None:
        shutil.rmtree(kept.parent, ignore_errors=True)
        kept.parent.mkdir()
        run_first(world, hostbackup("backup", world.profile(kept.parent, kept, [_old(world, world.old, tree)])))

    def trial(scratch: Path) -> Trial:
        vault, target = scratch / "vault", scratch / "target"
        subprocess.run(["cp", "-a", str(kept), str(vault)], check=True)
        target.mkdir()
        new = world.section("new", server, f'from = "site"\npath = "{target}"')
        profile = world.profile(scratch, vault, [_old(world, world.old, tree), new])
        return Trial(hostbackup("push", profile), target, tree, sync=target)

    return Contender("hostbackup", ["hostbackup", "cp"], trial, prepare)


# -- the others ---------------------------------------------------------------------------------------------------------------------------------


def _rclone(world: World, source: str, target: str) -> list[str]:
    several = ["--transfers", str(LARGE), "--checkers", str(LARGE)]
    return [program("rclone"), "--config", str(world.rclone_config()), "copy", source, target, *several, "--stats", "0", "--log-level", "ERROR"]


def rclone_pull(world: World, tree: Corpus) -> Contender:
    def trial(scratch: Path) -> Trial:
        return Trial(_rclone(world, f"closed:{tree.path}", str(scratch)), scratch, tree, sync=scratch)

    return Contender("rclone", ["rclone"], trial)


def rclone_push(world: World, tree: Corpus) -> Contender:
    def trial(scratch: Path) -> Trial:
        return Trial(_rclone(world, str(tree.path), f"closed:{scratch}"), scratch, tree, sync=scratch)

    return Contender("rclone", ["rclone"], trial)


def _rsync(world: World, tree: Corpus, target: Path) -> list[str]:
    return ["rsync", "-a", "-e", shlex.join(world.ssh(world.old)), f"{_at(world.old)}:{tree.path}/", f"{target}/"]


def rsync_pull(world: World, tree: Corpus) -> Contender:
    def trial(scratch: Path) -> Trial:
        return Trial(_rsync(world, tree, scratch), scratch, tree, sync=scratch)

    return Contender("rsync", ["rsync", "ssh"], trial)


def copied(world: World, tree: Corpus, name: str) -> Contender:
    """A second run of rclone or rsync onto a folder that holds everything already."""
    kept = world.folder / "second-run" / name

    def prepare() -> None:
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-a", str(tree.path), str(kept)], check=True)

    def trial(_: Path) -> Trial:
        command = _rsync(world, tree, kept) if name == "rsync" else _rclone(world, f"closed:{tree.path}", str(kept))
        return Trial(command, kept, tree, sync=kept)

    return Contender(name, [name], trial, prepare)


def tar_pull(world: World, tree: Corpus) -> Contender:
    """Not a backup tool, but as fast as one stream of files can be."""
    pack = shlex.join([*world.ssh(world.old), _at(world.old), shlex.join(["tar", "-C", str(tree.path), "-cf", "-", "."])])

    def trial(scratch: Path) -> Trial:
        both = f"{pack} | {shlex.join(['tar', '-C', str(scratch), '-xf', '-'])}"
        return Trial(["bash", "-o", "pipefail", "-c", both], scratch, tree, sync=scratch)

    return Contender("tar over ssh", ["tar", "ssh", "bash"], trial)


def scp_pull(world: World, tree: Corpus) -> Contender:
    def trial(scratch: Path) -> Trial:
        command = [*world.ssh(world.closed, program="scp", port="-P"), "-r", f"{_at(world.closed)}:{tree.path}", str(scratch / "copy")]
        return Trial(command, scratch / "copy", tree, sync=scratch)

    return Contender("scp", ["scp"], trial)


def lftp_push(world: World, tree: Corpus) -> Contender:
    connect = shlex.join([*world.ssh(world.closed), "-a", "-x"])

    def trial(scratch: Path) -> Trial:
        script = [
            "set cmd:fail-exit true",
            "set net:max-retries 1",
            f"set sftp:connect-program {shlex.quote(connect)}",
            f"open -u {world.closed.user},none sftp://127.0.0.1:{world.closed.port}",
            f"mirror -R --parallel=8 {tree.path} {scratch}",
        ]
        return Trial(["lftp", "-c", "; ".join(script)], scratch, tree, sync=scratch)

    return Contender("lftp", ["lftp", "ssh"], trial)


def _at(server: Server) -> str:
    return f"{server.user}@127.0.0.1"
