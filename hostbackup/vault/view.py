"""latest/: the newest snapshot as ordinary folders. Disposable; each build makes it equal the snapshot and touches nothing that is right."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from hostbackup import osal
from hostbackup.errors import Damaged, VaultError
from hostbackup.model import Failure, Observer
from hostbackup.vault import sums
from hostbackup.vault.faults import told
from hostbackup.vault.fill import Abilities, Filler, probe_style
from hostbackup.vault.hashing import hash_fd
from hostbackup.vault.layout import parse_sums_line, part_path
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.safe import SafeFolder
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.sums import Sums
from hostbackup.vault.tree import TreeRoot
from hostbackup.vault.vault import Vault
from hostbackup.vault.view_build import Build
from hostbackup.vault.view_mail import MailView
from hostbackup.vault.view_prints import FOLDER, STATE, Prints, set_aside, take, to_record
from hostbackup.vault.view_tree import TreeView

Method = Literal["link", "copy", "none"]


def build_view(
    vault: Vault, snapshot: Snapshot, previous: Snapshot | None, method: Method, observer: Observer, *, prints: Prints | None = None
) -> list[Failure]:
    """Makes `latest/` equal the snapshot. What could not be put there is told; raises DiskFull or VaultError where nothing more can be.

    `previous`: the snapshot before, told to the observer where a part went away with it. `prints`: those of the vault, where the caller has looked
    at folders already.
    """
    path = vault.root / FOLDER
    try:
        if method == "none":
            _remove(path)
            vault.state.remove(STATE)
            return []
        return _View(vault, method, observer, prints).build(snapshot, previous)
    except OSError as error:
        raise told(error, path) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


class _View:
    def __init__(self, vault: Vault, method: Method, observer: Observer, prints: Prints | None) -> None:
        self._vault = vault
        self._method = method
        self._observer = observer
        self._state = _known(vault) or {}
        abilities = Abilities.probe(vault.incoming)
        trust = bool(self._state.get("trusted"))
        self._copied = False
        style = probe_style(abilities, method)
        filler = Filler(vault.objects, style, tolerance_ns=abilities.tolerance_ns, trust=trust, before_copy=self._before_copy)
        self._how = {"method": method, "style": style}
        usable = trust and self._how.items() <= self._state.items()
        prints = (prints or Prints(vault.root, vault.state)) if usable else None
        if prints is not None and not prints.sums_are_right():
            prints = None
        self._build = Build(filler, Sums(vault.incoming), observer, ":" if abilities.colon else ";", abilities.tolerance_ns, prints)

    def _before_copy(self) -> None:
        """Until this build is durable, no copy is to be believed: a power cut may leave one with the right size and date, and no bytes."""
        self._copied = True
        if self._state.get("trusted"):
            self._vault.state.write(STATE, {**self._state, "trusted": False})

    def build(self, snapshot: Snapshot, previous: Snapshot | None) -> list[Failure]:
        path = self._vault.root / FOLDER
        if path.is_symlink() or not path.is_dir():
            _remove(path)
            path.mkdir(mode=0o700)
        for part_id in previous.parts if previous else ():
            if part_id not in snapshot.parts:
                self._observer.note(f"{part_id} is no longer in the profile and leaves latest/; its snapshots stay")
        try:
            with SafeFolder.open(path) as latest:
                self._frame(latest, snapshot)
                for state in snapshot.parts.values():
                    if state.root:
                        self._part(latest, state)
                digest = self._sums(latest, snapshot)
        finally:
            self._build.sums.close()
        if self._copied:
            osal.sync_tree(path)
        built = {"snapshot": snapshot.id, **self._how, "sums": digest, "trusted": True}
        if not self._build.failures:
            built |= {"roots": _roots(snapshot), "set_aside": set_aside(self._vault.root / "damaged"), "prints": self._prints(path)}
        if self._copied or built != self._state:
            self._vault.state.write(STATE, built)
        return self._build.failures

    def _sums(self, latest: SafeFolder, snapshot: Snapshot) -> str:
        """SHA256SUMS, with what it said of folders that were not touched. Its digest."""
        build = self._build
        if build.prints is not None and not build.failures and not self._copied and self._state.get("roots") == _roots(snapshot):
            return str(self._state["sums"])
        for digest, path in build.prints.sums_of(build.untouched) if build.prints else ():
            build.sums.add(digest, path)
        return build.sums.replace(latest)

    def _prints(self, path: Path) -> dict[str, dict[str, list[str]]]:
        """The prints of all mail folders; those that were not touched are known."""
        found = []
        for part, mail, folder, name in self._build.mail:
            known = self._build.prints and b"/".join((*part_path(part), *([name] if name else []))) in self._build.untouched
            one = self._build.prints.on_record(part, name) if self._build.prints and known else take(path, part, mail, folder, name)
            found.append((part, name, one))
        return to_record(found)

    def _frame(self, latest: SafeFolder, snapshot: Snapshot) -> None:
        """The folders of kinds and parts, and nothing beside them."""
        wanted: dict[bytes, set[bytes]] = {}
        for state in snapshot.parts.values():
            if state.root:
                kind, name = part_path(state.part)
                wanted.setdefault(kind, set()).add(name)
        for name in latest.names() - wanted.keys() - {sums.NAME}:
            latest.remove(name)
        for kind, parts in wanted.items():
            latest.folder(kind)
            with latest.below([kind]) as folder:
                for name in folder.names() - parts:
                    folder.remove(name)
                for name in parts:
                    folder.folder(name)

    def _part(self, latest: SafeFolder, state: PartState) -> None:
        part = state.part
        try:
            with latest.below(part_path(part)) as base:
                if part.kind == "mail":
                    MailView(part, self._build).build(base, MailRoot.open(self._vault.manifests, state.root))
                else:
                    TreeView(self._build, TreeRoot.open(self._vault.manifests, state.root)).build(base)
        except Damaged as error:
            self._build.failures.append(Failure("vault", part.id, b"", "damaged", f"{error.where}: {error.reason}", error.hint))


def _roots(snapshot: Snapshot) -> dict[str, str]:
    return {part_id: state.root for part_id, state in snapshot.parts.items()}


def _known(vault: Vault) -> dict[str, Any] | None:
    """What the last build left to know about the view, None where that cannot be read: a build then takes nothing on trust."""
    try:
        return vault.state.read(STATE)
    except VaultError:
        return None


def needs_building(vault: Vault) -> bool:
    """Whether there is a view of which nothing is known any more, so that only a build can tell what is right in it."""
    return _known(vault) is None and ((vault.root / FOLDER).is_dir() or (vault.state.folder / f"{STATE}.json").exists())


def verify_view(vault: Vault, observer: Observer) -> Iterator[tuple[bytes, bool, str]]:
    """Reads every file of `latest/` again: path, whether it is what SHA256SUMS says, and if not, why. A vault without a view gives nothing.

    Where something is wrong, the next build trusts no file by its size and date.
    """
    state = _known(vault)
    if state is None:
        return
    wrong = False
    try:
        with SafeFolder.open(vault.root / FOLDER) as latest:
            for path, good, reason in _verify(latest, state.get("sums", ""), observer):
                wrong = wrong or not good
                yield path, good, reason
    except OSError as error:
        wrong = True
        yield sums.NAME, False, f"it cannot be read: {(error.strerror or str(error)).lower()}"
    finally:
        if wrong and vault.mode != "read":
            vault.state.write(STATE, {**state, "trusted": False})


def _verify(latest: SafeFolder, expected: str, observer: Observer) -> Iterator[tuple[bytes, bool, str]]:
    fd = latest.open_file(sums.NAME)
    with os.fdopen(fd, "rb") as file:
        found = hash_fd(file.fileno())[0]
        yield sums.NAME, found == expected, "" if found == expected else "it is not as the last run wrote it"
        file.seek(0)
        for line in file:
            try:
                digest, path = parse_sums_line(line)
            except (ValueError, KeyError):
                yield sums.NAME, False, "it holds a line that is none"
                continue
            yield path, *_check(latest, path, digest, observer)


def _check(latest: SafeFolder, path: bytes, digest: str, observer: Observer) -> tuple[bool, str]:
    *folders, name = path.split(b"/")
    try:
        with latest.below(folders) as folder:
            fd = folder.open_file(name)
        try:
            found, size = hash_fd(fd)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return False, "missing"
    except (OSError, ValueError, VaultError) as error:
        return False, str(getattr(error, "strerror", "") or error).lower()
    observer.advance(1, size)
    return found == digest, "" if found == digest else f"its {size} bytes have the SHA-256 {found}"
