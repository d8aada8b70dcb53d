"""The programs that are compared over IMAP, each ready to do one piece of work again and again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.benchmarks.mail_corpus import Bodies, Mailbox, Whole
from scripts.benchmarks.mail_world import PASSWORD, MailWorld
from scripts.benchmarks.trial import Contender, Trial, hostbackup, run_first

_LOOP = Path(__file__).with_name("imap_loop.py")
_AGAIN = "mail-second-run"


# -- hostbackup ---------------------------------------------------------------------------------------------------------------------------------


def _account(user: str, new_user: str = "") -> str:
    told = f'[[old.imap.account]]\nuser = "{user}"\npassword = "{PASSWORD}"\n'
    return told + (f'new_user = "{new_user}"\nnew_password = "{PASSWORD}"\n' if new_user else "")


def _latest(vault: Path, user: str) -> Path:
    return vault / "latest" / "mail" / user


def hostbackup_pull(world: MailWorld, user: str, mailbox: Mailbox, *, name: str = "hostbackup", counted: bool = True) -> Contender:
    def trial(scratch: Path) -> Trial:
        vault = scratch / "vault"
        profile = world.profile(scratch, vault, [world.section("old"), _account(user)])
        return Trial(hostbackup("backup", profile), _latest(vault, user), Whole(mailbox), messages=mailbox.messages if counted else 0)

    return Contender(name, ["hostbackup"], trial)


def hostbackup_again(world: MailWorld, user: str, mailbox: Mailbox) -> Contender:
    """A further backup of what is in the vault already."""
    kept = world.folder / _AGAIN / "hostbackup"

    def prepare() -> None:
        _emptied(kept)
        run_first(world, hostbackup("backup", world.profile(kept, kept / "vault", [world.section("old"), _account(user)])))

    def trial(_: Path) -> Trial:
        command = hostbackup("backup", kept / "move.toml")
        return Trial(command, _latest(kept / "vault", user), Whole(mailbox), turns=world.line.turns)

    return Contender("hostbackup", ["hostbackup"], trial, prepare)


def hostbackup_push(world: MailWorld, user: str, mailbox: Mailbox) -> Contender:
    """Each trial has a copy of one vault, so that none knows of an earlier push."""
    kept = world.folder / "mail-push" / "vault"

    def prepare() -> None:
        _emptied(kept.parent)
        run_first(world, hostbackup("backup", world.profile(kept.parent, kept, [world.section("old", near=True), _account(user)])))

    def trial(scratch: Path) -> Trial:
        vault, new_user = scratch / "vault", world.account()
        subprocess.run(["cp", "-a", str(kept), str(vault)], check=True)
        profile = world.profile(scratch, vault, [world.section("old", near=True), _account(user, new_user), world.section("new")])
        return _pushed(world, hostbackup("push", profile), new_user, Whole(mailbox, lf=True))

    return Contender("hostbackup", ["hostbackup", "cp"], trial, prepare)


def _pushed(world: MailWorld, command: Sequence[str], user: str, wanted: Whole | Bodies, *, times: float = 1) -> Trial:
    """Everyone gets a sync on the server's side inside the time."""
    return Trial(command, world.maildir(user), wanted, sync=world.server.base, messages=wanted.mailbox.messages, times=times)


# -- the others ---------------------------------------------------------------------------------------------------------------------------------


def _mbsync(world: MailWorld, folder: Path, user: str, *, port: int = 0, push: bool = False, sync: bool = True) -> list[str]:
    """`folder` holds the Maildir and, beside the mail, what mbsync remembers. As it comes it syncs each message; `sync` = False leaves that out."""
    config = folder / "mbsyncrc"
    lines = ["" if sync else "FSync no", "IMAPAccount far", "Host localhost", f"Port {port or world.line.port}", f"User {user}", f"Pass {PASSWORD}"]
    lines += ["SSLType IMAPS", f"CertificateFile {world.server.authority}", "", "IMAPStore far", "Account far", ""]
    lines += ["MaildirStore near", f"Inbox {folder}/Maildir", "SubFolders Maildir++", ""]
    lines += ["Channel all", "Far :far:", "Near :near:", "Patterns *", "CopyArrivalDate yes", "SyncState *"]
    lines += [f"Create {'Far' if push else 'Near'}", f"Sync {'Push' if push else 'Pull'}", ""]
    config.write_text("\n".join(lines))
    config.chmod(0o600)
    return ["mbsync", "-c", str(config), "-q", "-a"]


def mbsync_pull(world: MailWorld, user: str, mailbox: Mailbox, *, name: str = "mbsync", sync: bool = True) -> Contender:
    def trial(scratch: Path) -> Trial:
        return Trial(_mbsync(world, scratch, user, sync=sync), scratch, Bodies(mailbox), sync=scratch, messages=mailbox.messages)

    return Contender(name, ["mbsync"], trial)


def mbsync_again(world: MailWorld, user: str, mailbox: Mailbox) -> Contender:
    return _again(world, "mbsync", ["mbsync"], mailbox, lambda kept, port: _mbsync(world, kept, user, port=port))


def mbsync_push(world: MailWorld, mailbox: Mailbox) -> Contender:
    """It writes into the Maildir that it pushes: each trial has a copy."""

    def trial(scratch: Path) -> Trial:
        user = world.account()
        subprocess.run(["cp", "-a", str(mailbox.path), str(scratch / "Maildir")], check=True)
        return _pushed(world, _mbsync(world, scratch, user, push=True), user, Bodies(mailbox))

    return Contender("mbsync", ["mbsync", "cp"], trial)


def _offlineimap(world: MailWorld, folder: Path, user: str, *, port: int = 0) -> list[str]:
    config = folder / "offlineimaprc"
    lines = ["[general]", "accounts = all", f"metadata = {folder}/metadata", "ui = quiet", ""]
    lines += ["[Account all]", "localrepository = near", "remoterepository = far", ""]
    lines += ["[Repository near]", "type = Maildir", f"localfolders = {folder}/Maildir", ""]
    lines += ["[Repository far]", "type = IMAP", "remotehost = localhost", f"remoteport = {port or world.line.port}", "ssl = yes", "readonly = True"]
    lines += [f"sslcacertfile = {world.server.authority}", f"remoteuser = {user}", f"remotepass = {PASSWORD}", ""]
    config.write_text("\n".join(lines))
    config.chmod(0o600)
    return ["offlineimap", "-c", str(config), "-o"]


def offlineimap_pull(world: MailWorld, user: str, mailbox: Mailbox) -> Contender:
    def trial(scratch: Path) -> Trial:
        return Trial(_offlineimap(world, scratch, user), scratch, Bodies(mailbox), sync=scratch, messages=mailbox.messages)

    return Contender("offlineimap3", ["offlineimap"], trial)


def offlineimap_again(world: MailWorld, user: str, mailbox: Mailbox) -> Contender:
    return _again(world, "offlineimap3", ["offlineimap"], mailbox, lambda kept, port: _offlineimap(world, kept, user, port=port))


def _loop(world: MailWorld, what: str, user: str, folder: Path, *more: str, port: int = 0) -> list[str]:
    return [sys.executable, str(_LOOP), what, str(port or world.line.port), user, PASSWORD, str(world.server.authority), str(folder), *more]


def imapclient_pull(world: MailWorld, user: str, mailbox: Mailbox) -> Contender:
    def trial(scratch: Path) -> Trial:
        return Trial(_loop(world, "pull", user, scratch), scratch, Whole(mailbox), sync=scratch, messages=mailbox.messages)

    return Contender("imapclient", [], trial)


def imapclient_again(world: MailWorld, user: str, mailbox: Mailbox) -> Contender:
    return _again(world, "imapclient", [], mailbox, lambda kept, port: _loop(world, "pull", user, kept, port=port))


def imapclient_push(world: MailWorld, mailbox: Mailbox, some: int) -> Contender:
    """It would take minutes: it pushes `some` of the messages, and its time stands for all."""
    every = max(1, mailbox.messages // some)

    def trial(_: Path) -> Trial:
        user = world.account()
        command = _loop(world, "append", user, mailbox.path, "--every", str(every))
        share = mailbox.messages / len(range(0, mailbox.messages, every))
        return _pushed(world, command, user, Bodies(mailbox, every), times=share)

    return Contender("imapclient", [], trial, note=f"worked out from one message in {every}" if every > 1 else "")


def multiappend_push(world: MailWorld, mailbox: Mailbox) -> Contender:
    """Not a program that one would use: no journal, no proof. As fast as one connection is."""

    def trial(_: Path) -> Trial:
        user = world.account()
        return _pushed(world, _loop(world, "multiappend", user, mailbox.path), user, Whole(mailbox, lf=True))

    return Contender("MULTIAPPEND", [], trial)


def _again(world: MailWorld, name: str, needs: Sequence[str], mailbox: Mailbox, command: Callable[[Path, int], list[str]]) -> Contender:
    """A second run into a folder that holds everything already. The first is without the relay: some would take ten minutes."""
    kept = world.folder / _AGAIN / name

    def prepare() -> None:
        _emptied(kept)
        run_first(world, command(kept, world.server.ports["tls"]))

    def trial(_: Path) -> Trial:
        return Trial(command(kept, world.line.port), kept, Bodies(mailbox), sync=kept, turns=world.line.turns)

    return Contender(name, needs, trial, prepare)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
