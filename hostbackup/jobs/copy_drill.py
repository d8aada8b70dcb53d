"""Trials that a copy must stand: its secret key opens it, and what is restored from it alone is what once was saved."""

from __future__ import annotations

import hashlib
import random
import tempfile
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostbackup.errors import Damaged, Exit
from hostbackup.jobs.copy_source import CopySource
from hostbackup.jobs.keys import stamp
from hostbackup.jobs.references import open_root, records, segments
from hostbackup.jobs.restore import restore
from hostbackup.jobs.restore_write import NAMES_FILE
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Method, name_json
from hostbackup.vault.hashing import hash_file
from hostbackup.vault.packs.catalog import Blob
from hostbackup.vault.packs.pack import KINDS, content_of
from hostbackup.vault.packs.seal import Identities
from hostbackup.vault.snapshots import PartState

_SAMPLE = 3  # packs of each kind that the key has to open
_MAILBOX_FILES = ("dovecot-keywords", "subscriptions")  # of a Maildir, beside its messages
_LARGEST = 1 << 30  # bytes of a mailbox that is restored as a trial, where there is a smaller one


# -- the key --------------------------------------------------------------------------------------------------------------------------------


def try_key(source: CopySource, identities: Identities, result: Result, *, name: str) -> dict[str, Any]:
    """The line of evidence: the key opens the index, the newest snapshot, and some packs chosen at random, and their contents are whole.

    Raises WrongKey where it does not open them; what is damaged is told.
    """
    side = f"copy:{name}"
    newest = source.snapshots.get("latest")
    opened: list[str] = []
    for kind in KINDS:
        for blob in _some_packs(source, kind):
            result.observer.phase(f"{side}: opening {blob.key}")
            try:
                data = source.archive.contents_of(blob)
                for member in source.archive.catalog.members(blob.key):
                    content_of(member, data, f"{source.store.label}/{blob.key}")
            except Damaged as error:
                result.fail(Failure(side, "", blob.key.encode(), "damaged", error.reason, "run `copy --repair`"), Exit.DAMAGE)
            else:
                opened.append(blob.key)
    line: dict[str, Any] = {"type": "recovery-key", "side": side, "target": source.store.label, "snapshot": newest.id, "time": stamp()}
    line |= {"public": identities.publics, "recipients": list(source.format.recipients), "opened": opened}
    result.details.setdefault("recovery_keys", []).append(line)
    return line


def _some_packs(source: CopySource, kind: str) -> list[Blob]:
    """A random choice, in one pass however many there are."""
    chosen: list[Blob] = []
    packs = (blob for blob in source.archive.catalog.blobs() if blob.kind == kind and blob.key.startswith("packs/"))
    for number, blob in enumerate(packs):
        if number < _SAMPLE:
            chosen.append(blob)
        elif (place := random.randrange(number + 1)) < _SAMPLE:  # noqa: S311 - a sample, no secret
            chosen[place] = blob
    return chosen


# -- a restore as a trial -------------------------------------------------------------------------------------------------------------------


def run_drill(source: CopySource, result: Result, *, name: str, seed: str) -> Iterator[dict[str, Any]]:
    """Restores a file and a mailbox of the newest snapshot from the copy alone into a temporary folder, and compares them with the manifests.

    Lines of evidence, one for each. `seed` decides which: another one each time, and the same again for whoever asks how they were chosen.
    """
    side = f"copy:{name}"
    if not source.archive.readable:
        reason = "nothing can be restored from an encrypted copy without its secret key"
        result.fail(Failure(side, "", b"", "not-restored", reason, "give it: --identity FILE"))
        return
    newest = source.snapshots.get("latest")
    choose = random.Random(f"{name} {newest.id} {seed}")  # noqa: S311 - a sample, no secret
    for state, path, wanted in (_a_file(source, newest.parts, choose), _a_mailbox(source, newest.parts, choose)):
        if state is None:
            continue
        result.observer.phase(f"{side}: restoring as a trial: {state.part}")
        selection = f"{state.part.id}/{urllib.parse.quote(path)}" if path else state.part.id
        found, size, failures = _restored(source, selection, mail=state.part.kind == "mail")
        lacking, strange = wanted - found, found - wanted
        line: dict[str, Any] = {"type": "drill", "side": side, "target": source.store.label, "snapshot": newest.id, "time": stamp()}
        line |= {"part": state.part.id, **(name_json(path) if path else {}), "seed": seed}
        line |= {
            "entries": wanted.total(),
            "restored": (wanted & found).total(),
            "digests": _sum_of(wanted),
            "bytes": size,
            "method": Method.BUCKET_REREAD.value,
        }
        if lacking or strange:
            reason = f"{lacking.total()} of {wanted.total()} did not come back as they were" + (f": {failures[0].reason}" if failures else "")
            result.fail(Failure(side, state.part.id, path, "not-restored", reason, "run `verify --against copy`"), Exit.DAMAGE)
        result.details.setdefault("drills", []).append(line)
        yield line


_Chosen = tuple[PartState | None, bytes, Counter[str]]  # part, path of a file in it, digests of what has to come back


def _a_file(source: CopySource, parts: dict[str, PartState], choose: random.Random) -> _Chosen:
    """A file of a tree: each folder is as likely as another. An empty one, which says little, only where there is none with bytes in it."""
    trees = [state for state in parts.values() if state.part.kind != "mail" and state.root and state.entries]
    choose.shuffle(trees)
    for least in (1, 0):
        for state in trees:
            root = open_root(source.manifests, state)
            folders = list(segments(root))
            choose.shuffle(folders)
            for segment in folders:
                live = [record for record in records(root, segment) if record.digest and not record.vanished and record.size >= least]
                if live:
                    record = choose.choice(live)
                    return state, record.item.label, Counter([record.digest])
    return None, b"", Counter()


def _a_mailbox(source: CopySource, parts: dict[str, PartState], choose: random.Random) -> _Chosen:
    boxes = [state for state in parts.values() if state.part.kind == "mail" and state.root and state.entries]
    if not boxes:
        return None, b"", Counter()
    small = [state for state in boxes if state.bytes <= _LARGEST]
    state = choose.choice(small) if small else min(boxes, key=lambda one: one.bytes)
    root = open_root(source.manifests, state)
    live = (record for segment in segments(root) for record in records(root, segment) if record.digest and not record.vanished)
    return state, b"", Counter(record.digest for record in live)


def _restored(source: CopySource, selection: str, *, mail: bool) -> tuple[Counter[str], int, list[Failure]]:
    """Digests and bytes of what was restored, read back from the folder."""
    own = Result()
    with tempfile.TemporaryDirectory(prefix="hostbackup-drill-") as folder:
        to = Path(folder) / "out"
        restore(source, own, to=to, selection=[selection])
        written = {path for path in to.rglob("*") if path.is_file() and not path.is_symlink()} - {to / NAMES_FILE}
        if mail:
            written = {path for path in written if path.name not in _MAILBOX_FILES}
        read = [hash_file(path) for path in written]
        return Counter(digest for digest, _ in read), sum(size for _, size in read), own.failures


def _sum_of(digests: Counter[str]) -> str:
    """One digest that stands for all of them: SHA-256 of the sorted digests, a line each."""
    return hashlib.sha256("".join(f"{digest}\n" for digest in sorted(digests.elements())).encode()).hexdigest()
