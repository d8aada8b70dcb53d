"""The copies, as `check` looks at them: is each there, what does it hold and, if asked, how does the store behave."""

from __future__ import annotations

import hashlib
import io
import secrets
from functools import partial
from typing import Any

from hostbackup.errors import Damaged, PlaceMissing
from hostbackup.jobs import store_facts
from hostbackup.jobs.connect import Connections
from hostbackup.jobs.mirror import refuse_copy
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Status
from hostbackup.profile import BucketCopy, PathCopy
from hostbackup.vault.stores import Store, Upload, Wanted
from hostbackup.vault.vault import Vault


def check_copy(connections: Connections, copy: BucketCopy | PathCopy, result: Result, vault: Vault | None, *, probe: bool) -> None:
    """Looks at one copy; `probe` also writes there and tidies up. What is found out is kept where the vault is open for writing.

    Raises what ends the store, Damaged where it did not keep what it was given, and VaultError where a mirror would go into a copy of a vault.
    """
    result.observer.phase(f"copy {copy.name}")
    store = connections.store(copy, vault.state if vault else None)
    try:
        row: dict[str, Any] = {"name": copy.name, "target": store.label}
        if copy.mode == "mirror":
            refuse_copy(store)
            row["mode"] = copy.mode
        else:
            row["snapshots"] = sum(1 for _ in store.list("snapshots/"))
        if probe:
            _try_out(store, result)
            row["probed"] = True
            if isinstance(copy, BucketCopy):
                row["store"] = _find_out(copy, store, result, vault)
        result.details.setdefault("copies", []).append(row)
    finally:
        store.close()


def _try_out(store: Store, result: Result) -> None:
    """Writes a small object, proves it, and takes it away again."""
    data = secrets.token_bytes(1000)
    key, digest = f"hostbackup-probe-{secrets.token_hex(8)}", hashlib.sha256(data).hexdigest()
    try:
        for outcome in store.put([Upload(key, len(data), digest, partial(io.BytesIO, data), lasting=False)]):
            if not outcome.ok:
                raise PlaceMissing(f"a trial object could not be stored: {outcome.reason}", where=store.label, hint=outcome.hint)
        for proven in store.prove([Wanted(key, digest, len(data))]):
            if proven.status is not Status.VERIFIED:
                raise Damaged(f"a trial object did not come back as it went: {proven.reason}", where=store.label)
    finally:
        for outcome in store.delete([key]):
            if not outcome.ok:
                result.observer.warn(f"{store.label}: the trial object {key} could not be deleted: {outcome.reason}")


def _find_out(copy: BucketCopy, store: Store, result: Result, vault: Vault | None) -> dict[str, Any]:
    """How the store behaves, as `--json` tells it."""
    from hostbackup.vault.bucket import BucketStore

    if not isinstance(store, BucketStore):
        return {}
    for key, reason in store.probe():
        result.observer.warn(f"{store.label}: the trial object {key} could not be deleted: {reason}")
    facts = store.facts
    if vault is not None and vault.mode == "write":
        store_facts.keep(vault.state, copy.name, store)
    if copy.retain_days and facts.object_lock == "off":
        hint = "Object Lock is chosen when a bucket is made: make another one, or take out retain_days"
        reason = f"retain_days = {copy.retain_days} is asked for and the bucket was not made for Object Lock: nothing can be stored there"
        result.fail(Failure(f"copy:{copy.name}", "", copy.bucket.encode(), "object-lock", reason, hint))
    told = {name: value for name, value in facts.to_json().items() if name not in ("place", "skew", "keys")}
    return {**told, "skew_seconds": None if facts.skew is None else round(facts.skew, 1), "keys": facts.keys}
