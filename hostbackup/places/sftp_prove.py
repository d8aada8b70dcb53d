"""Proving over SFTP that files have the claimed contents: digests computed by the server where it can, else a second read.

What metadata say comes first, for thousands of files at a time; while the server hashes one batch, the next one is looked at. A digest that does
not agree is no proof of damage, since the program that made it may be broken or look at another tree: the file is read once more.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from hostbackup.model import Claim, Entry, Failure, Kind, Method, Proof, Read
from hostbackup.model import Status as Verdict
from hostbackup.places.digests import Reader, Told, local
from hostbackup.places.sftp_check_file import CheckFile
from hostbackup.places.sftp_read import FileRead
from hostbackup.places.sftp_tree import Lines, Tree, proper, resolve_root
from hostbackup.places.shell import PARALLEL, Commands, Shell, Tool
from hostbackup.protocols.sftp.client import Connection, Steps, ask
from hostbackup.protocols.sftp.packets import Attrs, Code, Flag, Status, Type, on_handle, on_path, open_file
from hostbackup.protocols.sftp.packets import read as read_bytes
from hostbackup.protocols.sftp.pump import Work, works

BATCH = 5000  # files to one remote command
BATCH_BYTES = 256 << 20  # as many as let a command that is silent for good be noticed in two minutes

_Proof = Proof[Entry]
_Claim = Claim[Entry]
_Left = Generator[_Proof, None, list[_Claim]]  # gives proofs, returns the claims that are left to other means


class HashSink:
    """Takes bytes for their digests only."""

    def open(self, size_hint: int = 0) -> _Hasher:
        return _Hasher()


class _Hasher:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        self._hash.update(data)
        self._size += len(data)
        return None

    def commit(self) -> tuple[str, int]:
        return self._hash.hexdigest(), self._size

    def abort(self) -> None:
        pass


@dataclass(slots=True)
class Means:
    """How one server's files can be proven. Made once a tree: what the server can do is found out once.

    `reader` gives the vault's bytes of a SHA-256. With `weak`, digests below SHA-256 count too where the server makes no better ones
    (Method.SERVER_WEAK), and a digest that differs is believed at once: for questions to which a wrong answer costs no more than a transfer,
    such as which files to fetch again. Without it, they are not even asked for: a second read proves more.
    """

    shell: Shell
    check_file: CheckFile
    reader: Reader | None = None
    weak: bool = False
    reads_only: bool = False  # nothing better than a second read was found here

    @classmethod
    def of(cls, lines: Lines, tree: Tree, reader: Reader | None, weak: bool) -> Means:
        weak = weak and reader is not None
        return cls(Shell(lines.session, lines.limits.stall), CheckFile(lines, tree, weak=weak, blocks=reader is not None), reader, weak)


class Prover:
    """One call of prove. `second` logs in for second reads: `lines` itself only where nothing was read or written over them before."""

    def __init__(self, lines: Lines, second: Lines, tree: Tree, means: Means) -> None:
        self._lines = lines
        self._second = second
        self._tree = tree
        self._means = means

    def prove(self, claims: Iterable[_Claim]) -> Iterator[_Proof]:
        """Exactly one proof a claim. Raises PlaceMissing, ConnectionFailed."""
        self._lines.one(resolve_root(self._tree))
        hashed: deque[list[_Claim]] = deque()
        try:
            with contextlib.closing(Commands(self._means.shell)) as commands:
                tool: Tool | None = None
                for batch in _batches(claims):
                    files = yield from self._looked_at(batch)
                    tool = self._means.shell.tool(weak=self._means.weak) if files else tool
                    if tool is None or tool.algorithm != "sha256":
                        yield from self._without_shell(files, tool)
                        continue
                    commands.begin(tool, {self._tree.full(claim.item.path): claim.item.size for claim in files})
                    hashed.append(files)
                    if len(hashed) > PARALLEL:
                        yield from self._by_shell(hashed.popleft(), tool, commands)
                while hashed and tool is not None:
                    yield from self._by_shell(hashed.popleft(), tool, commands)
        finally:
            if self._second is not self._lines:
                self._second.close()

    def _looked_at(self, batch: Sequence[_Claim]) -> _Left:
        """Proves what metadata can prove, or disprove."""
        files: list[_Claim] = []
        if self._means.reads_only:  # which tells the same of a file
            files = [claim for claim in batch if claim.item.kind is Kind.FILE]
            batch = [claim for claim in batch if claim.item.kind is not Kind.FILE]
        for proof in self._compare(batch):
            if proof.status is Verdict.UNVERIFIED and proof.claim.item.kind is Kind.FILE and proof.failure is None:
                files.append(proof.claim)
            else:
                yield proof
        return files

    # -- metadata ---------------------------------------------------------------------------------------------------------------------

    def _compare(self, claims: Iterable[_Claim]) -> Iterator[_Proof]:
        """What metadata say, freshly taken: UNVERIFIED without a failure for a file that looks as claimed."""
        yield from self._lines.carry_out(works(functools.partial(self._look, claim) for claim in claims))

    def _look(self, claim: _Claim) -> Steps[_Proof]:
        said = claim.item
        if said.path and not proper(said.path):
            return Proof(claim, Verdict.FAILED, failure=self._tree.tell(said.path, "unsafe-name", "its name could lead out of the folder"))
        path = self._tree.full(said.path)
        if said.kind is Kind.LINK:
            there, names = yield from ask(on_path(Type.LSTAT, path), on_path(Type.READLINK, path))
        else:
            (there,), names = (yield from ask(on_path(Type.LSTAT if said.path else Type.STAT, path))), None
        if not isinstance(there, Attrs):
            return self._unproven(claim, self._refused(said.path, there))
        if there.kind is not said.kind:
            return self._moved_on(claim)
        if said.kind is Kind.FILE:
            return Proof(claim, Verdict.UNVERIFIED) if _as_claimed(claim, there) else self._moved_on(claim)
        if said.kind is Kind.LINK and not (isinstance(names, list) and len(names) == 1 and self._tree.says(said.path, names[0].name, said.target)):
            return self._moved_on(claim)
        return Proof(claim, Verdict.VERIFIED, Method.SFTP_SECOND_READ)

    def _refused(self, path: bytes, value: object) -> Failure:
        status = value if isinstance(value, Status) else Status(Code.FAILURE, b"an answer of the wrong kind")
        if status.code == Code.NO_SUCH_FILE:
            return self._tree.tell(path, "missing", "it is not there")
        return self._tree.refused(path, status)

    def _moved_on(self, claim: _Claim, method: Method = Method.NONE) -> _Proof:
        return Proof(claim, Verdict.CHANGED, method, self._tree.tell(claim.item.path, "changed-since", "it was changed since it was described"))

    def _unproven(self, claim: _Claim, failure: Failure, method: Method = Method.NONE) -> _Proof:
        if failure.code in ("missing", "vanished"):
            return Proof(claim, Verdict.MISSING, method, self._tree.tell(claim.item.path, "missing", "it is not there"))
        if failure.code in ("changing", "changed-kind"):
            return self._moved_on(claim, method)
        return Proof(claim, Verdict.FAILED, method, failure)

    def _different(self, claim: _Claim, method: Method) -> _Proof:
        reason, hint = "its bytes are not those on record, though size and time agree", "look at both before trusting either"
        return Proof(claim, Verdict.DIFFERENT, method, self._tree.tell(claim.item.path, "different", reason, hint))

    # -- the server's digests ---------------------------------------------------------------------------------------------------------

    def _by_shell(self, files: list[_Claim], tool: Tool, commands: Commands) -> Iterator[_Proof]:
        """A batch whose command was begun, and other means for what it tells nothing of."""
        left = yield from self._told(files, tool, commands)
        yield from self._without_shell(left, None)

    def _without_shell(self, files: list[_Claim], weak_tool: Tool | None) -> Iterator[_Proof]:
        """The SFTP server's digests, then weak ones of the shell, then a second read."""
        files = yield from self._judged(self._means.check_file.digests(files))
        if files and weak_tool is not None:
            with contextlib.closing(Commands(self._means.shell)) as commands:
                commands.begin(weak_tool, {self._tree.full(claim.item.path): claim.item.size for claim in files})
                files = yield from self._told(files, weak_tool, commands)
        self._means.reads_only = bool(files) and self._means.check_file.known is False and not self._means.shell.tool(weak=self._means.weak)
        yield from self._by_reading(files)

    def _told(self, files: list[_Claim], tool: Tool, commands: Commands) -> _Left:
        found = commands.next()
        digests = ((claim, found.get(self._tree.full(claim.item.path))) for claim in files)
        return (yield from self._judged(Told(claim, tool.algorithm, (digest,) if digest else ()) for claim, digest in digests))

    def _judged(self, answers: Iterable[Told]) -> _Left:
        left, doubtful = [], []
        for told in answers:
            expected = self._expected(told) if told.digests else None
            if expected is None:
                left.append(told.claim)
            elif told.digests == expected and told.claim.size == told.claim.item.size:
                yield Proof(told.claim, Verdict.VERIFIED, _method(told))
            elif self._means.weak:
                doubtful.append(told)
            else:
                left.append(told.claim)
        methods = {id(told.claim): _method(told) for told in doubtful}
        for proof in self._compare(told.claim for told in doubtful):
            yield self._different(proof.claim, methods[id(proof.claim)]) if proof.failure is None else proof
        return left

    def _expected(self, told: Told) -> tuple[str, ...] | None:
        """What the digests must be; None where the vault cannot tell."""
        if told.algorithm == "sha256" and not told.block:
            return (told.claim.digest,)
        return local(self._means.reader, told.claim.digest, told.algorithm, block=told.block) if self._means.reader else None

    # -- a second read ----------------------------------------------------------------------------------------------------------------

    def _by_reading(self, files: Sequence[_Claim]) -> Iterator[_Proof]:
        """Reads once more, over a login of its own, so that nothing kept from the first reading can agree with itself."""
        if not files:
            return
        source = iter(files)

        def next_work() -> Work[_Proof] | None:
            claim = next(source, None)
            return None if claim is None else self._second_read(claim)

        yield from self._second.carry_out(next_work)

    def _second_read(self, claim: _Claim) -> Work[_Proof]:
        read = FileRead(self._tree, claim.item, HashSink())

        def begin(connection: Connection) -> Steps[_Proof]:
            return self._read(claim, connection, read)

        return Work(begin, read.work.weight)

    def _read(self, claim: _Claim, connection: Connection, read: FileRead) -> Steps[_Proof]:
        # What is begun again may have silenced the server, as a fifo does: `read` counts that, and goes more carefully then.
        first, carefully = not read.begun, read.begin(connection)
        if first and claim.size < connection.limits.read and (yield from self._at_once(claim)):
            return Proof(claim, Verdict.VERIFIED, Method.SFTP_SECOND_READ)
        return self._judge(claim, (yield from carefully))

    def _at_once(self, claim: _Claim) -> Steps[bool]:
        """Whether a small file shows in two round trips that it is as claimed. Where it does not, nothing is said against it yet.

        No look comes after the bytes: where they are those of the claim, they stood still.
        """
        path = claim.item.path
        if not proper(path) or claim.item.kind is not Kind.FILE:
            return False
        full, size = self._tree.full(path), claim.size
        there, handle = yield from ask(on_path(Type.LSTAT, full), open_file(full, Flag.READ))
        if not isinstance(handle, bytes):
            return False
        # One byte more than there should be shows what was appended.
        (data,) = yield from ask(read_bytes(handle, 0, size + 1), also=on_handle(Type.CLOSE, handle))
        if not isinstance(there, Attrs) or not _as_claimed(claim, there):
            return False
        if isinstance(data, Status) and data.code == Code.EOF:
            data = b""
        return isinstance(data, bytes | memoryview) and len(data) == size and hashlib.sha256(data).hexdigest() == claim.digest

    def _judge(self, claim: _Claim, read: Read[Entry]) -> _Proof:
        method = Method.SFTP_SECOND_READ
        if read.failure is not None:
            return self._unproven(claim, read.failure, method)
        if (read.item.size, read.item.mtime_ns // 1_000_000_000) != (claim.item.size, claim.item.mtime_ns // 1_000_000_000):
            return self._moved_on(claim, method)
        if (read.digest, read.size) == (claim.digest, claim.size):
            return Proof(claim, Verdict.VERIFIED, method)
        return self._different(claim, method)


def _as_claimed(claim: _Claim, there: Attrs) -> bool:
    """Whether attributes are those of the file that the claim is about, as far as version 3 tells."""
    said = claim.item
    return there.kind is Kind.FILE and there.size == said.size and there.mtime == said.mtime_ns // 1_000_000_000


def _method(told: Told) -> Method:
    return Method.SERVER_SHA256 if told.algorithm == "sha256" else Method.SERVER_WEAK


def _batches(claims: Iterable[_Claim]) -> Iterator[list[_Claim]]:
    source = iter(claims)
    for first in source:
        batch, size = [first], first.size
        for claim in itertools.islice(source, BATCH - 1):
            batch.append(claim)
            size += claim.size
            if size >= BATCH_BYTES:
                break
        yield batch
