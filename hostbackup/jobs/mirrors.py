"""The profile's mirrors: the newest snapshot's web trees to one of them, and the proof of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hostbackup.errors import VaultError
from hostbackup.jobs.context import Job
from hostbackup.jobs.history import newest_readable
from hostbackup.jobs.keys import stamp
from hostbackup.jobs.mirror import Mirror
from hostbackup.jobs.mirror_names import Keys
from hostbackup.jobs.mirror_state import MirrorState
from hostbackup.jobs.mirror_verify import MirrorProof
from hostbackup.jobs.result import Result
from hostbackup.vault.snapshots import Snapshot
from hostbackup.vault.stores import Store


def mirror(job: Job, name: str, store: Store, result: Result, *, delete: bool = False, repair: bool = False, off_machine: bool = True) -> None:
    """What came of it is in `result`, and on record. Raises what ends the store as a whole, VaultError, and UsageError for trees it cannot have."""
    snapshot = newest_readable(job.vault, Result()) or job.vault.snapshots.get("latest")
    keys = Keys.of(store)
    with MirrorState(MirrorState.where(job.vault.state, name), store.label, keys.rule) as state:
        work = Mirror(job.vault, store, snapshot, state, keys, result, name, job.web_parts, delete, repair)
        try:
            done = work.run()
        finally:
            result.counts.update({**work.done.counts(), "uploaded_bytes": work.done.bytes})
    told = {"target": store.label, "snapshot": snapshot.id, "mode": "mirror"}
    line = {"type": "copy", "side": f"copy:{name}", **told, "time": stamp(), "counts": done.counts(), "bytes": done.bytes}
    job.vault.evidence.write("copy", [line | {"off_machine": off_machine}])
    result.details.setdefault("copies", {})[name] = {**told, **done.counts(), "bytes": done.bytes}


def prove_mirror(job: Job, name: str, store: Store, snapshot: Snapshot, result: Result) -> Iterator[dict[str, Any]]:
    """Lines of evidence. Raises VaultError where nothing was mirrored yet, and what ends the store as a whole."""
    path = MirrorState.where(job.vault.state, name)
    if not path.exists():
        raise VaultError("nothing was put into this mirror yet, as far as this vault knows", where=store.label, hint="run `copy`")
    keys = Keys.of(store)
    with MirrorState(path, store.label, keys.rule) as state:
        yield from MirrorProof(store, state, keys, job.vault.manifests, result, name).lines(snapshot)
