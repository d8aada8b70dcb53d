"""The filters of a mail account as a small tree: each script a file `NAME.sieve`, and a link `active` to the one that is in force.

ManageSieve tells neither sizes nor times. So a scan fetches every script, which are few and small; reading then costs nothing. What a script's
time is, whoever makes the place decides by path and digest: the vault dates it by the run that first saw these bytes; of a target, which a push
describes in its journal, the time stands for the bytes.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from hostbackup.errors import ConnectionFailed, HostbackupError, LineCut, ProtocolBroken
from hostbackup.model import Claim, Entry, Failure, Kind, Listing, Method, Part, Proof, Read, Sink, Status, Write, Written
from hostbackup.protocols.sieve import Refused, SieveSession

ACTIVE = b"active"
ENDING = b".sieve"
_NAMELESS = b"%"  # stands alone in no other file's name
_LONGEST = 255  # bytes of a file's name
_CUT = 200  # bytes of a longer one that are kept
_MODE = 0o600
_CUTTERS = 3  # scripts of a scan that may cut the line each time they are asked for; then it is the server
_LINE_CUT = "LINE-CUT"  # the code of a refusal that consists in that
_HELD = 32 * 1024 * 1024  # bytes of scripts that a scan keeps for the reading after it
_ESCAPED = re.compile(rb"[%/\x00-\x1f\x7f]|\A\.")
_ESCAPE = re.compile(rb"%([0-9A-F]{2})")

_HINTS = {
    "over-quota": "make room there, or ask the provider to",
    "new": "adapt the script by hand",
    "old": "save this filter by hand, from the provider's webmail, or ask the provider for it",
}

Dated = Callable[[bytes, str], int]  # path and digest, of a link that of its target, to nanoseconds since the epoch
Told = TypeVar("Told")


def file_name(script: bytes) -> bytes:
    """The file of a script: its name with `.sieve`; `%`, `/`, control bytes and a leading dot as `%XX`, no name at all as `%`.

    A name that is too long for a file is cut, with `%~` and a digest of the name behind it.
    """
    name = _escaped(script)
    if len(name) + len(ENDING) <= _LONGEST:
        return name + ENDING
    end = _CUT
    while name[end] & 0xC0 == 0x80 and end > _CUT - 4:  # not within a character
        end -= 1
    return name[:end] + b"%~" + hashlib.sha256(script).hexdigest()[:16].encode() + ENDING


def script_name(path: bytes, names: Mapping[bytes, bytes] | None = None) -> bytes:
    """The inverse of `file_name`. `names`: of files whose names were cut. Raises ValueError where `path` is the file of no script."""
    if names and path in names:
        return names[path]
    stem = path.removesuffix(ENDING)
    name = b"" if stem == _NAMELESS else _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), stem)
    if not path.endswith(ENDING) or _escaped(name) + ENDING != path:
        raise ValueError("not the file of a Sieve script")
    return name


def _escaped(script: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: b"%%%02X" % found[0][0], script) or _NAMELESS


def of_link(target: bytes) -> str:
    """What a link is dated by."""
    return hashlib.sha256(target).hexdigest()


def by_contents(path: bytes, digest: str) -> int:
    """A time that stands for the bytes: two versions of one script differ in it."""
    return int(digest[:12], 16)


class SieveTree:
    """The scripts of one account. `connect` logs in, whenever a line was cut; what it raises ends the place.

    `good`: contents by path; where given, a script is made the active one only if the server has these bytes of it. `names`: of files whose names
    were cut, what the scripts are called; a scan adds those that it meets.
    """

    def __init__(
        self,
        connect: Callable[[], SieveSession],
        *,
        side: str,
        part: Part,
        dated: Dated = by_contents,
        good: Mapping[bytes, str] | None = None,
        names: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self.side = side
        self.part = part
        self.dated = dated
        self.root_entry = Entry(b"", Kind.DIR)
        self._connect = connect
        self._good = good
        self.names = dict(names or {})
        self._session: SieveSession | None = None
        self._line = threading.RLock()  # one may prove while another writes
        self._seen: dict[bytes, bytes] = {}  # by path, since the last scan
        self._not_given: dict[bytes, Refused] = {}  # the same

    # -- the line -----------------------------------------------------------------------------------------------------------------------

    def _ask(self, question: Callable[[SieveSession], Told]) -> Told:
        """Asks; once more, over a new login, where the line was cut or what came was no answer. Every question may be asked twice. Raises Refused."""
        with self._line:
            for again in (True, False):
                session = self._reached()
                try:
                    return question(session)
                except (LineCut, ProtocolBroken):
                    self._forget()
                    if not again:
                        raise
        raise AssertionError("the second cut is raised")

    def _get_all(self, names: Sequence[bytes]) -> Iterator[bytes | Refused | None]:
        """The contents of these scripts; one by one from where the line was cut, should the server not bear to be asked for several at once.

        One that cuts the line each time is no other's trouble, as long as the server still lets us in.
        """
        done = cutters = 0
        with self._line:
            session = self._reached()
            try:
                for told in session.get_all(names):
                    done += 1
                    yield told
            except (LineCut, ProtocolBroken):
                self._forget()
            for name in names[done:]:
                try:
                    yield self._ask(partial(_get_script, name))
                except Refused as refused:
                    yield refused
                except (LineCut, ProtocolBroken) as error:
                    cutters += 1
                    if cutters > _CUTTERS:
                        raise
                    self._reached()
                    yield Refused(_LINE_CUT, f"the line was cut each time it was asked for: {error.reason}")

    def reach(self) -> None:
        """Logs in now rather than when it is needed."""
        with self._line:
            self._reached()

    def _reached(self) -> SieveSession:
        if self._session is None:
            self._session = self._connect()
        return self._session

    def _forget(self) -> None:
        if self._session is not None:
            self._session.drop()
            self._session = None

    def close(self) -> None:
        """Logs out. May be called twice."""
        if self._session is not None:
            self._session.close()
            self._session = None

    # -- scan and read ------------------------------------------------------------------------------------------------------------------

    def scan(self) -> Iterator[Listing[Entry]]:
        """One Listing. A script that the server lists and does not give is in it with size 0, and fails when it is read."""
        self._seen.clear()
        self._not_given.clear()
        try:
            scripts = self._ask(lambda session: session.scripts())
        except Refused as refused:
            yield Listing(b"", (), self._failure(b"", refused))
            return
        named = {self._path(script.name): script.name for script in scripts}  # once each: a server may list one twice
        entries = [self._fetched(path, told) for path, told in zip(named, self._get_all(list(named.values())), strict=True)]
        active = next((self._path(script.name) for script in scripts if script.active), b"")
        if active:
            entries.append(Entry(ACTIVE, Kind.LINK, 0, self.dated(ACTIVE, of_link(active)), target=active))
        yield Listing(b"", sorted(entries, key=lambda entry: entry.path))

    def _path(self, name: bytes) -> bytes:
        path = file_name(name)
        if b"%~" in path:
            self.names[path] = name
        return path

    def _fetched(self, path: bytes, data: bytes | Refused | None) -> Entry:
        if isinstance(data, Refused):
            self._not_given[path] = data
        if data is None or isinstance(data, Refused):
            return Entry(path, Kind.FILE, 0, 0, _MODE)
        if sum(map(len, self._seen.values())) + len(data) <= _HELD:
            self._seen[path] = data
        return self._entry(path, data)

    def _entry(self, path: bytes, data: bytes) -> Entry:
        return Entry(path, Kind.FILE, len(data), self.dated(path, hashlib.sha256(data).hexdigest()), _MODE)

    def read(self, wanted: Iterable[Entry], sink: Sink) -> Iterator[Read[Entry]]:
        """Contents of scripts, as the last scan got them. Failures: "vanished", "refused", "line-cut"."""
        for entry in wanted:
            if entry.path in self._not_given:
                yield Read(entry, entry, failure=self._failure(entry.path, self._not_given[entry.path]))
                continue
            data = self._seen.get(entry.path)
            if data is None:
                try:
                    data = self._get(entry.path)
                except Refused as refused:
                    yield Read(entry, entry, failure=self._failure(entry.path, refused))
                    continue
            if data is None:
                yield Read(entry, entry, failure=self._told(entry.path, "vanished", "it was there when the filters were listed, and is gone"))
                continue
            receiver = sink.open(len(data))
            try:
                receiver.write(data)
            except BaseException:
                receiver.abort()
                raise
            yield Read(entry, self._entry(entry.path, data), *receiver.commit())

    def _get(self, path: bytes) -> bytes | None:
        name = script_name(path, self.names)
        return self._ask(partial(_get_script, name))

    # -- write --------------------------------------------------------------------------------------------------------------------------

    def write(self, items: Iterable[Write[Entry]]) -> Iterator[Written[Entry]]:
        """Puts scripts there, each read back at once, and then makes one the active one. Nothing is deleted.

        A script is replaced only where `expected` still describes the one that is there; another stays active unless it is the expected one.
        Failures: "exists", "changed-since", "over-quota", "refused" with what the server said, "altered", "name-refused"; "damaged" and the like of
        what was to be written.
        """
        links: list[Write[Entry]] = []
        for item in items:
            if item.item.kind is Kind.LINK:
                links.append(item)  # a script must be there before it can be the active one
            else:
                yield self._guarded(item, self._put)
        for link in links:
            yield self._guarded(link, self._activate)

    def _guarded(self, item: Write[Entry], work: Callable[[Write[Entry]], Written[Entry]]) -> Written[Entry]:
        try:
            return work(item)
        except Refused as refused:
            return Written(item, item.item, self._failure(item.item.path, refused))
        except ValueError:
            return self._not(item, "name-refused", "the new server can hold nothing but Sieve scripts here")

    def _put(self, item: Write[Entry]) -> Written[Entry]:
        path = item.item.path
        name = script_name(path, self.names)
        there = self._get(path)
        found = None if there is None else self._entry(path, there)
        if item.open is None:  # its time alone, which the server does not keep
            return Written(item, found or item.item) if found else self._not(item, "vanished", "it is no longer there")
        try:
            with item.open() as stream:
                data = stream.read()
        except ConnectionFailed:
            raise
        except HostbackupError as error:
            return self._not(item, error.code, error.reason, error.hint)
        if found is not None and there == data:
            return Written(item, found)
        if found is not None:
            if not item.replace:
                return self._not(item, "exists", "the new server has got a script of this name meanwhile")
            if item.expected is not None and (found.size, found.mtime_ns) != (item.expected.size, item.expected.mtime_ns):
                return self._not(item, "changed-since", "it was changed on the new server meanwhile")
        self._ask(lambda session: session.put(name, data))
        kept = self._get(path)
        if kept != data:
            how = "only its line ends differ" if kept is not None and _lines(kept) == _lines(data) else "its text differs"
            return self._not(item, "altered", f"the new server keeps it other than it was sent: {how}", "look at it there before relying on it")
        return Written(item, self._entry(path, data))

    def _activate(self, item: Write[Entry]) -> Written[Entry]:
        target = item.item.target
        name = script_name(target, self.names)
        now = self._active()
        if now == target:
            return Written(item, item.item)
        if now and not (item.replace and item.expected is not None and item.expected.target == now):
            return self._not(item, "exists", f"another script is active on the new server: {_show(now)}")
        there = self._get(target)
        if there is None:
            return self._not(
                item, "refused", f"the new server does not have {_show(target)}, so it cannot be made active", "see why it was not written"
            )
        if self._good is not None and hashlib.sha256(there).hexdigest() != self._good.get(target):
            return self._not(item, "conflict", f"the new server has another script as {_show(target)}, which was not made active")
        self._ask(lambda session: session.activate(name))
        return Written(item, item.item)

    def _active(self) -> bytes:
        scripts = self._ask(lambda session: session.scripts())
        return next((self._path(script.name) for script in scripts if script.active), b"")

    # -- prove --------------------------------------------------------------------------------------------------------------------------

    def prove(self, claims: Iterable[Claim[Entry]]) -> Iterator[Proof[Entry]]:
        """Fetches each script once more. As nothing tells when one was changed, other bytes count as changed since."""
        active: bytes | None = None
        for claim in claims:
            try:
                if claim.item.kind is Kind.LINK and active is None:
                    active = self._active()
                yield self._prove(claim, active or b"")
            except Refused as refused:
                yield Proof(claim, Status.FAILED, failure=self._failure(claim.item.path, refused))
            except ValueError:
                yield Proof(claim, Status.MISSING, failure=self._told(claim.item.path, "missing", "it is no Sieve script"))

    def _prove(self, claim: Claim[Entry], active: bytes) -> Proof[Entry]:
        item = claim.item
        if item.kind is Kind.LINK:
            if active == item.target:
                return Proof(claim, Status.VERIFIED, Method.SIEVE_FETCH)
            reason = f"another script is active: {_show(active)}" if active else "no script is active"
            return Proof(claim, Status.CHANGED, Method.SIEVE_FETCH, self._told(item.path, "changed-since", reason))
        data = self._get(item.path)
        if data is None:
            return Proof(claim, Status.MISSING, Method.SIEVE_FETCH, self._told(item.path, "missing", "it is not there"))
        if (hashlib.sha256(data).hexdigest(), len(data)) == (claim.digest, claim.size):
            return Proof(claim, Status.VERIFIED, Method.SIEVE_FETCH)
        return Proof(claim, Status.CHANGED, Method.SIEVE_FETCH, self._told(item.path, "changed-since", "it has other contents now"))

    # -- failures -----------------------------------------------------------------------------------------------------------------------

    def _not(self, item: Write[Entry], code: str, reason: str, hint: str = "") -> Written[Entry]:
        return Written(item, item.item, self._told(item.item.path, code, reason, hint))

    def _failure(self, path: bytes, refused: Refused) -> Failure:
        if refused.code == _LINE_CUT:
            return self._told(path, LineCut.code, refused.text, _HINTS[self.side])
        code = "over-quota" if refused.code.startswith("QUOTA") else "refused"
        hint = _HINTS[code] if code in _HINTS else _HINTS[self.side]
        return self._told(path, code, f"the server refused it: {refused.text}", hint)

    def _told(self, path: bytes, code: str, reason: str, hint: str = "") -> Failure:
        return Failure(self.side, self.part.id, path, code, reason, hint)


def _get_script(name: bytes, session: SieveSession) -> bytes | None:
    return session.get(name)


def _lines(data: bytes) -> list[bytes]:
    return data.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
