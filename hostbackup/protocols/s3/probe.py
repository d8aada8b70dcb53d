"""Finds out how a store behaves, by trying it with small objects that are taken away again."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from typing import Any

from hostbackup.errors import HostbackupError, LineCut, LoginRefused, ProtocolBroken
from hostbackup.protocols.s3 import checksums
from hostbackup.protocols.s3.bucket import Bucket
from hostbackup.protocols.s3.facts import Facts
from hostbackup.protocols.s3.faults import ConditionFailed, NotConfigured, ObjectAbsent, skew

_DATA = b"hostbackup asks what this store can do\n"
_KEYS = {"unicode": "\u4f1a\u793e\u6848\u5185.html", "space": "a b", "plus": "a+b"}
_CANNOT = (ProtocolBroken, LoginRefused, ObjectAbsent, LineCut)  # LineCut too: some answer 501 to what they do not know


class Probe:
    """Use: `run()`, once. `left`: keys of trial objects that could not be taken away again, with the reasons."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._folder = f"hostbackup-probe-{secrets.token_hex(8)}"
        self._made: list[str] = []
        self.left: list[tuple[str, str]] = []

    def run(self) -> Facts:
        """What was found; the bucket goes by it from now on. Raises what ends the store, and LoginRefused where nothing may be written there."""
        facts = self._bucket.facts = Facts(self._bucket.target.place)
        try:
            answer = self._put("first")
            facts.skew = skew(answer)
            self._bucket.learn_checksums()
            facts.conditional = self._obeys_conditions()
            facts.multipart = self._takes_parts(facts)
            facts.versioning = self._asked("get_bucket_versioning", lambda told: str(told.get("Status", "off")).lower())
            facts.object_lock = self._asked("get_object_lock_configuration", _lock_of)
            facts.keys = {kind: self._keeps(name) for kind, name in _KEYS.items()}
        finally:
            self._clear()
        return facts

    def _put(self, name: str, **more: Any) -> Any:
        key = f"{self._folder}/{name}"
        self._made.append(key)
        return self._bucket.ask_once("put_object", key, Body=_DATA, ContentMD5=checksums.told(checksums.md5(_DATA)), **more)

    def _obeys_conditions(self) -> bool:
        """Only a refusal that was seen counts: many a store takes the header and does nothing about it."""
        try:
            self._put("first", IfNoneMatch="*")
        except ConditionFailed:
            return True
        except _CANNOT:
            return False
        return False

    def _takes_parts(self, facts: Facts) -> bool:
        key = f"{self._folder}/parts"
        self._made.append(key)
        try:
            parts = self._bucket.parts(key, {})
        except _CANNOT:
            return False
        try:
            parts.put(1, _DATA)
            _, computed = parts.finish()
        except _CANNOT:
            parts.abort()
            return False
        facts.parts_sha256 = bool(computed)
        return True

    def _asked(self, operation: str, read: Callable[[Any], str]) -> str | None:
        """What the bucket is set to; None where the store does not tell, or not us."""
        try:
            return read(self._bucket.ask_once(operation))
        except NotConfigured:
            return "off"
        except _CANNOT:
            return None

    def _keeps(self, name: str) -> bool:
        try:
            self._put(name)
            _, stream = self._bucket.get(f"{self._folder}/{name}")
            with stream:
                return stream.read() == _DATA and any(found.key == f"{self._folder}/{name}" for found in self._bucket.list(f"{self._folder}/"))
        except _CANNOT:
            return False

    def _clear(self) -> None:
        listed: set[str] = set()
        with contextlib.suppress(HostbackupError):  # what a store calls by another name than it was given has to go too
            listed = {found.key for found in self._bucket.list(f"{self._folder}/")}
        for key in sorted(listed | set(self._made)):
            try:
                self._bucket.delete(key)
            except HostbackupError as error:
                if key in listed:
                    self.left.append((key, error.reason))


def _lock_of(told: Any) -> str:
    return "enabled" if told.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled" else "off"
