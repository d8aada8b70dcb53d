"""Old stays old: after the DNS switch the old names lead to the new machine, which must never be backed up in the old one's place.

What was seen at the first good contact (addresses, host key, UIDVALIDITYs) is pinned in `state/identity.json`, per section of the profile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hostbackup.errors import WrongMachine
from hostbackup.jobs.keys import stamp
from hostbackup.vault.state import StateFolder

_HINT = "if it truly is the old server, run `hostbackup check PROFILE --accept-identity`; else set `address` to the old server's IP address"
_HINT_NEW = "set `address` to the new server's IP address; if both truly are one machine, run `hostbackup check PROFILE --accept-identity`"
_STATE = "identity"
_SAVE_SECONDS = 2.0


def looks_new(where: str, why: str) -> WrongMachine:
    return WrongMachine(f"this looks like the new server: {why}", where=where, hint=_HINT)


def looks_old(where: str, why: str) -> WrongMachine:
    """The other way round: nothing may ever be written to the old server."""
    return WrongMachine(f"this looks like the old server: {why}", where=where, hint=_HINT_NEW)


@dataclass(slots=True)
class Identity:
    """The pins of one vault. Without a vault (`check` before the first backup) nothing is kept and only addresses are compared.

    Used by many threads. What is seen is written at once, or, within `together`, after a few seconds at most and at the end.
    """

    state: StateFolder | None = None
    accept: bool = False  # new facts replace the pins, on record
    new_endpoints: Mapping[str, set[tuple[str, int]]] = field(default_factory=dict)  # "new.ssh" -> its addresses and ports
    accepted: list[dict[str, Any]] = field(default_factory=list)
    _pins: dict[str, Any] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _saved: float = 0.0  # when the pins were last written
    _unsaved: bool = False
    _many: bool = False  # within `together`

    def __post_init__(self) -> None:
        self._pins = (self.state.read(_STATE) if self.state else None) or {}

    @classmethod
    def reading(cls, state: StateFolder) -> Identity:
        """Compares with the pins of a vault and leaves them as they are: for commands that hold no lock to write."""
        identity = cls(state)
        identity.state = None
        return identity

    def known(self, section: str) -> bool:
        return section in self._pins

    def see_endpoint(self, section: str, host: str, addresses: Iterable[str], port: int) -> None:
        """Raises WrongMachine where an old section's address and port are those of a new one."""
        with self._lock:
            for new_section, endpoints in self.new_endpoints.items():
                for address in addresses:
                    if (address, port) not in endpoints:
                        continue
                    endpoint = f"{address} port {port}"
                    if self._accepted_endpoint(section, endpoint):
                        continue
                    if not self.accept:
                        raise looks_new(f"{section} {host}", f"{endpoint} is also {new_section}")
                    pin = self._pins.setdefault(section, {})
                    pin.setdefault("accepted_endpoints", []).append(endpoint)
                    self._record(section, "endpoint", "", endpoint)

    def see_new_endpoint(self, section: str, host: str, old_section: str, old_addresses: Iterable[str], old_port: int) -> None:
        """Raises WrongMachine where a new section leads to an old one's address and port."""
        for address in old_addresses:
            endpoint = f"{address} port {old_port}"
            if (address, old_port) in self.new_endpoints.get(section, set()) and not self._accepted_endpoint(old_section, endpoint):
                raise looks_old(f"{section} {host}", f"{endpoint} is also {old_section}")

    def see_new_host_key(self, host: str, fingerprint: str) -> None:
        """Raises WrongMachine where the new SSH server shows the host key of the old one."""
        with self._lock:
            pin = self._pins.get("old.ssh", {})
            if pin.get("host_key") != fingerprint or fingerprint in pin.get("shared_host_keys", []) or pin.get("accepted_endpoints"):
                return
            if not self.accept:
                raise looks_old(f"new.ssh {host}", f"it shows the old server's host key {fingerprint}")
            pin.setdefault("shared_host_keys", []).append(fingerprint)
            self._record("old.ssh", "shared_host_key", "", fingerprint)

    def check_host_key(self, section: str, host: str, fingerprint: str) -> None:
        """Raises WrongMachine where the host key is not the one pinned: before the login, so that no password goes to another machine."""
        before = self._pins.get(section, {}).get("host_key")
        if before and before != fingerprint and not self.accept:
            raise looks_new(f"{section} {host}", f"its host key is {fingerprint}, it was {before}")

    def see_host_key(self, section: str, host: str, address: str, fingerprint: str) -> None:
        """Pins the host key at the first good contact; raises WrongMachine where it is another one now."""
        with self._lock:
            self.check_host_key(section, host, fingerprint)
            pin = self._pins.setdefault(section, {})
            before = pin.get("host_key")
            if before and before != fingerprint:
                self._record(section, "host_key", before, fingerprint)
            if before != fingerprint:
                pin["host_key"] = fingerprint
                self._changed()
            self.see_address(section, address)

    def see_address(self, section: str, address: str) -> None:
        """Notes where a section's server was met."""
        with self._lock:
            pin = self._pins.setdefault(section, {})
            if address not in pin.get("addresses", []):
                pin["addresses"] = [*pin.get("addresses", []), address]
                pin.setdefault("since", stamp())
                self._changed()

    def see_mailbox(self, section: str, user: str, uidvalidities: Mapping[str, int]) -> None:
        """Pins an account's UIDVALIDITYs; raises WrongMachine where every one that was known is another now."""
        with self._lock:
            pin = self._pins.setdefault(f"{section} {user}", {})
            before: dict[str, int] = pin.get("uidvalidity", {})
            shared = [name for name in before if name in uidvalidities]
            if shared and all(before[name] != uidvalidities[name] for name in shared):
                if not self.accept:
                    raise looks_new(f"{section} {user}", f"the UIDVALIDITY of every known folder changed ({len(shared)} of {len(shared)})")
                self._record(f"{section} {user}", "uidvalidity", {n: before[n] for n in shared}, {n: uidvalidities[n] for n in shared})
            merged = {**before, **uidvalidities}
            if merged != before:
                pin["uidvalidity"] = merged
                pin.setdefault("since", stamp())
                self._changed()

    def _accepted_endpoint(self, section: str, endpoint: str) -> bool:
        return endpoint in self._pins.get(section, {}).get("accepted_endpoints", [])

    def _record(self, section: str, what: str, before: object, after: object) -> None:
        line = {"type": "identity-accepted", "section": section, "what": what, "before": before, "after": after, "time": stamp()}
        self.accepted.append(line)
        self._pins.setdefault("accepted", []).append(line)
        self._changed()

    @contextmanager
    def together(self) -> Iterator[None]:
        """For hundreds of accounts at once: a durable write of all pins for each of them would take longer than looking at them."""
        self._many = True
        try:
            yield
        finally:
            self._many = False
            with self._lock:
                self._save()

    def _changed(self) -> None:
        self._unsaved = True
        if not self._many:
            self._save()
        else:
            self.keep_up()

    def keep_up(self) -> None:
        """Writes what was seen, within `together`, if it is time: to be called now and then, as the next change may be hours away."""
        with self._lock:
            if time.monotonic() - self._saved > _SAVE_SECONDS:
                self._save()

    def _save(self) -> None:
        if self._unsaved and self.state is not None:
            self.state.write(_STATE, self._pins)
        self._unsaved = False
        self._saved = time.monotonic()
