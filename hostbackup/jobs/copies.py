"""The profile's copies: the vault to each of them, and the proof of each. One copy's failure is never another's."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

from hostbackup.errors import HostbackupError, UsageError
from hostbackup.jobs import store_facts
from hostbackup.jobs.context import Job
from hostbackup.jobs.copy import CopyRun, restore_format
from hostbackup.jobs.copy_closed import ClosedCopy
from hostbackup.jobs.copy_drill import run_drill, try_key
from hostbackup.jobs.copy_fetch import fetch_missing
from hostbackup.jobs.copy_source import CopySource, read_format
from hostbackup.jobs.copy_verify import verify_copy
from hostbackup.jobs.history import newest_readable
from hostbackup.jobs.keys import stamp
from hostbackup.jobs.mirrors import mirror, prove_mirror
from hostbackup.jobs.result import Result
from hostbackup.profile import BucketCopy, PathCopy
from hostbackup.vault.packs.seal import Identities, Recipients
from hostbackup.vault.snapshots import Snapshot
from hostbackup.vault.stores import Absent, Store
from hostbackup.vault.view import build_view

Copy = BucketCopy | PathCopy
_LOCKS = 50  # of killed runs, that are remembered


def chosen(job: Job, names: Collection[str]) -> list[Copy]:
    """The copies a person means; all where none is named. Raises UsageError."""
    copies = list(job.profile.copies)
    if not copies:
        raise UsageError("the profile names no copy", where=str(job.profile.file), hint="add a [[copy]] with bucket = … or path = …")
    for name in names:
        if name not in [copy.name for copy in copies]:
            raise UsageError(f"no copy is called {name!r}", hint=f"the profile has: {', '.join(copy.name for copy in copies)}")
    return [copy for copy in copies if not names or copy.name in names]


def copy_all(job: Job, names: Collection[str] = (), *, repair: bool = False, delete_vanished: bool = False) -> Result:
    """The vault to its copies. `repair`: damaged objects there are replaced, and what the vault lost is brought back from there.

    `delete_vanished`: files that we put into mirrors, and that the snapshot has no longer, are deleted there. Raises UsageError where none is meant.
    """
    result = Result(job.observer)
    copies = chosen(job, names)
    if delete_vanished and all(copy.mode != "mirror" for copy in copies):
        hint = 'such a copy has mode = "mirror"; `prune --copies` frees what copies of the vault need no longer'
        raise UsageError("--delete-vanished is for mirrors, and none of these copies is one", where=str(job.profile.file), hint=hint)
    whole = newest_readable(job.vault, Result() if repair else result)  # a repair tells what it cannot mend
    if whole is None and not (repair and job.vault.snapshots.list()):
        job.vault.snapshots.get("latest")  # raises: there is none, or none is whole
    for copy in copies:
        try:
            _copy(job, copy, result, repair=repair, delete_vanished=delete_vanished)
        except HostbackupError as error:
            result.fail_part(error, side=f"copy:{copy.name}", part="")
        else:
            result.done += 1
    newest = newest_readable(job.vault, Result())
    result.details["snapshot"] = newest.id if newest else ""
    if newest is not None and any(fetched["objects"] or fetched["manifests"] or fetched["snapshots"] for fetched in _fetched(result)):
        job.observer.phase("laying out latest/", sum(part.entries for part in newest.parts.values()))
        for failure in build_view(job.vault, newest, None, job.profile.view, job.observer):
            result.fail(failure)
    return result


def _fetched(result: Result) -> Collection[dict[str, int]]:
    """What came back from each copy."""
    found: dict[str, dict[str, int]] = result.details.get("fetched", {})
    return found.values()


def _copy(job: Job, copy: Copy, result: Result, *, repair: bool, delete_vanished: bool) -> None:
    recipients, identities = keys_of(job, copy)
    store = job.connections.store(copy, job.vault.state)
    try:
        off_machine = _off_machine(job, copy)
        if not off_machine:
            job.observer.warn(f"copy {copy.name} is on the same disk as the vault: it is lost with it, and does not count as off-machine")
        if copy.mode == "mirror":
            with held(job, copy, store):
                mirror(job, copy.name, store, result, delete=delete_vanished, repair=repair, off_machine=off_machine)
            return
        if repair:
            restore_format(job.vault, store, result, name=copy.name, recipients=recipients)
            _fetch(job, copy, identities, result)
        with (
            CopyRun(job.vault, store, result, name=copy.name, repair=repair, recipients=recipients, identities=identities) as run,
            held(job, copy, store),
        ):
            done = run.run()
            line = {"type": "copy", "side": f"copy:{copy.name}", "target": store.label, "snapshot": done.snapshot, "time": stamp()}
            counts = {"uploaded": done.uploaded, "skipped": done.skipped, "repaired": done.repaired}
            job.vault.evidence.write("copy", [{**line, "counts": counts, "bytes": done.bytes, "off_machine": off_machine}])
            run.evidence()
        result.details.setdefault("copies", {})[copy.name] = {"target": store.label, "snapshot": done.snapshot, **counts, "bytes": done.bytes}
        result.counts.update({**counts, "uploaded_bytes": done.bytes})
    finally:
        store_facts.keep(job.vault.state, copy.name, store)
        store.close()


def keys_of(job: Job, copy: Copy) -> tuple[Recipients | None, Identities | None]:
    """Whom a copy is encrypted to, and the secret keys at hand. None: it is in the clear; there are none. Raises UsageError."""
    if not copy.encrypt_to:
        return None, None
    return Recipients(copy.encrypt_to), job.identities(copy)


@contextlib.contextmanager
def held(job: Job, copy: Copy, store: Store) -> Iterator[None]:
    """Nobody else writes to the copy meanwhile. Locks that killed runs of this vault left are known by what those noted here. Raises Locked."""
    state, name = job.vault.state, f"copy-lock-{copy.name}"
    stale = [str(key) for key in (state.read(name) or {}).get("locks", ())]
    hold = store.hold(stale)
    if hold.key:
        state.write(name, {"locks": [*stale[-_LOCKS:], hold.key]})  # until it is entered, those before may still be there
    with hold:
        if hold.key:
            state.write(name, {"locks": [hold.key]})
        yield
    state.remove(name)


def _fetch(job: Job, copy: Copy, identities: Identities | None, result: Result) -> None:
    """Brings back what the vault lost, where there is a copy already and it can be read."""
    store = job.connections.store(copy, job.vault.state)
    try:
        sealed = read_format(store).sealed
        if sealed and identities is None:
            job.observer.warn(f"copy {copy.name} is encrypted: what the vault lost is not brought back from it without --identity FILE")
            return
        with CopySource(store, identities) as source:
            fetched = fetch_missing(job.vault, source, result, name=copy.name)
        result.details.setdefault("fetched", {})[copy.name] = dataclasses.asdict(fetched)
    except Absent:  # nothing was ever copied there
        return
    finally:
        store.close()


def _off_machine(job: Job, copy: Copy) -> bool:
    """A bucket is; a folder only where it is on another device than the vault."""
    return not isinstance(copy, PathCopy) or copy.path.stat().st_dev != job.vault.root.stat().st_dev


def prove_copy(
    job: Job, copy: Copy, snapshot: Snapshot, result: Result, *, read: float | None = None, drill: bool = False
) -> Iterator[dict[str, Any]]:
    """Lines of evidence for one copy, from the copy alone. `read`: see `verify_copy`. `drill`: a sample of it is restored too."""
    try:
        identities = keys_of(job, copy)[1]
        store = job.connections.store(copy, job.vault.state)
        try:
            if copy.mode == "mirror":
                yield from prove_mirror(job, copy.name, store, snapshot, result)
                return
            with _source(job, copy, store, identities) as source:
                yield from verify_copy(source, result, name=copy.name, snapshot=snapshot.id, read=read)
                if identities is not None:
                    yield try_key(source, identities, result, name=copy.name)
                if drill:
                    yield from run_drill(source, result, name=copy.name, seed=job.vault.evidence.head()[1])
        finally:
            store_facts.keep(job.vault.state, copy.name, store)
            store.close()
    except HostbackupError as error:
        result.fail_part(error, side=f"copy:{copy.name}", part="")


def _source(job: Job, copy: Copy, store: Store, identities: Identities | None) -> CopySource:
    if copy.encrypt_to and identities is None:
        return ClosedCopy(store, job.vault, copy.name)
    return CopySource(store, identities)
