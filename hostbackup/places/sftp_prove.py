"""Proving over SFTP that files have the claimed contents: digests computed by the server where it has a shell, else a second read."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import BinaryIO

from hostbackup.model import Claim, Entry, Failure, Kind, Method, Proof, Read
from hostbackup.model import Status as Verdict
from hostbackup.places import shell
from hostbackup.places.sftp_read import FileRead
from hostbackup.places.sftp_tree import Lines, Tree, proper, resolve_root
from hostbackup.protocols.sftp.client import Steps, ask
from hostbackup.protocols.sftp.packets import Attrs, Code, Status, Type, on_path
from hostbackup.protocols.sftp.pump import Work, works

BATCH = 5000  # files to one remote command
BATCH_BYTES = 4 << 30

_Proof = Proof[Entry]
_Claim = Claim[Entry]


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


class Prover:
    """One call of prove. `second` logs in for second reads; `reader` gives the local bytes of a digest, for servers that know weak digests only."""

    def __init__(self, lines: Lines, second: Lines, tree: Tree, reader: Callable[[str], BinaryIO] | None) -> None:
        self._lines = lines
        self._second = second
        self._tree = tree
        self._reader = reader
        self._tool: shell.Tool | None = None
        self._looked_for_tool = False

    def prove(self, claims: Iterable[_Claim]) -> Iterator[_Proof]:
        """Exactly one proof a claim."""
        self._lines.one(resolve_root(self._tree))
        try:
            for batch in _batches(claims):
                yield from self._batch(batch)
        finally:
            self._second.close()

    def _batch(self, batch: Sequence[_Claim]) -> Iterator[_Proof]:
        files: list[_Claim] = []
        for proof in self._compare(batch):
            if proof.status is Verdict.UNVERIFIED and proof.claim.item.kind is Kind.FILE and proof.failure is None:
                files.append(proof.claim)
            else:
                yield proof
        files = yield from self._by_server(files)
        yield from self._by_reading(files)

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
            agree = there.size == said.size and there.mtime == said.mtime_ns // 1_000_000_000
            return Proof(claim, Verdict.UNVERIFIED) if agree else self._moved_on(claim)
        if said.kind is Kind.LINK and not (isinstance(names, list) and len(names) == 1 and names[0].name == said.target):
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

    def _by_server(self, files: list[_Claim]) -> Generator[_Proof, None, list[_Claim]]:
        """Proves what the server's own digests prove; returns the claims that they say nothing of."""
        if not files or not self._find_tool():
            return files
        tool = self._tool
        assert tool is not None
        told = shell.digests(self._lines.session(), tool, self._tree.root, {claim.item.path: claim.item.size for claim in files})
        left, doubtful = [], []
        method = Method.SERVER_SHA256 if tool.algorithm == "sha256" else Method.SERVER_WEAK
        for claim in files:
            digest = told.get(claim.item.path)
            if digest is None:
                left.append(claim)
            elif digest == self._expected(claim, tool.algorithm) and claim.size == claim.item.size:
                yield Proof(claim, Verdict.VERIFIED, method)
            else:
                doubtful.append(claim)
        for proof in self._compare(doubtful):
            yield self._different(proof.claim, method) if proof.failure is None else proof
        return left

    def _find_tool(self) -> bool:
        if not self._looked_for_tool:
            self._tool = shell.find_tool(self._lines.session(), weak=self._reader is not None)
            self._looked_for_tool = True
        return self._tool is not None

    def _expected(self, claim: _Claim, algorithm: str) -> str:
        if algorithm == "sha256":
            return claim.digest
        assert self._reader is not None
        seen = hashlib.new(algorithm, usedforsecurity=False)
        with self._reader(claim.digest) as stream:
            while data := stream.read(1 << 20):
                seen.update(data)
        return seen.hexdigest()

    # -- a second read ----------------------------------------------------------------------------------------------------------------

    def _by_reading(self, files: Sequence[_Claim]) -> Iterator[_Proof]:
        """Reads once more, over a login of its own, so that nothing kept from the first reading can agree with itself."""
        if not files:
            return
        claims = {id(claim.item): claim for claim in files}
        sink, source = HashSink(), iter(files)

        def next_work() -> Work[Read[Entry]] | None:
            claim = next(source, None)
            return None if claim is None else FileRead(self._tree, claim.item, sink).work

        for read in self._second.carry_out(next_work):
            yield self._judge(claims[id(read.asked)], read)

    def _judge(self, claim: _Claim, read: Read[Entry]) -> _Proof:
        method = Method.SFTP_SECOND_READ
        if read.failure is not None:
            return self._unproven(claim, read.failure, method)
        if (read.item.size, read.item.mtime_ns // 1_000_000_000) != (claim.item.size, claim.item.mtime_ns // 1_000_000_000):
            return self._moved_on(claim, method)
        if (read.digest, read.size) == (claim.digest, claim.size):
            return Proof(claim, Verdict.VERIFIED, method)
        return self._different(claim, method)


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
